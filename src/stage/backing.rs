//! What holds KV between the engine that stores and the engine that loads. Main type: [`Backing`].
//!
//! On the remote routes these are two engines behind two servers, one after the other, and the second server's memory is
//! empty: what it serves has travelled. Everything is on loopback, in the driver's care, and gone with this value.

use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Value, json};

use super::engine_run::EngineRun;
use super::route_error::RouteError;
use super::{Bench, StageError};
use crate::digest::{Digest, digest_bytes};
use crate::engine::environment::install_beside;
use crate::engine::{
    Coordinator, LmcacheServer, Redis, RedisSettings, SecondTier, ServerSettings, Tiers, describe_redis_error,
};
use crate::event::Event;
use crate::options::Serde;
use crate::store::Draft;
use crate::suite::Route;
use crate::thread::on_thread;

/// What LMCache's peers transfer KV with, beside an environment that lacks it.
const PEER_PACKAGES: &str = include_str!("../../nix/stacks/p2p.txt");
/// Between two looks at whether what a load pass is served from is still there.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);
const GIB: u64 = 1 << 30;

/// Which of a remote route's two engines a server is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// Stores.
    Store,
    /// Loads.
    Load,
}

impl Side {
    fn name(self) -> &'static str {
        match self {
            Self::Store => "store",
            Self::Load => "load",
        }
    }
}

/// What a remote route keeps KV in, ready to be used.
pub(super) enum Backing {
    /// A folder.
    Disk(tempfile::TempDir),
    /// A Redis server.
    Redis(Redis),
    /// The memory of the server that the first engine stored to, found through a coordinator.
    Peers {
        coordinator: Coordinator,
        /// Size of that memory, in GiB.
        memory_gib: u32,
        /// Variables with which servers find the packages.
        variables: Vec<(String, String)>,
    },
}

impl Backing {
    /// Looks for what the route needs, sees that `bytes` of KV fit, and starts it. `None` for a route with one engine.
    pub(super) async fn prepare(
        run: &EngineRun<'_>,
        draft: &Draft,
        route: Route,
        bytes: u64,
    ) -> Result<Option<Self>, StageError> {
        Ok(match route {
            Route::InProcess | Route::Mp => None,
            Route::MpFs => Some(Self::Disk(make_folder(draft, bytes)?)),
            Route::MpRedis => Some(Self::Redis(provide_redis(run, draft, bytes).await?)),
            Route::MpP2p => Some(Self::start_coordinator(run, draft, bytes).await?),
        })
    }

    async fn start_coordinator(run: &EngineRun<'_>, draft: &Draft, bytes: u64) -> Result<Self, StageError> {
        // LMCache begins to evict at four fifths.
        let memory_gib = u32::try_from((bytes / 3 * 4).div_ceil(GIB)).unwrap_or(u32::MAX);
        let memory_gib = memory_gib.max(run.bench.suite.lmcache.memory_gib);
        require_memory("the memory of the server that a peer asks", u64::from(memory_gib) * GIB)?;
        let variables = peer_variables(run.bench).await?;
        let mut settings = server_settings(run, draft, "lmcache-coordinator.log");
        settings.variables.extend(variables.iter().cloned());
        let coordinator = Coordinator::start(&settings, settings.patience).await?;
        Ok(Self::Peers { coordinator, memory_gib, variables })
    }

    /// LMCache's name of the tier that must serve the load pass.
    pub(super) fn second_tier(&self, side: Side) -> SecondTier {
        match self {
            Self::Disk(folder) => SecondTier::Disk(utf8(folder)),
            Self::Redis(redis) => {
                let address = redis.address();
                SecondTier::Redis { host: address.host.clone(), port: address.port }
            }
            Self::Peers { coordinator, .. } => {
                SecondTier::Peers { coordinator: coordinator.url().to_owned(), name: side.name().to_owned() }
            }
        }
    }

    /// Starts the server of one side, with empty memory.
    pub(super) async fn start_server(
        &self,
        run: &EngineRun<'_>,
        draft: &Draft,
        side: Side,
    ) -> Result<LmcacheServer, StageError> {
        let mut settings = server_settings(run, draft, &format!("lmcache-server-{}.log", side.name()));
        settings.tiers =
            Tiers { second: Some(self.second_tier(side)), serde: serde_settings(run)?, segment: None };
        match self {
            Self::Disk(_) => {}
            Self::Redis(redis) => settings.variables.extend(redis.variables()),
            Self::Peers { memory_gib, variables, .. } => {
                settings.variables.extend(variables.iter().cloned());
                if side == Side::Store {
                    settings.memory_gib = *memory_gib;
                }
            }
        }
        let server =
            launch_server(run.bench, &settings, &format!("lmcache server that {}s", side.name())).await?;
        if let (Self::Peers { .. }, Side::Load) = (self, side) {
            server.find_peer(settings.patience).await?;
        }
        Ok(server)
    }

    /// Sees that what the load pass is served from is still there: `first` is the server of the storing side, if it must be.
    pub(super) async fn require_alive(
        &self,
        first: Option<&LmcacheServer>,
        draft: &Draft,
    ) -> Result<(), StageError> {
        if let Some(first) = first {
            first.require_alive().await?;
        }
        match self {
            Self::Redis(redis) => {
                Ok(redis.require_alive(&draft.note_path("lmcache-server-load.log")).await?)
            }
            Self::Disk(_) | Self::Peers { .. } => Ok(()),
        }
    }

    /// Waits until what the load pass is served from has gone, and says so. LMCache itself may wait for it without end.
    pub(super) async fn until_gone(&self, first: Option<&LmcacheServer>, draft: &Draft) -> StageError {
        loop {
            tokio::time::sleep(WATCH_INTERVAL).await;
            if let Err(gone) = self.require_alive(first, draft).await {
                return gone;
            }
        }
    }

    /// Whether the server of the storing side must go on, since its memory is what the other side loads from.
    pub(super) fn is_memory_of_the_first_server(&self) -> bool {
        matches!(self, Self::Peers { .. })
    }

    /// What sets requests of this run apart from those of others.
    pub(super) fn salt(&self) -> Option<String> {
        match self {
            Self::Redis(redis) => redis.salt().map(str::to_owned),
            Self::Disk(_) | Self::Peers { .. } => None,
        }
    }
}

/// What a route adds to the environment, as its key tells: the packages of peers, where the environment has none.
pub(super) fn added_packages(bench: &Bench, route: Route) -> Option<Digest> {
    let lacks = route == Route::MpP2p && bench.environment.identity().version("nixl").is_none();
    lacks.then(|| digest_bytes(PEER_PACKAGES.as_bytes()))
}

/// Settings of a server for this model, without a tier besides memory.
pub(super) fn server_settings(run: &EngineRun<'_>, draft: &Draft, log: &str) -> ServerSettings {
    let bench = run.bench;
    let shards = run.model.kv_shape().map_or(1, |shape| run.parallelism().written_shards(shape));
    ServerSettings {
        program: bench.environment.executable("lmcache"),
        guard: bench.executable.clone(),
        variables: run.variables(&bench.environment),
        log: draft.note_path(log),
        chunk_tokens: bench.suite.lmcache.chunk_tokens,
        shards_of_chunk: shards,
        memory_gib: bench.suite.lmcache.memory_gib,
        tiers: Tiers::default(),
        patience: Duration::from_secs(bench.suite.patience.change_seconds),
    }
}

/// What the server's second tier is told of the suite's serde.
pub(super) fn serde_settings(run: &EngineRun<'_>) -> Result<Option<Value>, StageError> {
    let Some(serde) = run.bench.suite.lmcache.options.serde else { return Ok(None) };
    let mut settings = json!({ "type": serde.name() });
    if serde == Serde::Aesgcm {
        // Nothing secret is encrypted, so the key is none either; both servers must have the same.
        let folder = run.bench.cache.join("serde");
        let path = folder.join("aesgcm.key");
        let failed = |source| StageError::Write { path: path.clone(), source };
        fs_err::create_dir_all(&folder).map_err(failed)?;
        fs_err::write(&path, [b'k'; 32]).map_err(failed)?;
        settings["master_key_path"] = path.as_str().into();
    }
    Ok(Some(settings))
}

/// Starts a server and tells of it.
pub(super) async fn launch_server(
    bench: &Bench,
    settings: &ServerSettings,
    name: &str,
) -> Result<LmcacheServer, StageError> {
    bench.events.emit(Event::ServerStarting { server: name.to_owned(), log: settings.log.clone() });
    let started = std::time::Instant::now();
    let server = LmcacheServer::start(settings).await?;
    bench.events.emit(Event::ServerHealthy { server: name.to_owned(), elapsed: started.elapsed() });
    Ok(server)
}

/// An empty folder that is removed with its value, on a disk with room for the bytes.
pub(super) fn make_folder(draft: &Draft, bytes: u64) -> Result<tempfile::TempDir, StageError> {
    let notes = draft.note_path("");
    let failed = |source| StageError::Write { path: notes.clone(), source };
    let disk = rustix::fs::statvfs(notes.as_std_path()).map_err(|error| failed(error.into()))?;
    let (free, needed) = (disk.f_bavail.saturating_mul(disk.f_frsize), bytes / 8 * 9);
    if free < needed {
        return Err(RouteError::Space { tier: format!("the disk of {notes}"), needed, free }.into());
    }
    tempfile::tempdir_in(&notes).map_err(failed)
}

/// The Redis server that was given, or else one of our own.
pub(super) async fn provide_redis(
    run: &EngineRun<'_>,
    draft: &Draft,
    bytes: u64,
) -> Result<Redis, StageError> {
    let bench = run.bench;
    // Its allocator rounds up by up to a quarter.
    let needed = bytes / 4 * 5 + (GIB >> 4);
    if let Some(address) = bench.redis.clone() {
        let unreachable = |error| RouteError::RedisUnreachable {
            address: address.to_string(),
            problem: describe_redis_error(&error),
        };
        let salt = format!("kv-correctness-{}", random_name());
        let redis = Redis::attach(address.clone(), salt).map_err(unreachable)?;
        if let Some(free) = redis.free_bytes().map_err(unreachable)?.filter(|free| *free < needed) {
            return Err(RouteError::Space { tier: address.to_string(), needed, free }.into());
        }
        return Ok(redis);
    }
    let program = find_on_path("redis-server").ok_or(RouteError::NoRedis)?;
    require_memory("the memory of a Redis server", needed)?;
    let settings = RedisSettings {
        program,
        guard: bench.executable.clone(),
        log: draft.note_path("redis.log"),
        folder: draft.note_path(""),
        bytes: needed,
        patience: Duration::from_secs(bench.suite.patience.change_seconds),
    };
    Ok(Redis::start(&settings).await?)
}

/// Refuses what this machine's free memory cannot hold.
fn require_memory(tier: &str, needed: u64) -> Result<(), RouteError> {
    let text = fs_err::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = text.lines().find_map(|line| {
        line.strip_prefix("MemAvailable:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    });
    match available.map(|kibibytes| kibibytes << 10) {
        Some(free) if free < needed => Err(RouteError::Space { tier: tier.to_owned(), needed, free }),
        _ => Ok(()),
    }
}

/// Variables with which a server finds what it transfers KV with, and stays on this machine. The packages are installed if
/// need be.
async fn peer_variables(bench: &Bench) -> Result<Vec<(String, String)>, RouteError> {
    // UCX, which moves the bytes, listens on every network otherwise.
    let mut variables = vec![("UCX_NET_DEVICES".to_owned(), "lo".to_owned())];
    if bench.environment.identity().version("nixl").is_some() {
        return Ok(variables);
    }
    let (environment, cache, events) = (bench.environment.clone(), bench.cache.clone(), bench.events.clone());
    let installed = on_thread(move || install_beside(&environment, "p2p", PEER_PACKAGES, &cache, &events));
    let folder = installed.await.map_err(RouteError::NoThread)??;
    variables.push(("PYTHONPATH".to_owned(), folder.into_string()));
    Ok(variables)
}

fn find_on_path(name: &str) -> Option<Utf8PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    let found = path
        .split(':')
        .filter(|folder| folder.starts_with('/'))
        .map(|folder| Utf8Path::new(folder).join(name));
    found.into_iter().find(|program| program.is_file())
}

/// A name that no other run has.
fn random_name() -> String {
    let bytes = digest_bytes(format!("{:?} {}", std::time::SystemTime::now(), std::process::id()).as_bytes());
    bytes.short()
}

pub(super) fn utf8(folder: &tempfile::TempDir) -> Utf8PathBuf {
    Utf8PathBuf::try_from(folder.path().to_owned()).expect("its parent is UTF-8")
}
