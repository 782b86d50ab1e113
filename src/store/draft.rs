//! An artifact in the making. Main type: [`Draft`].

use std::io;

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;

use super::artifact::{Artifact, KEY, LAST_USED, MANIFEST, Manifest, NOTES, OUTPUT};
use super::{Durability, StageKey, Store, StoreError};
use crate::digest::list_tree;
use crate::lock::FileLock;

/// A folder in the store that one stage fills, under the lock of its key.
///
/// A draft that is dropped without [`seal`](Self::seal) stays on disk, so that the logs in it can be read, until the stage
/// is tried again or the store is cleaned.
#[derive(Debug)]
pub struct Draft {
    store: Store,
    key: StageKey,
    label: String,
    folder: Utf8PathBuf,
    _lock: FileLock,
}

impl Draft {
    /// Starts an empty draft; the remains of an earlier attempt are removed, as nobody else can hold `lock`.
    pub(super) fn start(store: Store, key: StageKey, label: &str, lock: FileLock) -> io::Result<Self> {
        let folder = store.draft_folder(key.digest());
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(folder.join(OUTPUT))?;
        fs::create_dir_all(folder.join(NOTES))?;
        Ok(Self { store, key, label: label.to_owned(), folder, _lock: lock })
    }

    /// Where to write the output file of that name. A name with a folder in it needs that folder made first.
    #[must_use]
    pub fn path(&self, name: &str) -> Utf8PathBuf {
        self.folder.join(OUTPUT).join(name)
    }

    /// Where to write something that is kept beside the outputs and is part of no digest: logs, timings.
    #[must_use]
    pub fn note_path(&self, name: &str) -> Utf8PathBuf {
        self.folder.join(NOTES).join(name)
    }

    /// Removes all outputs that were written so far.
    ///
    /// # Errors
    /// When they cannot be removed.
    pub fn empty(&self) -> io::Result<()> {
        let output = self.folder.join(OUTPUT);
        fs::remove_dir_all(&output)?;
        fs::create_dir_all(output)
    }

    /// Makes the draft the artifact of its key, replacing one that is there, and releases the lock.
    ///
    /// # Errors
    /// When the output folder holds something other than files and folders, or a file cannot be read, written or synced.
    pub fn seal(self) -> Result<Artifact, StoreError> {
        let failed = |source| self.store.io_error(source);
        let output = self.folder.join(OUTPUT);
        let mut names = list_tree(&output).map_err(failed)?;
        names.retain(|(_, kind)| !kind.is_dir());
        if let Some((name, _)) = names.iter().find(|(_, kind)| !kind.is_file()) {
            return Err(StoreError::NotAFile { path: output.join(name) });
        }
        let manifest = Manifest::of(&output, names.into_iter().map(|(name, _)| name)).map_err(failed)?;
        let artifact = self.put_in_place(&manifest).map_err(failed)?;
        self.store.remember(&self.key, &self.label)?;
        Ok(artifact)
    }

    fn put_in_place(&self, manifest: &Manifest) -> io::Result<Artifact> {
        fs::write(self.folder.join(KEY), self.key.to_canonical_json())?;
        let mut text = serde_json::to_vec_pretty(manifest)?;
        text.push(b'\n');
        fs::write(self.folder.join(MANIFEST), text)?;
        fs::write(self.folder.join(LAST_USED), "")?;
        let lasting = self.store.durability() == Durability::Lasting;
        if lasting {
            sync_tree(&self.folder)?;
        }

        let place = self.store.entry_folder(self.key.stage(), self.key.digest());
        let stage_folder = place.parent().expect("an entry's folder lies in its stage's");
        fs::create_dir_all(stage_folder)?;
        let replaced = place.exists().then(|| self.store.move_aside(&place)).transpose()?;
        fs::rename(&self.folder, &place)?;
        if lasting {
            fs::File::open(stage_folder)?.sync_all()?;
        }
        if let Some(replaced) = replaced {
            fs::remove_dir_all(replaced)?;
        }
        Ok(Artifact::sealed(place, manifest))
    }
}

/// Brings a folder and all that is in it to the disk.
fn sync_tree(folder: &Utf8Path) -> io::Result<()> {
    for (relative, kind) in list_tree(folder)? {
        if kind.is_file() || kind.is_dir() {
            fs::File::open(folder.join(relative))?.sync_all()?;
        }
    }
    fs::File::open(folder)?.sync_all()
}
