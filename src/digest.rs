//! SHA-256 digests: of bytes, of streams while they pass, of folders, and of values as canonical JSON.
//!
//! Owns what "equal content" means everywhere in the crate; leaves to others what a digest is used for.
//! Main type: [`Digest`].

use std::fmt;
use std::fs::FileType;
use std::io::{self, Read, Write};
use std::str::FromStr;

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// A SHA-256 digest, written as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(extend("pattern" = "^[0-9a-f]{64}$"))]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest itself.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first 12 hexadecimal digits: enough to tell artifacts apart in a message or a folder's name.
    #[must_use]
    pub fn short(&self) -> String {
        let mut text = self.to_string();
        text.truncate(12);
        text
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Digest({self})")
    }
}

/// A text that should have been 64 lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a SHA-256 digest (64 lower-case hexadecimal digits)")]
pub struct NotADigest(pub String);

impl FromStr for Digest {
    type Err = NotADigest;

    fn from_str(text: &str) -> Result<Self, NotADigest> {
        let nibble = |digit: u8| match digit {
            b'0'..=b'9' => Some(digit - b'0'),
            b'a'..=b'f' => Some(digit - b'a' + 10),
            _ => None,
        };
        let parse = || {
            let (pairs, rest) = text.as_bytes().as_chunks::<2>();
            let bytes: Option<Vec<u8>> =
                pairs.iter().map(|[high, low]| Some(nibble(*high)? << 4 | nibble(*low)?)).collect();
            if rest.is_empty() { bytes?.try_into().ok() } else { None }
        };
        parse().map(Self).ok_or_else(|| NotADigest(text.to_owned()))
    }
}

impl TryFrom<String> for Digest {
    type Error = NotADigest;

    fn try_from(text: String) -> Result<Self, NotADigest> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

/// Digest of bytes in memory.
#[must_use]
pub fn digest_bytes(bytes: &[u8]) -> Digest {
    Digest(Sha256::digest(bytes).into())
}

/// Digest and size in bytes of a file's content, read once in blocks.
///
/// # Errors
/// When the file cannot be read; the message names it.
pub fn digest_file(path: impl AsRef<std::path::Path>) -> io::Result<(Digest, u64)> {
    let mut reader = DigestReader::new(fs::File::open(path.as_ref())?);
    io::copy(&mut reader, &mut io::sink())?;
    Ok(reader.finish())
}

/// Digest of a value's [`canonical_json`].
#[must_use]
pub fn digest_json(value: &impl Serialize) -> Digest {
    digest_bytes(&canonical_json(value))
}

/// The one JSON text of a value: object keys sorted by their UTF-8 bytes, no insignificant white space, integers
/// in full, floats as the shortest text that reads back to the same bits.
///
/// A float that is not finite becomes `null`, as in all JSON: keep them out of what is digested.
///
/// # Panics
/// When the value has no JSON form (a map whose keys are not texts, or a failing `Serialize`): a defect of the type.
#[must_use]
pub fn canonical_json(value: &impl Serialize) -> Vec<u8> {
    let mut value = serde_json::to_value(value).expect("types that are digested have a JSON form");
    value.sort_all_objects();
    serde_json::to_vec(&value).expect("a JSON value can be written to memory")
}

/// A reader that digests what passes through it.
#[derive(Debug)]
pub struct DigestReader<R> {
    inner: R,
    state: Sha256,
    bytes: u64,
}

impl<R: Read> DigestReader<R> {
    /// Digests everything that will be read from `inner`.
    pub fn new(inner: R) -> Self {
        Self { inner, state: Sha256::new(), bytes: 0 }
    }

    /// Digest and number of the bytes read so far; what `inner` still holds is not read.
    pub fn finish(self) -> (Digest, u64) {
        (Digest(self.state.finalize().into()), self.bytes)
    }
}

impl<R: Read> Read for DigestReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.state.update(&buffer[..count]);
        self.bytes += count as u64;
        Ok(count)
    }
}

/// A writer that digests what passes through it.
#[derive(Debug)]
pub struct DigestWriter<W> {
    inner: W,
    state: Sha256,
    bytes: u64,
}

impl<W: Write> DigestWriter<W> {
    /// Digests everything that will be written to `inner`.
    pub fn new(inner: W) -> Self {
        Self { inner, state: Sha256::new(), bytes: 0 }
    }

    /// Digests what was written to `inner` before, and everything that will be.
    ///
    /// # Errors
    /// When what was written cannot be read.
    pub fn resume(inner: W, written: impl Read) -> io::Result<Self> {
        let mut reader = DigestReader::new(written);
        io::copy(&mut reader, &mut io::sink())?;
        Ok(Self { inner, state: reader.state, bytes: reader.bytes })
    }

    /// How many bytes are digested so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Hands `inner` back, unflushed, with the digest and number of the bytes that it accepted.
    pub fn finish(self) -> (W, Digest, u64) {
        (self.inner, Digest(self.state.finalize().into()), self.bytes)
    }
}

impl<W: Write> Write for DigestWriter<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(buffer)?;
        self.state.update(&buffer[..count]);
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Why a folder has no digest.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// A file or folder could not be read, or has a name that is not UTF-8.
    #[error("read the folder {path} to take its digest: {source}")]
    Read {
        /// The folder that was to be digested.
        path: Utf8PathBuf,
        /// What went wrong, with the file's name.
        source: io::Error,
    },
    /// A link points nowhere or out of the folder, so the folder alone does not determine the content.
    #[error("take the digest of {root}: the link {link} leads out of it, or nowhere")]
    LinkLeadsOut {
        /// The folder that was to be digested.
        root: Utf8PathBuf,
        /// The link.
        link: Utf8PathBuf,
    },
    /// A socket, device or pipe.
    #[error("take the digest of {root}: {path} is neither a file, a folder nor a link")]
    Special {
        /// The folder that was to be digested.
        root: Utf8PathBuf,
        /// The entry.
        path: Utf8PathBuf,
    },
}

impl TreeError {
    /// What to do next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Read { .. } => None,
            Self::LinkLeadsOut { root, .. } => {
                Some(format!("name a folder that holds the files themselves; `cp -rL {root} COPY` makes one"))
            }
            Self::Special { path, .. } => Some(format!("remove {path}, or name a folder without it")),
        }
    }
}

/// One line of what a tree's digest is taken of.
#[derive(Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum TreeEntry {
    File { path: Utf8PathBuf, executable: bool, size: u64, sha256: Digest },
    Link { path: Utf8PathBuf, target: Utf8PathBuf },
}

/// Digest of everything under a folder: the canonical JSON of its entries sorted by relative path, each file with
/// path, size, content digest and whether its owner may execute it, each link with its path and target.
///
/// As in git, empty folders, times, owners and other permissions do not count.
///
/// # Errors
/// When something cannot be read, a link leads out of the folder, or an entry is neither file, folder nor link.
pub fn digest_tree(root: &Utf8Path) -> Result<Digest, TreeError> {
    let unreadable = |source| TreeError::Read { path: root.to_owned(), source };
    let canonical_root = root.canonicalize_utf8().map_err(unreadable)?;
    let mut entries = Vec::new();
    for (relative, kind) in list_tree(root).map_err(unreadable)? {
        let path = root.join(&relative);
        if kind.is_file() {
            let executable = is_executable(&path).map_err(unreadable)?;
            let (sha256, size) = digest_file(&path).map_err(unreadable)?;
            entries.push(TreeEntry::File { path: relative, executable, size, sha256 });
        } else if kind.is_symlink() {
            let target = path.read_link_utf8().map_err(unreadable)?;
            let inside = path.canonicalize_utf8().is_ok_and(|resolved| resolved.starts_with(&canonical_root));
            if target.is_absolute() || !inside {
                return Err(TreeError::LinkLeadsOut { root: root.to_owned(), link: path });
            }
            entries.push(TreeEntry::Link { path: relative, target });
        } else if !kind.is_dir() {
            return Err(TreeError::Special { root: root.to_owned(), path });
        }
    }
    Ok(digest_json(&entries))
}

/// Everything under a folder, folders too, with paths relative to it, sorted by their UTF-8 bytes. Links are not followed.
pub(crate) fn list_tree(root: &Utf8Path) -> io::Result<Vec<(Utf8PathBuf, FileType)>> {
    let mut found = Vec::new();
    let mut folders = vec![Utf8PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in root.join(&folder).read_dir_utf8()? {
            let entry = entry?;
            let (relative, kind) = (folder.join(entry.file_name()), entry.file_type()?);
            if kind.is_dir() {
                folders.push(relative.clone());
            }
            found.push((relative, kind));
        }
    }
    found.sort_by(|(left, _), (right, _)| left.as_str().cmp(right.as_str()));
    Ok(found)
}

fn is_executable(path: &Utf8Path) -> io::Result<bool> {
    use std::os::unix::fs::PermissionsExt;
    Ok(fs::metadata(path)?.permissions().mode() & 0o100 != 0)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use proptest::prelude::*;

    use super::*;

    fn folder_with(files: &[(&str, &str)]) -> (tempfile::TempDir, Utf8PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let root = Utf8PathBuf::from_path_buf(folder.path().to_owned()).unwrap();
        for (name, content) in files {
            fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
            fs::write(root.join(name), content).unwrap();
        }
        (folder, root)
    }

    #[test]
    fn digests_are_those_of_the_published_vectors() {
        // FIPS 180-2, appendix B.1, and the well-known digest of nothing.
        assert_eq!(
            digest_bytes(b"abc").to_string(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(
            digest_bytes(b"").to_string(),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        assert_eq!(digest_bytes(b"abc").short(), "ba7816bf8f01");
    }

    #[test]
    fn a_text_of_another_length_or_alphabet_is_not_a_digest() {
        let good = digest_bytes(b"abc").to_string();
        for bad in
            [&good[..62], &good[..63], &good.to_uppercase(), &format!("{good}00"), &good.replace('b', "g")]
        {
            assert_eq!(bad.parse::<Digest>(), Err(NotADigest(bad.to_owned())));
        }
    }

    #[test]
    fn canonical_json_sorts_keys_and_keeps_numbers_exact() {
        let value = serde_json::json!({"b": [1, {"d": 0.1, "c": u64::MAX}], "a": "é\n", "A": i64::MIN});
        assert_eq!(
            String::from_utf8(canonical_json(&value)).unwrap(),
            r#"{"A":-9223372036854775808,"a":"é\n","b":[1,{"c":18446744073709551615,"d":0.1}]}"#
        );
    }

    #[test]
    fn a_trees_digest_depends_on_names_contents_links_and_executability_alone() {
        let (_keep, root) = folder_with(&[("a/one", "1"), ("two", "2")]);
        symlink("a/one", root.join("link")).unwrap();
        let before = digest_tree(&root).unwrap();

        let (_keep, copy) = folder_with(&[("two", "2"), ("a/one", "1")]);
        symlink("a/one", copy.join("link")).unwrap();
        fs::create_dir(copy.join("empty")).unwrap();
        assert_eq!(digest_tree(&copy).unwrap(), before);

        fs::set_permissions(copy.join("two"), std::fs::Permissions::from_mode(0o755)).unwrap();
        let executable = digest_tree(&copy).unwrap();
        fs::remove_file(copy.join("link")).unwrap();
        let unlinked = digest_tree(&copy).unwrap();
        fs::write(copy.join("two"), "3").unwrap();
        let rewritten = digest_tree(&copy).unwrap();
        fs::rename(copy.join("two"), copy.join("three")).unwrap();
        let renamed = digest_tree(&copy).unwrap();
        let all = std::collections::BTreeSet::from([before, executable, unlinked, rewritten, renamed]);
        assert_eq!(all.len(), 5);
    }

    #[test]
    fn a_link_out_of_the_tree_is_refused_with_a_way_out() {
        let (_keep, outside) = folder_with(&[("blob", "weights")]);
        for target in [outside.join("blob"), Utf8PathBuf::from(".."), Utf8PathBuf::from("missing")] {
            let (_keep, root) = folder_with(&[]);
            symlink(&target, root.join("link")).unwrap();
            let error = digest_tree(&root).unwrap_err();
            assert!(matches!(&error, TreeError::LinkLeadsOut { link, .. } if *link == root.join("link")));
            assert!(error.hint().unwrap().contains("cp -rL"));
        }
    }

    proptest! {
        #[test]
        fn streaming_in_any_pieces_gives_the_digest_of_the_whole(
            bytes in proptest::collection::vec(any::<u8>(), 0..500), piece in 1_usize..64,
        ) {
            let mut reader = DigestReader::new(bytes.as_slice());
            let mut writer = DigestWriter::new(Vec::new());
            let mut buffer = vec![0; piece];
            loop {
                let count = reader.read(&mut buffer).unwrap();
                if count == 0 { break }
                writer.write_all(&buffer[..count]).unwrap();
            }
            let (copy, written, size) = writer.finish();
            prop_assert_eq!(&copy, &bytes);
            prop_assert_eq!((written, size), (digest_bytes(&bytes), bytes.len() as u64));
            prop_assert_eq!(reader.finish(), (written, size));
        }

        #[test]
        fn text_and_json_forms_read_back(bytes in any::<[u8; 32]>()) {
            let digest = Digest(bytes);
            prop_assert_eq!(digest.to_string().parse(), Ok(digest));
            let json = serde_json::to_string(&digest).unwrap();
            prop_assert_eq!(serde_json::from_str::<Digest>(&json).unwrap(), digest);
        }

        #[test]
        fn canonical_json_does_not_depend_on_a_maps_order(map in any::<HashMap<String, f64>>()) {
            let text = canonical_json(&map);
            let again: HashMap<String, Option<f64>> = serde_json::from_slice(&text).unwrap();
            prop_assert_eq!(canonical_json(&again), text);
            for (key, number) in map {
                prop_assert_eq!(again[&key].map(f64::to_bits), Some(number).filter(|n| n.is_finite()).map(f64::to_bits));
            }
        }
    }
}
