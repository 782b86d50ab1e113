//! What keeps a carrier from carrying. Main types: [`RouteError`], [`CarrierError`].

use std::io;

use camino::Utf8PathBuf;

use crate::engine::EngineError;
use crate::engine::environment::EnvironmentError;
use crate::machine::DeviceKind;
use crate::model::Route;
use crate::suite::nearest;
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
    /// There is no server that could be slow.
    #[error("stop and continue an LMCache server: this route has none")]
    NoServerToHalt,
    /// What a serde makes of KV is no ground for faults.
    #[error("plant faults in KV that `lmcache.options.serde` turns into other bytes")]
    FaultsBehindSerde,
    /// No fault is made for elements of eight bits.
    #[error("plant faults in KV of eight bits, as `kv_cache_dtype` makes it")]
    FaultsInEightBits,
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
    /// It does not run on such a device.
    #[error("run it on {device}: {reason}")]
    Device {
        /// The device.
        device: DeviceKind,
        /// Why not.
        reason: String,
    },
    /// The environment lacks a package, and there is no lock to install it by.
    #[error("find the Python package {package} in the environment")]
    NoPackage {
        /// Its name.
        package: String,
    },
    /// A program that is to be started is not there.
    #[error("find the program {program:?} on PATH or in the environment")]
    NoProgram {
        /// Its name.
        program: String,
    },
    /// A file of a description cannot be read.
    #[error("read {path}")]
    Unreadable {
        /// The file.
        path: Utf8PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file describes no connector.
    #[error("understand connector {file}: {problem}")]
    Malformed {
        /// The file.
        file: String,
        /// What is wrong, with line and column where it is one place.
        problem: String,
    },
    /// Two carriers would have one name.
    #[error("learn of the connector in {file}: there is another route {}", route.name())]
    NameTaken {
        /// The file.
        file: Utf8PathBuf,
        /// The name.
        route: Route,
    },
    /// The system refuses a thread.
    #[error("get the packages that KV is transferred with")]
    NoThread(#[source] NoThread),
    /// The packages that KV is transferred with cannot be had.
    #[error("get the packages that KV is transferred with ({of})")]
    NoPackages {
        /// What needs them.
        of: String,
        /// Why.
        #[source]
        source: Box<EnvironmentError>,
    },
}

impl RouteError {
    /// What to do next.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Unknown { route, known } => match nearest(route.name(), known) {
                Some(near) => format!("did you mean {near}?"),
                None => "choose one of these, or write `all`".to_owned(),
            },
            Self::NotOffered { option, .. } => {
                format!(
                    "leave `{option}` out of the suite, or choose a route that offers it (docs/routes.md) with `--route`"
                )
            }
            Self::NoServerToHalt => {
                "leave out `--slow` and the suite's `lmcache.slow`, or choose `mp` with `--route`".to_owned()
            }
            Self::FaultsInEightBits => "leave out `--faults`, or the suite's `kv_cache_dtype`".to_owned(),
            Self::FaultsBehindSerde => "leave out `--faults`, or the suite's `serde`".to_owned(),
            Self::NoLmcache(error) => error.hint().unwrap_or_else(|| "install LMCache into it".to_owned()),
            Self::NoServer { .. } => {
                "install LMCache with pip into that environment, which puts its program there".to_owned()
            }
            Self::NoRedis => {
                "install it (Debian: `apt-get install redis-server`), or name a server with `--redis-url`"
                    .to_owned()
            }
            Self::RedisUnreachable { .. } => {
                "is a Redis server running there, and is KV_CORRECTNESS_REDIS_PASSWORD its password?"
                    .to_owned()
            }
            Self::NoThread(refused) => refused.hint(),
            Self::Space { .. } => "ask fewer questions with `--subjects`, or make room".to_owned(),
            Self::NoPackages { source, .. } => source.hint().unwrap_or_else(|| {
                "install them into an environment of yours and name it by KV_CORRECTNESS_ENV".to_owned()
            }),
            Self::Device { .. } => {
                "choose another route with `--route`, or another device with `--device`".to_owned()
            }
            Self::NoPackage { package } => format!(
                "install {package} into an environment of yours and name it by KV_CORRECTNESS_ENV, or name a file of hashed \
                 requirements as `packages.lock`"
            ),
            Self::NoProgram { program } => format!("install {program}, or put its folder on PATH"),
            Self::Unreadable { .. } => {
                "check the path and its permissions; paths in a description are relative to its file"
                    .to_owned()
            }
            Self::Malformed { .. } => "compare it with the one in docs/connectors.md".to_owned(),
            Self::NameTaken { .. } => "give it another `name`".to_owned(),
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
