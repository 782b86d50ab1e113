//! Where a carrier works: the machine and the environment before a run, the places of one run. Main types: [`Here`],
//! [`Surroundings`].

use std::sync::Arc;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};

use super::{CarrierError, RouteError};
use crate::engine::environment::{Environment, install_beside};
use crate::engine::{ForkServers, RedisAddress};
use crate::event::Events;
use crate::machine::{DeviceKind, disk_space, memory};
use crate::suite::LmcacheSettings;
use crate::thread::on_thread;

/// What a carrier is admitted by.
#[derive(Debug, Clone, Copy)]
pub struct Here<'a> {
    /// The Python environment; none where it is not made yet.
    pub environment: Option<&'a Environment>,
    /// A Redis server that was named.
    pub redis: Option<&'a RedisAddress>,
    /// What computes.
    pub device: DeviceKind,
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
    /// MiB of memory that a server gets instead of the suite's, where it is to have too little.
    pub scarce_memory_mib: Option<u32>,
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
    /// Where LMCache servers are forked from, if they are.
    pub fork_servers: Option<Arc<ForkServers>>,
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

/// Installs packages beside the environment, unless that was done before; their folder.
pub(super) async fn install_packages(
    surroundings: &Surroundings<'_>,
    name: &str,
    requirements: &str,
) -> Result<Utf8PathBuf, RouteError> {
    let (environment, cache, events) =
        (surroundings.environment.clone(), surroundings.cache.to_owned(), surroundings.events.clone());
    let (name, requirements) = (name.to_owned(), requirements.to_owned());
    let of = name.clone();
    let install = move || install_beside(&environment, &name, &requirements, &cache, &events);
    let installed = on_thread(install).await.map_err(RouteError::NoThread)?;
    installed.map_err(|source| RouteError::NoPackages { of, source: Box::new(source) })
}

/// The place of a temporary folder.
pub(super) fn utf8(folder: &tempfile::TempDir) -> Utf8PathBuf {
    Utf8PathBuf::try_from(folder.path().to_owned()).expect("its parent is UTF-8")
}
