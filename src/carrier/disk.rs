//! From one `lmcache server` through a folder on disk to another.

use super::lmcache::{Translation, launch_side, refused_by_server, require_server};
use super::surroundings::utf8;
use super::{
    Carrier, Doing, Here, PlantingGround, Port, Proof, RouteError, Side, Surroundings, Topology, Transport,
    make_folder,
};
use crate::engine::SecondTier;
use crate::options::{NotOffered, StoringOptions};

/// The route `mp+fs`.
#[derive(Debug)]
pub(super) struct Disk;

impl Carrier for Disk {
    fn name(&self) -> &'static str {
        "mp+fs"
    }

    fn topology(&self) -> Topology {
        Topology::AnotherEngine
    }

    fn loads_whole_chunks(&self) -> bool {
        true
    }

    fn proof(&self) -> Proof {
        Proof::SecondTier("fs")
    }

    fn refused_option(&self, options: StoringOptions) -> Option<NotOffered> {
        refused_by_server(options, Translation::Offered)
    }

    fn admit(&self, here: &Here<'_>) -> Result<(), RouteError> {
        require_server(here)
    }

    fn planting_ground(&self) -> Option<PlantingGround> {
        Some(PlantingGround::Folder)
    }

    fn prepare<'a>(
        &self,
        surroundings: &'a Surroundings<'a>,
        bytes: u64,
    ) -> Doing<'a, Box<dyn Transport + 'a>> {
        Box::pin(async move {
            let folder = make_folder(&surroundings.notes, bytes)?;
            Ok(Box::new(Folder { surroundings, folder }) as Box<dyn Transport>)
        })
    }
}

/// A folder between two servers.
struct Folder<'s> {
    surroundings: &'s Surroundings<'s>,
    folder: tempfile::TempDir,
}

impl Transport for Folder<'_> {
    fn open<'a>(&'a self, side: Side, _: Option<usize>) -> Doing<'a, Box<dyn Port + 'a>> {
        Box::pin(async move {
            let tier = SecondTier::Disk(utf8(&self.folder));
            let port = launch_side(self.surroundings, side, tier, None, |_| {}).await?;
            Ok(Box::new(port) as Box<dyn Port>)
        })
    }
}
