//! What keeps a carrier from carrying. Main types: [`RouteError`], [`CarrierError`].

use std::io;

use camino::Utf8PathBuf;

use crate::engine::EngineError;
use crate::engine::environment::EnvironmentError;
use crate::model::Route;
use crate::thread::NoThread;

/// Why a route cannot run on this machine, found out before its engines start. Other routes can go on.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// No carrier has this name.
    #[error("find route {:?}: there are {}", route.name(), known.join(", "))]
    Unknown {
        /// What was asked for.
        route: Route,
        /// The names that there are.
        known: Vec<String>,
    },
    /// The route does not offer an option that the suite sets.
    #[error("store with `lmcache.options.{option}` on this route: {reason}")]
    NotOffered {
        /// The option.
        option: &'static str,
        /// Why not.
        reason: &'static str,
    },
    /// What a serde makes of KV is no ground for faults.
    #[error("plant faults in KV that `lmcache.options.serde` turns into other bytes")]
    FaultsBehindSerde,
    /// The environment lacks LMCache.
    #[error(transparent)]
    NoLmcache(EnvironmentError),
    /// The environment holds LMCache, but not its program.
    #[error("find LMCache's server: {program} is not there")]
    NoServer {
        /// Where the program would be.
        program: Utf8PathBuf,
    },
    /// There is no Redis server, and none to start.
    #[error("find `redis-server` on PATH")]
    NoRedis,
    /// The Redis server that was named does not answer, or not to us.
    #[error("reach {address}: {problem}")]
    RedisUnreachable {
        /// Its address, without who asks.
        address: String,
        /// Why.
        problem: String,
    },
    /// What must lie between the two engines does not fit.
    #[error("fit the KV of all questions into {tier}: it takes {} MiB, and {} MiB are free", needed >> 20, free >> 20)]
    Space {
        /// What it must fit into.
        tier: String,
        /// Bytes that it takes.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// The system refuses a thread.
    #[error("get the packages that LMCache's peers need (nixl)")]
    NoThread(#[source] NoThread),
    /// The packages that peers transfer KV with cannot be had.
    #[error("get the packages that LMCache's peers need (nixl)")]
    NoPeerPackages(#[source] EnvironmentError),
}

impl RouteError {
    /// What to do next.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Unknown { .. } => "choose one of these, or write `all`".to_owned(),
            Self::NotOffered { option, .. } => {
                format!("leave `{option}` out of the suite, or choose a route that offers it (docs/routes.md) with `--route`")
            }
            Self::FaultsBehindSerde => "leave out `--faults`, or the suite's `serde`".to_owned(),
            Self::NoLmcache(error) => error.hint().unwrap_or_else(|| "install LMCache into it".to_owned()),
            Self::NoServer { .. } => "install LMCache with pip into that environment, which puts its program there".to_owned(),
            Self::NoRedis => "install it (Debian: `apt-get install redis-server`), or name a server with `--redis-url`".to_owned(),
            Self::RedisUnreachable { .. } => {
                "is a Redis server running there, and is KV_CORRECTNESS_REDIS_PASSWORD its password?".to_owned()
            }
            Self::NoThread(refused) => refused.hint(),
            Self::Space { .. } => "ask fewer questions with `--subjects`, or make room".to_owned(),
            Self::NoPeerPackages(error) => error.hint().unwrap_or_else(|| {
                "install them into an environment of yours (nix/stacks/p2p.txt) and name it by KV_CORRECTNESS_ENV".to_owned()
            }),
        }
    }
}

/// Why a carrier that was admitted did not carry.
#[derive(Debug, thiserror::Error)]
pub enum CarrierError {
    /// It cannot run on this machine after all.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// A process of it.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A file or folder of it.
    #[error("write {path}")]
    Write {
        /// The file or folder.
        path: Utf8PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}
