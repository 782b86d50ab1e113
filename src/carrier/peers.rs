//! From one `lmcache server` straight to another, its peer: the second loads from the memory of the first, which lives on.

use super::lmcache::{Translation, launch_side, refused_by_server, require_server, server_settings};
use super::surroundings::{install_packages, require_memory};
use super::{
    Carrier, CarrierError, Doing, Here, Port, Proof, RouteError, Side, Surroundings, Topology, Transport,
};
use crate::digest::{Digest, digest_bytes};
use crate::engine::environment::EnvironmentIdentity;
use crate::engine::{Coordinator, SecondTier};
use crate::options::{NotOffered, StoringOptions};

/// What peers transfer KV with, beside an environment that lacks it.
const PACKAGES: &str = include_str!("../../nix/stacks/p2p.txt");
const GIB: u64 = 1 << 30;

/// The route `mp+p2p`.
#[derive(Debug)]
pub(super) struct Peers;

impl Carrier for Peers {
    fn name(&self) -> &'static str {
        "mp+p2p"
    }

    fn refuses_pressure(&self) -> Option<&'static str> {
        Some("what a server stores is served to another server's engine alone")
    }

    fn topology(&self) -> Topology {
        Topology::AnotherEngine
    }

    fn loads_whole_chunks(&self) -> bool {
        true
    }

    fn proof(&self) -> Proof {
        Proof::SecondTier("p2p")
    }

    fn refused_option(&self, options: StoringOptions) -> Option<NotOffered> {
        refused_by_server(options, Translation::NotOffered)
    }

    fn admit(&self, here: &Here<'_>) -> Result<(), RouteError> {
        require_server(here)
    }

    fn added_packages(&self, environment: &EnvironmentIdentity) -> Option<Digest> {
        environment.version("nixl").is_none().then(|| digest_bytes(PACKAGES.as_bytes()))
    }

    fn prepare<'a>(
        &self,
        surroundings: &'a Surroundings<'a>,
        bytes: u64,
    ) -> Doing<'a, Box<dyn Transport + 'a>> {
        Box::pin(async move {
            let coordinated = Coordinated::start(surroundings, bytes).await?;
            Ok(Box::new(coordinated) as Box<dyn Transport>)
        })
    }
}

/// Two servers that find each other through a coordinator.
struct Coordinated<'s> {
    surroundings: &'s Surroundings<'s>,
    coordinator: Coordinator,
    /// Size of the memory that is loaded from, in GiB.
    memory_gib: u32,
    /// Variables with which servers find the packages.
    variables: Vec<(String, String)>,
}

impl<'s> Coordinated<'s> {
    async fn start(surroundings: &'s Surroundings<'s>, bytes: u64) -> Result<Self, CarrierError> {
        // LMCache begins to evict at four fifths.
        let memory_gib = u32::try_from((bytes / 3 * 4).div_ceil(GIB)).unwrap_or(u32::MAX);
        let memory_gib = memory_gib.max(surroundings.lmcache.memory_gib);
        require_memory("the memory of the server that a peer asks", u64::from(memory_gib) * GIB)?;
        let variables = variables(surroundings).await?;
        let mut settings = server_settings(surroundings, "lmcache-coordinator.log");
        settings.variables.extend(variables.iter().cloned());
        let coordinator = Coordinator::start(&settings, settings.patience).await?;
        Ok(Self { surroundings, coordinator, memory_gib, variables })
    }
}

/// Variables with which a server finds what it transfers KV with, and stays on this machine. The packages are installed if
/// need be.
async fn variables(surroundings: &Surroundings<'_>) -> Result<Vec<(String, String)>, RouteError> {
    // UCX, which moves the bytes, listens on every network otherwise.
    let mut variables = vec![("UCX_NET_DEVICES".to_owned(), "lo".to_owned())];
    if surroundings.environment.identity().version("nixl").is_some() {
        return Ok(variables);
    }
    let installed = install_packages(surroundings, "p2p", PACKAGES).await?;
    variables.push(("PYTHONPATH".to_owned(), installed.into_string()));
    Ok(variables)
}

impl Transport for Coordinated<'_> {
    fn open<'a>(&'a self, side: Side, _: Option<usize>) -> Doing<'a, Box<dyn Port + 'a>> {
        Box::pin(async move {
            let tier = SecondTier::Peers {
                coordinator: self.coordinator.url().to_owned(),
                name: side.name().to_owned(),
            };
            let port = launch_side(self.surroundings, side, tier, None, |settings| {
                settings.variables.extend(self.variables.iter().cloned());
                if side == Side::Store {
                    settings.memory_gib = self.memory_gib;
                }
            });
            let port = port.await?;
            if side == Side::Load {
                port.server.find_peer(self.surroundings.patience).await?;
            }
            Ok(Box::new(port) as Box<dyn Port>)
        })
    }

    fn keeps_storing_side(&self) -> bool {
        true
    }
}
