//! What the store holds and how it shrinks. Main type: [`Entry`].

use std::io;
use std::time::{Duration, SystemTime};

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;

use super::artifact::LAST_USED;
use super::open::Alone;
use super::{Store, StoreError};
use crate::cache::{bytes_of, remove};
use crate::digest::Digest;
use crate::lock::FileLock;
use crate::stage_name::StageName;

/// An artifact in the store, as `gc` lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The stage that made it.
    pub stage: StageName,
    /// Digest of its key.
    pub key: Digest,
    /// Its folder.
    pub folder: Utf8PathBuf,
    /// Bytes of all its files.
    pub bytes: u64,
    /// When it was sealed or last found.
    pub last_used: SystemTime,
}

impl Store {
    /// All artifacts, by stage, then by key.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn entries(&self) -> Result<Vec<Entry>, StoreError> {
        let read = || -> io::Result<Vec<Entry>> {
            let mut entries = Vec::new();
            for stage in StageName::ALL {
                for (key, folder) in keyed(&self.root().join("entries").join(stage.as_str()))? {
                    let last_used = fs::metadata(folder.join(LAST_USED)).and_then(|file| file.modified());
                    entries.push(Entry {
                        stage,
                        key,
                        bytes: bytes_of(&folder)?,
                        last_used: last_used.unwrap_or(SystemTime::UNIX_EPOCH),
                        folder,
                    });
                }
            }
            Ok(entries)
        };
        read().map_err(|source| self.io_error(source))
    }

    /// The artifacts that did not serve for `unused_for`.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn unused(&self, unused_for: Duration) -> Result<Vec<Entry>, StoreError> {
        let mut unused = self.entries()?;
        unused.retain(|entry| entry.last_used.elapsed().is_ok_and(|age| age >= unused_for));
        Ok(unused)
    }

    /// Removes a folder under its key's lock; false when another process holds that.
    fn remove_unless_locked(&self, key: Digest, folder: &Utf8Path) -> io::Result<bool> {
        let Ok(_lock) = FileLock::try_take(&self.lock_path(key))? else { return Ok(false) };
        if folder.exists() {
            remove(&self.move_aside(folder)?)?;
        }
        Ok(true)
    }
}

impl Alone<'_> {
    /// Removes the artifacts that did not serve for `unused_for`, and what failed stages and damage left behind. Returns
    /// the removed artifacts.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub fn remove_unused(&self, unused_for: Duration) -> Result<Vec<Entry>, StoreError> {
        let store = self.store;
        let mut removed = store.unused(unused_for)?;
        let clean = |removed: &mut Vec<Entry>| -> io::Result<()> {
            let mut failure = Ok(());
            removed.retain(|entry| match store.remove_unless_locked(entry.key, &entry.folder) {
                Ok(gone) => gone,
                Err(error) => {
                    failure = Err(error);
                    false
                }
            });
            failure?;
            for (key, folder) in keyed(&store.root().join("drafts"))? {
                store.remove_unless_locked(key, &folder)?;
            }
            // Whoever wants a lock opens the store before, and waits there.
            for entry in store.root().join("locks").read_dir_utf8()? {
                remove(entry?.path())?;
            }
            for entry in store.root().join("aside").read_dir_utf8()? {
                remove(entry?.path())?;
            }
            Ok(())
        };
        clean(&mut removed).map_err(|source| store.io_error(source))?;
        Ok(removed)
    }
}

/// The entries of a folder whose names are digests, sorted; none when the folder is missing.
fn keyed(folder: &Utf8Path) -> io::Result<Vec<(Digest, Utf8PathBuf)>> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in folder.read_dir_utf8()? {
        let entry = entry?;
        if let Ok(key) = entry.file_name().parse() {
            found.push((key, entry.into_path()));
        }
    }
    found.sort();
    Ok(found)
}
