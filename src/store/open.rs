//! The store's folder, and the way from a key to its artifact. Main type: [`Store`].

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;
use serde::{Deserialize, Serialize};

use super::artifact::LAST_USED;
use super::{Artifact, StageKey, StoreError};
use crate::cache::{self, Bucket};
use crate::digest::{Digest, digest_bytes};
use crate::event::Events;
use crate::files::write_whole;
use crate::lock::FileLock;
use crate::stage_name::StageName;

const IN_USE: &str = "in-use.lock";

/// A folder of artifacts, shared by any number of processes.
#[derive(Debug, Clone)]
pub struct Store {
    root: Utf8PathBuf,
    events: Events,
    durability: Durability,
    /// A lock that all who have the store open share; none where the file system has no locks or cannot be written.
    in_use: Option<Arc<InUse>>,
}

/// The file that all who have the store open lock together.
#[derive(Debug)]
struct InUse(std::fs::File);

impl Drop for InUse {
    /// Closing the file would not do: each process that is forked at the same time has it open until it executes a program.
    fn drop(&mut self) {
        if let Err(error) = self.0.unlock() {
            tracing::debug!(%error, "the store is in use until its file is closed");
        }
    }
}

/// What a store must survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// A crash of the machine: an artifact is on the disk before it is found.
    Lasting,
    /// Nothing: the store ends with this process.
    Temporary,
}

/// The store, for one process alone.
#[derive(Debug)]
pub struct Alone<'a> {
    pub(super) store: &'a Store,
    file: &'a std::fs::File,
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.file.lock_shared() {
            tracing::debug!(%error, "the store is not shared again");
        }
    }
}

/// `last/<stage>/<label's digest>.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LastKey {
    label: String,
    key: StageKey,
}

impl Store {
    /// Opens the store in a cache folder, which is made if need be.
    ///
    /// # Errors
    /// When the folders cannot be made.
    pub fn open(cache: &Utf8Path, durability: Durability, events: Events) -> Result<Self, StoreError> {
        let mut store = Self { root: Bucket::Store.folder(cache), events, durability, in_use: None };
        for folder in ["entries", "drafts", "locks", "last", "aside"] {
            fs::create_dir_all(store.root.join(folder)).map_err(|source| store.io_error(source))?;
        }
        if durability == Durability::Lasting {
            cache::tag(cache);
        }
        let mut options = fs::OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).open(store.root.join(IN_USE));
        // Whoever cleans the store is done in a moment.
        let shared = file.and_then(|file| file.file().lock_shared().map(|()| file.into_file()));
        match shared {
            Ok(file) => store.in_use = Some(Arc::new(InUse(file))),
            Err(error) => tracing::debug!(%error, "the use of the store was not noted"),
        }
        Ok(store)
    }

    /// Takes the store for this process alone until what is returned is dropped. A run has the store open as long as it
    /// lasts, so whoever has it alone may remove what a run reads: artifacts, environments and builds.
    ///
    /// # Errors
    /// When another process has the store open.
    pub fn alone(&self) -> Result<Alone<'_>, StoreError> {
        let in_use = || StoreError::InUse { store: self.root.clone() };
        let file = &self.in_use.as_deref().ok_or_else(in_use)?.0;
        file.try_lock().map_err(|error| match error {
            std::fs::TryLockError::WouldBlock => in_use(),
            std::fs::TryLockError::Error(source) => self.io_error(source),
        })?;
        Ok(Alone { store: self, file })
    }

    /// The artifact of a key, with every output file verified. A damaged one is moved aside with a warning and
    /// counts as absent.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub fn find(&self, key: &StageKey) -> Result<Option<Artifact>, StoreError> {
        let folder = self.entry_folder(key.stage(), key.digest());
        if !folder.exists() {
            return Ok(None);
        }
        match Artifact::verify(&folder, key) {
            Ok(artifact) => {
                note_use(&folder);
                Ok(Some(artifact))
            }
            Err(damage) => {
                self.set_damaged_aside(&folder, key, &damage).map_err(|source| self.io_error(source))?;
                Ok(None)
            }
        }
    }

    /// Whether there is an artifact of this key, as it stands: nothing of it is verified or noted as used. For saying what is
    /// left to do, which the artifacts themselves are then asked for.
    #[must_use]
    pub fn peek(&self, key: &StageKey) -> Option<Artifact> {
        Artifact::peek(&self.entry_folder(key.stage(), key.digest()), key)
    }

    /// For each label of a stage, the key that was last found or sealed there.
    ///
    /// # Errors
    /// When the store cannot be read. A malformed record is left out.
    pub fn last_keys(&self, stage: StageName) -> Result<BTreeMap<String, StageKey>, StoreError> {
        let read = || -> io::Result<_> {
            let folder = self.root.join("last").join(stage.as_str());
            if !folder.exists() {
                return Ok(BTreeMap::new());
            }
            let mut keys = BTreeMap::new();
            for entry in folder.read_dir_utf8()? {
                if let Ok(last) = serde_json::from_slice::<LastKey>(&fs::read(entry?.path())?) {
                    keys.insert(last.label, last.key);
                }
            }
            Ok(keys)
        };
        read().map_err(|source| self.io_error(source))
    }

    pub(super) fn remember(&self, key: &StageKey, label: &str) -> Result<(), StoreError> {
        let name = format!("{}.json", digest_bytes(label.as_bytes()).short());
        let path = self.root.join("last").join(key.stage().as_str()).join(name);
        let last = LastKey { label: label.to_owned(), key: key.clone() };
        let text = serde_json::to_vec(&last).expect("a key has a JSON form");
        if fs::read(&path).is_ok_and(|present| present == text) {
            return Ok(());
        }
        write_whole(&path, &text).map_err(|source| self.io_error(source))
    }

    /// Moves a damaged entry out of the way, unless another process is just mending it.
    fn set_damaged_aside(&self, folder: &Utf8Path, key: &StageKey, damage: &str) -> io::Result<()> {
        let name = format!("{}/{}", key.stage(), key.digest().short());
        let Ok(_lock) = FileLock::try_take(&self.lock_path(key.digest()))? else {
            self.events.warn(format!("the artifact {name} is damaged ({damage}) and is not used"));
            return Ok(());
        };
        // Between the first look and the lock another process may have replaced it.
        if folder.exists() && Artifact::verify(folder, key).is_err() {
            let aside = self.move_aside(folder)?;
            self.events.warn(format!("the artifact {name} is damaged ({damage}); it was moved to {aside}"));
        }
        Ok(())
    }

    /// Renames an entry or draft to a fresh place where nobody looks for it.
    pub(super) fn move_aside(&self, folder: &Utf8Path) -> io::Result<Utf8PathBuf> {
        let prefix = format!("{}-", folder.file_name().expect("an entry has a name"));
        let place = tempfile::Builder::new().prefix(&prefix).tempdir_in(self.root.join("aside"))?.keep();
        fs::rename(folder, &place)?;
        Utf8PathBuf::from_path_buf(place)
            .map_err(|path| io::Error::other(format!("{} is not UTF-8", path.display())))
    }

    pub(super) fn io_error(&self, source: io::Error) -> StoreError {
        StoreError::Io { store: self.root.clone(), source }
    }

    /// What it must survive.
    #[must_use]
    pub fn durability(&self) -> Durability {
        self.durability
    }

    pub(super) fn events(&self) -> &Events {
        &self.events
    }

    pub(super) fn root(&self) -> &Utf8Path {
        &self.root
    }

    pub(super) fn entry_folder(&self, stage: StageName, key: Digest) -> Utf8PathBuf {
        self.root.join("entries").join(stage.as_str()).join(key.to_string())
    }

    pub(super) fn draft_folder(&self, key: Digest) -> Utf8PathBuf {
        self.root.join("drafts").join(key.to_string())
    }

    pub(super) fn lock_path(&self, key: Digest) -> Utf8PathBuf {
        self.root.join("locks").join(format!("{key}.lock"))
    }
}

/// Notes that an artifact served now. A store that cannot be written to may still be read, so failing is no error.
fn note_use(folder: &Utf8Path) {
    let noted = fs::OpenOptions::new()
        .write(true)
        .open(folder.join(LAST_USED))
        .and_then(|file| file.into_file().set_modified(SystemTime::now()));
    if let Err(error) = noted {
        tracing::debug!(%error, "the use of an artifact was not noted");
    }
}
