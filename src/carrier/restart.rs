//! An `lmcache server` process, in its memory, behind which the engine is restarted between the passes.

use super::lmcache::{
    ServerPort, Translation, launch_server, refused_by_server, require_server, server_settings,
};
use super::surroundings::require_memory;
use super::{
    Carrier, CarrierError, Doing, Here, Port, Proof, RouteError, Side, Surroundings, Topology, Transport,
};
use crate::engine::{Connector, Halting, Halts, ServerCounters};
use crate::options::{NotOffered, StoringOptions};

const GIB: u64 = 1 << 30;

/// The route `mp+restart`.
#[derive(Debug)]
pub(super) struct Restart;

impl Carrier for Restart {
    fn name(&self) -> &'static str {
        "mp+restart"
    }

    fn topology(&self) -> Topology {
        Topology::AnotherEngine
    }

    fn loads_whole_chunks(&self) -> bool {
        true
    }

    fn proof(&self) -> Proof {
        Proof::KeptMemory
    }

    fn refused_option(&self, options: StoringOptions) -> Option<NotOffered> {
        refused_by_server(options, Translation::NotOffered)
    }

    fn admit(&self, here: &Here<'_>) -> Result<(), RouteError> {
        require_server(here)
    }

    fn prepare<'a>(
        &'a self,
        surroundings: &'a Surroundings<'a>,
        bytes: u64,
    ) -> Doing<'a, Box<dyn Transport + 'a>> {
        Box::pin(async move {
            let mut settings = server_settings(surroundings, "lmcache-server.log");
            // LMCache begins to evict at four fifths.
            let gib = u32::try_from((bytes / 3 * 4).div_ceil(GIB)).unwrap_or(u32::MAX);
            settings.memory_gib = settings.memory_gib.max(gib);
            require_memory("the memory of an LMCache server", u64::from(settings.memory_gib) * GIB)?;
            let server = launch_server(surroundings.events, &settings, "lmcache server").await?;
            Ok(Box::new(Kept(ServerPort::of(server, surroundings))) as Box<dyn Transport>)
        })
    }
}

/// A server that outlives the engine that stores.
struct Kept<'s>(ServerPort<'s>);

impl Transport for Kept<'_> {
    fn open<'a>(&'a self, _: Side, _: Option<usize>) -> Doing<'a, Box<dyn Port + 'a>> {
        Box::pin(async move { Ok(Box::new(SideOfKept(&self.0)) as Box<dyn Port>) })
    }

    fn keeps_storing_side(&self) -> bool {
        true
    }

    fn require_alive(&self) -> Doing<'_, ()> {
        self.0.require_alive()
    }
}

/// An engine's side of it, which empties nothing: what is not loaded yet is there, too.
struct SideOfKept<'a>(&'a ServerPort<'a>);

impl Port for SideOfKept<'_> {
    fn connector(&self) -> Connector {
        self.0.connector()
    }

    fn counters(&self) -> Doing<'_, ServerCounters> {
        self.0.counters()
    }

    fn settle(&self, before: ServerCounters, chunks: u64) -> Doing<'_, ServerCounters> {
        self.0.settle(before, chunks)
    }

    fn require_content(&self) -> Result<(), CarrierError> {
        self.0.require_content()
    }

    fn halt(&self, halts: Halts) -> Result<Option<Halting>, CarrierError> {
        self.0.halt(halts)
    }
}
