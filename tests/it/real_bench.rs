//! Engines and a server of a real vLLM and LMCache, driven over the worker's protocol by the real tests that need no whole run.

use std::collections::BTreeMap;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use kv_correctness::dataset::{Prompt, QuestionId, Split};
use kv_correctness::engine::environment::{Environment, EnvironmentRequest, Stack};
use kv_correctness::engine::{
    Connector, Launch, LayersKeep, LmcacheServer, PROTOCOL, Patience, ServerSettings, Start, Tiers, Worker,
};
use kv_correctness::event::Events;
use kv_correctness::model::Observation;
use serde_json::{Value, json};

pub(crate) const CHUNK_TOKENS: u32 = 256;
pub(crate) const PROMPTS: u32 = 6;
/// Two whole chunks and a rest.
const PROMPT_TOKENS: u32 = 600;
/// Tokens of all prompts' whole chunks.
pub(crate) const WHOLE_TOKENS: u32 = PROMPTS * (PROMPT_TOKENS / CHUNK_TOKENS * CHUNK_TOKENS);
pub(crate) const PATIENCE: Duration = Duration::from_mins(5);

/// How an engine caches prefixes.
pub(crate) enum Caching {
    /// In LMCache.
    Lmcache(Connector),
    /// In its own cache, as the control does.
    Own,
}

/// A folder, an environment and a model for engines.
pub(crate) struct Bench {
    folder: tempfile::TempDir,
    environment: Environment,
    model: Utf8PathBuf,
    cpu_arguments: Value,
}

impl Bench {
    pub(crate) fn new(model: &str, cpu_arguments: Value) -> Self {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let cache = std::env::var("KV_CORRECTNESS_CACHE").map(Utf8PathBuf::from);
        let cache = cache.unwrap_or_else(|_| {
            Utf8PathBuf::from(std::env::var("HOME").unwrap()).join(".cache/kv-correctness")
        });
        let request = EnvironmentRequest::from_variables(Stack::Cpu, cache);
        let environment = request.provide(&Events::ignored()).unwrap();
        let model = Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("data/models").join(model);
        Self { folder, environment, model, cpu_arguments }
    }

    fn path(&self, name: &str) -> Utf8PathBuf {
        Utf8Path::from_path(self.folder.path()).unwrap().join(name)
    }

    fn variables(&self) -> Vec<(String, String)> {
        let worker = Worker::install(&self.path("")).unwrap();
        let variables = [
            ("PYTHONHASHSEED", "0"),
            ("PYTHONPATH", worker.as_str()),
            ("HF_HUB_OFFLINE", "1"),
            ("VLLM_NO_USAGE_STATS", "1"),
            ("LMCACHE_TRACK_USAGE", "false"),
            ("VLLM_ENABLE_V1_MULTIPROCESSING", "0"),
            ("VLLM_CPU_KVCACHE_SPACE", "1"),
            ("VLLM_CPU_OMP_THREADS_BIND", "nobind"),
            ("OMP_NUM_THREADS", "1"),
        ];
        variables.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec()
    }

    pub(crate) async fn server(&self) -> LmcacheServer {
        let settings = ServerSettings {
            program: self.environment.executable("lmcache"),
            python: self.environment.python(),
            fork_servers: None,
            guard: env!("CARGO_BIN_EXE_kv-correctness").into(),
            variables: self.variables(),
            log: self.path("server.log"),
            chunk_tokens: CHUNK_TOKENS,
            shards_of_chunk: 1,
            memory_gib: 1,
            scarce_memory_mib: None,
            tiers: Tiers::default(),
            patience: PATIENCE,
        };
        LmcacheServer::start(&settings).await.unwrap()
    }

    pub(crate) async fn engine(&self, name: &str, ranks: u32, caching: Caching) -> Worker {
        let mut arguments: BTreeMap<String, Value> =
            serde_json::from_value(self.cpu_arguments.clone()).unwrap();
        let others = json!({"dtype": "bfloat16", "max_model_len": 1024, "max_num_seqs": 1, "enforce_eager": true,
            "tensor_parallel_size": ranks});
        arguments.extend(serde_json::from_value::<BTreeMap<String, Value>>(others).unwrap());
        let (connector, hit_multiple) = match caching {
            Caching::Lmcache(connector) => (Some(connector), None),
            Caching::Own => (None, Some(CHUNK_TOKENS)),
        };
        let start = Start {
            protocol: PROTOCOL,
            model: self.model.to_string(),
            arguments,
            layers_keep: LayersKeep::Tokens,
            connector,
            hit_multiple,
            whole_hits: true,
            digest_chunk_tokens: None,
            digest_answers: false,
            digest_blocks: false,
            stored_as: None,
            letters: [40, 41, 42, 43],
            top: 8,
            max_tokens: 1,
            seed: 42,
        };
        let launch = Launch {
            guard: env!("CARGO_BIN_EXE_kv-correctness").into(),
            command: [self.environment.python().as_str(), "-m", "kv_worker"].map(str::to_owned).to_vec(),
            variables: self.variables(),
            log: self.path(&format!("engine-{name}.log")),
            fork_server: None,
        };
        let patience = Patience { start: PATIENCE, answer: Duration::from_mins(1), finish: PATIENCE };
        Worker::start(&launch, &start, patience, format!("the engine {name}")).await.unwrap().0
    }
}

/// Prompts that share nothing, the same in every run; those of another round share nothing with them either.
pub(crate) fn prompts(round: u32) -> Vec<Prompt> {
    let prompt = |row: u32| Prompt {
        question: QuestionId { subject: "ranks".parse().unwrap(), split: Split::Test, row },
        examples: 0,
        token_ids: (0..PROMPT_TOKENS).map(|at| 50 + (at * 37 + row * 611 + at * at % 97) % 1900).collect(),
    };
    (1..=PROMPTS).map(|row| prompt(round * PROMPTS + row)).collect()
}

/// Tokens that were served of all prompts.
pub(crate) fn served(observations: &[Observation]) -> u32 {
    observations.iter().map(|one| one.cached_tokens).sum()
}
