//! Why the store failed. Main type: [`StoreError`]. A damaged artifact is no error: the stage runs again.

use std::io;

use camino::Utf8PathBuf;

use crate::lock::LockError;
use crate::thread::NoThread;

/// A failure of the store itself.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file or folder of the store could not be read or written; the source names it.
    #[error("use the store {store}")]
    Io {
        /// The store's folder.
        store: Utf8PathBuf,
        /// What went wrong, and where.
        source: io::Error,
    },
    /// A stage left something in its output folder that is not a plain file.
    #[error("seal an artifact: {path} is not a plain file")]
    NotAFile {
        /// The entry.
        path: Utf8PathBuf,
    },
    /// Another process has the store open, and would miss what is removed.
    #[error("clean {store}: another run or command uses it")]
    InUse {
        /// The store's folder.
        store: Utf8PathBuf,
    },
    /// What looks for an artifact had no thread to run on.
    #[error("look for an artifact")]
    NoThread(#[source] NoThread),
    /// The stage's lock was not to be had.
    #[error(transparent)]
    Lock(#[from] LockError),
}

impl StoreError {
    /// What to do next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Io { store, .. } => Some(format!(
                "check that {store} can be written and its disk has space, or name another folder with --cache DIR"
            )),
            Self::NotAFile { .. } => {
                Some("this is a defect of the stage that wrote it: please report it".to_owned())
            }
            Self::InUse { .. } => Some("wait until it ends; `gc --dry-run` says what would go".to_owned()),
            Self::NoThread(refused) => Some(refused.hint()),
            Self::Lock(error) => error.hint(),
        }
    }
}
