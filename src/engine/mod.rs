//! Engines: everything that runs vLLM and LMCache, and what comes back from them.

pub mod environment;

mod coordinator;
mod error;
mod fork_server;
mod group;
mod guard;
mod lmcache_server;
mod parallelism;
mod plan;
mod process;
mod protocol;
mod redis;
mod server_counters;
mod worker;

pub use crate::machine::{Device, DeviceKind};
pub use crate::model::{KvShape, Observation, Step, TokenLogprob};
pub use coordinator::Coordinator;
pub use error::{EngineError, ProcessEnd};
pub use fork_server::ForkServers;
pub use guard::guard;
pub use lmcache_server::{LmcacheServer, SecondTier, ServerSettings, Tiers};
pub use parallelism::{Parallelism, ParallelismError};
pub use plan::{Capacity, Expectation, Plan, Round, TooLarge, full_hit};
pub use process::{Launch, OwnedProcess, Streams};
pub use protocol::{Connector, NumberedPrompt, PROTOCOL, Ready, Reply, Request, Scored, Start};
pub use redis::{Redis, RedisAddress, RedisSettings, RedisUrlError, describe_redis_error};
pub use server_counters::ServerCounters;
pub use worker::{Patience, PrefixCache, Worker};
