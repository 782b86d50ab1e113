//! Four artifacts to one comparison. Output: `comparison.json`. Runs no engine; `comparison` does the thinking.

use std::collections::HashMap;

use serde::Serialize;

use super::answer::{published_answers, read_answer};
use super::cached::read_passes;
use super::cut_pass::predicted;
use super::engine_run::{EngineSpec, read_blocks, read_ready};
use super::files::{BASELINE, CONTROL, CUT, CUT_CONTROL, LOAD, REPEAT, STORE};
use super::kv_evidence::{kv_evidence, read_records};
use super::lines::{read_json, read_lines, write_json};
use super::load_pass::EngineHitsOfPasses;
use super::prompts::{load_tokenizer, read_prompts};
use super::second_look::read_looks;
use super::{Context, Inputs, StageError};
use crate::carrier::{Proof, Topology, find_carrier};
use crate::comparison::{
    self, Arm, ArmName, Asked, AskedCut, Batching, Bound, Comparison, Criteria, CutEvidence, EngineEvidence,
    Evidence, Expected, KvEvidence, ServerEvidence, ServingTier, Sharding, SourceHits,
};
use crate::dataset::Shard;
use crate::digest::Digest;
use crate::engine::{Capacity, EngineHits, Expectation, Plan, ServerCounters};
use crate::model::{HitUnit, KvShape, Observation, QuestionId, Route};
use crate::options::StoringOptions;
use crate::stage_name::StageName;
use crate::store::Artifact;

const COMPARISON: &str = "comparison.json";
/// All that a comparison was made of, where `merge` makes it anew with that of the other shards.
const EVIDENCE: &str = "evidence.json";

/// What the arms of one model on one route have in common. Inputs: questions, prompts, baseline, control, cached.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Compare {
    /// The carrier's name, which says what must be served and what its counters must show.
    pub route: Route,
    /// What else was stored.
    pub options: StoringOptions,
    /// What bounded the rounds.
    pub capacity: Capacity,
    /// Whether differing bits can prove a fault.
    pub batching: Batching,
    /// What a chunk is written and read in.
    pub shards: Shards,
    /// What reads letters out of tokens.
    pub tokenizer: Digest,
    /// How it is judged.
    pub criteria: Criteria,
    /// One of how many comparisons of the run it is.
    pub comparisons: u32,
    /// The part of the questions, if others ask the rest; the evidence is kept then, too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shard: Option<Shard>,
}

/// In how many shards a chunk is written, and how many are read to serve it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Shards {
    /// Written.
    pub written: u32,
    /// Read.
    pub read: u32,
}

impl Shards {
    /// Those of an engine whose model has KV of this shape.
    #[must_use]
    pub fn of(engine: &EngineSpec, shape: KvShape) -> Self {
        Self { written: engine.ranks.written_shards(shape), read: engine.ranks.read_shards() }
    }

    /// What a server must count of so many chunks.
    pub(super) fn sharding(self, chunk_tokens: u32, stored_chunks: u64, bound: Bound) -> Sharding {
        Sharding { chunk_tokens, stored_chunks, written_shards: self.written, read_shards: self.read, bound }
    }
}

impl Compare {
    pub(crate) const SCHEMA: u32 = 18;

    pub(crate) fn fill(&self, context: &Context<'_>) -> Result<(), StageError> {
        let evidence = self.gather(context)?;
        let comparison = comparison::compare(&evidence, &self.criteria)?;
        if self.shard.is_some() {
            write_json(context.draft.path(EVIDENCE), &evidence)?;
        }
        write_json(context.draft.path(COMPARISON), &comparison)
    }

    fn gather(&self, context: &Context<'_>) -> Result<Evidence, StageError> {
        let inputs = context.inputs;
        let capacity = match self.capacity.hits.unit {
            HitUnit::Chunk => self.capacity,
            HitUnit::Block => self.capacity.with_blocks_of(read_blocks(inputs)?),
        };
        let files = context.desk.sources.files_with_tokenizer(self.tokenizer);
        let tokenizer = load_tokenizer(files, context.model_name())?;
        let carrier = find_carrier(self.route)?;
        let passes = read_passes(inputs.of(StageName::Cached))?;
        let plan = Plan::make(read_prompts(inputs.of(StageName::Prompts))?, capacity)?
            .map_err(|source| StageError::TooLarge { model: context.model_name().to_owned(), source })?;
        let has_cuts = passes.cuts_left_out.is_none();
        let (tier, sharding) = self.proof(carrier.proof(), &plan, passes.asked);
        let mut expectations = plan.expectations;
        expectations.truncate(passes.asked);
        let source_at_least = expectations.iter().map(|one| u64::from(one.first_load)).sum();
        let lengths: HashMap<QuestionId, u32> =
            expectations.iter().map(|one| (one.question.clone(), one.prompt_tokens)).collect();
        let asked_last = expectations.last().map(|last| last.question.clone());
        let published = published_answers(inputs.of(StageName::Extract))?;
        let questions = expectations
            .into_iter()
            .filter_map(|expectation| {
                let answer = *published.get(&expectation.question)?;
                let whole_chunks = expected(&expectation);
                let load = carrier.full_hit(whole_chunks.prompt_tokens, whole_chunks.load, self.options);
                Some(Asked { expected: Expected { load, ..whole_chunks }, id: expectation.question, answer })
            })
            .collect::<Vec<Asked>>();
        drop(published);
        let asked = questions.len();
        // Where the passes of the cached arm ended early, the other arms are cut to the same questions.
        let arm = |name, stage, file| -> Result<Arm, StageError> {
            let mut observations = Vec::with_capacity(asked);
            for observation in read_lines::<Observation>(inputs.of(stage).path(file))? {
                let mut observation = observation?;
                if asked_last.as_ref().is_some_and(|last| observation.question <= *last) {
                    // Five arms of all of MMLU are in memory at once.
                    observation.steps.shrink_to_fit();
                    observations.push(observation);
                }
            }
            Ok(Arm::new(name, observations, |observation| read_answer(&tokenizer, observation))?)
        };
        Ok(Evidence {
            comparisons: self.comparisons,
            cache: carrier.connector_class().unwrap_or("LMCache").to_owned(),
            questions,
            batching: self.batching,
            fidelity: self.options.fidelity(),
            baseline: arm(ArmName::Baseline, StageName::Baseline, BASELINE)?,
            repeat: arm(ArmName::Repeat, StageName::Control, REPEAT)?,
            control: Some(arm(ArmName::Control, StageName::Control, CONTROL)?),
            store: arm(ArmName::Store, StageName::Cached, STORE)?,
            load: arm(ArmName::Load, StageName::Cached, LOAD)?,
            cut: match passes.cuts_left_out {
                Some(reason) => CutEvidence::LeftOut { reason },
                None => CutEvidence::Asked(asked_cuts(inputs, capacity, &lengths)?),
            },
            server: passes.server.map(|server| ServerEvidence {
                store: counters(server.store),
                load: counters(server.load),
                cut: counters(server.cut),
                sharding,
                tier: Some(tier),
            }),
            kv: self
                .kv_evidence(inputs, capacity.chunk_tokens, has_cuts)?
                .map(|kv| KvEvidence { loads_whole_chunks: carrier.loads_whole_chunks(), ..kv }),
            engine: engine_evidence(carrier.proof(), &passes.hits, source_at_least)?,
            store_tokens: (carrier.topology() == Topology::ProducerAndConsumer).then_some(1),
            spoilt: Some(passes.spoilt),
            loads_fail: carrier.loads_fail(),
            early_stop: passes.early_stop,
        })
    }

    /// What was seen of the KV itself, in the passes with a cache and, where their engines have the same layers, without.
    fn kv_evidence(
        &self,
        inputs: &Inputs,
        chunk_tokens: u32,
        has_cuts: bool,
    ) -> Result<Option<KvEvidence>, StageError> {
        let cached = inputs.of(StageName::Cached);
        let ready = read_ready(cached)?;
        let evidence = kv_evidence(
            [self.shards.written, self.shards.read],
            chunk_tokens,
            &ready,
            read_prompts(inputs.of(StageName::Prompts))?,
            [
                read_records(cached, STORE),
                read_records(cached, LOAD),
                if has_cuts { read_records(cached, CUT) } else { Ok(Vec::new()) },
            ],
        )?;
        let Some(mut evidence) = evidence else { return Ok(None) };
        evidence.looks = read_looks(cached)?;
        let alone = [(StageName::Baseline, BASELINE), (StageName::Control, REPEAT)];
        for ((stage, file), records) in alone.into_iter().zip([&mut evidence.baseline, &mut evidence.repeat])
        {
            let without = read_ready(inputs.of(stage))?;
            // Where blocks are what a connector serves, the baseline digests other chunks.
            let is_alike = self.capacity.hits.unit == HitUnit::Chunk
                && (&without.attention_backend, without.block_size, &without.digests)
                    == (&ready.attention_backend, ready.block_size, &ready.digests);
            if is_alike {
                *records = read_records(inputs.of(stage), file)?;
            }
        }
        Ok(Some(evidence))
    }

    /// The tier that must serve the load pass, and what a server must count, where so many questions were asked.
    fn proof(&self, proof: Proof, plan: &Plan, asked: usize) -> (ServingTier, Option<Sharding>) {
        let chunk_tokens = self.capacity.chunk_tokens;
        let sharding = |chunks, bound| Some(self.shards.sharding(chunk_tokens, chunks, bound));
        match proof {
            Proof::Engine | Proof::EngineCounters | Proof::EngineSource(_) => (ServingTier::Memory, None),
            Proof::Memory => {
                // Generated tokens may fill up one chunk more.
                let bound = if self.options.save_decode_cache { Bound::AtLeast } else { Bound::Exactly };
                (ServingTier::Memory, sharding(chunks_of(plan, asked), bound))
            }
            Proof::KeptMemory => (ServingTier::Memory, sharding(plan.distinct_chunks(asked), Bound::AtLeast)),
            // What one round stored, the next may find in the second tier.
            Proof::SecondTier(name) => {
                let chunks = plan.distinct_chunks(asked);
                let at_least = chunks * u64::from(chunk_tokens);
                (ServingTier::Second { name: name.to_owned(), at_least }, sharding(chunks, Bound::AtLeast))
            }
        }
    }
}

/// What prefixes of prompts of these lengths showed, beside what vLLM alone showed of the same ones.
fn asked_cuts(
    inputs: &Inputs,
    capacity: Capacity,
    lengths: &HashMap<QuestionId, u32>,
) -> Result<Vec<AskedCut>, StageError> {
    let controls: HashMap<QuestionId, Observation> =
        read_lines::<Observation>(inputs.of(StageName::Control).path(CUT_CONTROL))?
            .map(|control| control.map(|control| (control.question.clone(), control)))
            .collect::<Result<_, _>>()?;
    let mut asked = Vec::new();
    for observation in read_lines::<Observation>(inputs.of(StageName::Cached).path(CUT))? {
        let observation = observation?;
        let Some(&whole) = lengths.get(&observation.question) else { continue };
        let prefix = observation.prompt_tokens;
        let expected = predicted(capacity.hits, whole, prefix, capacity.chunk_tokens);
        let control = controls.get(&observation.question);
        let control = control.filter(|control| control.prompt_tokens == prefix).cloned();
        asked.push(AskedCut { expected, observation, control });
    }
    asked.sort_by(|left, right| left.observation.question.cmp(&right.observation.question));
    Ok(asked)
}

/// Reads what the compare stage wrote.
///
/// # Errors
/// When the artifact cannot be read.
pub fn read_comparison(compared: &Artifact) -> Result<Comparison, StageError> {
    read_json(&compared.path(COMPARISON))
}

/// Reads what the compare stage of a shard was made of.
///
/// # Errors
/// When the artifact cannot be read.
pub fn read_evidence(compared: &Artifact) -> Result<Evidence, StageError> {
    read_json(&compared.path(EVIDENCE))
}

/// Chunks of the rounds that so many questions were asked in, one round after the other.
fn chunks_of(plan: &Plan, asked: usize) -> u64 {
    let mut prompts = 0;
    let rounds = plan.rounds.iter().take_while(|round| {
        prompts += round.prompts;
        prompts <= asked
    });
    rounds.map(|round| round.chunks).sum()
}

/// How an engine of so many sequences at a time computes.
#[must_use]
pub fn batching(max_num_seqs: u32) -> Batching {
    match max_num_seqs {
        1 => Batching::OneAtATime,
        _ => Batching::Together,
    }
}

/// What a prompt leads one to expect, in the comparison's terms.
pub(super) fn expected(expectation: &Expectation) -> Expected {
    Expected {
        prompt_tokens: expectation.prompt_tokens,
        store_at_most: expectation.store_at_most,
        load: expectation.load,
        control: expectation.control,
    }
}

/// vLLM's own counts, in the comparison's terms, where they are what proves the service. If that is one by source, at least so many
/// tokens must come from there.
fn engine_evidence(
    proof: Proof,
    hits: &EngineHitsOfPasses,
    at_least: u64,
) -> Result<Option<EngineEvidence>, StageError> {
    let EngineHitsOfPasses { store, load, cut: _ } = hits;
    let source = match proof {
        Proof::EngineCounters => None,
        Proof::EngineSource(name) => Some(SourceHits {
            name: name.to_owned(),
            // Nothing is due from there where nothing is due at all: then nothing was proven either.
            at_least: at_least.max(1),
            tokens: load.by_source.get(name).copied().unwrap_or_default(),
        }),
        Proof::Engine | Proof::Memory | Proof::KeptMemory | Proof::SecondTier(_) => return Ok(None),
    };
    let counted = |hits: &EngineHits| hits.both().map_err(|counter| StageError::NotCounted { counter });
    let [[store_external, store_own], [load_external, load_own]] = [counted(store)?, counted(load)?];
    Ok(Some(EngineEvidence { external: [store_external, load_external], own: [store_own, load_own], source }))
}

/// The server's counts, in the comparison's terms.
pub(super) fn counters(counters: ServerCounters) -> comparison::ServerCounters {
    comparison::ServerCounters {
        requested_tokens: counters.requested_tokens,
        hit_tokens: counters.hit_tokens,
        second_tier_tokens: counters.hit_second_tier_tokens,
        second_tier_loads: counters.second_tier_loads,
        failed_loads: counters.asked_chunks.saturating_sub(counters.given_chunks),
        contended: counters.contended_chunks,
        given: counters.given_chunks,
        chunks_written: counters.written_chunks,
        chunks_read: counters.read_chunks,
    }
}
