//! From a key to its artifact, or to a draft of it. Main type: [`Claim`].

use std::time::Duration;

use super::{Artifact, Draft, StageKey, Store, StoreError};
use crate::lock::FileLock;

/// Whether an artifact that is there may serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reuse {
    /// The stage runs only if there is none.
    Allowed,
    /// The stage runs again and replaces it.
    Refused,
}

/// What there is to do for a key.
#[derive(Debug)]
pub enum Claim {
    /// Nothing: here is the artifact.
    Done(Artifact),
    /// Fill the draft and seal it; nobody else does.
    Todo(Draft),
}

impl Store {
    /// The artifact of a key, or a draft to fill under the key's lock; another process that has the lock is waited
    /// for, for at most `patience`. `label` says what the stage is of, for [`last_keys`](Self::last_keys).
    ///
    /// # Errors
    /// When another process holds the lock for the whole time, or the store cannot be read or written.
    pub fn claim(
        &self,
        key: &StageKey,
        label: &str,
        reuse: Reuse,
        patience: Duration,
    ) -> Result<Claim, StoreError> {
        let find = || match reuse {
            Reuse::Allowed => self.find(key),
            Reuse::Refused => Ok(None),
        };
        if let Some(artifact) = find()? {
            self.remember(key, label)?;
            return Ok(Claim::Done(artifact));
        }
        let what = format!("stage {} ({})", key.stage(), key.digest().short());
        let lock = FileLock::take(&self.lock_path(key.digest()), &what, patience, self.events())?;
        if let Some(artifact) = find()? {
            self.remember(key, label)?;
            return Ok(Claim::Done(artifact));
        }
        let draft = Draft::start(self.clone(), key.clone(), label, lock);
        draft.map(Claim::Todo).map_err(|source| self.io_error(source))
    }
}
