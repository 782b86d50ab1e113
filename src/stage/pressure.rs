//! An engine and its connector under pressure: too many sequences, too few blocks, too little memory, requests that are broken off.
//! Output: `pressure.json`.
//!
//! One engine answers the schedules of all seeds, one behind the other. Each begins calmly: a few requests one by one, and again once all
//! has arrived, which must be served. All that the engine computed, under whichever seed, is what served KV may be a copy of.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::capacity::chunk_bytes;
use super::engine_run::{EngineRun, EngineSetup, EngineSpec, READY};
use super::lines::{read_json, write_json};
use super::prompts::read_prompts;
use super::{Context, Shards, StageError};
use crate::carrier::{Carrier, Port, Side, find_carrier};
use crate::comparison::{KvEvidence, ServedRequest, trace_requests};
use crate::dataset::Prompt;
use crate::digest::Digest;
use crate::engine::{
    Capacity, Endured, OwnCache, PrefixCaching, Ready, ServerCounters, Worker, chunk_digests,
};
use crate::event::Effort;
use crate::model::{HitUnit, KvRecord, PlannedRequest, PressedRequest, PressureEvents, QuestionId, Route};
use crate::pressure::{Bounds, HitsApart, PressureFindings, Schedule, SeedFindings, Short, request_id};
use crate::store::Artifact;
use crate::suite::{LmcacheSettings, PressureSettings};

const PRESSURE: &str = "pressure.json";
/// Requests that are named of those that were served too much or too little.
const NAMED: usize = 10;
/// How long chunks may take to be in a server's memory, and between two looks whether they are.
const LONGEST_STORE: Duration = Duration::from_secs(20);
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Requests and chunks of disk that one request of a schedule may take, generated tokens and what is stored twice included.
const SPARE: u64 = 2;

/// vLLM with a carrier under pressure. Input: the prompts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Pressure {
    /// The engine, with too little room.
    pub engine: EngineSpec,
    /// The carrier's name.
    pub route: Route,
    /// LMCache's settings, with chunks of pressure's size.
    pub lmcache: LmcacheSettings,
    /// Bytes of a token's KV, and what is stored and served of a prompt.
    pub capacity: Capacity,
    /// What the carrier is made of, where that is not this program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub carrier: Option<Digest>,
    /// The requirements of what the carrier adds to the environment.
    pub added_packages: Option<Digest>,
    /// In how many shards a chunk is written and read.
    pub shards: Shards,
    /// What is asked, and in how little room.
    pub settings: PressureSettings,
}

/// Reads what the pressure stage wrote.
///
/// # Errors
/// When the artifact cannot be read.
pub fn read_pressure(pressure: &Artifact) -> Result<PressureFindings, StageError> {
    read_json(&pressure.path(PRESSURE))
}

impl Pressure {
    /// Also numbers how schedules are made and judged.
    pub(crate) const SCHEMA: u32 = 2;

    /// What it takes time for.
    pub(crate) fn effort(&self) -> Effort {
        let has_server = find_carrier(self.route).is_ok_and(|carrier| carrier.proof().is_of_a_server());
        let requests = usize::try_from(self.requests()).unwrap_or(usize::MAX);
        Effort { engines: 1, servers: usize::from(has_server), computed: requests, ..Effort::default() }
    }

    /// Requests of all schedules.
    fn requests(&self) -> u64 {
        u64::from(self.settings.requests) * u64::from(self.settings.seeds)
    }

    pub(crate) async fn fill(&self, context: &Context<'_>) -> Result<(), StageError> {
        let run = EngineRun::of(&self.engine, context);
        let carrier = find_carrier(self.route)?;
        let prompts: Vec<Prompt> = read_prompts(run.prompts())?.collect::<Result<_, _>>()?;
        let mut surroundings = run.surroundings(self.lmcache)?;
        let memory_mib = self.settings.memory_mib(self.capacity.bytes_per_token);
        surroundings.scarce_memory_mib = Some(memory_mib);
        let chunks = u64::from(self.settings.max_model_len.div_ceil(self.capacity.chunk_tokens.max(1)));
        let bytes = self.requests() * SPARE * chunks * chunk_bytes(self.capacity);
        let transport = carrier.prepare(&surroundings, bytes).await?;
        if carrier.proof().is_of_a_server() {
            run.import_ahead(None).await?;
        }
        let port = transport.open(Side::Both, None).await?;
        let mut connector = port.connector();
        connector.prefix_caching = PrefixCaching::Unread;
        // As vLLM has it by itself, a load that fails ends the engine (0.32.0 over an LMCache server). Here it is counted.
        connector.settings.insert("kv_load_failure_policy".to_owned(), "recompute".into());
        let worker = run
            .start(EngineSetup {
                variables: port.variables(),
                stored_as: self.lmcache.options.stored_as(),
                digest_blocks: true,
                digests_answers: true,
                ..EngineSetup::connected(&format!("{} pressed", carrier.name()), connector)
            })
            .await?;
        let ready: Ready = read_json(&context.draft.path(READY))?;
        let stored_tokens = match self.capacity.hits.unit {
            HitUnit::Chunk => self.lmcache.chunk_tokens,
            HitUnit::Block => ready.block_size,
        };
        let piece_tokens = ready.block_size.max(1);
        let mut pressing =
            Pressing { pressure: self, carrier, port: port.as_ref(), worker, piece_tokens, stored_tokens };
        let mut seeds = Vec::new();
        for seed in self.settings.seeds() {
            seeds.push(pressing.ask(seed, &prompts).await?);
            transport.require_alive().await?;
            pressing.port.clear().await?;
        }
        pressing.worker.finish().await.ok(); // all answers are there
        let findings = self.findings(carrier, &ready, (piece_tokens, stored_tokens), &seeds);
        write_json(context.draft.path(PRESSURE), &findings)
    }

    fn findings(
        &self,
        carrier: &dyn Carrier,
        ready: &Ready,
        (piece_tokens, stored_tokens): (u32, u32),
        seeds: &[Asked],
    ) -> PressureFindings {
        let evidence = self.evidence(ready, piece_tokens, seeds);
        let fidelity = self.lmcache.options.fidelity();
        let mut bounds = Bounds::default();
        for one in seeds.iter().flat_map(|seed| &seed.requests) {
            bounds.take_in(&one.seen, &one.prefixes, piece_tokens);
        }
        let never_evicts = (!carrier.proof().is_of_a_server())
            .then(|| "nothing counts what this route's storage gives up, if it does".to_owned());
        let of_seed = |asked: &Asked| {
            let served: Vec<ServedRequest> = asked.requests.iter().map(OneAsked::served).collect();
            let mut beyond: Vec<_> = asked
                .requests
                .iter()
                .filter_map(|one| bounds.beyond(&one.seen, &one.prefixes, piece_tokens))
                .collect();
            let mut short: Vec<Short> = asked.requests.iter().filter_map(OneAsked::short).collect();
            let (served_beyond, served_short) = (count(beyond.len()), count(short.len()));
            beyond.truncate(NAMED);
            short.truncate(NAMED);
            let under_pressure = asked.requests.iter().filter(|one| !one.is_calm);
            let admissions = || under_pressure.clone().flat_map(|one| &one.seen.admissions);
            let sum = |tokens: fn(u32, u32) -> u32| {
                admissions().map(|one| u64::from(tokens(one.served, one.external))).sum()
            };
            let counted = asked.counted;
            SeedFindings {
                seed: asked.seed,
                own_cache: asked.own_cache == OwnCache::Serves,
                requests: count(asked.requests.len()),
                events: asked.events,
                evicted_chunks: never_evicts.is_none().then_some(counted.evicted_chunks),
                failed_chunks: counted.lost_chunks,
                hits: HitsApart { connector: sum(|_, external| external), own: sum(u32::saturating_sub) },
                kv: trace_requests(&evidence, fidelity, &served),
                served_beyond,
                beyond,
                served_short,
                short,
            }
        };
        let seeds = seeds.iter().map(of_seed).collect();
        let never_preempts = carrier.refuses_resumption().map(str::to_owned);
        let leaves_loads = || "the suite breaks none off (`pressure.abort_loads`)".to_owned();
        PressureFindings {
            piece_tokens,
            stored_tokens,
            never_evicts: never_evicts.clone(),
            never_preempts,
            never_aborts_loads: (!self.settings.abort_loads).then(leaves_loads),
            loads_fail: carrier.loads_fail(),
            seeds,
        }
    }

    /// All that was seen of the KV, under every seed.
    fn evidence(&self, ready: &Ready, piece_tokens: u32, seeds: &[Asked]) -> KvEvidence {
        let requests = || seeds.iter().flat_map(|seed| &seed.requests);
        let records = requests().map(|one| one.record.clone());
        let unobserved = seeds.iter().filter_map(|seed| seed.problem.clone());
        let unobserved = unobserved.map(|reason| KvRecord::NotObserved { reason });
        KvEvidence {
            chunk_tokens: piece_tokens,
            layers: ready.digests.as_ref().map(|digests| digests.layers.clone()).unwrap_or_default(),
            windows: ready.digests.as_ref().map(|digests| digests.windows.clone()).unwrap_or_default(),
            block_tokens: ready.block_size,
            shared_by_ranks: self.shards.written < self.shards.read,
            loads_whole_chunks: true,
            prefixes: requests()
                .map(|one| (one.name.clone(), one.prefixes.clone()))
                .collect::<BTreeMap<QuestionId, Vec<Digest>>>(),
            store: records.chain(unobserved).collect(),
            load: Vec::new(),
            cut: Vec::new(),
            baseline: Vec::new(),
            repeat: Vec::new(),
            looks: Vec::new(),
        }
    }
}

/// An engine that is being asked.
struct Pressing<'a> {
    pressure: &'a Pressure,
    carrier: &'static dyn Carrier,
    port: &'a dyn Port,
    worker: Worker,
    piece_tokens: u32,
    stored_tokens: u32,
}

/// What one seed's schedule showed.
struct Asked {
    seed: u32,
    own_cache: OwnCache,
    requests: Vec<OneAsked>,
    events: PressureEvents,
    counted: ServerCounters,
    /// What kept the KV from being observed, if anything did.
    problem: Option<String>,
}

/// One request, and what it showed.
struct OneAsked {
    name: QuestionId,
    seen: PressedRequest,
    record: KvRecord,
    /// Of its prompt and its answer.
    tokens: u32,
    /// Of its tokens up to the end of each piece, those of its answer included.
    prefixes: Vec<Digest>,
    /// Tokens that it must be served the first time, as nothing is in the way.
    at_least: u32,
    /// Whether it was asked by itself, before there was any pressure.
    is_calm: bool,
}

impl Pressing<'_> {
    async fn ask(&mut self, seed: u32, prompts: &[Prompt]) -> Result<Asked, StageError> {
        let schedule = Schedule::make(prompts, self.pressure.settings, seed, self.stored_tokens)?;
        let own_cache = if seed.is_multiple_of(2) { OwnCache::Serves } else { OwnCache::Unread };
        let before = self.port.counters().await?;
        let mut asked = Asked {
            seed,
            own_cache,
            requests: Vec::new(),
            events: PressureEvents::default(),
            counted: ServerCounters::default(),
            problem: None,
        };
        let stored = self.worker.press(&schedule.calm, own_cache, self.stored_tokens).await?;
        self.take_in(&mut asked, &schedule.calm, stored, Moment::Calm);
        self.settle(before, self.chunks_of(&schedule.calm)).await?;
        let again = self.worker.press(&schedule.calm, own_cache, self.stored_tokens).await?;
        self.take_in(&mut asked, &schedule.calm, again, Moment::CalmAgain);
        let pressed = self.worker.press(&schedule.pressed, own_cache, self.stored_tokens).await?;
        self.take_in(&mut asked, &schedule.pressed, pressed, Moment::Pressed);
        asked.counted = self.port.counters().await?.since(before);
        Ok(asked)
    }

    /// Waits until so many chunks are in a server's memory, or as long as a connector without one says. A tier behind the memory is not
    /// waited for: what the memory gives up before it was stored there never comes.
    async fn settle(&self, before: ServerCounters, chunks: u64) -> Result<(), StageError> {
        if !self.carrier.proof().is_of_a_server() {
            self.port.settle(before, chunks).await?;
            return Ok(());
        }
        let (deadline, wanted) =
            (Instant::now() + LONGEST_STORE, chunks * u64::from(self.pressure.shards.written));
        while self.port.counters().await?.since(before).written_chunks < wanted && Instant::now() < deadline {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok(())
    }

    /// Distinct units that are stored of these.
    fn chunks_of(&self, planned: &[PlannedRequest]) -> u64 {
        let all = planned.iter().flat_map(|one| chunk_digests(&one.token_ids, self.stored_tokens));
        all.collect::<BTreeSet<Digest>>().len() as u64
    }

    fn take_in(&self, asked: &mut Asked, planned: &[PlannedRequest], endured: Endured, moment: Moment) {
        let Endured { requests, chunks, problem, events, hits: _ } = endured;
        asked.events = asked.events.plus(events);
        asked.problem = asked.problem.take().or(problem);
        for ((planned, mut seen), chunks) in planned.iter().zip(requests).zip(chunks) {
            let number = asked.requests.len();
            let name = request_id(asked.seed, number);
            seen.question = count(number);
            let tokens: Vec<u32> = planned.token_ids.iter().chain(&seen.answer).copied().collect();
            asked.requests.push(OneAsked {
                record: KvRecord::Request { question: name.clone(), chunks },
                prefixes: chunk_digests(&tokens, self.piece_tokens),
                tokens: count(tokens.len()),
                at_least: match moment {
                    Moment::Calm | Moment::Pressed => 0,
                    Moment::CalmAgain => self.full_hit(count(planned.token_ids.len())),
                },
                is_calm: moment != Moment::Pressed,
                name,
                seen,
            });
        }
    }

    /// Tokens that a prompt of so many must be served once it is stored.
    fn full_hit(&self, prompt_tokens: u32) -> u32 {
        let (rule, unit) = (self.pressure.capacity.hits, self.stored_tokens);
        let whole = rule.served_tokens(prompt_tokens, rule.asked_units(prompt_tokens, unit), unit);
        self.carrier.full_hit(prompt_tokens, whole, self.pressure.lmcache.options)
    }
}

/// When a request is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    /// By itself.
    Calm,
    /// By itself and again, so that all that is stored of it must be served.
    CalmAgain,
    /// While others are.
    Pressed,
}

impl OneAsked {
    fn served(&self) -> ServedRequest {
        ServedRequest {
            question: self.name.clone(),
            prompt_tokens: self.tokens,
            served: self.seen.admissions.iter().map(|admission| admission.served).collect(),
        }
    }

    fn short(&self) -> Option<Short> {
        let served = self.seen.admissions.first().map_or(0, |admission| admission.served);
        let (request, at_least) = (self.seen.question, self.at_least);
        (served < at_least).then_some(Short { request, served, at_least })
    }
}

fn count(size: usize) -> u32 {
    u32::try_from(size).unwrap_or(u32::MAX)
}
