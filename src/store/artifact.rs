//! A finished stage's folder: how it is verified and read. Main type: [`Artifact`].

use std::collections::BTreeMap;
use std::io;

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;
use serde::{Deserialize, Serialize};

use super::StageKey;
use crate::digest::{Digest, digest_file, digest_json, list_tree};

pub(super) const KEY: &str = "key.json";
pub(super) const MANIFEST: &str = "manifest.json";
pub(super) const OUTPUT: &str = "output";
pub(super) const NOTES: &str = "notes";
pub(super) const LAST_USED: &str = "last-used";
const MANIFEST_SCHEMA: u32 = 1;

/// `manifest.json`: what the output folder holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    schema: u32,
    files: BTreeMap<Utf8PathBuf, OutputFile>,
}

/// An output file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputFile {
    /// Bytes.
    pub size: u64,
    /// Digest of its content.
    pub sha256: Digest,
}

/// Digest of the outputs' names, sizes and contents: what the keys of later stages hold.
#[must_use]
pub fn output_digest(files: &BTreeMap<Utf8PathBuf, OutputFile>) -> Digest {
    digest_json(files)
}

impl Manifest {
    /// Describes the files with these paths, relative to `output`.
    pub(super) fn of(output: &Utf8Path, names: impl IntoIterator<Item = Utf8PathBuf>) -> io::Result<Self> {
        let describe = |name: Utf8PathBuf| {
            let (sha256, size) = digest_file(output.join(&name))?;
            Ok((name, OutputFile { size, sha256 }))
        };
        let files = names.into_iter().map(describe).collect::<io::Result<_>>()?;
        Ok(Self { schema: MANIFEST_SCHEMA, files })
    }

    /// Names, sizes and contents of the outputs; nothing of where, when or by whom.
    fn output_digest(&self) -> Digest {
        output_digest(&self.files)
    }
}

/// A finished stage. Its outputs are verified when it is found, and must not be written to.
#[derive(Debug, Clone)]
pub struct Artifact {
    folder: Utf8PathBuf,
    output_digest: Digest,
}

impl Artifact {
    /// Reads and verifies the artifact of `key` in `folder`; the error says what is damaged.
    pub(super) fn verify(folder: &Utf8Path, key: &StageKey) -> Result<Self, String> {
        let unreadable = |error: io::Error| error.to_string();
        let manifest = read_manifest(folder, key)?;
        for (name, expected) in &manifest.files {
            let path = folder.join(OUTPUT).join(name);
            let size = fs::metadata(&path).map_err(unreadable)?.len();
            if size != expected.size {
                return Err(format!("{name} has {size} bytes instead of {}", expected.size));
            }
            if digest_file(&path).map_err(unreadable)?.0 != expected.sha256 {
                return Err(format!("{name} has another content than when it was sealed"));
            }
        }
        Ok(Self::sealed(folder.to_owned(), &manifest))
    }

    /// The artifact of `key` in `folder` as its manifest has it, unverified: what is there, and no more.
    pub(super) fn peek(folder: &Utf8Path, key: &StageKey) -> Option<Self> {
        let manifest = read_manifest(folder, key).ok()?;
        Some(Self::sealed(folder.to_owned(), &manifest))
    }

    /// An artifact whose manifest was just made or verified.
    pub(super) fn sealed(folder: Utf8PathBuf, manifest: &Manifest) -> Self {
        Self { folder, output_digest: manifest.output_digest() }
    }

    /// Path of an output file by its name in the draft.
    #[must_use]
    pub fn path(&self, name: &str) -> Utf8PathBuf {
        self.folder.join(OUTPUT).join(name)
    }

    /// Path of a note by its name in the draft; notes are not verified and may be missing.
    #[must_use]
    pub fn note_path(&self, name: &str) -> Utf8PathBuf {
        self.folder.join(NOTES).join(name)
    }

    /// What is in it, by name.
    ///
    /// # Errors
    /// When its manifest cannot be read.
    pub fn files(&self) -> io::Result<BTreeMap<Utf8PathBuf, OutputFile>> {
        let manifest: Manifest = serde_json::from_slice(&fs::read(self.folder.join(MANIFEST))?)?;
        Ok(manifest.files)
    }

    /// The artifact's folder.
    #[must_use]
    pub fn folder(&self) -> &Utf8Path {
        &self.folder
    }

    /// Digest of the key that it was found by: its folder's name.
    #[must_use]
    pub fn key(&self) -> Option<Digest> {
        self.folder.file_name()?.parse().ok()
    }

    /// Copies it into a folder of its own below another one, named by its key, without logs.
    ///
    /// # Errors
    /// When it cannot be copied.
    pub fn export(&self, below: &Utf8Path) -> io::Result<()> {
        let name = self.folder.file_name().unwrap_or_default();
        let place = below.join(name);
        let output = self.folder.join(OUTPUT);
        for (name, kind) in list_tree(&output)? {
            let copy = place.join(OUTPUT).join(&name);
            fs::create_dir_all(copy.parent().unwrap_or(&place))?;
            if kind.is_file() {
                fs::copy(output.join(&name), copy)?;
            }
        }
        for file in [KEY, MANIFEST] {
            fs::copy(self.folder.join(file), place.join(file))?;
        }
        Ok(())
    }

    /// Reads and verifies what was exported with this key; the error says what is damaged.
    ///
    /// # Errors
    /// When it is not whole.
    pub fn open_exported(folder: &Utf8Path, key: Digest) -> Result<Self, String> {
        let text = fs::read(folder.join(KEY)).map_err(|error| error.to_string())?;
        let known: StageKey =
            serde_json::from_slice(&text).map_err(|error| format!("{KEY} is malformed: {error}"))?;
        if known.digest() != key {
            return Err(format!("{KEY} is not the key that names the folder"));
        }
        Self::verify(folder, &known)
    }

    /// Digest of the outputs' names and contents: what the keys of later stages hold.
    #[must_use]
    pub fn output_digest(&self) -> Digest {
        self.output_digest
    }
}

/// Reads the manifest of what should be the artifact of `key`; the error says what is damaged.
fn read_manifest(folder: &Utf8Path, key: &StageKey) -> Result<Manifest, String> {
    let unreadable = |error: io::Error| error.to_string();
    if fs::read(folder.join(KEY)).map_err(unreadable)? != key.to_canonical_json() {
        return Err(format!("{KEY} is not the key that names the folder"));
    }
    let manifest = fs::read(folder.join(MANIFEST)).map_err(unreadable)?;
    let manifest: Manifest =
        serde_json::from_slice(&manifest).map_err(|error| format!("{MANIFEST} is malformed: {error}"))?;
    if manifest.schema != MANIFEST_SCHEMA {
        return Err(format!("{MANIFEST} has schema {} instead of {MANIFEST_SCHEMA}", manifest.schema));
    }
    Ok(manifest)
}
