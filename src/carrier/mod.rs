//! The ways for KV to travel from the pass that stores to the pass that loads. Main types: [`Carrier`], [`Transport`],
//! [`Port`].
//!
//! A carrier is one way, behind one interface: what it adds to the environment, whether it can run here, what a prompt must
//! be served, what its counters must show, and how its two sides are opened. Nothing outside this module names one of
//! them. A new one is a file of its own and a line in [`CARRIERS`].

mod described;
mod disk;
mod error;
#[cfg(test)]
mod fake;
mod in_process;
mod in_process_disk;
mod lmcache;
mod memory;
mod peers;
mod redis;
mod restart;
mod surroundings;
#[cfg(test)]
mod tests;

use std::sync::{LazyLock, Mutex, PoisonError};

use camino::Utf8Path;
use futures_util::future::LocalBoxFuture;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[cfg(test)]
pub(crate) use self::described::RESERVED_VARIABLES;
pub use self::error::{CarrierError, RouteError};
pub use self::in_process::{remote_variables, variables as in_process_variables};
pub use self::in_process_disk::settle_files;
pub use self::lmcache::{launch_server, serde_settings, server_settings, with_options};
pub use self::redis::provide_redis;
pub use self::surroundings::{Here, Surroundings, make_folder};
use crate::digest::Digest;
use crate::engine::environment::EnvironmentIdentity;
use crate::engine::{Connector, Halting, Halts, ServerCounters};
use crate::foreign::Keeper;
use crate::machine::DeviceKind;
use crate::model::{HitRule, Route};
use crate::options::{NotOffered, StoringOptions};

/// All carriers that are code of this program, in the order in which they are listed.
static CARRIERS: &[&dyn Carrier] = &[
    &in_process::InProcess,
    &in_process_disk::InProcessDisk,
    &memory::Memory,
    &disk::Disk,
    &redis::RedisServer,
    &peers::Peers,
    &restart::Restart,
    #[cfg(test)]
    &fake::Fake,
];

/// Carriers that descriptions brought, this program's own before those of users; each is kept for as long as the program
/// runs.
static DESCRIBED: LazyLock<Mutex<Vec<&'static dyn Carrier>>> = LazyLock::new(|| {
    Mutex::new(described::embedded().map(|carrier| Box::leak(Box::new(carrier)) as &dyn Carrier).collect())
});

/// Work of a carrier under way.
pub type Doing<'a, T> = LocalBoxFuture<'a, Result<T, CarrierError>>;

/// One way for KV to travel.
pub trait Carrier: std::fmt::Debug + Sync {
    /// The name of its route on the command line, in suites and in reports.
    fn name(&self) -> &str;

    /// Which engine loads what an engine stored.
    fn topology(&self) -> Topology;

    /// What the server's counters must show of it.
    fn proof(&self) -> Proof;

    /// The first of the options for storing that it does not offer.
    fn refused_option(&self, options: StoringOptions) -> Option<NotOffered>;

    /// Refuses a machine or an environment on which it cannot run.
    ///
    /// # Errors
    /// With what is missing.
    fn admit(&self, here: &Here<'_>) -> Result<(), RouteError>;

    /// The requirements that it adds to an environment: a digest of their lock. None where the environment has them.
    fn added_packages(&self, _: &EnvironmentIdentity) -> Option<Digest> {
        None
    }

    /// Why it serves nothing on such a device, where that is known.
    fn serves_nothing_on(&self, _: DeviceKind) -> Option<&'static str> {
        None
    }

    /// Why it cannot carry the KV of several groups of layers, as vLLM's hybrid KV cache manager makes them, where that is known.
    fn refuses_groups(&self) -> Option<&'static str> {
        None
    }

    /// Where faults can be planted in what it stores.
    fn planting_ground(&self) -> Option<PlantingGround> {
        None
    }

    /// What keeps KV that readers of another identity can ask for.
    ///
    /// # Errors
    /// With why there is none.
    fn keeper(&self) -> Result<Keeper, &'static str> {
        let is_lmcache = self.needs_lmcache() && self.proof().is_of_a_server();
        is_lmcache
            .then_some(Keeper::Server)
            .ok_or("only what LMCache keeps is asked for, and none keeps any there")
    }

    /// Whether a script of vLLM and LMCache alone can do what it does.
    fn fits_a_script(&self) -> bool {
        false
    }

    /// Tokens of a prompt of so many that the load pass must be served, where whole chunks alone would be `whole_chunks`.
    fn full_hit(&self, prompt_tokens: u32, whole_chunks: u32, options: StoringOptions) -> u32 {
        if options.save_unfull_chunk { prompt_tokens.saturating_sub(1) } else { whole_chunks }
    }

    /// What is stored and served of a prompt.
    fn hits(&self) -> HitRule {
        HitRule::default()
    }

    /// Whether it needs LMCache in the environment; if not, its engine's environment is the one without.
    fn needs_lmcache(&self) -> bool {
        true
    }

    /// What stores and serves KV, for people, where that is not LMCache: the connector's class.
    fn connector_class(&self) -> Option<&str> {
        None
    }

    /// Whether loads are made to fail: some of what was stored is not served, and must be computed.
    fn loads_fail(&self) -> bool {
        false
    }

    /// What it is made of, where that is not this program: a description, and the files that it names.
    fn content(&self) -> Option<Digest> {
        None
    }

    /// Whether whole chunks are loaded, the last token of a prompt that is served whole and computes it again among them.
    /// Otherwise that token's KV may be what was there before.
    fn loads_whole_chunks(&self) -> bool {
        false
    }

    /// Why it cannot be put under pressure, which takes one engine that both stores and loads; where that is so.
    fn refuses_pressure(&self) -> Option<&'static str> {
        (self.topology() == Topology::ProducerAndConsumer)
            .then_some("the engine that loads stores nothing, and the one that stores loads nothing")
    }

    /// Whether it stores a prompt that an engine computes piece by piece.
    fn takes_pieces(&self) -> bool {
        true
    }

    /// Why a request that lost its blocks cannot be taken up again with it, where that is known.
    fn refuses_resumption(&self) -> Option<&str> {
        None
    }

    /// Starts what lies between the two sides, with room for so many bytes of KV.
    fn prepare<'a>(
        &'a self,
        surroundings: &'a Surroundings<'a>,
        bytes: u64,
    ) -> Doing<'a, Box<dyn Transport + 'a>>;
}

/// Which engine loads what an engine stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Topology {
    /// The same one: each round is stored and loaded before the next, and what held it is emptied. Several engines, each with
    /// a side of its own, may share the rounds.
    SameEngine,
    /// Another one behind another side that starts empty, once all rounds are stored.
    AnotherEngine,
    /// Another one at the same time: one computes some prompts, and the other loads each of them from it.
    ProducerAndConsumer,
}

/// What counters must show of a service, besides the tokens that each request was served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// Nothing: there is no server, and LMCache in an engine counts by rules of its own.
    Engine,
    /// vLLM's own counter of what its connector served must say the same as its requests.
    EngineCounters,
    /// And by its counter of sources, what no earlier round had came from this one, in vLLM's words.
    EngineSource(&'static str),
    /// All was served from the server's memory, and each round wrote its chunks anew.
    Memory,
    /// All was served from the server's memory, which no round empties.
    KeptMemory,
    /// What no earlier round had was served through this tier behind the memory, under LMCache's name for it.
    SecondTier(&'static str),
}

impl Proof {
    /// Whether it is an LMCache server that counts.
    #[must_use]
    pub fn is_of_a_server(self) -> bool {
        match self {
            Self::Engine | Self::EngineCounters | Self::EngineSource(_) => false,
            Self::Memory | Self::KeptMemory | Self::SecondTier(_) => true,
        }
    }
}

/// The tier in which faults are planted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlantingGround {
    /// The files of a folder.
    Folder,
    /// The values of a Redis server.
    Redis,
}

/// Which pass a side is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Both passes of one engine.
    Both,
    /// The pass that stores.
    Store,
    /// The pass that loads.
    Load,
}

impl Side {
    /// `store` or `load`; empty for both.
    fn name(self) -> &'static str {
        match self {
            Self::Both => "",
            Self::Store => "store",
            Self::Load => "load",
        }
    }
}

/// What lies between the two sides of one run; it is gone with this value.
pub trait Transport {
    /// Opens a side, which holds nothing yet. `number` tells one of several engines from the others, from 1.
    fn open<'a>(&'a self, side: Side, number: Option<usize>) -> Doing<'a, Box<dyn Port + 'a>>;

    /// Whether the side that stored must live on, since the other one loads from it.
    fn keeps_storing_side(&self) -> bool {
        false
    }

    /// Sees that what the load pass is served from is still there, besides the side that stored.
    fn require_alive(&self) -> Doing<'_, ()> {
        Box::pin(async { Ok(()) })
    }
}

/// An open side, as an engine is connected to it.
pub trait Port {
    /// What vLLM is told of it.
    fn connector(&self) -> Connector;

    /// Variables of the engine's process.
    fn variables(&self) -> Vec<(String, String)> {
        Vec::new()
    }

    /// What it has counted so far; nothing where it has no counters of its own.
    fn counters(&self) -> Doing<'_, ServerCounters> {
        Box::pin(async { Ok(ServerCounters::default()) })
    }

    /// Waits until so many chunks have arrived since `before`: storing goes on after a request's answer.
    fn settle(&self, before: ServerCounters, _chunks: u64) -> Doing<'_, ServerCounters> {
        Box::pin(async move { Ok(before) })
    }

    /// Empties what must be empty before the next round.
    fn clear(&self) -> Doing<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    /// Sees that it still answers, since others load from it.
    fn require_alive(&self) -> Doing<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    /// Fails where it has refused an engine without telling that engine.
    ///
    /// # Errors
    /// When it has.
    fn require_content(&self) -> Result<(), CarrierError> {
        Ok(())
    }

    /// Makes it slow, until the value that is returned is dropped; nothing where there is no server.
    ///
    /// # Errors
    /// When that cannot be done.
    fn halt(&self, _: Halts) -> Result<Option<Halting>, CarrierError> {
        Ok(None)
    }
}

/// The routes of all carriers, in the order in which they are listed.
#[must_use]
pub fn routes() -> Vec<Route> {
    carriers().into_iter().map(|carrier| Route::named(carrier.name())).collect()
}

fn carriers() -> Vec<&'static dyn Carrier> {
    let described = DESCRIBED.lock().unwrap_or_else(PoisonError::into_inner);
    CARRIERS.iter().chain(described.iter()).copied().collect()
}

/// Learns of the carrier that a file describes; its route from now on. The same description under the same name is the same
/// carrier, however often it is learnt.
///
/// # Errors
/// When the file, or one that it names, cannot be read, what it says cannot be, or another carrier has its name.
pub fn learn(path: &Utf8Path) -> Result<Route, RouteError> {
    let carrier = described::read(path)?;
    let route = Route::named(carrier.name());
    match find_carrier(route) {
        Ok(known) if known.content() == carrier.content() => {}
        Ok(_) => return Err(RouteError::NameTaken { file: path.to_owned(), route }),
        Err(_) => {
            let mut described = DESCRIBED.lock().unwrap_or_else(PoisonError::into_inner);
            described.push(Box::leak(Box::new(carrier)));
        }
    }
    Ok(route)
}

/// The carrier of a route.
///
/// # Errors
/// When there is none of this name.
pub fn find_carrier(route: Route) -> Result<&'static dyn Carrier, RouteError> {
    let carriers = carriers();
    let named = carriers.iter().find(|carrier| carrier.name() == route.name()).copied();
    named.ok_or_else(|| RouteError::Unknown {
        route,
        known: carriers.iter().map(|carrier| carrier.name().to_owned()).collect(),
    })
}

/// The routes in whose tiers faults are planted, for a run over these: on disk in any case, and wherever else is tested.
#[must_use]
pub fn planting_routes(tested: &[Route]) -> Vec<Route> {
    let tested_or_disk = |carrier: &&&dyn Carrier| match carrier.planting_ground() {
        Some(PlantingGround::Folder) => true,
        Some(PlantingGround::Redis) => tested.contains(&Route::named(carrier.name())),
        None => false,
    };
    CARRIERS.iter().filter(tested_or_disk).map(|carrier| Route::named(carrier.name())).collect()
}

/// The route on which KV of another identity is read: of what servers keep that of the folder, which readers can be given copies of.
#[must_use]
pub fn foreign_route(keeper: Keeper) -> Route {
    Route::named(match keeper {
        Keeper::Server => disk::Disk.name(),
        Keeper::Engine => in_process::InProcess.name(),
    })
}
