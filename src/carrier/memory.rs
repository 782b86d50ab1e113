//! An `lmcache server` process, in its memory (`LMCacheMPConnector`).

use super::lmcache::{
    ServerPort, Translation, launch_server, refused_by_server, require_server, server_settings,
};
use super::{Carrier, Doing, Here, Port, Proof, RouteError, Side, Surroundings, Topology, Transport};
use crate::engine::numbered;
use crate::options::{NotOffered, StoringOptions};

/// The route `mp`.
#[derive(Debug)]
pub(super) struct Memory;

impl Carrier for Memory {
    fn name(&self) -> &'static str {
        "mp"
    }

    fn topology(&self) -> Topology {
        Topology::SameEngine
    }

    fn loads_whole_chunks(&self) -> bool {
        true
    }

    fn proof(&self) -> Proof {
        Proof::Memory
    }

    fn refused_option(&self, options: StoringOptions) -> Option<NotOffered> {
        refused_by_server(options, Translation::NotOffered)
    }

    fn admit(&self, here: &Here<'_>) -> Result<(), RouteError> {
        require_server(here)
    }

    fn fits_a_script(&self) -> bool {
        true
    }

    fn prepare<'a>(&self, surroundings: &'a Surroundings<'a>, _: u64) -> Doing<'a, Box<dyn Transport + 'a>> {
        Box::pin(async move { Ok(Box::new(OfServer { surroundings }) as Box<dyn Transport>) })
    }
}

/// Each engine has a server of its own.
struct OfServer<'s> {
    surroundings: &'s Surroundings<'s>,
}

impl Transport for OfServer<'_> {
    fn open<'a>(&'a self, _: Side, number: Option<usize>) -> Doing<'a, Box<dyn Port + 'a>> {
        Box::pin(async move {
            let settings =
                server_settings(self.surroundings, &format!("{}.log", numbered("lmcache-server", number)));
            let name = numbered("lmcache server", number).replace('-', " ");
            let server = launch_server(self.surroundings.events, &settings, &name).await?;
            Ok(Box::new(ServerPort::of(server, self.surroundings)) as Box<dyn Port>)
        })
    }
}
