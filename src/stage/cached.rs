//! The arm with a cache under test: one artifact with both passes, so a stale store is never paired with another load.
//!
//! Output: `store.jsonl`, `load.jsonl` and `cut.jsonl` as in the other arms, [`Passes`] in `passes.json`, and `second-look.json`, which
//! holds nothing where every cell of KV is right.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use serde::Serialize;

use super::capacity::chunk_bytes;
use super::cut_pass::{self, CutPass, CutRule};
use super::engine_run::{EngineRun, EngineSetup, EngineSpec, READY, read_blocks};
use super::files::PassName;
use super::known_copies::KnownCopies;
use super::lines::{read_json, write_json};
use super::load_pass::{LoadPass, PassCounters, Passes};
use super::rounds::{Pass, Rounds};
use super::second_look::Looker;
use super::watch::Watch;
use super::{Context, StageError};
use crate::carrier::{Carrier, Port, Side, Topology, Transport, find_carrier};
use crate::comparison::{self, Fidelity};
use crate::dataset::Prompt;
use crate::digest::Digest;
use crate::engine::{
    Capacity, EngineHits, Halting, Halts, Handing, Plan, PrefixCache, Ready, ServerCounters, Worker,
};
use crate::event::Effort;
use crate::model::{HitUnit, Route};
use crate::store::Artifact;
use crate::suite::LmcacheSettings;

const PASSES: &str = "passes.json";
/// Between two looks at whether what a load pass is served from is still there.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);
/// How long a server that is made slow is stopped at a time, and runs in between.
const STOPPED: Duration = Duration::from_millis(50);
const RUNNING: Duration = Duration::from_millis(20);

/// vLLM with a carrier, every question twice: stored, then loaded; and prefixes of some. Inputs: the prompts; questions and baseline where the load
/// pass may end early; the baseline where the carrier serves blocks, whose size it tells.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cached {
    /// The engine.
    pub engine: EngineSpec,
    /// The carrier's name.
    pub route: Route,
    /// LMCache's settings.
    pub lmcache: LmcacheSettings,
    /// What bounds the rounds.
    pub capacity: Capacity,
    /// What the carrier is made of, where that is not this program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub carrier: Option<Digest>,
    /// The requirements of what the carrier adds to the environment.
    pub added_packages: Option<Digest>,
    /// Among how many comparisons the budget for early stops is divided, where the load pass may end early.
    pub early_stop_among: Option<u32>,
}

impl Cached {
    pub(crate) const SCHEMA: u32 = 10;

    /// What it takes time for.
    pub(crate) fn effort(&self, prompts: usize) -> Effort {
        let carrier = find_carrier(self.route).ok();
        let engines = match carrier.map(Carrier::topology) {
            Some(Topology::AnotherEngine | Topology::ProducerAndConsumer) => 2,
            Some(Topology::SameEngine) | None => 1,
        };
        let has_server = carrier.is_some_and(|carrier| carrier.proof().is_of_a_server());
        let servers = if has_server { engines } else { 0 };
        let has_cuts = carrier.is_some_and(|carrier| cut_pass::left_out(carrier).is_none());
        let served = prompts + if has_cuts { cut_pass::about_cuts(prompts) } else { 0 };
        Effort { engines, servers, computed: prompts, served, ..Effort::default() }
    }

    pub(crate) async fn fill(&self, context: &Context<'_>) -> Result<(), StageError> {
        let capacity = self.capacity_here(context)?;
        let run = EngineRun::of(&self.engine, context).digesting(capacity);
        let carrier = find_carrier(self.route)?;
        let plan = run.plan(capacity)?;
        let watch = self.early_stop_among.map(|comparisons| Watch::new(&run, comparisons)).transpose()?;
        let total = plan.expectations.len();
        let looker = self.looker(&run, capacity.chunk_tokens)?;
        let pass = Pass::of(context, PassName::Load, total)?.watched(watch);
        let pass = pass.looked_at(&looker, comparison::Pass::Load);
        let (engine, route) = (&self.engine, self.route);
        let loading = LoadPass {
            context,
            engine,
            route,
            plan: &plan,
            pass,
            chunk_tokens: capacity.chunk_tokens,
            end: Cell::default(),
            spoilt: RefCell::default(),
        };
        let store = Pass::of(context, PassName::Store, total)?;
        let store = store.looked_at(&looker, comparison::Pass::Store);
        let rule = CutRule::new(capacity.chunk_tokens, self.engine.seed);
        let cuts = CutPass::of(context, carrier, (&plan, rule), &looker)?;
        let chunks = plan.rounds.iter().map(|round| round.new_chunks).sum::<u64>();
        let surroundings = run.surroundings(self.lmcache)?;
        let transport = carrier.prepare(&surroundings, chunks * chunk_bytes(capacity)).await?;
        let (transport, looker) = (transport.as_ref(), &looker);
        let stored_as = self.lmcache.options.stored_as();
        let both = Both {
            run,
            carrier,
            transport,
            plan: &plan,
            cuts: &cuts,
            looker,
            is_slow: self.lmcache.slow,
            stored_as,
        };
        let mut passes = match carrier.topology() {
            Topology::SameEngine => both.in_each_engine(store, loading).await?,
            Topology::AnotherEngine => both.in_two_engines(store, loading).await?,
            Topology::ProducerAndConsumer => both.in_a_pair(store, loading).await?,
        };
        passes.hits.cut = cuts.finish()?;
        passes.cuts_left_out = cut_pass::left_out(carrier).map(str::to_owned);
        self.require_blocks(context, capacity)?;
        looker.write(context)?;
        write_json(context.draft.path(PASSES), &passes)
    }

    fn looker<'a>(&self, run: &EngineRun<'a>, chunk_tokens: u32) -> Result<Looker<'a>, StageError> {
        let (ranks, shape) = (self.engine.ranks, run.kv_shape()?);
        let shared_by_ranks = ranks.written_shards(shape) < ranks.read_shards();
        let options = self.lmcache.options;
        let holds = options.fidelity() == Fidelity::Exact || options.stored_as().is_some();
        Ok(Looker::new(run.context, chunk_tokens, KnownCopies::new(chunk_tokens, shared_by_ranks, holds)))
    }
}

impl Cached {
    /// What bounds the rounds, where chunks are blocks: those of the baseline's engine.
    fn capacity_here(&self, context: &Context<'_>) -> Result<Capacity, StageError> {
        match self.capacity.hits.unit {
            HitUnit::Chunk => Ok(self.capacity),
            HitUnit::Block => Ok(self.capacity.with_blocks_of(read_blocks(context.inputs)?)),
        }
    }

    /// Fails where a connector made vLLM choose blocks of another size, so that nothing that was predicted holds.
    fn require_blocks(&self, context: &Context<'_>, capacity: Capacity) -> Result<(), StageError> {
        let ready: Ready = read_json(&context.draft.path(READY))?;
        match self.capacity.hits.unit {
            HitUnit::Block if ready.block_size != capacity.chunk_tokens => {
                Err(StageError::OtherBlocks { expected: capacity.chunk_tokens, seen: ready.block_size })
            }
            HitUnit::Chunk | HitUnit::Block => Ok(()),
        }
    }
}

/// What is known of a cached arm's passes besides the observations.
pub(super) fn read_passes(cached: &Artifact) -> Result<Passes, StageError> {
    read_json(&cached.path(PASSES))
}

/// All passes over one carrier.
struct Both<'a> {
    run: EngineRun<'a>,
    carrier: &'static dyn Carrier,
    transport: &'a dyn Transport,
    plan: &'a Plan,
    cuts: &'a CutPass<'a>,
    looker: &'a Looker<'a>,
    /// Whether servers are stopped and let run in turn.
    is_slow: bool,
    /// What elements go through on their way into the cache and back, where they do.
    stored_as: Option<&'static str>,
}

impl Both<'_> {
    /// All passes in the same engine, each round stored and loaded before the next. Within a round the order is the meaning:
    /// store, wait until all has arrived, load, count, ask prefixes, spoil, empty.
    async fn in_each_engine(&self, store: Pass<'_>, loading: LoadPass<'_>) -> Result<Passes, StageError> {
        let rounds = Rounds::of(self.run.prompts(), &self.plan.rounds)?;
        let counters = RefCell::new(PassCounters::default());
        let work = async |number: Option<usize>| {
            if self.carrier.proof().is_of_a_server() {
                self.run.import_ahead(number).await?;
            }
            let port = self.transport.open(Side::Both, number).await?;
            let setup = self.setup(port.as_ref(), "cached").numbered(number);
            let mut worker = unless_refused(port.as_ref(), self.run.start(setup)).await?;
            let halting = self.halt(port.as_ref())?;
            while let Some(round) = rounds.take().await? {
                let before = port.counters().await?;
                store.score(&mut worker, &round, &round.prompts, PrefixCache::Read).await?;
                store.is_over(&round)?;
                let between = port.settle(before, round.round.chunks).await?;
                loading.load(&mut worker, &round).await?;
                self.transport.require_alive().await?;
                let after = port.counters().await?;
                counters.borrow_mut().count(between.since(before), after.since(between));
                if loading.end.get().is_some() {
                    rounds.close();
                    break;
                }
                self.cuts.ask(&mut worker, &round).await?;
                let asked = port.counters().await?;
                counters.borrow_mut().count_cut(asked.since(after));
                self.looker.load_again(&mut worker).await?;
                loading.spoil(&mut worker, &round).await?;
                rounds.is_over(&round);
                port.clear().await?;
            }
            drop(halting);
            self.looker.finish(worker).await
        };
        rounds.share(self.run.context.engines, work).await?;
        let hits = store.hits();
        store.finish()?;
        let counted = self.carrier.proof().is_of_a_server().then(|| counters.into_inner());
        loading.finish(rounds.asked(), counted.as_ref(), hits)
    }

    /// One engine that stores everything, then another one, behind a side that starts empty, that loads.
    async fn in_two_engines(&self, store: Pass<'_>, loading: LoadPass<'_>) -> Result<Passes, StageError> {
        let mut counters = PassCounters::default();
        self.run.import_ahead(None).await?;
        let first = self.transport.open(Side::Store, None).await?;
        let mut worker =
            unless_refused(first.as_ref(), self.run.start(self.setup(first.as_ref(), "storing"))).await?;
        let halting = self.halt(first.as_ref())?;
        let rounds = Rounds::of(self.run.prompts(), &self.plan.rounds)?;
        while let Some(round) = rounds.take().await? {
            let before = first.counters().await?;
            store.score(&mut worker, &round, &round.prompts, PrefixCache::Read).await?;
            store.is_over(&round)?;
            rounds.is_over(&round);
            let settled = first.settle(before, round.round.new_chunks).await?;
            counters.count(settled.since(before), ServerCounters::default());
            if !self.transport.keeps_storing_side() {
                first.clear().await?;
            }
        }
        drop(halting);
        let stored = (counters, store.hits());
        store.finish()?;
        self.looker.finish(worker).await?;
        let first = self.transport.keeps_storing_side().then_some(first);
        let loaded = tokio::select! {
            loaded = self.load_all(first.as_deref(), loading, stored) => loaded,
            gone = self.until_gone(first.as_deref()) => Err(gone),
        };
        // An engine or a server that failed since what it is served from has gone is told by that cause, whichever was seen first.
        match loaded {
            Err(error) => Err(self.require_alive(first.as_deref()).await.err().unwrap_or(error)),
            passes => passes,
        }
    }

    async fn load_all(
        &self,
        first: Option<&dyn Port>,
        loading: LoadPass<'_>,
        (mut counters, store_hits): (PassCounters, EngineHits),
    ) -> Result<Passes, StageError> {
        let second = self.transport.open(Side::Load, None).await?;
        let mut worker =
            unless_refused(second.as_ref(), self.run.start(self.setup(second.as_ref(), "loading"))).await?;
        let halting = self.halt(second.as_ref())?;
        let rounds = Rounds::of(self.run.prompts(), &self.plan.rounds)?;
        while let Some(round) = rounds.take().await? {
            let before = second.counters().await?;
            loading.load(&mut worker, &round).await?;
            let after = second.counters().await?;
            counters.count(ServerCounters::default(), after.since(before));
            self.require_alive(first).await?;
            if loading.end.get().is_some() {
                break;
            }
            // Else prefixes would be served from where the load pass has just brought their chunks.
            second.clear().await?;
            let cleared = second.counters().await?;
            self.cuts.ask(&mut worker, &round).await?;
            counters.count_cut(second.counters().await?.since(cleared));
            self.looker.load_again(&mut worker).await?;
            loading.spoil(&mut worker, &round).await?;
            rounds.is_over(&round);
            second.clear().await?;
        }
        drop(halting);
        self.looker.finish(worker).await?;
        let counted = self.carrier.proof().is_of_a_server().then_some(counters);
        loading.finish(rounds.asked(), counted.as_ref(), store_hits)
    }

    /// Two engines at the same time: one computes some prompts and leaves their KV, the other one loads it and answers.
    async fn in_a_pair(&self, store: Pass<'_>, loading: LoadPass<'_>) -> Result<Passes, StageError> {
        self.run.import_ahead(None).await?;
        let second = self.transport.open(Side::Load, None).await?;
        let consumer = self.run.start(self.setup(second.as_ref(), "receiving")).await?;
        let first = self.transport.open(Side::Store, None).await?;
        let producer = self.run.start(self.setup(first.as_ref(), "sending")).await?;
        tokio::select! {
            loaded = self.hand_all([producer, consumer], store, loading) => loaded,
            gone = self.until_gone(None) => Err(gone),
        }
    }

    async fn hand_all(
        &self,
        [mut producer, mut consumer]: [Worker; 2],
        store: Pass<'_>,
        loading: LoadPass<'_>,
    ) -> Result<Passes, StageError> {
        let rounds = Rounds::of(self.run.prompts(), &self.plan.rounds)?;
        while let Some(round) = rounds.take().await? {
            let leave = async |prompts: &[Prompt]| {
                let how = (PrefixCache::Read, Handing::Over);
                store.score_handing(&mut producer, &round, prompts, how).await?;
                Ok(Some(producer.take_transfers()))
            };
            loading.load_left(&mut consumer, &round, leave).await?;
            store.is_over(&round)?;
            if loading.end.get().is_some() {
                break;
            }
            let leave = async |prompts: &[Prompt]| {
                producer.score_handing(prompts, PrefixCache::Read, Handing::Over, || {}).await?;
                Ok(producer.take_transfers())
            };
            loading.spoil_left(&mut consumer, &round, leave).await?;
            rounds.is_over(&round);
        }
        let hits = store.hits();
        store.finish()?;
        self.looker.finish(consumer).await?;
        self.looker.finish(producer).await?;
        loading.finish(rounds.asked(), None, hits)
    }

    /// Makes the server of a side slow, where the suite says so.
    fn halt(&self, port: &dyn Port) -> Result<Option<Halting>, StageError> {
        let seed = Some(self.run.spec.seed);
        Ok(if self.is_slow { port.halt(Halts { stopped: STOPPED, running: RUNNING, seed })? } else { None })
    }

    fn setup(&self, port: &dyn Port, what: &str) -> EngineSetup {
        let arm = format!("{} {what}", self.carrier.name());
        let (variables, stored_as) = (port.variables(), self.stored_as);
        EngineSetup { variables, stored_as, ..EngineSetup::connected(&arm, port.connector()) }
    }

    /// Sees that what the load pass is served from is still there: `first` is the storing side, if it must be.
    async fn require_alive(&self, first: Option<&dyn Port>) -> Result<(), StageError> {
        if let Some(first) = first {
            first.require_alive().await?;
        }
        Ok(self.transport.require_alive().await?)
    }

    /// Waits until what the load pass is served from has gone, and says so. LMCache itself may wait for it without end.
    async fn until_gone(&self, first: Option<&dyn Port>) -> StageError {
        loop {
            tokio::time::sleep(WATCH_INTERVAL).await;
            if let Err(gone) = self.require_alive(first).await {
                return gone;
            }
        }
    }
}

/// Starts an engine, unless what it is connected to refuses it without telling it: it would wait for minutes.
async fn unless_refused<T>(
    port: &dyn Port,
    start: impl Future<Output = Result<T, StageError>>,
) -> Result<T, StageError> {
    let until_refused = async {
        loop {
            tokio::time::sleep(WATCH_INTERVAL).await;
            if let Err(refusal) = port.require_content() {
                return refusal;
            }
        }
    };
    tokio::select! {
        started = start => started,
        refusal = until_refused => Err(refusal.into()),
    }
}
