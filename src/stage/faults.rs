//! Plants every fault of the catalogue in a real LMCache, and notes what the ladder says. Output: `faults.json`.
//!
//! One engine and one server with a second tier, on disk or in Redis: a few questions are stored once, then for each variant the chunks are
//! damaged where LMCache keeps them, the questions are loaded again, and the load pass is judged like any other. The time
//! that each took is in the note `seconds.json`.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use camino::Utf8PathBuf;
use serde::Serialize;

use super::answer::{published_answers, read_answer};
use super::arms::{BASELINE, CONTROL, REPEAT};
use super::backing::provide_redis;
use super::compare::{batching, counters, expected, sharding};
use super::engine_run::{ArmKey, EngineRun, READY};
use super::lines::{read_json, read_lines, write_json};
use super::planting_ground::{Ground, choose_questions};
use super::planting_stack::{PlantingStack, Started};
use super::prompts::load_tokenizer;
use super::{Bench, StageError};
use crate::assets::Model;
use crate::comparison::{Arm, ArmName, Asked, Bound, Criteria, Evidence, Fidelity, ServerEvidence, compare};
use crate::dataset::{Prompt, QuestionId, Tokenizer};
use crate::digest::{Digest, digest_bytes};
use crate::engine::{
    Capacity, DeviceKind, EngineError, KvShape, Observation, Plan, PrefixCache, Ready, ServerCounters,
};
use crate::event::Event;
use crate::fault::{
    Arrangement, Fault, FaultError, FaultFindings, Layout, PlantedTier, Tier, Trial, Variant,
};
use crate::stage_name::StageName;
use crate::store::{Artifact, Draft, StageKey};
use crate::suite::{FaultSettings, Route};

/// Also numbers what the catalogue's operators do to bytes.
const SCHEMA: u32 = 6;
const FAULTS: &str = "faults.json";
const SECONDS: &str = "seconds.json";
/// How long stored chunks may take to arrive on disk once a pass has its last answer.
pub(super) const SETTLE_PATIENCE: Duration = Duration::from_secs(20);

#[derive(Serialize)]
struct FaultsArm<'a> {
    questions: Digest,
    baseline: Digest,
    control: Digest,
    capacity: Capacity,
    route: Route,
    criteria: &'a Criteria,
    settings: FaultSettings,
    variants: Digest,
}

/// What the load passes over damaged chunks are held against.
#[derive(Debug, Clone, Copy)]
pub struct Undamaged<'a> {
    /// Of the extract stage.
    pub questions: &'a Artifact,
    /// Of the prompts stage.
    pub prompts: &'a Artifact,
    /// Of the baseline stage.
    pub baseline: &'a Artifact,
    /// Of the control stage.
    pub control: &'a Artifact,
}

/// Plants the catalogue in what LMCache stored of one model, on the route `mp+fs` or `mp+redis`.
///
/// # Errors
/// When engine or server fail, or the stored chunks are not arranged as the catalogue takes them to be.
pub async fn faults(
    bench: &Bench,
    model: &Model,
    undamaged: Undamaged<'_>,
    route: Route,
) -> Result<Artifact, StageError> {
    bench.environment.require_lmcache()?;
    let run = EngineRun { bench, model, prompts: undamaged.prompts };
    let ranks = run.parallelism();
    if ranks.pipeline > 1 {
        return Err(FaultError::Stages { model: model.name().to_owned(), stages: ranks.pipeline }.into());
    }
    let shape = model.kv_shape()?;
    let (shape, shards, identity) =
        (ranks.shard(shape), ranks.written_shards(shape), bench.suite.faults.identity);
    let variants = match route {
        Route::MpRedis => Fault::variants_in_redis(shape, shards, identity),
        _ => Fault::variants(shape, shards, identity),
    };
    let arm = FaultsArm {
        questions: undamaged.questions.output_digest(),
        baseline: undamaged.baseline.output_digest(),
        control: undamaged.control.output_digest(),
        capacity: run.capacity()?,
        route,
        criteria: &bench.suite.criteria,
        settings: bench.suite.faults,
        variants: digest_bytes(format!("{variants:?}").as_bytes()),
    };
    let key = ArmKey { common: run.common_key(), environment: bench.environment.identity(), arm };
    let key = StageKey::new(SCHEMA, StageName::Faults, &key);
    let label = match route {
        Route::MpRedis => format!("{} {route}", model.name()),
        _ => model.name().to_owned(),
    };
    bench.make(&key, &label, async |draft| fill(&run, draft, undamaged, route, &variants).await).await
}

/// Reads what [`faults`] wrote.
///
/// # Errors
/// When the artifact cannot be read.
pub fn read_faults(faults: &Artifact) -> Result<FaultFindings, StageError> {
    let mut findings: FaultFindings = read_json(&faults.path(FAULTS))?;
    // A note is not verified and may be missing.
    let seconds: Vec<f64> = read_json(&faults.note_path(SECONDS)).unwrap_or_default();
    for (trial, seconds) in findings.trials.iter_mut().zip(seconds) {
        trial.seconds = Some(seconds);
    }
    Ok(findings)
}

async fn fill(
    run: &EngineRun<'_>,
    draft: &Draft,
    undamaged: Undamaged<'_>,
    route: Route,
    variants: &[Variant],
) -> Result<(), StageError> {
    let (bench, suite) = (run.bench, &run.bench.suite);
    let chunk_tokens = suite.lmcache.chunk_tokens;
    let prompts = choose_questions(run.prompts, chunk_tokens, suite.faults.questions)?;
    let notes = draft.note_path("");
    let folder =
        tempfile::tempdir_in(&notes).map_err(|source| StageError::Write { path: notes.clone(), source })?;
    let parent = Utf8PathBuf::try_from(folder.path().to_owned()).expect("its parent is UTF-8");
    let (tier, salt, secrets) = match route {
        Route::MpRedis => {
            let chunks = prompts.iter().map(|prompt| prompt.token_ids.len() as u64 / u64::from(chunk_tokens));
            let redis = provide_redis(run, draft, 2 * chunks.sum::<u64>() * run.chunk_bytes()?).await?;
            let (salt, secrets) = (redis.salt().map(str::to_owned), redis.variables());
            (PlantedTier::in_redis(redis, &parent)?, salt, secrets)
        }
        _ => (PlantedTier::on_disk(&parent)?, None, Vec::new()),
    };
    let pool = parent.file_name().unwrap_or_default().trim_start_matches('.').to_owned();
    let recipe = PlantingStack { run, draft, second: tier.settings(), secrets, salt, pool };
    let mut stack = recipe.start(None).await?;
    let ready: Ready = read_json(&draft.path(READY))?;
    let (ranks, shape) = (run.parallelism(), run.model.kv_shape()?);
    let arrangement = match (bench.device.kind(), shape) {
        (DeviceKind::Cuda, KvShape::Dense { .. }) => Arrangement::KeysFirst,
        _ => Arrangement::LayersFirst {
            block_rows: usize::try_from(ready.block_size).expect("a block fits into memory"),
        },
    };
    let layout = Layout {
        shape: ranks.shard(shape),
        dtype: suite.engine.dtype,
        rows: usize::try_from(chunk_tokens).expect("a chunk fits into memory"),
        arrangement,
    };

    let before = stack.server.counters().await?;
    let stored = stack.worker.score(&prompts, PrefixCache::Read, || {}).await?;
    let mut ground =
        Ground::prepare(tier, layout, ranks.written_shards(shape), &prompts, chunk_tokens).await?;
    let store_counters = stack.server.counters().await?.since(before);
    ground.check_layout(&mut stack.worker, &prompts, chunk_tokens).await?;
    if let Some(segment) = &stack.segment {
        ground.search_memory(segment.clone())?;
    }

    let laboratory = Laboratory {
        run,
        prompts: &prompts,
        evidence: gather(run, undamaged, &prompts, (stored, store_counters, ground.chunks()))?,
        tokenizer: load_tokenizer(run.model)?,
    };
    let reachable = |variant: &&Variant| variant.tier == Tier::Disk || ground.memory_is_reached();
    let variants: Vec<&Variant> = variants.iter().filter(reachable).collect();
    let (mut trials, mut seconds, mut stacks, mut left_out) = (Vec::new(), Vec::new(), 1, 0);
    for variant in &variants {
        // A new server is given nothing to keep in its memory: it finds all in the second tier.
        if variant.tier == Tier::Memory && stacks > 1 {
            left_out += 1;
            continue;
        }
        let started = Instant::now();
        let trial = laboratory.try_variant(&mut stack, &mut ground, variant).await?;
        if trial.refusal.is_some() {
            // An engine ends with its first answer that is no number, and its server goes on holding what it was to read.
            stacks += 1;
            drop(stack);
            stack = recipe.start(Some(stacks)).await?;
        }
        trials.push(trial);
        seconds.push(started.elapsed().as_secs_f64());
        bench.events.emit(Event::QuestionsDone {
            pass: format!("{}, planted faults", run.model.name()),
            done: trials.len() * prompts.len(),
            total: variants.len() * prompts.len(),
        });
    }
    let questions = prompts.into_iter().map(|prompt| prompt.question).collect();
    let (chunks, chunks_in_memory) = ground.counts();
    let findings =
        FaultFindings { left_out, ..FaultFindings::new(layout, questions, chunks, chunks_in_memory, trials) };
    write_json(draft.path(FAULTS), &findings)?;
    write_json(draft.note_path(SECONDS), &seconds)?;
    Ok(stack.worker.finish().await?)
}

/// What stays the same from one variant to the next.
struct Laboratory<'a> {
    run: &'a EngineRun<'a>,
    prompts: &'a [Prompt],
    /// With the store pass in place of a load pass.
    evidence: Evidence,
    tokenizer: Tokenizer,
}

impl Laboratory<'_> {
    async fn try_variant(
        &self,
        stack: &mut Started,
        ground: &mut Ground,
        variant: &Variant,
    ) -> Result<Trial, StageError> {
        let damage = ground.plant(variant)?;
        if variant.tier == Tier::Disk {
            stack.server.clear().await?;
        }
        let before = stack.server.counters().await?;
        let loaded = stack.worker.score(self.prompts, PrefixCache::Read, || {}).await;
        let counted = stack.server.counters().await?.since(before);
        let loaded = match loaded {
            Err(EngineError::NoNumbers { message, .. }) => {
                ground.restore().await?;
                let predicted =
                    self.evidence.questions.iter().map(|asked| u64::from(asked.expected.load)).sum();
                return Ok(Trial::refused(variant, damage, message, [counted.hit_tokens, predicted]));
            }
            loaded => loaded?,
        };
        let load = Arm::new(ArmName::Load, loaded, |observation| read_answer(&self.tokenizer, observation))?;
        let server = self.evidence.server.map(|server| ServerEvidence { load: counters(counted), ..server });
        let evidence = Evidence { load, server, ..self.evidence.clone() };
        let comparison = compare(&evidence, &self.run.bench.suite.criteria)?;
        ground.restore().await?;
        Ok(Trial::judge(variant, damage, &comparison, counted))
    }
}

/// The evidence of the chosen questions, but for a load pass.
fn gather(
    run: &EngineRun<'_>,
    undamaged: Undamaged<'_>,
    prompts: &[Prompt],
    stored: (Vec<Observation>, ServerCounters, u64),
) -> Result<Evidence, StageError> {
    let (stored, store_counters, stored_chunks) = stored;
    let tokenizer = load_tokenizer(run.model)?;
    let published = published_answers(undamaged.questions)?;
    let chosen: BTreeSet<&QuestionId> = prompts.iter().map(|prompt| &prompt.question).collect();
    let plan: Result<_, StageError> = Plan::make(prompts.iter().cloned().map(Ok), run.capacity()?);
    let plan = plan?.map_err(|source| StageError::TooLarge { model: run.model.name().to_owned(), source })?;
    // Between rounds of this plan nothing is emptied here, so its number of chunks is no bound.
    let sharding = sharding(run, stored_chunks, Bound::AtLeast)?;
    let questions = plan
        .expectations
        .into_iter()
        .filter_map(|expectation| {
            let answer = *published.get(&expectation.question)?;
            Some(Asked { expected: expected(&expectation), id: expectation.question, answer })
        })
        .collect();
    let read = |name, observations| Arm::new(name, observations, |seen| read_answer(&tokenizer, seen));
    let arm = |name, artifact: &Artifact, file| -> Result<Arm, StageError> {
        let mut observations: Vec<Observation> =
            read_lines(artifact.path(file))?.collect::<Result<_, _>>()?;
        observations.retain(|observation| chosen.contains(&observation.question));
        Ok(read(name, observations)?)
    };
    let store = counters(store_counters);
    Ok(Evidence {
        // Each planting is judged by itself.
        comparisons: 1,
        questions,
        batching: batching(run.bench),
        fidelity: Fidelity::Exact,
        baseline: arm(ArmName::Baseline, undamaged.baseline, BASELINE)?,
        repeat: arm(ArmName::Repeat, undamaged.control, REPEAT)?,
        control: Some(arm(ArmName::Control, undamaged.control, CONTROL)?),
        load: read(ArmName::Load, stored.clone())?,
        store: read(ArmName::Store, stored)?,
        server: Some(ServerEvidence { store, load: store, sharding: Some(sharding), tier: None }),
        early_stop: None,
    })
}
