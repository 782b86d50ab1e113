//! Artifacts to and from a depot, whatever state it is in. Main type: [`Depot`].

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

use super::error::Trouble;
use super::seal::Seal;
use super::transfer::{Putting, Shelf};
use super::{Access, DepotAddress, DepotError, Patience};
use crate::digest::Digest;
use crate::event::Events;
use crate::stage_name::StageName;
use crate::store::{Artifact, Draft, StageKey};

/// Failures in a row after which a run goes on without the depot.
const MOST_FAILURES: u32 = 3;

/// A depot that is open. Cheap to clone. Its methods wait for disks and networks, so call them on a thread of their own.
#[derive(Clone)]
pub struct Depot(Arc<Inner>);

struct Inner {
    name: String,
    shelf: Shelf,
    patience: Patience,
    events: Events,
    runtime: OwnRuntime,
    /// It may be written to, as far as is known.
    writable: AtomicBool,
    failures: AtomicU32,
    /// Keys whose artifact there was refused: whoever makes it anew replaces it.
    refused: Mutex<BTreeSet<Digest>>,
}

/// What a depot has of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Nothing that can be used.
    Nothing,
    /// All of it, and it is in the draft now.
    Brought,
}

impl fmt::Debug for Depot {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Depot({})", self.0.name)
    }
}

impl Depot {
    /// Opens a depot; nothing is asked yet.
    ///
    /// # Errors
    /// When there is no object store at such an address, or a folder cannot be made.
    pub fn open(
        address: &DepotAddress,
        access: Access,
        patience: Patience,
        events: Events,
    ) -> Result<Self, DepotError> {
        let (store, root) = address.open(access, patience)?;
        let runtime = Builder::new_current_thread().enable_all().build();
        let refused = |error: std::io::Error| DepotError::Failing {
            depot: address.to_string(),
            problem: format!("start what speaks to it: {error}"),
        };
        Ok(Self(Arc::new(Inner {
            name: address.to_string(),
            shelf: Shelf { store, root },
            patience,
            events,
            runtime: OwnRuntime(Some(runtime.map_err(refused)?)),
            writable: AtomicBool::new(access == Access::ReadWrite),
            failures: AtomicU32::new(0),
            refused: Mutex::default(),
        })))
    }

    /// Its address.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Brings the artifact of a key into a draft, if it is there whole. What fails is told, leaves the draft empty, and counts
    /// as nothing found.
    #[must_use]
    pub fn bring(&self, key: &StageKey, draft: &Draft) -> Found {
        let step = async |shelf: &Shelf| -> Result<Found, Trouble> {
            let Some(seal) = shelf.read_seal(key.stage(), key.digest()).await? else {
                return Ok(Found::Nothing);
            };
            self.within(seal.bytes(), shelf.bring(&seal, &draft.path(""))).await?;
            Ok(Found::Brought)
        };
        let found = self.attempt(key.digest(), step).unwrap_or(Found::Nothing);
        if found == Found::Nothing
            && let Err(error) = draft.empty()
        {
            self.0.events.warn(format!("what came half from the depot was not removed: {error}"));
        }
        found
    }

    /// Puts an artifact there, unless it is there already or the depot may not be written to. What fails is told.
    pub fn offer(&self, key: &StageKey, label: &str, artifact: &Artifact) {
        if !self.0.writable.load(Ordering::Relaxed) {
            return;
        }
        let digest = key.digest();
        let putting = if self.refused().contains(&digest) { Putting::Anew } else { Putting::IfAbsent };
        let step = async |shelf: &Shelf| -> Result<(), Trouble> {
            let known = match shelf.read_seal(key.stage(), digest).await {
                Ok(Some(_)) | Err(Trouble::Damaged(_)) if putting == Putting::Anew => None,
                known => known?,
            };
            if let Some(known) = known {
                Self::compare(key, &known, artifact);
                return Ok(());
            }
            let files = artifact.files().map_err(|error| Trouble::Failing(error.to_string()))?;
            let bytes = files.values().map(|file| file.size).sum();
            let paths = files.into_iter().map(|(name, file)| {
                let path = artifact.path(name.as_str());
                (name, path, file.sha256)
            });
            let sealed = self.within(bytes, shelf.put_files(paths, putting)).await?;
            let seal = Seal::of(key.clone(), label, sealed);
            if seal.output_digest() != artifact.output_digest() {
                return Err(Trouble::Failing("reading what goes up: it is not what was sealed".to_owned()));
            }
            if !shelf.put_seal(&seal, putting).await?
                && let Some(first) = shelf.read_seal(key.stage(), digest).await?
            {
                Self::compare(key, &first, artifact);
            }
            Ok(())
        };
        if self.attempt(digest, step).is_some() {
            self.refused().remove(&digest);
        }
    }

    /// The seal of a key, if there is one. What fails is told, and counts as none.
    #[must_use]
    pub fn look_up(&self, stage: StageName, key: Digest) -> Option<Seal> {
        self.attempt(key, async |shelf: &Shelf| shelf.read_seal(stage, key).await).flatten()
    }

    /// Puts the report of a part of a run. What fails is told; says whether it is there.
    #[must_use]
    pub fn offer_report(&self, run: &str, name: &str, json: &str) -> bool {
        if !self.0.writable.load(Ordering::Relaxed) {
            return false;
        }
        let step = async |shelf: &Shelf| shelf.put_report(run, name, json.to_owned()).await;
        self.attempt(crate::digest::digest_bytes(json.as_bytes()), step).is_some()
    }

    /// All reports of a run, by name.
    ///
    /// # Errors
    /// When the depot fails.
    pub fn reports(&self, run: &str) -> Result<std::collections::BTreeMap<String, String>, DepotError> {
        self.strictly(async |shelf: &Shelf| shelf.reports(run).await)
    }

    /// Another machine was first with other bytes: both are right, and this run stays with its own.
    fn compare(key: &StageKey, first: &Seal, artifact: &Artifact) {
        if first.output_digest() != artifact.output_digest() {
            tracing::info!(
                "{}/{}: another machine put it into the depot first, with other bytes; this run uses its own",
                key.stage(),
                key.digest().short()
            );
        }
    }

    /// Does one step that may fail without harm; none where it failed, which is told, or where the depot was given up.
    fn attempt<T>(&self, key: Digest, step: impl AsyncFnOnce(&Shelf) -> Result<T, Trouble>) -> Option<T> {
        let inner = &self.0;
        if inner.failures.load(Ordering::Relaxed) >= MOST_FAILURES {
            return None;
        }
        let trouble = match inner.runtime.block_on(step(&inner.shelf)) {
            Ok(done) => {
                inner.failures.store(0, Ordering::Relaxed);
                return Some(done);
            }
            Err(trouble) => trouble,
        };
        let name = &inner.name;
        match trouble {
            Trouble::Damaged(problem) => {
                self.refused().insert(key);
                inner.events.warn(format!("the depot {name}: {problem}; it is not used"));
            }
            Trouble::ReadOnly(problem) => {
                if inner.writable.swap(false, Ordering::Relaxed) {
                    inner.events.warn(format!("the depot {name}: {problem}; nothing is put there"));
                } else if inner.failures.fetch_add(1, Ordering::Relaxed) == 0 {
                    inner.events.warn(format!("the depot {name}: {problem}"));
                }
            }
            Trouble::Failing(problem) => {
                let failures = inner.failures.fetch_add(1, Ordering::Relaxed) + 1;
                let rest = if failures >= MOST_FAILURES { "; this run goes on without it" } else { "" };
                inner.events.warn(format!("the depot {name} failed: {problem}{rest}"));
            }
        }
        None
    }

    /// Does a step whose failure is the command's.
    pub(super) fn strictly<T>(
        &self,
        step: impl AsyncFnOnce(&Shelf) -> Result<T, Trouble>,
    ) -> Result<T, DepotError> {
        self.0.runtime.block_on(step(&self.0.shelf)).map_err(|trouble| trouble.named(&self.0.name))
    }

    /// Ends a step that takes longer than so many bytes may.
    async fn within<T>(
        &self,
        bytes: u64,
        step: impl Future<Output = Result<T, Trouble>>,
    ) -> Result<T, Trouble> {
        let limit = self.0.patience.step + Duration::from_secs(bytes >> 20);
        let late = || Trouble::Failing(format!("{} MiB took more than {} s", bytes >> 20, limit.as_secs()));
        tokio::time::timeout(limit, step).await.map_err(|_| late())?
    }

    fn refused(&self) -> std::sync::MutexGuard<'_, BTreeSet<Digest>> {
        self.0.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A runtime that may be dropped anywhere, also inside of another one.
struct OwnRuntime(Option<Runtime>);

impl OwnRuntime {
    fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.0.as_ref().expect("it is taken only when it is dropped").block_on(work)
    }
}

impl Drop for OwnRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
