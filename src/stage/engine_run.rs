//! What every arm's engine is started from: what can change its numbers, and what cannot. Main types: [`EngineSpec`],
//! [`EngineRun`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use camino::Utf8Path;
use serde::Serialize;
use serde_json::Value;

use super::lines::{read_json, write_json};
use super::prompts::{load_tokenizer, read_prompts};
use super::{Context, Inputs, StageError};
use crate::assets::{Model, ModelFiles};
use crate::cache::Bucket;
use crate::carrier::Surroundings;
use crate::digest::Digest;
use crate::engine::environment::{Environment, EnvironmentIdentity};
use crate::engine::{
    Capacity, Connector, EngineError, Imports, Launch, LayersKeep, PROTOCOL, Parallelism, Patience, Plan,
    Ready, Start, Worker, keyed_variables, numbered,
};
use crate::event::Event;
use crate::machine::{Device, DeviceKind};
use crate::model::{HitUnit, KvShape};
use crate::stage_name::StageName;
use crate::store::Artifact;
use crate::suite::{Dtype, LmcacheSettings, PressureSettings, Suite};

pub(super) const READY: &str = "engine.json";
const GIB: u64 = 1 << 30;

/// All that can change what an arm's engine computes: the part of an arm's key that all arms have.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EngineSpec {
    /// The model's files.
    pub model: Digest,
    /// Keyword arguments of `vllm.LLM`, all but those that differ between arms.
    pub arguments: BTreeMap<String, Value>,
    /// Variables of its process, the driver's and those of the user that reach it: all but those that only name places or keep
    /// it quiet.
    pub variables: BTreeMap<String, String>,
    /// Tokens generated for each question.
    pub max_tokens: u32,
    /// How many of the most likely tokens are reported.
    pub top: u32,
    /// vLLM's seed, and that of the order in which a load pass asks.
    pub seed: u64,
    /// Sequences that are computed together.
    pub max_num_seqs: u32,
    /// Data type of weights and KV.
    pub dtype: Dtype,
    /// How the model is spread.
    pub ranks: Parallelism,
    /// The worker's sources.
    pub worker: Digest,
    /// Tokens of the chunks whose KV is digested.
    pub digest_chunk_tokens: u32,
    /// What computes.
    pub device: Device,
    /// Where vLLM and LMCache come from.
    pub environment: EnvironmentIdentity,
}

impl EngineSpec {
    /// What a suite, a device and an environment make of a model's engine.
    #[must_use]
    pub fn of(suite: &Suite, model: &Model, device: &Device, environment: EnvironmentIdentity) -> Self {
        let engine = &suite.engine;
        let ranks = Parallelism::of(model.settings());
        Self {
            model: model.digest(),
            arguments: llm_arguments(suite, model, device.kind()),
            variables: variables(engine.kv_cache_gib, device, ranks, layers_keep(model.files()))
                .chain(keyed_variables())
                .collect(),
            max_tokens: engine.max_tokens,
            top: engine.top,
            seed: engine.seed,
            max_num_seqs: engine.max_num_seqs,
            dtype: engine.dtype,
            ranks,
            worker: Worker::digest(),
            digest_chunk_tokens: suite.lmcache.chunk_tokens,
            device: device.clone(),
            environment,
        }
    }
}

/// What an engine under pressure has room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Whether a step computes no more than pressure says, so that prompts are computed piece by piece.
    pub in_pieces: bool,
    /// Whether there are blocks for all sequences of a batch, so that none loses its own.
    pub for_all_sequences: bool,
}

/// Tokens of the smallest blocks that attention takes.
const LEAST_BLOCK: u32 = 16;

impl EngineSpec {
    /// The same with no more room than that.
    #[must_use]
    pub fn under_pressure(&self, settings: PressureSettings, room: Room) -> Self {
        let PressureSettings { sequences, max_model_len, block_tokens, .. } = settings;
        let step = if room.in_pieces { settings.batched_tokens } else { max_model_len };
        // One block is vLLM's own, and attention may take smaller blocks than it is asked for.
        let blocks = if room.for_all_sequences {
            sequences.saturating_mul(max_model_len.div_ceil(block_tokens.clamp(1, LEAST_BLOCK)) + 1) + 1
        } else {
            settings.blocks
        };
        let mut engine = self.clone();
        engine.max_num_seqs = settings.sequences;
        engine.max_tokens = settings.answer_tokens;
        engine.digest_chunk_tokens = settings.chunk_tokens;
        let numbers = [
            ("max_model_len", settings.max_model_len),
            ("max_num_seqs", settings.sequences),
            ("block_size", block_tokens),
            ("num_gpu_blocks_override", blocks),
            ("max_num_batched_tokens", step.max(sequences)),
        ];
        engine.arguments.extend(numbers.map(|(name, number)| (name.to_owned(), number.into())));
        engine.arguments.insert("enable_chunked_prefill".to_owned(), room.in_pieces.into());
        engine
    }
}

/// The suite's arguments of `vllm.LLM`, those of the model, which win, and the driver's own.
fn llm_arguments(suite: &Suite, model: &Model, device: DeviceKind) -> BTreeMap<String, Value> {
    let (engine, settings) = (&suite.engine, model.settings());
    let for_device = (device == DeviceKind::Cpu).then_some(&settings.cpu_arguments);
    let all = [Some(&engine.arguments), Some(&settings.arguments), for_device];
    let mut arguments: BTreeMap<String, Value> =
        all.into_iter().flatten().flatten().map(|(name, value)| (name.clone(), value.clone())).collect();
    arguments.extend(settings.parallel_arguments());
    arguments.extend([
        ("dtype".to_owned(), engine.dtype.name().into()),
        ("max_model_len".to_owned(), engine.max_model_len.into()),
        ("max_num_seqs".to_owned(), engine.max_num_seqs.into()),
        ("enforce_eager".to_owned(), true.into()),
    ]);
    if model.files().state().is_some() {
        arguments.insert("disable_hybrid_kv_cache_manager".to_owned(), false.into());
    }
    if model.files().need_whole_windows() {
        let disabled = !settings.hybrid_kv_cache_manager;
        arguments.insert("disable_hybrid_kv_cache_manager".to_owned(), disabled.into());
    }
    if device == DeviceKind::Cuda {
        let bytes = u64::from(engine.kv_cache_gib) * GIB;
        arguments.insert("kv_cache_memory_bytes".to_owned(), bytes.into());
        // With the KV's bytes given, it only makes vLLM refuse a GPU that others use, too. The suite's needs are looked at
        // before any engine starts.
        arguments.insert("gpu_memory_utilization".to_owned(), 0.01.into());
    }
    arguments
}

/// What the layers of a model keep of a sequence.
fn layers_keep(files: &ModelFiles) -> LayersKeep {
    if files.state().is_some() { LayersKeep::States } else { LayersKeep::Tokens }
}

/// The driver's variables that change what an engine computes.
fn variables(
    kv_cache_gib: u32,
    device: &Device,
    ranks: Parallelism,
    layers_keep: LayersKeep,
) -> impl Iterator<Item = (String, String)> + use<> {
    let mut variables = vec![
        ("PYTHONHASHSEED", "0".to_owned()),
        // One process: its threads end with it, and the worker can ask it for its attention backend.
        ("VLLM_ENABLE_V1_MULTIPROCESSING", "0".to_owned()),
    ];
    match device {
        Device::Cpu { threads, .. } => variables.extend([
            ("VLLM_CPU_KVCACHE_SPACE", kv_cache_gib.to_string()),
            ("VLLM_CPU_OMP_THREADS_BIND", "nobind".to_owned()),
            ("OMP_NUM_THREADS", threads_of_rank(*threads, ranks).to_string()),
            // Threads that spin at barriers for long make a busy machine ten times slower; those that never do make a quiet
            // one a third slower.
            ("GOMP_SPINCOUNT", "20000".to_owned()),
        ]),
        Device::Cuda { .. } => {
            // Its compilation takes minutes, and greedy sampling does not need it.
            variables.push(("VLLM_USE_FLASHINFER_SAMPLER", "0".to_owned()));
            // No kernel of vLLM's for recurrent layers computes in an order of its own: with this it refuses them.
            if layers_keep == LayersKeep::Tokens {
                variables.push(("VLLM_BATCH_INVARIANT", "1".to_owned()));
            }
        }
    }
    variables.into_iter().map(|(name, value)| (name.to_owned(), value))
}

/// An arm's engine, about to be started for one job.
#[derive(Clone, Copy)]
pub(super) struct EngineRun<'a> {
    pub(super) spec: &'a EngineSpec,
    pub(super) context: &'a Context<'a>,
    /// The model's files, which may lie elsewhere than where they were found.
    pub(super) files: &'a ModelFiles,
    /// Tokens of the chunks whose KV is digested.
    pub(super) digest_chunk_tokens: u32,
}

/// How one engine differs from the others of a run.
#[derive(Default)]
pub(super) struct EngineSetup {
    /// For messages: `baseline`.
    pub(super) arm: String,
    /// Which of those engines that share the arm's rounds, from 1; `None` where there is one.
    pub(super) number: Option<usize>,
    /// The carrier's, if there is one.
    pub(super) connector: Option<Connector>,
    /// How many tokens the chunks have that vLLM's own prefix cache serves, and nothing smaller, if it serves any.
    pub(super) hit_multiple: Option<u32>,
    /// Whether that cache serves a prompt of whole chunks all but its last token.
    pub(super) whole_hits: bool,
    /// Variables besides those that all have.
    pub(super) variables: Vec<(String, String)>,
    /// Keyword arguments of `vllm.LLM` that take the place of the suite's.
    pub(super) arguments: Vec<(String, Value)>,
    /// torch's name of the data type that a lossy carrier puts elements through, where it is known.
    pub(super) stored_as: Option<&'static str>,
    /// What its KV cache must hold at a time, if anything must.
    pub(super) holds: Option<Holds>,
    /// Whether chunks that generated tokens complete are digested, too.
    pub(super) digests_answers: bool,
    /// Whether KV is digested block by block of vLLM's cache, instead of chunk by chunk.
    pub(super) digest_blocks: bool,
}

/// What an engine's KV cache must hold at a time.
#[derive(Clone, Copy)]
pub(super) struct Holds {
    /// Tokens of the largest round.
    pub(super) needed: u64,
    /// Tokens that the rounds were planned for.
    pub(super) planned: u64,
}

impl Holds {
    /// The largest round of a plan.
    pub(super) fn of(plan: &Plan, capacity: Capacity) -> Self {
        let needed = plan.rounds.iter().map(|round| round.tokens).max().unwrap_or(0);
        Self { needed, planned: capacity.engine_tokens() }
    }

    /// Fails where the engine says that it has room for less: what does not fit is recomputed, and no control.
    fn require(self, ready: &Ready) -> Result<(), StageError> {
        let Self { needed, planned } = self;
        let (room, block_size) = (ready.kv_cache_tokens, ready.block_size);
        if needed <= room { Ok(()) } else { Err(StageError::LessRoom { needed, room, block_size, planned }) }
    }
}

impl EngineSetup {
    /// An engine without a connector.
    pub(super) fn alone(arm: &str) -> Self {
        Self { arm: arm.to_owned(), ..Self::default() }
    }

    /// An engine with one.
    pub(super) fn connected(arm: &str, connector: Connector) -> Self {
        Self { connector: Some(connector), ..Self::alone(arm) }
    }

    /// One of several.
    pub(super) fn numbered(self, number: Option<usize>) -> Self {
        Self { number, ..self }
    }
}

impl<'a> EngineRun<'a> {
    pub(super) fn of(spec: &'a EngineSpec, context: &'a Context<'a>) -> Self {
        let files = context.desk.sources.files(spec.model);
        Self { spec, context, files, digest_chunk_tokens: spec.digest_chunk_tokens }
    }

    /// The same, with digests of the chunks that are served, where these are blocks.
    pub(super) fn digesting(self, capacity: Capacity) -> Self {
        match capacity.hits.unit {
            HitUnit::Chunk => self,
            HitUnit::Block => Self { digest_chunk_tokens: capacity.chunk_tokens, ..self },
        }
    }

    pub(super) fn environment(&self) -> &'a Environment {
        self.context.desk.environment(&self.spec.environment)
    }

    /// The shape of the model's KV.
    pub(super) fn kv_shape(&self) -> Result<KvShape, StageError> {
        Ok(self.files.kv_shape()?)
    }

    /// All variables of a process in the environment, vLLM's or LMCache's.
    pub(super) fn variables(&self) -> Result<Vec<(String, String)>, EngineError> {
        let (cache, environment) = (&self.context.desk.cache, self.environment());
        let path = std::env::var("PATH").unwrap_or_default();
        let mut variables: Vec<(String, String)> =
            self.spec.variables.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        let quiet = ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "VLLM_NO_USAGE_STATS", "DO_NOT_TRACK"];
        variables.extend(quiet.map(|name| (name.to_owned(), "1".to_owned())));
        variables.extend(
            [
                ("LMCACHE_TRACK_USAGE", "false".to_owned()),
                ("PYTHONUNBUFFERED", "1".to_owned()),
                ("VLLM_CACHE_ROOT", Bucket::Vllm.folder(cache).into_string()),
                ("VLLM_CONFIG_ROOT", Bucket::VllmConfig.folder(cache).into_string()),
                ("XDG_CACHE_HOME", Bucket::Xdg.folder(cache).into_string()),
                // Programs of the environment come first: torch and vLLM call compilers and ninja by name.
                ("PATH", format!("{}:{path}", environment.folder().join("bin"))),
            ]
            .map(|(name, value)| (name.to_owned(), value)),
        );
        let python_path = environment.python_path(Some(Worker::install(cache)?));
        variables.extend(python_path.map(|path| ("PYTHONPATH".to_owned(), path)));
        Ok(variables)
    }

    /// Where a carrier works.
    pub(super) fn surroundings(&self, lmcache: LmcacheSettings) -> Result<Surroundings<'a>, StageError> {
        let desk = self.context.desk;
        Ok(Surroundings {
            environment: self.environment(),
            variables: self.variables()?,
            lmcache,
            scarce_memory_mib: None,
            shards_of_chunk: self.spec.ranks.written_shards(self.kv_shape()?),
            notes: self.context.draft.note_path(""),
            patience: Duration::from_secs(desk.patience.change_seconds),
            cache: &desk.cache,
            executable: &desk.executable,
            // Importing LMCache asks for the number of GPUs, after which a forked process cannot use them.
            fork_servers: (self.spec.device.kind() == DeviceKind::Cpu)
                .then(|| Arc::clone(&desk.fork_servers)),
            redis: desk.redis.as_ref(),
            events: &desk.events,
        })
    }

    /// What an engine of other ranks than the suite's is told of its threads, as [`variables`] does.
    pub(super) fn threads_of(&self, ranks: Parallelism) -> Vec<(String, String)> {
        match self.spec.device {
            Device::Cpu { threads, .. } if ranks != self.spec.ranks => {
                vec![("OMP_NUM_THREADS".to_owned(), threads_of_rank(threads, ranks).to_string())]
            }
            Device::Cpu { .. } | Device::Cuda { .. } => Vec::new(),
        }
    }

    /// The prompts that are asked.
    pub(super) fn prompts(&self) -> &'a Artifact {
        self.context.inputs.of(StageName::Prompts)
    }

    /// Rounds and expected hits.
    pub(super) fn plan(&self, capacity: Capacity) -> Result<Plan, StageError> {
        Plan::make(read_prompts(self.prompts())?, capacity)?
            .map_err(|source| StageError::TooLarge { model: self.context.model_name().to_owned(), source })
    }

    /// How an engine is launched, from a fork server that imports from now on.
    async fn launch(&self, number: Option<usize>) -> Result<Launch, StageError> {
        let (desk, environment) = (self.context.desk, self.environment());
        let mut launch = Launch {
            guard: desk.executable.clone(),
            command: [environment.python().as_str(), "-m", "kv_worker"].map(str::to_owned).to_vec(),
            variables: self.variables()?,
            log: self.context.draft.note_path(&format!("{}.log", numbered("engine", number))),
            fork_server: None,
        };
        launch.fork_server = desk.fork_servers.socket(Imports::Engine, &environment.python(), &launch).await;
        Ok(launch)
    }

    /// Has imported what an engine needs, while a carrier opens its side.
    pub(super) async fn import_ahead(&self, number: Option<usize>) -> Result<(), StageError> {
        self.launch(number).await.map(drop)
    }

    /// Starts this arm's engine. The first start of an environment compiles and can take minutes.
    pub(super) async fn start(&self, setup: EngineSetup) -> Result<Worker, StageError> {
        let (spec, desk, model) = (self.spec, self.context.desk, self.context.model_name());
        let EngineSetup {
            arm,
            number,
            connector,
            hit_multiple,
            whole_hits,
            variables: extra_variables,
            arguments: other_arguments,
            stored_as,
            holds,
            digests_answers,
            digest_blocks,
        } = setup;
        let letters = load_tokenizer(self.files, model)?
            .letter_tokens()
            .map_err(|source| StageError::Tokenizer { model: model.to_owned(), source })?;
        let mut arguments = spec.arguments.clone();
        arguments.extend(other_arguments);
        let start = Start {
            protocol: PROTOCOL,
            model: self.files.folder(&desk.cache)?.into_string(),
            arguments,
            layers_keep: layers_keep(self.files),
            connector,
            hit_multiple,
            whole_hits,
            digest_chunk_tokens: Some(self.digest_chunk_tokens),
            digest_answers: digests_answers,
            digest_blocks,
            stored_as,
            letters,
            top: spec.top,
            max_tokens: spec.max_tokens,
            seed: spec.seed,
        };
        let mut launch = self.launch(number).await?;
        launch.variables.extend(extra_variables);
        let patience = Patience {
            start: Duration::from_secs(desk.patience.start_seconds),
            answer: Duration::from_secs(desk.patience.answer_seconds),
            finish: Duration::from_secs(desk.patience.change_seconds),
        };
        let label = format!("{arm} {} of {model}", numbered("engine", number).replace('-', " "));
        desk.events.emit(Event::EngineStarting { label: label.clone(), log: launch.log.clone() });
        let started = Instant::now();
        let (worker, ready) = Worker::start(&launch, &start, patience, format!("the {label}")).await?;
        for remark in &ready.remarks {
            desk.events.warn(format!("{label}: {remark}"));
        }
        let job = self.context.job_name();
        desk.events.emit(Event::EngineReady { job, label, elapsed: started.elapsed() });
        holds.map_or(Ok(()), |holds| holds.require(&ready))?;
        if number.is_none_or(|number| number == 1) {
            write_json(self.context.draft.path(READY), &ready)?;
        }
        Ok(worker)
    }
}

/// Ranks are processes that compute at the same time.
fn threads_of_rank(threads: usize, ranks: Parallelism) -> usize {
    let ranks = usize::try_from(ranks.ranks()).unwrap_or(usize::MAX);
    (threads / ranks.max(1)).max(1)
}

/// What an arm's engine said of itself when it was ready.
///
/// # Errors
/// When the artifact cannot be read.
pub fn read_ready(arm: &Artifact) -> Result<Ready, StageError> {
    read_json::<Ready>(Utf8Path::new(&arm.path(READY)))
}

/// Tokens of one block of the baseline's engine.
pub(super) fn read_blocks(inputs: &Inputs) -> Result<u32, StageError> {
    Ok(read_ready(inputs.of(StageName::Baseline))?.block_size)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::carrier::RESERVED_VARIABLES;

    #[test]
    fn no_description_of_a_connector_may_set_what_is_set_here() {
        let cpu = Device::Cpu { name: "one".to_owned(), features: BTreeSet::new(), threads: 2 };
        let gpu = Device::Cuda { names: Vec::new(), driver: "580".to_owned() };
        for device in [cpu, gpu] {
            for (name, _) in variables(1, &device, Parallelism { tensor: 2, pipeline: 1 }, LayersKeep::Tokens)
            {
                assert!(RESERVED_VARIABLES.contains(&name.as_str()), "{name}");
            }
        }
    }

    #[test]
    fn recurrent_layers_are_not_computed_batch_invariantly_on_a_gpu_since_no_kernel_can() {
        let gpu = Device::Cuda { names: Vec::new(), driver: "580".to_owned() };
        let asked = |keep| {
            variables(1, &gpu, Parallelism { tensor: 1, pipeline: 1 }, keep)
                .any(|(name, _)| name == "VLLM_BATCH_INVARIANT")
        };
        assert!(asked(LayersKeep::Tokens));
        assert!(!asked(LayersKeep::States));
    }
}
