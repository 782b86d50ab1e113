//! LMCache inside vLLM's process (`LMCacheConnectorV1`), with files for its only tier.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};

use super::in_process::ONE_GROUP;
use super::in_process::{self, InProcess};
use super::lmcache::require_lmcache;
use super::surroundings::utf8;
use super::{
    Carrier, CarrierError, Doing, Here, Port, Proof, RouteError, Side, Surroundings, Topology, Transport,
    make_folder,
};
use crate::engine::{Connector, ServerCounters, numbered};
use crate::foreign::Keeper;
use crate::machine::DeviceKind;
use crate::options::{NotOffered, StoringOptions};

const GIB: u64 = 1 << 30;
/// Between two looks into the folder.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// A folder that stays as it is for so long is not written to.
const STEADY: Duration = Duration::from_millis(500);

/// The route `in-process+disk`.
#[derive(Debug)]
pub(super) struct InProcessDisk;

impl Carrier for InProcessDisk {
    fn name(&self) -> &'static str {
        "in-process+disk"
    }

    /// What is in the files LMCache knows by heart alone, so that no other engine finds it.
    fn topology(&self) -> Topology {
        Topology::SameEngine
    }

    fn proof(&self) -> Proof {
        Proof::Engine
    }

    fn refused_option(&self, options: StoringOptions) -> Option<NotOffered> {
        InProcess.refused_option(options)
    }

    fn admit(&self, here: &Here<'_>) -> Result<(), RouteError> {
        match here.device {
            device @ DeviceKind::Cpu => {
                let reason = "LMCache inside vLLM serves nothing on a CPU".to_owned();
                Err(RouteError::Device { device, reason })
            }
            DeviceKind::Cuda => require_lmcache(here),
        }
    }

    fn refuses_groups(&self) -> Option<&'static str> {
        Some(ONE_GROUP)
    }

    fn keeper(&self) -> Result<Keeper, &'static str> {
        Err(
            "LMCache keeps the list of its local files in the engine's memory, so that nobody else is served from them",
        )
    }

    fn prepare<'a>(
        &self,
        surroundings: &'a Surroundings<'a>,
        bytes: u64,
    ) -> Doing<'a, Box<dyn Transport + 'a>> {
        Box::pin(async move {
            let folder = make_folder(&surroundings.notes, bytes)?;
            Ok(Box::new(Folders { surroundings, folder, bytes }) as Box<dyn Transport>)
        })
    }
}

/// A folder with one for each engine.
struct Folders<'s> {
    surroundings: &'s Surroundings<'s>,
    folder: tempfile::TempDir,
    /// Of all KV.
    bytes: u64,
}

impl Transport for Folders<'_> {
    fn open<'a>(&'a self, _: Side, number: Option<usize>) -> Doing<'a, Box<dyn Port + 'a>> {
        Box::pin(async move {
            let path = utf8(&self.folder).join(numbered("engine", number));
            fs_err::create_dir(&path).map_err(|source| CarrierError::Write { path: path.clone(), source })?;
            let gib = (self.bytes / 8 * 9).div_ceil(GIB).max(1);
            let due = AtomicU64::new(0);
            Ok(Box::new(Files { surroundings: self.surroundings, path, gib, due }) as Box<dyn Port>)
        })
    }
}

/// The files of one engine.
struct Files<'s> {
    surroundings: &'s Surroundings<'s>,
    path: Utf8PathBuf,
    /// How much LMCache may write.
    gib: u64,
    /// Files of all rounds so far, which stay.
    due: AtomicU64,
}

impl Port for Files<'_> {
    fn connector(&self) -> Connector {
        Connector { name: "LMCacheConnectorV1".to_owned(), ..Connector::default() }
    }

    /// Those of LMCache in memory, which is left for what is on its way into a file or out of one.
    fn variables(&self) -> Vec<(String, String)> {
        let own = [
            ("LMCACHE_LOCAL_CPU", "False".to_owned()),
            // Releases up to 0.5.3 want it as an address, with a slash at its end.
            ("LMCACHE_LOCAL_DISK", format!("file://{}/", self.path)),
            ("LMCACHE_MAX_LOCAL_DISK_SIZE", self.gib.to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), value));
        let is_own = |name: &str| own.iter().any(|(known, _)| known == name);
        let mut variables = in_process::variables(&self.surroundings.lmcache);
        variables.retain(|(name, _)| !is_own(name));
        variables.extend(own);
        variables
    }

    /// Waits for the files of so many chunks, which are written after the last answer. Fewer are what the load pass is served less by,
    /// and none at all would leave it to be served from elsewhere.
    fn settle(&self, before: ServerCounters, chunks: u64) -> Doing<'_, ServerCounters> {
        Box::pin(async move {
            let new = chunks * u64::from(self.surroundings.shards_of_chunk);
            let wanted = self.due.fetch_add(new, Ordering::Relaxed) + new;
            settle_files(&self.path, wanted, self.surroundings.patience).await?;
            Ok(before)
        })
    }
}

/// Waits until so many files are in a folder and nothing writes to it; fewer are all that there are after this patience.
///
/// # Errors
/// When there is none where one should be, or the folder cannot be read.
pub async fn settle_files(folder: &Utf8Path, wanted: u64, patience: Duration) -> Result<(), CarrierError> {
    let failed = |source| CarrierError::Write { path: folder.to_owned(), source };
    let begun = Instant::now();
    let (mut seen, mut since) = (Written::look(folder).map_err(failed)?, begun);
    while seen.files < wanted || since.elapsed() < STEADY {
        if begun.elapsed() > patience {
            break;
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
        let now = Written::look(folder).map_err(failed)?;
        if now != seen {
            (seen, since) = (now, Instant::now());
        }
    }
    match (seen.files, wanted) {
        (0, 1..) => Err(failed(io::Error::other("LMCache has put no file there"))),
        _ => Ok(()),
    }
}

/// What is in a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Written {
    files: u64,
    bytes: u64,
}

impl Written {
    fn look(folder: &Utf8Path) -> io::Result<Self> {
        let mut written = Self { files: 0, bytes: 0 };
        for entry in fs_err::read_dir(folder)? {
            written.files += 1;
            // One that LMCache removes in between counts no more.
            match entry?.metadata() {
                Ok(metadata) => written.bytes += metadata.len(),
                Err(error) if error.kind() == io::ErrorKind::NotFound => written.files -= 1,
                Err(error) => return Err(error),
            }
        }
        Ok(written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::carrier::find_carrier;
    use crate::carrier::tests::{environment_in, surroundings_in};
    use crate::event::Events;
    use crate::model::Route;

    #[tokio::test]
    async fn lmcache_is_left_no_tier_but_files_and_these_are_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let notes = utf8(&folder);
        let (environment, events) = (environment_in(&notes), Events::ignored());
        let surroundings = surroundings_in(&notes, &environment, &events);
        let carrier = find_carrier(Route::named("in-process+disk")).unwrap();
        let here = |device| Here { environment: None, redis: None, device };
        let refused = carrier.admit(&here(DeviceKind::Cpu)).unwrap_err().to_string();
        assert_eq!(refused, "run it on cpu: LMCache inside vLLM serves nothing on a CPU");
        assert!(carrier.admit(&here(DeviceKind::Cuda)).is_ok());
        let transport = carrier.prepare(&surroundings, 4096).await.unwrap();
        let port = transport.open(Side::Both, Some(2)).await.unwrap();
        let variables = port.variables();
        let of = |name: &str| {
            let values: Vec<&str> = variables
                .iter()
                .filter(|(known, _)| known == name)
                .map(|(_, value)| value.as_str())
                .collect();
            assert_eq!(values.len(), 1, "{name}: {variables:?}");
            values[0].to_owned()
        };
        assert_eq!(of("LMCACHE_LOCAL_CPU"), "False");
        assert_eq!((of("LMCACHE_MAX_LOCAL_DISK_SIZE"), of("LMCACHE_CHUNK_SIZE")), ("1".into(), "16".into()));
        let address = of("LMCACHE_LOCAL_DISK");
        let path = address.strip_prefix("file://").and_then(|path| path.strip_suffix("/engine-2/"));
        let path = Utf8PathBuf::from(path.unwrap()).join("engine-2");

        let before = port.counters().await.unwrap();
        let nothing = transport.open(Side::Both, Some(3)).await.unwrap().settle(before, 2).await.unwrap_err();
        assert!(matches!(nothing, CarrierError::Write { .. }), "{nothing}");
        for name in ["a.pt", "b.pt"] {
            fs_err::write(path.join(name), "kv").unwrap();
        }
        let asked = Instant::now();
        port.settle(before, 2).await.unwrap();
        assert!((STEADY..surroundings.patience).contains(&asked.elapsed()));
        // The next round's files come beside them; what is missing shows in what is served.
        let asked = Instant::now();
        port.settle(before, 2).await.unwrap();
        assert!(asked.elapsed() >= surroundings.patience);
    }
}
