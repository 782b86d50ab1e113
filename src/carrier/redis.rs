//! From one `lmcache server` through a Redis server to another.

use std::time::SystemTime;

use camino::Utf8PathBuf;

use super::lmcache::{Translation, launch_side, refused_by_server, require_server};
use super::surroundings::require_memory;
use super::{
    Carrier, CarrierError, Doing, Here, PlantingGround, Port, Proof, RouteError, Side, Surroundings,
    Topology, Transport,
};
use crate::digest::digest_bytes;
use crate::engine::{Redis, RedisAddress, RedisSettings, SecondTier, describe_redis_error};
use crate::machine::find_program;
use crate::options::{NotOffered, StoringOptions};

/// What a server takes besides its values.
const OVERHEAD: u64 = 64 << 20;

/// The route `mp+redis`.
#[derive(Debug)]
pub(super) struct RedisServer;

impl Carrier for RedisServer {
    fn name(&self) -> &'static str {
        "mp+redis"
    }

    fn topology(&self) -> Topology {
        Topology::AnotherEngine
    }

    fn loads_whole_chunks(&self) -> bool {
        true
    }

    fn proof(&self) -> Proof {
        Proof::SecondTier("resp")
    }

    fn refused_option(&self, options: StoringOptions) -> Option<NotOffered> {
        refused_by_server(options, Translation::Offered)
    }

    fn admit(&self, here: &Here<'_>) -> Result<(), RouteError> {
        require_server(here)?;
        match here.redis {
            Some(address) => Redis::attach(address.clone(), String::new())
                .map(drop)
                .map_err(|error| unreachable(address, &error)),
            None => find_server().map(drop),
        }
    }

    fn planting_ground(&self) -> Option<PlantingGround> {
        Some(PlantingGround::Redis)
    }

    fn prepare<'a>(
        &self,
        surroundings: &'a Surroundings<'a>,
        bytes: u64,
    ) -> Doing<'a, Box<dyn Transport + 'a>> {
        Box::pin(async move {
            let redis = provide_redis(surroundings, bytes).await?;
            Ok(Box::new(Between { surroundings, redis }) as Box<dyn Transport>)
        })
    }
}

/// The Redis server that was named, or else one of our own, with room for so many bytes of KV.
///
/// # Errors
/// When it cannot be reached or started, or has no room.
pub async fn provide_redis(surroundings: &Surroundings<'_>, bytes: u64) -> Result<Redis, CarrierError> {
    // Its allocator rounds up by up to a quarter.
    let needed = bytes / 4 * 5 + OVERHEAD;
    if let Some(address) = surroundings.redis {
        let salt = format!("kv-correctness-{}", random_name());
        let redis = Redis::attach(address.clone(), salt).map_err(|error| unreachable(address, &error))?;
        let free = redis.free_bytes().map_err(|error| unreachable(address, &error))?;
        if let Some(free) = free.filter(|free| *free < needed) {
            return Err(RouteError::Space { tier: address.to_string(), needed, free }.into());
        }
        return Ok(redis);
    }
    let program = find_server()?;
    require_memory("the memory of a Redis server", needed)?;
    let settings = RedisSettings {
        program,
        guard: surroundings.executable.to_owned(),
        log: surroundings.notes.join("redis.log"),
        folder: surroundings.notes.clone(),
        bytes: needed,
        patience: surroundings.patience,
    };
    Ok(Redis::start(&settings).await?)
}

fn find_server() -> Result<Utf8PathBuf, RouteError> {
    let search_path = std::env::var_os("PATH").unwrap_or_default();
    find_program(&search_path, "redis-server").ok_or(RouteError::NoRedis)
}

fn unreachable(address: &RedisAddress, error: &redis::RedisError) -> RouteError {
    RouteError::RedisUnreachable { address: address.to_string(), problem: describe_redis_error(error) }
}

/// A name that no other run has.
fn random_name() -> String {
    digest_bytes(format!("{:?} {}", SystemTime::now(), std::process::id()).as_bytes()).short()
}

/// A Redis server between two LMCache servers.
struct Between<'s> {
    surroundings: &'s Surroundings<'s>,
    redis: Redis,
}

impl Transport for Between<'_> {
    fn open<'a>(&'a self, side: Side, _: Option<usize>) -> Doing<'a, Box<dyn Port + 'a>> {
        Box::pin(async move {
            let address = self.redis.address();
            let tier = SecondTier::Redis { host: address.host.clone(), port: address.port };
            let salt = self.redis.salt().map(str::to_owned);
            let secrets = self.redis.variables();
            let port = launch_side(self.surroundings, side, tier, salt, |settings| {
                settings.variables.extend(secrets);
            });
            Ok(Box::new(port.await?) as Box<dyn Port>)
        })
    }

    fn require_alive(&self) -> Doing<'_, ()> {
        Box::pin(async {
            Ok(self.redis.require_alive(&self.surroundings.notes.join("lmcache-server-load.log")).await?)
        })
    }
}
