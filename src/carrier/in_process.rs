//! LMCache inside vLLM's process, in memory (`LMCacheConnectorV1`).

use camino::Utf8Path;

use super::lmcache::{Translation, refused_serde, require_lmcache};
use super::{Carrier, Doing, Here, Port, Proof, RouteError, Side, Surroundings, Topology, Transport};
use crate::engine::Connector;
use crate::foreign::Keeper;
use crate::machine::DeviceKind;
use crate::options::{NotOffered, StoringOptions};
use crate::suite::LmcacheSettings;

const NO_SERVER: &str =
    "it says who copies KV between an engine and an LMCache server, and this route has no server";

/// `LMCacheConnectorV1` does not support the hybrid manager (`KVConnectorFactory.create_connector` of vLLM 0.32.0 refuses it).
pub(super) const ONE_GROUP: &str = "the connector of LMCache inside vLLM knows one group of layers only";

/// The route `in-process`.
#[derive(Debug)]
pub(super) struct InProcess;

impl Carrier for InProcess {
    fn name(&self) -> &'static str {
        "in-process"
    }

    fn topology(&self) -> Topology {
        Topology::SameEngine
    }

    fn proof(&self) -> Proof {
        Proof::Engine
    }

    fn refused_option(&self, options: StoringOptions) -> Option<NotOffered> {
        let mode = options.transfer_mode.map(|_| ("transfer_mode", NO_SERVER));
        let serde = refused_serde(options, Translation::NotOffered).map(|reason| ("serde", reason));
        serde.or(mode).map(|(option, reason)| NotOffered { option, reason })
    }

    fn admit(&self, here: &Here<'_>) -> Result<(), RouteError> {
        require_lmcache(here)
    }

    fn refuses_groups(&self) -> Option<&'static str> {
        Some(ONE_GROUP)
    }

    fn serves_nothing_on(&self, device: DeviceKind) -> Option<&'static str> {
        let words = "LMCache inside vLLM serves nothing on a CPU; a run ends with not exercised (4)";
        (device == DeviceKind::Cpu).then_some(words)
    }

    fn keeper(&self) -> Result<Keeper, &'static str> {
        Ok(Keeper::Engine)
    }

    fn fits_a_script(&self) -> bool {
        true
    }

    fn prepare<'a>(&self, surroundings: &'a Surroundings<'a>, _: u64) -> Doing<'a, Box<dyn Transport + 'a>> {
        let Surroundings { lmcache, scarce_memory_mib, .. } = *surroundings;
        Box::pin(async move { Ok(Box::new(Inside { lmcache, scarce_memory_mib }) as Box<dyn Transport>) })
    }
}

/// The variable that says whether LMCache keeps anything in memory.
const LOCAL: &str = "LMCACHE_LOCAL_CPU";
/// The variable that says how many GiB of memory LMCache takes.
const MEMORY: &str = "LMCACHE_MAX_LOCAL_CPU_SIZE";

/// The variables of an LMCache in an engine's own process.
#[must_use]
pub fn variables(lmcache: &LmcacheSettings) -> Vec<(String, String)> {
    let own = [
        ("LMCACHE_CHUNK_SIZE", lmcache.chunk_tokens.to_string()),
        (LOCAL, "True".to_owned()),
        (MEMORY, lmcache.memory_gib.to_string()),
    ];
    let all = own.into_iter().chain(lmcache.options.variables());
    all.map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Those of one whose memory is left for what is on its way into this folder and out of it, as a remote store, which an LMCache in
/// another engine reads as well: what is in the memory, and in the files of `LMCACHE_LOCAL_DISK`, it would not find.
#[must_use]
pub fn remote_variables(lmcache: &LmcacheSettings, folder: &Utf8Path) -> Vec<(String, String)> {
    let mut variables = variables(lmcache);
    variables.retain(|(name, _)| name != LOCAL);
    // A host and a port must be there, and name nothing.
    let own = [(LOCAL, "False".to_owned()), ("LMCACHE_REMOTE_URL", format!("fs://localhost:0{folder}"))];
    variables.extend(own.map(|(name, value)| (name.to_owned(), value)));
    variables
}

/// Each engine has an LMCache of its own.
#[derive(Debug, Clone, Copy)]
struct Inside {
    lmcache: LmcacheSettings,
    /// Where it is to have too little, which LMCache is told in GiB.
    scarce_memory_mib: Option<u32>,
}

impl Transport for Inside {
    fn open<'a>(&'a self, _: Side, _: Option<usize>) -> Doing<'a, Box<dyn Port + 'a>> {
        Box::pin(async { Ok(Box::new(*self) as Box<dyn Port>) })
    }
}

impl Port for Inside {
    fn connector(&self) -> Connector {
        Connector { name: "LMCacheConnectorV1".to_owned(), ..Connector::default() }
    }

    fn variables(&self) -> Vec<(String, String)> {
        let mut variables = variables(&self.lmcache);
        if let Some(mib) = self.scarce_memory_mib {
            variables.retain(|(name, _)| name != MEMORY);
            variables.push((MEMORY.to_owned(), (f64::from(mib) / 1024.0).to_string()));
        }
        variables
    }
}
