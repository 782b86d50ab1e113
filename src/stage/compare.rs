//! Four artifacts to one comparison. Output: `comparison.json`. Runs no engine; `comparison` does the thinking.

use serde::Serialize;

use super::answer::{published_answers, read_answer};
use super::arms::{BASELINE, CONTROL, REPEAT};
use super::cached::{LOAD, STORE, read_passes};
use super::engine_run::EngineRun;
use super::lines::{read_json, read_lines, write_json};
use super::prompts::load_tokenizer;
use super::{Bench, StageError};
use crate::assets::Model;
use crate::comparison::{
    self, Arm, ArmName, Asked, Batching, Bound, Comparison, Criteria, Evidence, Expected, ServerEvidence,
    ServingTier, Sharding,
};
use crate::digest::Digest;
use crate::engine::{Capacity, Expectation, Observation, Plan, ServerCounters};
use crate::options::StoringOptions;
use crate::stage_name::StageName;
use crate::store::{Artifact, StageKey};
use crate::suite::Route;

const SCHEMA: u32 = 6;
const COMPARISON: &str = "comparison.json";

#[derive(Serialize)]
struct Key<'a> {
    questions: Digest,
    prompts: Digest,
    baseline: Digest,
    control: Digest,
    cached: Digest,
    capacity: Capacity,
    route: Route,
    options: StoringOptions,
    criteria: &'a Criteria,
    comparisons: u32,
}

/// What a comparison is made of.
#[derive(Debug, Clone, Copy)]
pub struct Arms<'a> {
    /// Of the extract stage.
    pub questions: &'a Artifact,
    /// Of the prompts stage.
    pub prompts: &'a Artifact,
    /// Of the baseline stage.
    pub baseline: &'a Artifact,
    /// Of the control stage.
    pub control: &'a Artifact,
    /// Of the cached stage.
    pub cached: &'a Artifact,
}

/// Compares the arms of one model on one route.
///
/// # Errors
/// When an artifact cannot be read, or they do not belong together.
pub async fn compare(
    bench: &Bench,
    model: &Model,
    route: Route,
    arms: Arms<'_>,
) -> Result<Artifact, StageError> {
    let run = EngineRun { bench, model, prompts: arms.prompts };
    let key = Key {
        questions: arms.questions.output_digest(),
        prompts: arms.prompts.output_digest(),
        baseline: arms.baseline.output_digest(),
        control: arms.control.output_digest(),
        cached: arms.cached.output_digest(),
        capacity: run.capacity()?,
        route,
        options: bench.suite.lmcache.options,
        criteria: &bench.suite.criteria,
        comparisons: bench.suite.comparisons(),
    };
    let key = StageKey::new(SCHEMA, StageName::Compare, &key);
    let label = format!("{} {route}", model.name());
    bench
        .make(&key, &label, async |draft| {
            let comparison = comparison::compare(&gather(&run, route, arms)?, &bench.suite.criteria)?;
            write_json(draft.path(COMPARISON), &comparison)
        })
        .await
}

/// Reads what [`compare`] wrote.
///
/// # Errors
/// When the artifact cannot be read.
pub fn read_comparison(compared: &Artifact) -> Result<Comparison, StageError> {
    read_json(&compared.path(COMPARISON))
}

fn gather(run: &EngineRun<'_>, route: Route, arms: Arms<'_>) -> Result<Evidence, StageError> {
    let tokenizer = load_tokenizer(run.model)?;
    let options = run.bench.suite.lmcache.options;
    let passes = read_passes(arms.cached)?;
    let plan = run.plan()?;
    let distinct_chunks = plan.distinct_chunks(passes.asked);
    let tier = serving_tier(run, route, distinct_chunks);
    let stored_chunks = chunks_of(&plan, passes.asked);
    let mut expectations = plan.expectations;
    expectations.truncate(passes.asked);
    let asked_last = expectations.last().map(|last| last.question.clone());
    let published = published_answers(arms.questions)?;
    let questions = expectations
        .into_iter()
        .filter_map(|expectation| {
            let answer = *published.get(&expectation.question)?;
            let whole_chunks = expected(&expectation);
            let load = options.full_hit(whole_chunks.prompt_tokens, whole_chunks.load);
            Some(Asked { expected: Expected { load, ..whole_chunks }, id: expectation.question, answer })
        })
        .collect::<Vec<Asked>>();
    drop(published);
    let asked = questions.len();
    // Where the passes with LMCache ended early, the other arms are cut to the same questions.
    let arm = |name, artifact: &Artifact, file| -> Result<Arm, StageError> {
        let mut observations = Vec::with_capacity(asked);
        for observation in read_lines::<Observation>(artifact.path(file))? {
            let mut observation = observation?;
            if asked_last.as_ref().is_some_and(|last| observation.question <= *last) {
                // Five arms of all of MMLU are in memory at once.
                observation.steps.shrink_to_fit();
                observations.push(observation);
            }
        }
        Ok(Arm::new(name, observations, |observation| read_answer(&tokenizer, observation))?)
    };
    let sharding = match route {
        Route::Mp if !options.save_decode_cache => Some(sharding(run, stored_chunks, Bound::Exactly)?),
        // Generated tokens may fill up one chunk more.
        Route::Mp => Some(sharding(run, stored_chunks, Bound::AtLeast)?),
        // What one round stored, the next may find in the second tier.
        Route::MpFs | Route::MpRedis | Route::MpP2p => Some(sharding(run, distinct_chunks, Bound::AtLeast)?),
        Route::InProcess => None,
    };
    Ok(Evidence {
        comparisons: run.bench.suite.comparisons(),
        questions,
        batching: batching(run.bench),
        fidelity: options.fidelity(),
        baseline: arm(ArmName::Baseline, arms.baseline, BASELINE)?,
        repeat: arm(ArmName::Repeat, arms.control, REPEAT)?,
        control: Some(arm(ArmName::Control, arms.control, CONTROL)?),
        store: arm(ArmName::Store, arms.cached, STORE)?,
        load: arm(ArmName::Load, arms.cached, LOAD)?,
        server: passes.server.map(|server| ServerEvidence {
            store: counters(server.store),
            load: counters(server.load),
            sharding,
            tier: Some(tier),
        }),
        early_stop: passes.early_stop,
    })
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

/// What the stack makes of a chunk of this model.
pub(super) fn sharding(
    run: &EngineRun<'_>,
    stored_chunks: u64,
    bound: Bound,
) -> Result<Sharding, StageError> {
    let ranks = run.parallelism();
    Ok(Sharding {
        chunk_tokens: run.bench.suite.lmcache.chunk_tokens,
        stored_chunks,
        written_shards: ranks.written_shards(run.model.kv_shape()?),
        read_shards: ranks.read_shards(),
        bound,
    })
}

/// How the suite's engine computes.
pub(super) fn batching(bench: &Bench) -> Batching {
    match bench.suite.engine.max_num_seqs {
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

/// The tier that a route's load pass must be served from, where its questions have so many distinct chunks.
fn serving_tier(run: &EngineRun<'_>, route: Route, distinct_chunks: u64) -> ServingTier {
    let at_least = distinct_chunks * u64::from(run.bench.suite.lmcache.chunk_tokens);
    match route {
        Route::InProcess | Route::Mp => ServingTier::Memory,
        Route::MpFs => ServingTier::Second { name: "fs", at_least },
        Route::MpRedis => ServingTier::Second { name: "resp", at_least },
        Route::MpP2p => ServingTier::Second { name: "p2p", at_least },
    }
}

/// The server's counts, in the comparison's terms.
pub(super) fn counters(counters: ServerCounters) -> comparison::ServerCounters {
    comparison::ServerCounters {
        requested_tokens: counters.requested_tokens,
        hit_tokens: counters.hit_tokens,
        second_tier_tokens: counters.hit_second_tier_tokens,
        second_tier_loads: counters.second_tier_loads,
        chunks_written: counters.written_chunks,
        chunks_read: counters.read_chunks,
    }
}
