//! Engines: everything that runs vLLM and LMCache, and what comes back from them.

pub mod environment;

mod companion;
mod coordinator;
mod ending;
mod engine_hits;
mod error;
mod fork_server;
mod group;
mod guard;
mod halting;
mod lmcache_server;
mod numbered;
mod parallelism;
mod plan;
mod ports;
mod press;
mod process;
mod protocol;
mod redis;
mod segments;
mod server_counters;
mod variables;
mod worker;

pub use companion::{Companion, CompanionSettings};
pub use coordinator::Coordinator;
pub use ending::{end_all, kill_all};
pub use engine_hits::EngineHits;
pub use error::{EngineError, ProcessEnd};
pub use fork_server::{ForkServers, Imports};
pub use guard::guard;
pub use halting::{Halting, Halts};
pub use lmcache_server::{LmcacheServer, SecondTier, ServerSettings, Tiers, pool_path};
pub use numbered::numbered;
pub use parallelism::{Parallelism, ParallelismError};
pub(crate) use plan::chunk_digests;
pub use plan::{Capacity, Expectation, Plan, Round, TooLarge};
pub use ports::distinct_ports;
pub use press::{Endured, OwnCache};
pub use process::{Launch, OwnedProcess, Streams};
pub use protocol::{
    Adapter, Asker, ChangedCell, Connector, ConnectorRole, LayersKeep, Misreading, NumberedChunk,
    NumberedPrompt, PROTOCOL, PrefixCaching, Ready, Reply, Request, Scored, SeenCell, Start, TimingFault,
};
pub use redis::{Redis, RedisAddress, RedisSettings, RedisUrlError, describe_redis_error};
pub use server_counters::ServerCounters;
pub use variables::keyed_variables;
pub use worker::{Handing, Patience, PrefixCache, Worker};
