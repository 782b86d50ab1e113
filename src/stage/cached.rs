//! The arm with LMCache: one artifact with both passes, so a stale store is never paired with another load.
//!
//! Output: `store.jsonl` and `load.jsonl` as in the other arms, and [`Passes`] in `passes.json`.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::engine_run::{ArmKey, EngineRun, take_prompts};
use super::lines::{read_json, write_json};
use super::prompts::read_prompts;
use super::watch::{EarlyStopping, Watch, shuffle};
use super::{Bench, StageError};
use crate::assets::Model;
use crate::comparison::EarlyStop;
use crate::digest::Digest;
use crate::engine::{Capacity, Connector, LmcacheServer, PrefixCache, ServerCounters, ServerSettings, Tiers};
use crate::event::Event;
use crate::stage_name::StageName;
use crate::store::{Artifact, Draft, StageKey};
use crate::suite::Route;

const SCHEMA: u32 = 1;
pub(super) const STORE: &str = "store.jsonl";
pub(super) const LOAD: &str = "load.jsonl";
const PASSES: &str = "passes.json";
/// How long stored chunks may take to arrive once the store pass has its last answer.
const SETTLE_PATIENCE: Duration = Duration::from_secs(20);

/// Questions of a load pass between two looks at the evidence for harm.
const SLICE: usize = 32;

#[derive(Serialize)]
struct CachedArm {
    route: Route,
    capacity: Capacity,
    /// What the load pass is watched by, where it may end early.
    watched: Option<WatchedKey>,
}

#[derive(Serialize)]
struct WatchedKey {
    questions: Digest,
    baseline: Digest,
    comparisons: usize,
}

/// What a load pass that may end early is held against.
#[derive(Debug, Clone, Copy)]
pub struct Watched<'a> {
    /// Of the extract stage.
    pub questions: &'a Artifact,
    /// Of the baseline stage.
    pub baseline: &'a Artifact,
}

/// What is known of the two passes besides the observations.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Passes {
    /// Questions that were asked in both passes.
    pub asked: usize,
    /// Whether it ended after the first round, since that round's load pass was served nothing at all.
    pub ended_unserved: bool,
    /// Why the load pass ended before the last question, if harm was beyond doubt.
    pub early_stop: Option<EarlyStop>,
    /// The server's counts, where the route has a server.
    pub server: Option<PassCounters>,
}

/// The LMCache server's counts over each pass.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PassCounters {
    /// Over the store pass.
    pub store: ServerCounters,
    /// Over the load pass.
    pub load: ServerCounters,
}

/// vLLM with LMCache, every question twice: stored, then loaded.
///
/// # Errors
/// When the KV of a subject does not fit, or engine or server fail.
pub async fn cached(
    bench: &Bench,
    model: &Model,
    prompts: &Artifact,
    route: Route,
    watched: Watched<'_>,
) -> Result<Artifact, StageError> {
    bench.environment.require_lmcache()?;
    let run = EngineRun { bench, model, prompts };
    let watched = (bench.early_stopping == EarlyStopping::Allowed).then_some(watched);
    let watched_key = |watched: Watched<'_>| WatchedKey {
        questions: watched.questions.output_digest(),
        baseline: watched.baseline.output_digest(),
        comparisons: bench.suite.models.len() * bench.suite.routes.len(),
    };
    let arm = CachedArm { route, capacity: run.capacity()?, watched: watched.map(watched_key) };
    let key = ArmKey { common: run.common_key(), environment: bench.environment.identity(), arm };
    let key = StageKey::new(SCHEMA, StageName::Cached, &key);
    let label = format!("{} {route}", model.name());
    bench.make(&key, &label, async |draft| fill(&run, draft, route, watched).await).await
}

/// What [`cached`] knows of its passes besides the observations.
pub(super) fn read_passes(cached: &Artifact) -> Result<Passes, StageError> {
    read_json(&cached.path(PASSES))
}

async fn fill(
    run: &EngineRun<'_>,
    draft: &Draft,
    route: Route,
    watched: Option<Watched<'_>>,
) -> Result<(), StageError> {
    let plan = run.plan()?;
    let mut watch =
        watched.map(|watched| Watch::new(run, watched.questions, watched.baseline)).transpose()?;
    let total = plan.expectations.len();
    let (server, connector, variables) = match route {
        Route::Mp => {
            let server = start_server(run, draft, Tiers::default()).await?;
            let connector = server.connector();
            (Some(server), connector, Vec::new())
        }
        Route::InProcess => (None, in_process_connector(), in_process_variables(run)),
    };
    let mut worker = run.start(draft, &format!("{route} cached"), Some(connector), None, variables).await?;
    let mut store = run.pass(draft, "store pass", STORE, total)?;
    let mut load = run.pass(draft, "load pass", LOAD, total)?;
    let mut prompts = read_prompts(run.prompts)?;
    let batch = usize::try_from(run.bench.suite.engine.max_num_seqs).unwrap_or(1);
    let mut passes = Passes {
        asked: 0,
        ended_unserved: false,
        early_stop: None,
        server: server.as_ref().map(|_| PassCounters::default()),
    };
    for round in &plan.rounds {
        let prompts = take_prompts(&mut prompts, round.prompts)?;
        let before = read_counters(server.as_ref()).await?;
        store.score(&mut worker, &prompts, PrefixCache::Read).await?;
        let between = match &server {
            Some(server) => {
                let patience =
                    Duration::from_secs(run.bench.suite.patience.change_seconds).min(SETTLE_PATIENCE);
                server.settle(before.written_chunks + round.chunks, patience).await?
            }
            None => before,
        };
        let mut hit_tokens = 0;
        for slice in shuffle(&prompts, run.bench.suite.engine.seed).chunks(SLICE * batch) {
            let observations = load.score(&mut worker, slice, PrefixCache::Read).await?;
            hit_tokens += observations.iter().map(|one| u64::from(one.cached_tokens)).sum::<u64>();
            passes.early_stop = watch.as_mut().and_then(|watch| watch.observe(&observations));
            if passes.early_stop.is_some() {
                break;
            }
        }
        let after = read_counters(server.as_ref()).await?;
        if let Some(counters) = &mut passes.server {
            counters.store = counters.store.plus(between.since(before));
            counters.load = counters.load.plus(after.since(between));
        }
        passes.asked += prompts.len();
        if let Some(stop) = passes.early_stop {
            run.bench.events.warn(format!(
                "{} over {route}: {} of {} answers turned wrong; harm is beyond doubt, and the rest is not asked",
                run.model.name(),
                stop.harms,
                stop.pairs
            ));
            break;
        }
        if passes.asked == prompts.len() && hit_tokens == 0 && passes.asked < total {
            run.bench.events.warn(format!(
                "{} over {route}: LMCache served nothing for the first {} questions; the rest is not asked",
                run.model.name(),
                passes.asked
            ));
            passes.ended_unserved = true;
            break;
        }
        if let Some(server) = &server {
            server.clear().await?;
        }
    }
    store.finish()?;
    load.finish()?;
    write_json(draft.path(PASSES), &passes)?;
    Ok(worker.finish().await?)
}

async fn read_counters(server: Option<&LmcacheServer>) -> Result<ServerCounters, StageError> {
    match server {
        Some(server) => Ok(server.counters().await?),
        None => Ok(ServerCounters::default()),
    }
}

/// Starts a server for this model.
pub(super) async fn start_server(
    run: &EngineRun<'_>,
    draft: &Draft,
    tiers: Tiers,
) -> Result<LmcacheServer, StageError> {
    let bench = run.bench;
    let settings = ServerSettings {
        program: bench.environment.executable("lmcache"),
        guard: bench.executable.clone(),
        variables: run.variables(&bench.environment),
        log: draft.note_path("lmcache-server.log"),
        chunk_tokens: bench.suite.lmcache.chunk_tokens,
        memory_gib: bench.suite.lmcache.memory_gib,
        tiers,
        patience: Duration::from_secs(bench.suite.patience.change_seconds),
    };
    let name = || "lmcache server".to_owned();
    bench.events.emit(Event::ServerStarting { server: name(), log: settings.log.clone() });
    let started = Instant::now();
    let server = LmcacheServer::start(&settings).await?;
    bench.events.emit(Event::ServerHealthy { server: name(), elapsed: started.elapsed() });
    Ok(server)
}

fn in_process_connector() -> Connector {
    Connector {
        name: "LMCacheConnectorV1".to_owned(),
        module_path: None,
        extra: std::collections::BTreeMap::new(),
    }
}

fn in_process_variables(run: &EngineRun<'_>) -> Vec<(String, String)> {
    let settings = run.bench.suite.lmcache;
    [
        ("LMCACHE_CHUNK_SIZE", settings.chunk_tokens.to_string()),
        ("LMCACHE_LOCAL_CPU", "True".to_owned()),
        ("LMCACHE_MAX_LOCAL_CPU_SIZE", settings.memory_gib.to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .to_vec()
}
