//! Where a carrier works: the machine and the environment before a run, the places of one run. Main types: [`Here`],
//! [`Surroundings`].

use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};

use super::{CarrierError, RouteError};
use crate::engine::RedisAddress;
use crate::engine::environment::Environment;
use crate::event::Events;
use crate::machine::{disk_space, memory};
use crate::suite::LmcacheSettings;

/// What a carrier is admitted by.
#[derive(Debug, Clone, Copy)]
pub struct Here<'a> {
    /// The Python environment; none where it is not made yet.
    pub environment: Option<&'a Environment>,
    /// A Redis server that was named.
    pub redis: Option<&'a RedisAddress>,
}

/// What a carrier works with in one run. Nothing in it changes what an engine computes but `lmcache`, which the key holds.
#[derive(Debug)]
pub struct Surroundings<'a> {
    /// The environment with LMCache.
    pub environment: &'a Environment,
    /// Variables of a process in it.
    pub variables: Vec<(String, String)>,
    /// The suite's settings of LMCache.
    pub lmcache: LmcacheSettings,
    /// In how many shards a chunk is stored.
    pub shards_of_chunk: u32,
    /// A folder for logs and for what is gone with the run.
    pub notes: Utf8PathBuf,
    /// How long a server may take to become healthy, and a counter to move.
    pub patience: Duration,
    /// The cache folder.
    pub cache: &'a Utf8Path,
    /// The driver's own executable, which guards processes.
    pub executable: &'a Utf8Path,
    /// A Redis server to use instead of one of our own.
    pub redis: Option<&'a RedisAddress>,
    /// Who is told.
    pub events: &'a Events,
}

/// An empty folder that is removed with its value, on a disk with room for the bytes.
///
/// # Errors
/// When there is no room, or it cannot be made.
pub fn make_folder(notes: &Utf8Path, bytes: u64) -> Result<tempfile::TempDir, CarrierError> {
    let failed = |source| CarrierError::Write { path: notes.to_owned(), source };
    let (free, needed) = (disk_space(notes).map_err(failed)?.free, bytes / 8 * 9);
    if free < needed {
        return Err(RouteError::Space { tier: format!("the disk of {notes}"), needed, free }.into());
    }
    tempfile::tempdir_in(notes).map_err(failed)
}

/// Refuses what this machine's free memory cannot hold.
pub(super) fn require_memory(tier: &str, needed: u64) -> Result<(), RouteError> {
    match memory().available {
        Some(free) if free < needed => Err(RouteError::Space { tier: tier.to_owned(), needed, free }),
        _ => Ok(()),
    }
}

/// The place of a temporary folder.
pub(super) fn utf8(folder: &tempfile::TempDir) -> Utf8PathBuf {
    Utf8PathBuf::try_from(folder.path().to_owned()).expect("its parent is UTF-8")
}
