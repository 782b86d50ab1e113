//! A carrier of the tests: KV stays where it is, and an engine is told of a connector of its own. It shows that a new way for
//! KV to travel is one file and one line in [`CARRIERS`](super::CARRIERS).

use std::cell::Cell;
use std::collections::BTreeMap;

use super::{Carrier, Doing, Here, Port, Proof, RouteError, Side, Surroundings, Topology, Transport};
use crate::engine::{Connector, ServerCounters};
use crate::options::{NotOffered, StoringOptions};

/// The route `fake`.
#[derive(Debug)]
pub(super) struct Fake;

impl Carrier for Fake {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn topology(&self) -> Topology {
        Topology::SameEngine
    }

    fn proof(&self) -> Proof {
        Proof::Memory
    }

    fn refused_option(&self, options: StoringOptions) -> Option<NotOffered> {
        options.layerwise.then_some(NotOffered { option: "layerwise", reason: "a fake has no layers" })
    }

    fn admit(&self, _: &Here<'_>) -> Result<(), RouteError> {
        Ok(())
    }

    /// Whole chunks, and never the last of them.
    fn full_hit(&self, _: u32, whole_chunks: u32, _: StoringOptions) -> u32 {
        whole_chunks.saturating_sub(16)
    }

    fn prepare<'a>(&self, _: &'a Surroundings<'a>, bytes: u64) -> Doing<'a, Box<dyn Transport + 'a>> {
        Box::pin(async move { Ok(Box::new(Room(bytes)) as Box<dyn Transport>) })
    }
}

/// Room for so many bytes.
struct Room(u64);

impl Transport for Room {
    fn open<'a>(&'a self, side: Side, _: Option<usize>) -> Doing<'a, Box<dyn Port + 'a>> {
        Box::pin(
            async move { Ok(Box::new(Shelf { bytes: self.0, side, stored: Cell::new(0) }) as Box<dyn Port>) },
        )
    }
}

struct Shelf {
    bytes: u64,
    side: Side,
    stored: Cell<u64>,
}

impl Port for Shelf {
    fn connector(&self) -> Connector {
        let extra = BTreeMap::from([("bytes".to_owned(), self.bytes.into())]);
        Connector { name: format!("Fake{:?}", self.side), extra, ..Connector::default() }
    }

    fn counters(&self) -> Doing<'_, ServerCounters> {
        Box::pin(async { Ok(ServerCounters { written_chunks: self.stored.get(), ..Default::default() }) })
    }

    fn settle(&self, before: ServerCounters, chunks: u64) -> Doing<'_, ServerCounters> {
        self.stored.set(before.written_chunks + chunks);
        self.counters()
    }

    fn clear(&self) -> Doing<'_, ()> {
        self.stored.set(0);
        Box::pin(async { Ok(()) })
    }
}
