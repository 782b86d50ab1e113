//! The arm with LMCache: one artifact with both passes, so a stale store is never paired with another load.
//!
//! Output: `store.jsonl` and `load.jsonl` as in the other arms, and [`Passes`] in `passes.json`.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use serde::Serialize;

use super::backing::{Backing, Side, added_packages, launch_server, server_settings};
use super::engine_run::{ArmKey, EngineRun, EngineSetup, numbered};
use super::lines::{read_json, write_json};
use super::load_pass::{Loading, PassCounters, Passes};
use super::rounds::{Pass, Rounds};
use super::route_error::RouteError;
use super::watch::{EarlyStopping, Watch};
use super::{Bench, ForeignReading, Mode, Planting, StageError};
use crate::assets::Model;
use crate::digest::Digest;
use crate::engine::environment::Environment;
use crate::engine::{
    Capacity, Connector, LmcacheServer, Plan, PrefixCache, Redis, ServerCounters, describe_redis_error,
};
use crate::options::{NotOffered, StoringOptions};
use crate::stage_name::StageName;
use crate::store::{Artifact, Draft, StageKey};
use crate::suite::Route;

const SCHEMA: u32 = 2;
pub(super) const STORE: &str = "store.jsonl";
pub(super) const LOAD: &str = "load.jsonl";
const PASSES: &str = "passes.json";
/// How long stored chunks may take to arrive once the store pass has its last answer.
const SETTLE_PATIENCE: Duration = Duration::from_secs(20);

#[derive(Serialize)]
struct CachedArm {
    route: Route,
    options: StoringOptions,
    capacity: Capacity,
    /// The requirements of what the route adds to the environment.
    added_packages: Option<Digest>,
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

/// vLLM with LMCache, every question twice: stored, then loaded.
///
/// # Errors
/// When the KV of a prompt does not fit, the route cannot run on this machine, or engine or server fail.
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
    let arm = CachedArm {
        route,
        options: bench.suite.lmcache.options,
        capacity: run.capacity()?,
        added_packages: added_packages(bench, route),
        watched: watched.map(watched_key),
    };
    let key = ArmKey { common: run.common_key(), environment: bench.environment.identity(), arm };
    let key = StageKey::new(SCHEMA, StageName::Cached, &key);
    let label = format!("{} {route}", model.name());
    bench.make(&key, &label, async |draft| fill(&run, draft, route, watched).await).await
}

/// Refuses options that none of the suite's routes offers, or not the one that foreign KV is read on, faults where bytes
/// would not be where they are planted, and an environment without the server that is needed for them or for every route.
///
/// # Errors
/// When nothing that was asked for could be done.
pub fn admit_routes(bench: &Bench) -> Result<(), StageError> {
    if bench.foreign == ForeignReading::Asked {
        require_route(bench, Route::MpFs)?;
    }
    if bench.planting == Planting::Asked {
        if bench.suite.lmcache.options.serde.is_some() {
            return Err(RouteError::FaultsBehindSerde.into());
        }
        require_server(&bench.environment, Route::MpFs)?;
    }
    // Keys can be told of what cannot run.
    if matches!(bench.mode, Mode::Ask(_)) {
        return Ok(());
    }
    let routes = &bench.suite.routes;
    let refused = routes.iter().filter_map(|route| Some((*route, require_route(bench, *route).err()?)));
    let mut refused: Vec<(Route, RouteError)> = refused.collect();
    if refused.len() == routes.len()
        && let Some((_, error)) = refused.pop()
    {
        return Err(error.into());
    }
    for (route, error) in refused {
        bench.events.warn(format!("route {route} will not be run: failed to {error}"));
    }
    Ok(())
}

/// Refuses a route that does not offer the suite's options, or whose server the environment lacks.
fn require_route(bench: &Bench, route: Route) -> Result<(), RouteError> {
    if let Some(NotOffered { option, reason }) = bench.suite.lmcache.options.not_offered(route) {
        return Err(RouteError::NotOffered { option, reason });
    }
    if let (Route::MpRedis, Some(address)) = (route, &bench.redis) {
        Redis::reach(address).map_err(|error| RouteError::RedisUnreachable {
            address: address.to_string(),
            problem: describe_redis_error(&error),
        })?;
    }
    require_server(&bench.environment, route)
}

/// Refuses a route over a server whose program the environment lacks, as one that was put together by hand may.
///
/// # Errors
/// When it does.
pub fn require_server(environment: &Environment, route: Route) -> Result<(), RouteError> {
    let program = environment.executable("lmcache");
    if route == Route::InProcess || program.exists() { Ok(()) } else { Err(RouteError::NoServer { program }) }
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
    require_route(run.bench, route)?;
    let plan = run.plan()?;
    let watch = watched.map(|watched| Watch::new(run, watched.questions, watched.baseline)).transpose()?;
    let total = plan.expectations.len();
    let pass = Pass::of(run, draft, "load pass", LOAD, total)?;
    let loading = Loading { run, route, total, watch: RefCell::new(watch), pass, end: Cell::default() };
    let store = Pass::of(run, draft, "store pass", STORE, total)?;
    let bytes = plan.rounds.iter().map(|round| round.new_chunks).sum::<u64>() * run.chunk_bytes()?;
    let passes = match Backing::prepare(run, draft, route, bytes).await? {
        Some(backing) => through_backing(run, draft, &backing, &plan, store, loading).await?,
        None => in_each_engine(run, draft, &plan, store, loading).await?,
    };
    write_json(draft.path(PASSES), &passes)
}

/// Both passes in the same engine, each round stored and loaded before the next.
async fn in_each_engine(
    run: &EngineRun<'_>,
    draft: &Draft,
    plan: &Plan,
    store: Pass<'_>,
    loading: Loading<'_>,
) -> Result<Passes, StageError> {
    let (route, rounds) = (loading.route, Rounds::of(run, plan)?);
    let counters = RefCell::new(PassCounters::default());
    let work = async |number: Option<usize>| {
        let (server, connector, variables) = if route == Route::InProcess {
            (None, in_process_connector(), in_process_variables(run))
        } else {
            let settings =
                server_settings(run, draft, &format!("{}.log", numbered("lmcache-server", number)));
            let name = numbered("lmcache server", number).replace('-', " ");
            run.import_ahead(draft, number).await?;
            let server = launch_server(run.bench, &settings, &name).await?;
            let connector = with_options(server.connector(None), run);
            (Some(server), connector, Vec::new())
        };
        let setup =
            EngineSetup { variables, ..EngineSetup::connected(&format!("{route} cached"), connector) };
        let mut worker = run.start(draft, setup.numbered(number)).await?;
        while let Some(round) = rounds.take().await? {
            let before = read_counters(server.as_ref()).await?;
            store.score(&mut worker, &round, &round.prompts, PrefixCache::Read).await?;
            store.is_over(&round)?;
            let between = match &server {
                Some(server) => settle(run, server, before, round.round.chunks).await?,
                None => before,
            };
            loading.load(&mut worker, &round).await?;
            let after = read_counters(server.as_ref()).await?;
            counters.borrow_mut().count(between.since(before), after.since(between));
            if loading.end.get().is_some() {
                rounds.close();
                break;
            }
            rounds.is_over(&round);
            if let Some(server) = &server {
                server.clear().await?;
            }
        }
        Ok(worker.finish().await?)
    };
    rounds.share(run.bench.engines_of_a_model(), work).await?;
    store.finish()?;
    loading.finish(rounds.asked(), (route != Route::InProcess).then(|| counters.into_inner()))
}

/// One engine and server that store everything, then another engine, behind another server with empty memory, that loads.
async fn through_backing(
    run: &EngineRun<'_>,
    draft: &Draft,
    backing: &Backing,
    plan: &Plan,
    store: Pass<'_>,
    loading: Loading<'_>,
) -> Result<Passes, StageError> {
    let (route, mut counters) = (loading.route, PassCounters::default());
    run.import_ahead(draft, None).await?;
    let first = backing.start_server(run, draft, Side::Store).await?;
    let connector = with_options(first.connector(backing.salt()), run);
    let mut worker = run.start(draft, EngineSetup::connected(&format!("{route} storing"), connector)).await?;
    let rounds = Rounds::of(run, plan)?;
    while let Some(round) = rounds.take().await? {
        let before = first.counters().await?;
        store.score(&mut worker, &round, &round.prompts, PrefixCache::Read).await?;
        store.is_over(&round)?;
        rounds.is_over(&round);
        let settled = settle(run, &first, before, round.round.new_chunks).await?;
        counters.count(settled.since(before), ServerCounters::default());
        if !backing.is_memory_of_the_first_server() {
            first.clear().await?;
        }
    }
    store.finish()?;
    worker.finish().await?;
    let first = backing.is_memory_of_the_first_server().then_some(first);

    let loaded = async {
        let second = backing.start_server(run, draft, Side::Load).await?;
        let connector = with_options(second.connector(backing.salt()), run);
        let mut worker =
            run.start(draft, EngineSetup::connected(&format!("{route} loading"), connector)).await?;
        let rounds = Rounds::of(run, plan)?;
        while let Some(round) = rounds.take().await? {
            let before = second.counters().await?;
            loading.load(&mut worker, &round).await?;
            counters.count(ServerCounters::default(), second.counters().await?.since(before));
            backing.require_alive(first.as_ref(), draft).await?;
            if loading.end.get().is_some() {
                break;
            }
            rounds.is_over(&round);
            second.clear().await?;
        }
        worker.finish().await?;
        loading.finish(rounds.asked(), Some(counters))
    };
    tokio::select! {
        loaded = loaded => loaded,
        gone = backing.until_gone(first.as_ref(), draft) => Err(gone),
    }
}

/// Waits for a round's chunks, which go on arriving after the last answer.
pub(super) async fn settle(
    run: &EngineRun<'_>,
    server: &LmcacheServer,
    before: ServerCounters,
    chunks: u64,
) -> Result<ServerCounters, StageError> {
    let shards = u64::from(run.parallelism().written_shards(run.model.kv_shape()?));
    let patience = Duration::from_secs(run.bench.suite.patience.change_seconds).min(SETTLE_PATIENCE);
    Ok(server.settle(before.written_chunks + chunks * shards, patience).await?)
}

async fn read_counters(server: Option<&LmcacheServer>) -> Result<ServerCounters, StageError> {
    match server {
        Some(server) => Ok(server.counters().await?),
        None => Ok(ServerCounters::default()),
    }
}

/// The connector with those of the suite's options that the engine's side of an LMCache server has.
pub(super) fn with_options(mut connector: Connector, run: &EngineRun<'_>) -> Connector {
    connector.extra.extend(run.bench.suite.lmcache.options.connector_settings());
    connector
}

fn in_process_connector() -> Connector {
    Connector {
        name: "LMCacheConnectorV1".to_owned(),
        module_path: None,
        extra: std::collections::BTreeMap::new(),
        cache_salt: None,
    }
}

fn in_process_variables(run: &EngineRun<'_>) -> Vec<(String, String)> {
    let settings = run.bench.suite.lmcache;
    let own = [
        ("LMCACHE_CHUNK_SIZE", settings.chunk_tokens.to_string()),
        ("LMCACHE_LOCAL_CPU", "True".to_owned()),
        ("LMCACHE_MAX_LOCAL_CPU_SIZE", settings.memory_gib.to_string()),
    ];
    own.into_iter()
        .chain(settings.options.variables())
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}
