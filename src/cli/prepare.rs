//! From arguments to a bench: the suite as changed by flags, the device, the environment and the store.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;

use super::hint::all;
use super::output::OutputError;
use super::run_arguments::{CellChoice, DeviceChoice, RunArguments};
use super::stack::{Replacement, replace};
use crate::assets::{CANARY, is_name};
use crate::cache::Bucket;
use crate::carrier::{find_carrier, learn};
use crate::engine::environment::{Environment, EnvironmentRequest, Extension, Stack, try_extension};
use crate::engine::{RedisAddress, RedisUrlError};
use crate::event::{Event, Events};
use crate::fetch::Needs;
use crate::machine::{Device, DeviceKind};
use crate::model::Route;
use crate::pipeline::{Bench, EarlyStopping, Locating, Planting, Request, Turning};
use crate::progress::{Progress, Verbosity};
use crate::stage::{Desk, Sources, StageError};
use crate::store::{Durability, Store};
use crate::suite::Suite;
use crate::thread::on_thread;

/// The store of `--no-cache`, which lives as long as the run.
#[derive(Debug)]
pub(super) struct TemporaryStore {
    folder: tempfile::TempDir,
    /// The lasting store stays open, so that nobody cleans the environment away.
    _lasting: Store,
}

impl TemporaryStore {
    /// Keeps it after a failure, since the error message names a log in it.
    pub(super) fn keep(&mut self) {
        self.folder.disable_cleanup(true);
    }
}

/// Everything that a run needs but the environment, and the temporary store of `--no-cache`.
pub(super) fn prepare(arguments: &RunArguments) -> anyhow::Result<(Bench, Option<TemporaryStore>)> {
    let verbosity = match (arguments.quiet, arguments.verbose) {
        (true, _) => Verbosity::Quiet,
        (false, true) => Verbosity::Verbose,
        (false, false) => Verbosity::Normal,
    };
    let events = Progress::events(verbosity);
    let suite = changed_suite(arguments)?;
    let cache = cache_folder(arguments.cache.clone())?;
    let device = choose_device(arguments.device);
    let cells = cells(&suite, &arguments.cell)?;
    let here = part_of(&suite, cells.as_ref());
    let needs = match &device {
        Ok(device) => Needs::of(&here, &cache, device, &events),
        Err(_) => Needs::without_gpus(&here, &cache, &events),
    };
    if needs.names_pins() || device.is_err() {
        events.emit(Event::SuiteNeeds { lines: needs.lines() });
    }
    let device = device?;
    if arguments.device == DeviceChoice::Auto && device.kind() == DeviceKind::Cpu && is_wsl() {
        events.warn("WSL's GPUs are not known here, so this run computes on the processor".to_owned());
    }
    let engines_at_a_time = arguments.engines.map_or_else(|| needs.engines_at_a_time(), NonZeroUsize::get);
    needs.require(&arguments.suite)?;
    let sources = Sources::find(&here, &cache)?;
    let (store_folder, durability, temporary) = if arguments.no_cache {
        let make = || {
            fs::create_dir_all(&cache)?;
            tempfile::Builder::new().prefix(Bucket::TemporaryStore.name()).tempdir_in(&cache)
        };
        let folder = make().map_err(OutputError::at(&cache))?;
        let path = Utf8PathBuf::try_from(folder.path().to_owned())?;
        let lasting = Store::open(&cache, Durability::Lasting, events.clone())?;
        (path, Durability::Temporary, Some(TemporaryStore { folder, _lasting: lasting }))
    } else {
        (cache.clone(), Durability::Lasting, None)
    };
    // Opened first, so that nobody cleans away what is made now.
    let store = Store::open(&store_folder, durability, events.clone())?;
    let request = Request {
        suite,
        device,
        excerpt: None,
        shard: arguments.shard,
        cells,
        early_stopping: if arguments.no_early_stop { EarlyStopping::Refused } else { EarlyStopping::Allowed },
        planting: if arguments.faults { Planting::Asked } else { Planting::NotAsked },
        foreign: arguments.foreign.iter().flat_map(|choice| choice.groups()).collect(),
        foreign_salts: arguments.foreign_salts,
        turns: if arguments.turns { Turning::Asked } else { Turning::NotAsked },
        locating: Locating::Asked,
        engines_at_a_time,
    };
    let redis = redis_address(arguments.redis_url.as_deref())?;
    let desk = set_desk(&request, events, cache, sources, redis)?;
    let depot = if arguments.no_cache { None } else { arguments.depot.open(&desk.events)? };
    Ok((Bench { request, store, depot, desk, force: arguments.force }, temporary))
}

/// The models on routes that were chosen of a suite's, all of which it has; none where none were.
fn cells(suite: &Suite, chosen: &[CellChoice]) -> anyhow::Result<Option<BTreeSet<(String, Route)>>> {
    let mut cells = BTreeSet::new();
    for CellChoice { model, route } in chosen {
        let known = suite.models.iter().any(|known| known.name == *model);
        match suite.routes.iter().find(|known| known.name() == route) {
            Some(&route) if known => cells.insert((model.clone(), route)),
            _ => anyhow::bail!(
                "find {model} over {route} in suite {}: it has no such cell\n\nhint: `kv-correctness plan` lists them; `--route` \
                 gives the suite other routes, in all parts alike",
                suite.name
            ),
        };
    }
    Ok(Some(cells).filter(|cells| !cells.is_empty()))
}

/// The suite with the models and routes alone that this run takes: what must be here for it.
fn part_of(suite: &Suite, cells: Option<&BTreeSet<(String, Route)>>) -> Suite {
    let mut part = suite.clone();
    if let Some(cells) = cells {
        part.models.retain(|model| cells.iter().any(|(name, _)| *name == model.name));
        part.routes.retain(|route| cells.iter().any(|(_, taken)| taken == route));
    }
    part
}

/// Loads a suite, all of whose routes have a carrier.
pub(super) fn load_suite(name: &str) -> anyhow::Result<Suite> {
    let suite = Suite::load_with(name, is_name)?;
    let at = |setting: &str, index: usize| {
        let place = Suite::place_of(name, &format!("{setting}.{index}"));
        format!("understand suite {name}: {}", place.unwrap_or_else(|| format!("its {setting}")))
    };
    let connectors = suite.connectors.iter().enumerate();
    all(connectors
        .map(|(index, connector)| learn_of(connector.as_ref()).with_context(|| at("connectors", index))))?;
    let routes = suite.routes.iter().enumerate();
    all(routes.map(|(index, route)| {
        find_carrier(*route).map_err(StageError::from).with_context(|| at("routes", index))
    }))?;
    Ok(suite)
}

/// Learns of the connectors that a suite from a report names.
pub(super) fn learn_connectors(suite: &Suite) -> anyhow::Result<()> {
    all(suite.connectors.iter().map(|connector| learn_of(connector.as_ref()))).map(drop)
}

fn learn_of(connector: &Utf8Path) -> anyhow::Result<Route> {
    Ok(learn(connector).map_err(StageError::from)?)
}

/// The suite that the arguments name, as they change it.
pub(super) fn changed_suite(arguments: &RunArguments) -> anyhow::Result<Suite> {
    let mut suite = load_suite(&arguments.suite)?;
    if let Some(data) = &arguments.data {
        // How many of the embedded questions are enough says nothing of others.
        if suite.dataset == CANARY {
            suite.questions = None;
        }
        suite.dataset = data.to_string();
    }
    if let Some(subjects) = arguments.subjects {
        suite.subjects = subjects;
        suite.questions = None;
    }
    let described = all(arguments.connector.iter().map(|connector| learn_of(connector)))?;
    suite.connectors.extend(arguments.connector.iter().map(ToString::to_string));
    if !arguments.route.is_empty() || !described.is_empty() {
        let mut seen = BTreeSet::new();
        let named = arguments.route.iter().flat_map(|choice| choice.routes());
        all(named
            .clone()
            .map(|route| find_carrier(route).map_err(|error| anyhow!(StageError::from(error)))))?;
        let chosen = named.chain(described);
        suite.routes = chosen.filter(|route| seen.insert(*route)).collect();
    }
    suite.lmcache.slow |= arguments.slow;
    if let Some(identity) = arguments.identity {
        suite.faults.identity = identity;
    }
    if let Some(flips) = arguments.flips {
        suite.faults.flips = flips;
    }
    if arguments.pressure || arguments.pressure_seeds.is_some() || arguments.pressure_seed.is_some() {
        let pressure = suite.pressure.get_or_insert_default();
        if let Some(seeds) = arguments.pressure_seeds {
            pressure.seeds = seeds;
        }
        if let Some(seed) = arguments.pressure_seed {
            (pressure.first_seed, pressure.seeds) = (seed, 1);
        }
    }
    Ok(suite)
}

/// What the jobs of a request work with; the environment comes later.
pub(super) fn set_desk(
    request: &Request,
    events: Events,
    cache: Utf8PathBuf,
    sources: Sources,
    redis: Option<RedisAddress>,
) -> anyhow::Result<Desk> {
    Ok(Desk {
        events,
        cache,
        executable: Utf8PathBuf::try_from(std::env::current_exe()?)?,
        redis,
        fork_servers: Arc::default(),
        patience: request.suite.patience,
        sources,
        environment: None,
    })
}

/// Puts the environment on the desk, with these replacements in it: found or made.
pub(super) async fn bring_environment(
    bench: &mut Bench,
    replacements: Vec<Replacement>,
) -> anyhow::Result<()> {
    let Desk { cache, events, .. } = &bench.desk;
    let device = &bench.request.device;
    let environment = provide_environment(device, cache, events).await?;
    let environment = replace(&environment, replacements, stack(device), cache, events).await??;
    warn_of_extension(&environment, stack(device), events).await?;
    bench.desk.environment = Some(environment);
    Ok(())
}

/// Says, before anything starts, if LMCache's extension for GPUs is not what copies the KV. The verdict is on what does, so the run
/// goes on. On a CPU an engine that lacks what it copies KV with ends with its error.
async fn warn_of_extension(environment: &Environment, stack: Stack, events: &Events) -> anyhow::Result<()> {
    if stack == Stack::Cpu {
        return Ok(());
    }
    let environment = environment.clone();
    let words = match on_thread(move || try_extension(&environment, stack)).await? {
        Ok(Extension::Loads) => return Ok(()),
        Ok(Extension::Absent) => "there is none for CUDA in this build".to_owned(),
        Ok(Extension::Fails(words)) => words,
        Err(error) => format!("it could not be tried: {error}"),
    };
    events.warn(format!("LMCache's compiled extension: {words}; {}", Extension::HINT));
    Ok(())
}

/// The Redis server that was named, with its password from the environment.
pub(super) fn redis_address(url: Option<&str>) -> anyhow::Result<Option<RedisAddress>> {
    let Some(url) = url.filter(|url| !url.is_empty()) else { return Ok(None) };
    let mut address: RedisAddress = url.parse().map_err(|error: RedisUrlError| {
        anyhow::anyhow!("use the address of `--redis-url`: {error}\n\nhint: {}", error.hint())
    })?;
    address.password =
        std::env::var("KV_CORRECTNESS_REDIS_PASSWORD").ok().filter(|password| !password.is_empty());
    Ok(Some(address))
}

/// Whether the environment is there, or was named.
pub(super) fn find_environment(bench: &Bench) -> anyhow::Result<bool> {
    let stack = stack(&bench.request.device);
    let request = EnvironmentRequest::from_variables(stack, bench.desk.cache.clone());
    Ok(request.find()?.is_some())
}

/// Finds or makes the environment, on a thread of its own: that can take minutes, and must not hold up an interrupt.
pub(super) async fn provide_environment(
    device: &Device,
    cache: &Utf8Path,
    events: &Events,
) -> anyhow::Result<Environment> {
    let (request, events) =
        (EnvironmentRequest::from_variables(stack(device), cache.to_owned()), events.clone());
    Ok(on_thread(move || request.provide(&events)).await.context("make the Python environment")??)
}

pub(super) fn choose_device(choice: DeviceChoice) -> anyhow::Result<Device> {
    require_proc()?;
    let cuda = Device::cuda();
    match choice {
        DeviceChoice::Cpu => Ok(Device::cpu()),
        DeviceChoice::Auto => Ok(cuda.unwrap_or_else(Device::cpu)),
        DeviceChoice::Cuda if cuda.is_none() && is_wsl() => anyhow::bail!(
            "find an NVIDIA GPU: this is WSL, which shows its GPUs by /dev/dxg and /usr/lib/wsl/lib, and this program knows \
             those of the kernel's own driver only\n\nhint: `--device cpu` computes on the processor, for which the suite canary is made; for a \
             GPU boot Linux itself"
        ),
        DeviceChoice::Cuda => cuda.context(
            "find an NVIDIA GPU: the kernel's driver shows none\n\nhint: `--device cpu` computes on the processor, for which the \
             suite canary is made",
        ),
    }
}

/// Whether GPUs are those of Windows, which WSL shows by another device and another driver's library.
pub(super) fn is_wsl() -> bool {
    ["/dev/dxg", "/usr/lib/wsl/lib/libcuda.so.1"].iter().any(|path| Utf8Path::new(path).exists())
}

/// Fails where the kernel does not tell of processes and processors.
pub(super) fn require_proc() -> anyhow::Result<()> {
    anyhow::ensure!(
        Utf8Path::new("/proc/self/stat").exists(),
        "read /proc, which tells of processor, memory and processes: it is not mounted\n\nhint: mount it with `mount -t proc \
         proc /proc`; a container runtime does so unless it is told otherwise"
    );
    Ok(())
}

pub(super) fn stack(device: &Device) -> Stack {
    match device.kind() {
        DeviceKind::Cpu => Stack::Cpu,
        DeviceKind::Cuda => Stack::Cuda,
    }
}

pub(super) fn cache_folder(given: Option<Utf8PathBuf>) -> anyhow::Result<Utf8PathBuf> {
    // An empty variable is none, and a relative one is to be ignored, by the standard that names it.
    let folder = match given.filter(|folder| *folder != "") {
        Some(folder) => folder,
        None => match (std::env::var("XDG_CACHE_HOME"), std::env::var("HOME")) {
            (Ok(cache), _) if Utf8Path::new(&cache).is_absolute() => {
                Utf8PathBuf::from(cache).join("kv-correctness")
            }
            (_, Ok(home)) if !home.is_empty() => Utf8PathBuf::from(home).join(".cache/kv-correctness"),
            _ => anyhow::bail!("find a cache folder: HOME is not set\n\nhint: name one with `--cache DIR`"),
        },
    };
    Ok(camino::absolute_utf8(&folder)?)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Words {
        #[command(flatten)]
        arguments: RunArguments,
    }

    #[test]
    fn other_questions_are_asked_all_where_the_suite_counts_those_that_are_embedded() {
        let questions = |words: &str| {
            let words = Words::try_parse_from(words.split(' ')).unwrap();
            changed_suite(&words.arguments).unwrap().questions.map(usize::from)
        };
        assert_eq!(questions("run --suite canary"), Some(8));
        assert_eq!(questions("run --suite canary --data mmlu.tar"), None);
        assert_eq!(questions("run --suite mmlu-small"), Some(6));
        assert_eq!(questions("run --suite mmlu-small --data mmlu.tar"), Some(6));
        assert_eq!(questions("run --suite mmlu-small --data mmlu.tar --subjects 2"), None);
    }
}
