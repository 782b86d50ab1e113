//! Plants every fault of the catalogue in a real LMCache, and notes what the ladder says. Output: `faults.json`.
//!
//! One engine and one server with a second tier, on disk or in Redis: a few questions are stored once, then for each variant the chunks are
//! damaged where LMCache keeps them, the questions are loaded again, and the load pass is judged like any other. The time
//! that each took is in the note `seconds.json`.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::time::Instant;

use camino::Utf8PathBuf;
use serde::Serialize;

use super::answer::{published_answers, read_answer};
use super::capacity::chunk_bytes;
use super::compare::{Shards, batching, counters, expected};
use super::engine_run::{EngineRun, EngineSpec, READY};
use super::files::{BASELINE, CONTROL, REPEAT};
use super::kv_evidence::kv_evidence;
use super::laboratory::{Laboratory, NotPlanted};
use super::lines::{read_json, read_lines, write_json};
use super::planting_ground::{Ground, choose_questions};
use super::planting_stack::PlantingStack;
use super::prompts::load_tokenizer;
use super::{Context, StageError};
use crate::assets::Model;
use crate::carrier::{PlantingGround, Surroundings, find_carrier, provide_redis};
use crate::comparison::{
    self, Arm, ArmName, Asked, Bound, Criteria, CutEvidence, Evidence, Fidelity, ServerEvidence,
};
use crate::dataset::{Prompt, QuestionId};
use crate::engine::{Capacity, Parallelism, Plan, PrefixCache, Ready, ServerCounters};
use crate::event::{Answering, Effort, Event};
use crate::fault::{
    Arrangement, Fault, FaultError, FaultFindings, Layout, Operator, PlantedTier, Tier, Variant,
};
use crate::model::Route;
use crate::model::{KvShape, Observation};
use crate::stage_name::StageName;
use crate::store::Artifact;
use crate::suite::{FaultSettings, LmcacheSettings};

const FAULTS: &str = "faults.json";
const SECONDS: &str = "seconds.json";

/// The catalogue, planted in what LMCache stored of one model on a route that has a ground for it. Inputs: questions,
/// prompts, baseline, control.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Faults {
    /// The engine.
    pub engine: EngineSpec,
    /// The carrier in whose tier they are planted.
    pub route: Route,
    /// LMCache's settings.
    pub lmcache: LmcacheSettings,
    /// What bounds the rounds.
    pub capacity: Capacity,
    /// How load passes over damaged chunks are judged.
    pub criteria: Criteria,
    /// How many questions, and how often bytes are written again unchanged.
    pub settings: FaultSettings,
    /// What is planted.
    pub variants: Vec<Variant>,
}

impl Faults {
    /// Also numbers what the catalogue's operators do to bytes.
    pub(crate) const SCHEMA: u32 = 15;

    /// The variants for a model with KV of this shape, on a route; none where the route has no ground for them.
    ///
    /// # Errors
    /// When the route is unknown, or the model's layers lie on several stages.
    pub fn variants(
        model: &str,
        route: Route,
        ranks: Parallelism,
        shape: KvShape,
        settings: FaultSettings,
    ) -> Result<Vec<Variant>, StageError> {
        if ranks.pipeline > 1 {
            return Err(FaultError::Stages { model: model.to_owned(), stages: ranks.pipeline }.into());
        }
        let (shard, shards) = (ranks.shard(shape), ranks.written_shards(shape));
        let mut variants = match find_carrier(route)?.planting_ground() {
            Some(PlantingGround::Folder) => Fault::variants(shard, shards, settings.identity),
            Some(PlantingGround::Redis) => Fault::variants_in_redis(shard, shards, settings.identity),
            None => Vec::new(),
        };
        variants.retain(|variant| variant.operator != Operator::FlipPlaces || settings.flips > 0);
        Ok(variants)
    }
}

/// Why no fault can be planted in what LMCache stores of a model; `None` where they can.
#[must_use]
pub fn refuses_faults(model: &Model) -> Option<&'static str> {
    let files = model.files();
    let is_in_groups =
        files.state().is_some() || (model.settings().hybrid_kv_cache_manager && !files.windows().is_empty());
    is_in_groups.then_some(
        "LMCache stores each of its groups of layers for itself, and faults are known for chunks that hold all layers",
    )
}

/// Reads what the faults stage wrote.
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

impl Faults {
    /// What it takes time for.
    pub(crate) fn effort(&self) -> Effort {
        let (questions, plantings) = (self.settings.questions, self.variants.len());
        let served = questions * plantings;
        Effort { engines: 1, servers: 1, computed: questions, served, ..Effort::default() }
    }

    pub(crate) async fn fill(&self, context: &Context<'_>) -> Result<(), StageError> {
        let run = EngineRun::of(&self.engine, context);
        let (surroundings, draft) = (run.surroundings(self.lmcache)?, context.draft);
        let chunk_tokens = self.lmcache.chunk_tokens;
        let prompts = choose_questions(run.prompts(), chunk_tokens, self.settings.questions)?;
        let notes = draft.note_path("");
        let folder = tempfile::tempdir_in(&notes)
            .map_err(|source| StageError::Write { path: notes.clone(), source })?;
        let parent = Utf8PathBuf::try_from(folder.path().to_owned()).expect("its parent is UTF-8");
        let Planted { tier, salt, secrets } = self.prepare_tier(&surroundings, &prompts, &parent).await?;
        let pool = parent.file_name().unwrap_or_default().trim_start_matches('.').to_owned();
        let recipe =
            PlantingStack { run, surroundings: &surroundings, second: tier.settings(), secrets, salt, pool };
        let mut stack = recipe.start().await?;
        let ready: Ready = read_json(&draft.path(READY))?;
        let (ranks, shape) = (self.engine.ranks, run.kv_shape()?);
        let known = Arrangement::known(self.engine.device.kind(), shape, ready.block_size);

        let before = stack.server.counters().await?;
        let stored = stack.worker.score(&prompts, PrefixCache::Read, || {}).await?;
        let kv_stored = stack.worker.take_kv_records();
        let mut ground = Ground::prepare(
            tier,
            self.layout(shape, known[0]),
            ranks.written_shards(shape),
            &prompts,
            (chunk_tokens, surroundings.patience),
        )
        .await?;
        let store_counters = stack.server.counters().await?.since(before);
        let layout = ground.recognise_layout(&mut stack.worker, &prompts, chunk_tokens, &known).await?;
        if let Some(segment) = &stack.segment {
            ground.search_memory(segment.clone())?;
        }

        // A planting is held against all rungs, whichever the suite lets decide.
        let criteria = Criteria { kv_decides: true, ..self.criteria };
        let laboratory = Laboratory {
            criteria: &criteria,
            prompts: &prompts,
            chunk_tokens: layout.rows,
            flips: ground.sample_flips(self.settings.flips),
            evidence: Evidence {
                kv: kv_evidence(
                    [ranks.written_shards(shape), ranks.read_shards()],
                    chunk_tokens,
                    &ready,
                    prompts.iter().cloned().map(Ok),
                    [Ok(kv_stored), Ok(Vec::new()), Ok(Vec::new())],
                )?,
                ..self.gather(&run, &prompts, (stored, store_counters, ground.chunks()))?
            },
            tokenizer: load_tokenizer(run.files, context.model_name())?,
            saw_no_number: Cell::new(false),
        };
        let reachable = |variant: &&Variant| variant.tier == Tier::Disk || ground.memory_is_reached();
        let (variants, without): (Vec<&Variant>, Vec<&Variant>) =
            self.variants.iter().filter(reachable).partition(|variant| ground.has_place_for(variant));
        let (mut trials, mut seconds, mut engines) = (Vec::new(), Vec::new(), 1);
        let mut not_planted: Vec<String> = without
            .iter()
            .map(|variant| {
                format!("{}: no prompt that was asked is a whole number of chunks", variant.fault.name)
            })
            .collect();
        for variant in &variants {
            let started = Instant::now();
            let trial = match laboratory.attempt(&mut stack, &mut ground, variant).await? {
                Ok(trial) => trial,
                Err(NotPlanted(problem)) => {
                    let name = format!("{} {}", variant.fault.name, variant.dose);
                    not_planted.push(format!("{}: {problem}", name.trim_end()));
                    continue;
                }
            };
            if laboratory.saw_no_number.take() {
                engines += 1;
                stack = recipe.renew_engine(stack, engines).await?;
            }
            trials.push(trial);
            seconds.push(started.elapsed().as_secs_f64());
            context.desk.events.emit(Event::QuestionsDone {
                job: context.job_name(),
                answering: Answering::Served,
                pass: format!("{}, planted faults", context.model_name()),
                done: trials.len() * prompts.len(),
                total: variants.len() * prompts.len(),
            });
        }
        let questions = prompts.into_iter().map(|prompt| prompt.question).collect();
        let (chunks, chunks_in_memory) = ground.counts();
        let findings = FaultFindings {
            not_planted,
            ..FaultFindings::new(layout, questions, chunks, chunks_in_memory, trials)
        };
        write_json(draft.path(FAULTS), &findings)?;
        write_json(draft.note_path(SECONDS), &seconds)?;
        Ok(stack.worker.finish().await?)
    }

    /// The tier that is planted in, ready to be used.
    async fn prepare_tier(
        &self,
        surroundings: &Surroundings<'_>,
        prompts: &[Prompt],
        parent: &Utf8PathBuf,
    ) -> Result<Planted, StageError> {
        if find_carrier(self.route)?.planting_ground() == Some(PlantingGround::Redis) {
            let chunk_tokens = u64::from(self.lmcache.chunk_tokens);
            let chunks: u64 = prompts.iter().map(|prompt| prompt.token_ids.len() as u64 / chunk_tokens).sum();
            let redis = provide_redis(surroundings, 2 * chunks * chunk_bytes(self.capacity)).await?;
            let (salt, secrets) = (redis.salt().map(str::to_owned), redis.variables());
            return Ok(Planted { tier: PlantedTier::in_redis(redis, parent)?, salt, secrets });
        }
        Ok(Planted { tier: PlantedTier::on_disk(parent)?, salt: None, secrets: Vec::new() })
    }

    /// How the engine's chunks lie, in this arrangement.
    fn layout(&self, shape: KvShape, arrangement: Arrangement) -> Layout {
        Layout {
            shape: self.engine.ranks.shard(shape),
            dtype: self.engine.dtype,
            rows: usize::try_from(self.lmcache.chunk_tokens).expect("a chunk fits into memory"),
            arrangement,
        }
    }

    /// The evidence of the chosen questions, but for a load pass.
    fn gather(
        &self,
        run: &EngineRun<'_>,
        prompts: &[Prompt],
        stored: (Vec<Observation>, ServerCounters, u64),
    ) -> Result<Evidence, StageError> {
        let (stored, store_counters, stored_chunks) = stored;
        let (inputs, model) = (run.context.inputs, run.context.model_name());
        let tokenizer = load_tokenizer(run.files, model)?;
        let published = published_answers(inputs.of(StageName::Extract))?;
        let chosen: BTreeSet<&QuestionId> = prompts.iter().map(|prompt| &prompt.question).collect();
        let plan: Result<_, StageError> = Plan::make(prompts.iter().cloned().map(Ok), self.capacity);
        let plan = plan?.map_err(|source| StageError::TooLarge { model: model.to_owned(), source })?;
        // Between rounds of this plan nothing is emptied here, so its number of chunks is no bound.
        let shards = Shards::of(&self.engine, run.kv_shape()?);
        let sharding = shards.sharding(self.lmcache.chunk_tokens, stored_chunks, Bound::AtLeast);
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
            engine: None,
            store_tokens: None,
            loads_fail: false,
            // Each planting is judged by itself.
            comparisons: 1,
            cache: "LMCache".to_owned(),
            questions,
            batching: batching(self.engine.max_num_seqs),
            fidelity: Fidelity::Exact,
            baseline: arm(ArmName::Baseline, inputs.of(StageName::Baseline), BASELINE)?,
            repeat: arm(ArmName::Repeat, inputs.of(StageName::Control), REPEAT)?,
            control: Some(arm(ArmName::Control, inputs.of(StageName::Control), CONTROL)?),
            load: read(ArmName::Load, stored.clone())?,
            store: read(ArmName::Store, stored)?,
            cut: CutEvidence::LeftOut { reason: "damaged chunks are judged by whole prompts".to_owned() },
            server: Some(ServerEvidence {
                store,
                load: store,
                cut: comparison::ServerCounters::default(),
                sharding: Some(sharding),
                tier: None,
            }),
            kv: None,
            spoilt: None,
            early_stop: None,
        })
    }
}

/// A tier to plant in, and how requests reach it.
struct Planted {
    tier: PlantedTier,
    /// Of the requests.
    salt: Option<String>,
    /// Variables that reach it.
    secrets: Vec<(String, String)>,
}
