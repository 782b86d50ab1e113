//! What every arm does: key, plan, process. Main type: [`EngineRun`].

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use camino::Utf8Path;
use serde::Serialize;
use serde_json::Value;

use super::lines::{read_json, write_json};
use super::prompts::{load_tokenizer, read_prompts};
use super::{Bench, StageError};
use crate::assets::{AssetError, Model, ModelFiles};
use crate::digest::Digest;
use crate::engine::environment::{Environment, EnvironmentIdentity};
use crate::engine::{
    Capacity, Connector, Device, DeviceKind, Launch, PROTOCOL, Parallelism, Patience, Plan, Ready, Start,
    Worker,
};
use crate::event::Event;
use crate::store::{Artifact, Draft};
use crate::suite::{Dtype, EngineSettings, Suite};

pub(super) const READY: &str = "engine.json";
const GIB: u64 = 1 << 30;

/// The part of an arm's key that all arms have.
#[derive(Serialize)]
pub(super) struct CommonKey<'a> {
    prompts: Digest,
    model: Digest,
    engine: &'a EngineSettings,
    arguments: BTreeMap<String, Value>,
    variables: Vec<(&'a str, String)>,
    worker: Digest,
    device: &'a Device,
}

/// One model's prompts, about to be put through an engine.
pub(super) struct EngineRun<'a> {
    pub(super) bench: &'a Bench,
    pub(super) model: &'a Model,
    pub(super) prompts: &'a Artifact,
}

/// How one engine differs from the others of a run.
#[derive(Default)]
pub(super) struct EngineSetup {
    /// For messages: `baseline`.
    pub(super) arm: String,
    /// Which of those engines that share the arm's rounds, from 1; `None` where there is one.
    pub(super) number: Option<usize>,
    /// LMCache's, if it is there.
    pub(super) connector: Option<Connector>,
    /// How many tokens the chunks have that vLLM's own prefix cache serves, and nothing smaller, if it serves any.
    pub(super) hit_multiple: Option<u32>,
    /// Variables besides those that all have.
    pub(super) variables: Vec<(String, String)>,
    /// Another data type than the suite's.
    pub(super) dtype: Option<Dtype>,
}

impl EngineSetup {
    /// An engine without LMCache.
    pub(super) fn alone(arm: &str) -> Self {
        Self { arm: arm.to_owned(), ..Self::default() }
    }

    /// An engine with LMCache.
    pub(super) fn connected(arm: &str, connector: Connector) -> Self {
        Self { connector: Some(connector), ..Self::alone(arm) }
    }

    /// One of several.
    pub(super) fn numbered(self, number: Option<usize>) -> Self {
        Self { number, ..self }
    }
}

/// An arm's identity: an environment with or without LMCache.
#[derive(Serialize)]
pub(super) struct ArmKey<'a, T> {
    pub(super) common: CommonKey<'a>,
    pub(super) environment: &'a EnvironmentIdentity,
    pub(super) arm: T,
}

impl<'a> EngineRun<'a> {
    pub(super) fn common_key(&self) -> CommonKey<'a> {
        CommonKey {
            prompts: self.prompts.output_digest(),
            model: self.model.digest(),
            engine: &self.bench.suite.engine,
            arguments: self.arguments(),
            variables: self.engine_variables(),
            worker: Worker::digest(),
            device: &self.bench.device,
        }
    }

    /// The suite's arguments of `vllm.LLM`; those of the model win.
    fn arguments(&self) -> BTreeMap<String, Value> {
        let settings = self.model.settings();
        let on_cpu = self.bench.device.kind() == DeviceKind::Cpu;
        let for_device = on_cpu.then_some(&settings.cpu_arguments);
        let all = [Some(&self.bench.suite.engine.arguments), Some(&settings.arguments), for_device];
        let mut arguments: BTreeMap<String, Value> =
            all.into_iter().flatten().flatten().map(|(name, value)| (name.clone(), value.clone())).collect();
        arguments.extend(settings.parallel_arguments());
        arguments
    }

    /// All keyword arguments of `vllm.LLM` but those that differ between arms.
    fn llm_arguments(&self) -> BTreeMap<String, Value> {
        let engine = &self.bench.suite.engine;
        let mut arguments = self.arguments();
        arguments.extend([
            ("dtype".to_owned(), engine.dtype.name().into()),
            ("max_model_len".to_owned(), engine.max_model_len.into()),
            ("max_num_seqs".to_owned(), engine.max_num_seqs.into()),
            ("enforce_eager".to_owned(), true.into()),
        ]);
        if self.bench.device.kind() == DeviceKind::Cuda {
            let bytes = u64::from(engine.kv_cache_gib) * GIB;
            arguments.insert("kv_cache_memory_bytes".to_owned(), bytes.into());
            // With the KV's bytes given, it only makes vLLM refuse a GPU that others use, too. The suite's needs are
            // looked at before any engine starts.
            arguments.insert("gpu_memory_utilization".to_owned(), 0.01.into());
        }
        arguments
    }

    /// The variables that change what the engine computes, and so belong into its key.
    fn engine_variables(&self) -> Vec<(&'static str, String)> {
        let mut variables = vec![
            ("PYTHONHASHSEED", "0".to_owned()),
            // One process: its threads end with it, and the worker can ask it for its attention backend.
            ("VLLM_ENABLE_V1_MULTIPROCESSING", "0".to_owned()),
        ];
        match &self.bench.device {
            Device::Cpu { threads, .. } => variables.extend([
                ("VLLM_CPU_KVCACHE_SPACE", self.bench.suite.engine.kv_cache_gib.to_string()),
                ("VLLM_CPU_OMP_THREADS_BIND", "nobind".to_owned()),
                ("OMP_NUM_THREADS", threads_of_rank(*threads, self.parallelism()).to_string()),
                // Threads that spin at barriers for long make a busy machine ten times slower; those that never do
                // make a quiet one a third slower.
                ("GOMP_SPINCOUNT", "20000".to_owned()),
            ]),
            Device::Cuda { .. } => variables.extend([
                ("VLLM_BATCH_INVARIANT", "1".to_owned()),
                // Its compilation takes minutes, and greedy sampling does not need it.
                ("VLLM_USE_FLASHINFER_SAMPLER", "0".to_owned()),
            ]),
        }
        variables
    }

    /// All variables of a process in an environment, vLLM's or LMCache's.
    pub(super) fn variables(&self, environment: &Environment) -> Vec<(String, String)> {
        let cache = &self.bench.cache;
        let path = std::env::var("PATH").unwrap_or_default();
        let mut variables: Vec<(String, String)> =
            self.engine_variables().into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let quiet = ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "VLLM_NO_USAGE_STATS", "DO_NOT_TRACK"];
        variables.extend(quiet.map(|name| (name.to_owned(), "1".to_owned())));
        variables.extend(
            [
                ("LMCACHE_TRACK_USAGE", "false".to_owned()),
                ("PYTHONUNBUFFERED", "1".to_owned()),
                ("VLLM_CACHE_ROOT", cache.join("vllm").into_string()),
                ("VLLM_CONFIG_ROOT", cache.join("vllm-config").into_string()),
                ("XDG_CACHE_HOME", cache.join("xdg").into_string()),
                // Programs of the environment come first: torch and vLLM call compilers and ninja by name.
                ("PATH", format!("{}:{path}", environment.folder().join("bin"))),
            ]
            .map(|(name, value)| (name.to_owned(), value)),
        );
        variables.extend(environment.python_path(None).map(|path| ("PYTHONPATH".to_owned(), path)));
        variables
    }

    /// Bytes and chunks that the rounds of this model are made for.
    pub(super) fn capacity(&self) -> Result<Capacity, StageError> {
        Ok(capacity_of(&self.bench.suite, self.model)?)
    }

    /// Bytes of one chunk.
    pub(super) fn chunk_bytes(&self) -> Result<u64, StageError> {
        let capacity = self.capacity()?;
        Ok(u64::from(capacity.chunk_tokens) * capacity.bytes_per_token)
    }

    /// How the model is spread.
    pub(super) fn parallelism(&self) -> Parallelism {
        Parallelism::of(self.model.settings())
    }

    /// Rounds and expected hits.
    pub(super) fn plan(&self) -> Result<Plan, StageError> {
        Plan::make(read_prompts(self.prompts)?, self.capacity()?)?
            .map_err(|source| StageError::TooLarge { model: self.model.name().to_owned(), source })
    }

    /// How an engine of an environment is launched, from a fork server that imports from now on.
    async fn launch(
        &self,
        draft: &Draft,
        environment: &Environment,
        number: Option<usize>,
    ) -> Result<Launch, StageError> {
        let bench = self.bench;
        let mut variables = self.variables(environment);
        let python_path = environment.python_path(Some(Worker::install(&bench.cache)?));
        variables.extend(python_path.map(|path| ("PYTHONPATH".to_owned(), path)));
        let mut launch = Launch {
            guard: bench.executable.clone(),
            command: [environment.python().as_str(), "-m", "kv_worker"].map(str::to_owned).to_vec(),
            variables,
            log: draft.note_path(&format!("{}.log", numbered("engine", number))),
            fork_server: None,
        };
        launch.fork_server = bench.fork_servers.socket(&launch).await;
        Ok(launch)
    }

    /// Has imported what an engine with LMCache needs, while its server starts.
    pub(super) async fn import_ahead(&self, draft: &Draft, number: Option<usize>) -> Result<(), StageError> {
        self.launch(draft, &self.bench.environment, number).await.map(drop)
    }

    /// Starts this arm's engine. The first start of an environment compiles and can take minutes.
    pub(super) async fn start(&self, draft: &Draft, setup: EngineSetup) -> Result<Worker, StageError> {
        let (bench, suite) = (self.bench, &self.bench.suite);
        let EngineSetup { arm, number, connector, hit_multiple, variables: extra_variables, dtype } = setup;
        let letters = load_tokenizer(self.model)?
            .letter_tokens()
            .map_err(|source| StageError::Tokenizer { model: self.model.name().to_owned(), source })?;
        let environment = match connector {
            Some(_) => &bench.environment,
            None => bench.environment.of_baseline(),
        };
        let mut arguments = self.llm_arguments();
        arguments.extend(dtype.map(|dtype| ("dtype".to_owned(), dtype.name().into())));
        let start = Start {
            protocol: PROTOCOL,
            model: self.model.folder(&bench.cache)?.into_string(),
            arguments,
            connector,
            hit_multiple,
            letters,
            top: suite.engine.top,
            max_tokens: suite.engine.max_tokens,
            seed: suite.engine.seed,
        };
        let mut launch = self.launch(draft, environment, number).await?;
        launch.variables.extend(extra_variables);
        let patience = Patience {
            start: Duration::from_secs(suite.patience.start_seconds),
            answer: Duration::from_secs(suite.patience.answer_seconds),
            finish: Duration::from_secs(suite.patience.change_seconds),
        };
        let label =
            format!("{arm} {} of {}", numbered("engine", number).replace('-', " "), self.model.name());
        bench.events.emit(Event::EngineStarting { label: label.clone(), log: launch.log.clone() });
        let started = Instant::now();
        let (worker, ready) = Worker::start(&launch, &start, patience, format!("the {label}")).await?;
        for remark in &ready.remarks {
            bench.events.warn(format!("{label}: {remark}"));
        }
        bench.events.emit(Event::EngineReady { label, elapsed: started.elapsed() });
        if number.is_none_or(|number| number == 1) {
            write_json(draft.path(READY), &ready)?;
        }
        Ok(worker)
    }
}

/// Bytes and chunks that the rounds of a model are made for.
///
/// # Errors
/// When its `config.json` cannot be read.
pub fn capacity_of(suite: &Suite, model: &ModelFiles) -> Result<Capacity, AssetError> {
    let (shape, ranks) = (model.kv_shape()?, Parallelism::of(model.settings()));
    let stored = ranks.stored_shape(shape);
    Ok(Capacity {
        chunk_tokens: suite.lmcache.chunk_tokens,
        bytes_per_token: stored.bytes_per_token(suite.engine.dtype.bytes()),
        lmcache_bytes: u64::from(suite.lmcache.memory_gib) * GIB,
        // Each rank has a cache of this size; those that hold the same KV are no more room.
        engine_bytes: (u64::from(suite.engine.kv_cache_gib) * GIB)
            .saturating_mul(ranks.written_shards(shape).into()),
    })
}

/// The name of one of several.
pub(super) fn numbered(name: &str, number: Option<usize>) -> String {
    number.map_or_else(|| name.to_owned(), |number| format!("{name}-{number}"))
}

/// Ranks are processes that compute at the same time.
fn threads_of_rank(threads: usize, parallelism: Parallelism) -> usize {
    let ranks = usize::try_from(parallelism.ranks()).unwrap_or(usize::MAX);
    (threads / ranks.max(1)).max(1)
}

/// The keyword arguments of `vllm.LLM` and the variables that a model's arms have in common.
#[must_use]
pub fn llm_arguments(
    bench: &Bench,
    model: &Model,
    prompts: &Artifact,
) -> (BTreeMap<String, Value>, BTreeMap<String, String>) {
    let run = EngineRun { bench, model, prompts };
    let variables = run.engine_variables().into_iter().map(|(name, value)| (name.to_owned(), value));
    (run.llm_arguments(), variables.collect())
}

/// What an arm's engine said of itself when it was ready.
///
/// # Errors
/// When the artifact cannot be read.
pub fn read_ready(arm: &Artifact) -> Result<Ready, StageError> {
    read_json::<Ready>(Utf8Path::new(&arm.path(READY)))
}
