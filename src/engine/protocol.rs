//! The worker protocol: JSON lines over the standard streams of one Python process per engine run.
//!
//! `start` → `ready`; `score` → one `scored` for each prompt, in any order, then one `digested` for each that has a whole chunk,
//! where digests were asked for, then `counted`; `plant` → `planted`; `look` → `looked`; `spoil` → `spoilt`; `press` → one `pressed`
//! for each request as it ends, then one `digested` for each that has a whole piece, then `endured`; `finish` → `finished`.
//! Instead of any reply `failed` may come; nothing follows it. The Python counterpart is
//! `src/engine/worker/kv_worker/protocol.py`. Main types: [`Request`], [`Reply`].

use std::collections::BTreeMap;

use camino::Utf8Path;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::model::{
    CellPart, ChunkDigests, CutOff, DigestedLayers, LayerDigests, PressedRequest, PressureEvents, Step,
    TokenLogprob,
};

/// Both sides refuse another number.
pub const PROTOCOL: u32 = 5;

/// What the driver asks.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Request<'a> {
    /// Start the engine.
    Start(&'a Start),
    /// Answer prompts.
    Score {
        /// Whether vLLM's own prefix cache may be read. If not, it is emptied first; it is filled in any case.
        read_cache: bool,
        /// Whether the KV of the prompts is left to another engine, which is told of it by what each answer says: one token
        /// is generated.
        hand_over: bool,
        /// How the engine is to misread prompts that are served whole, if it is.
        misreading: Option<Misreading>,
        /// As whom they are asked, if not as the engine's connector says.
        #[serde(skip_serializing_if = "Option::is_none")]
        asker: Option<&'a Asker>,
        /// The prompts, in the order in which they are handed to the scheduler.
        prompts: Vec<NumberedPrompt<'a>>,
    },
    /// Plant a fault of timing in the prompts of the `score` that follows, or end the one that is planted.
    Plant {
        /// The fault; `None` ends it.
        fault: Option<&'a TimingFault>,
    },
    /// Answer one prompt three times by itself, the third time with a served chunk of its KV set to zero.
    Spoil {
        /// The prompt, which the cache serves, three times: where another engine leaves its KV, it was left as often.
        prompts: Vec<NumberedPrompt<'a>>,
        /// Which of its chunks, from 0.
        chunk: u32,
    },
    /// Write what chunks of the prompts of the last `score` hold into files.
    Look {
        /// Their folder.
        folder: &'a Utf8Path,
        /// The chunks.
        chunks: &'a [NumberedChunk],
    },
    /// Ask prompts by a schedule that leaves the engine no peace.
    Press {
        /// Whether vLLM's own prefix cache serves, too, in an engine that was started with one that is not read.
        own_cache: bool,
        /// What the connector stores as a whole, in tokens.
        unit: u32,
        /// The schedule.
        prompts: Vec<NumberedPressed<'a>>,
    },
    /// Shut the engine down.
    Finish,
}

/// What a connector could do too early or too late.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum TimingFault {
    /// Served chunks come behind the first forward pass that reads them.
    Late {
        /// A prompt's number and a chunk's in it.
        chunks: Vec<(u32, u32)>,
        /// Layers, in the order of their digests.
        layers: Vec<u32>,
    },
    /// Blocks are given away at a request's end, and stored only once another request has written into them.
    Reused,
}

/// One chunk of a prompt in a layer on a rank that a fault of timing had read or stored wrongly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangedCell {
    /// The number given to the prompt.
    pub question: u32,
    /// The chunk's in it.
    pub chunk: u32,
    /// The layer, in the order of digests.
    pub layer: u32,
    /// The rank.
    pub rank: u32,
    /// Bits that were others.
    pub bits: u64,
}

/// A way of misreading prompts that are served whole, planted in an engine to see that it shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Misreading {
    /// All of a prompt's tokens are taken as served, and the first position behind them is computed.
    AllServed,
    /// The last token is computed at the position behind its own.
    OnePositionOff,
}

/// The engine to start.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Start {
    /// [`PROTOCOL`].
    pub protocol: u32,
    /// The model's folder.
    pub model: String,
    /// Keyword arguments of `vllm.LLM`.
    pub arguments: BTreeMap<String, serde_json::Value>,
    /// What its layers keep.
    pub layers_keep: LayersKeep,
    /// The KV connector, for an arm that has one.
    pub connector: Option<Connector>,
    /// `None`: vLLM's own prefix caching serves nothing. Otherwise it is on, and serves whole chunks of so many tokens.
    pub hit_multiple: Option<u32>,
    /// Whether it serves a prompt of whole chunks all but its last token.
    pub whole_hits: bool,
    /// Tokens of the chunks whose KV is digested; `None`: it is not.
    pub digest_chunk_tokens: Option<u32>,
    /// Whether chunks that generated tokens complete are digested, too.
    pub digest_answers: bool,
    /// Whether it is digested block by block of vLLM's cache instead.
    pub digest_blocks: bool,
    /// torch's name of the data type that a lossy form of storage puts each element through; what that makes of computed chunks
    /// is then digested, too. `None`: there is none, or its arithmetic is not known.
    pub stored_as: Option<&'static str>,
    /// Tokens of the letters A to D.
    pub letters: [u32; 4],
    /// How many of the most likely tokens to report.
    pub top: u32,
    /// How many tokens to generate.
    pub max_tokens: u32,
    /// vLLM's seed.
    pub seed: u64,
}

/// What the layers of a model keep of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LayersKeep {
    /// KV of its tokens.
    Tokens,
    /// Some of them a state of all of it, for which vLLM's own prefix caching is on in every engine, and serves nothing unless it is to.
    States,
}

/// A KV connector as vLLM's `KVTransferConfig` names it.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Connector {
    /// Its class.
    pub name: String,
    /// The module that has the class, where vLLM does not know it.
    pub module_path: Option<String>,
    /// Which part of the travel its engine has.
    pub role: ConnectorRole,
    /// Its own settings.
    pub extra: BTreeMap<String, serde_json::Value>,
    /// Further arguments of `KVTransferConfig`.
    pub settings: BTreeMap<String, serde_json::Value>,
    /// Folders in which Python finds the module and what it needs, before all others.
    pub python_path: Vec<String>,
    /// What sets this run's requests apart in a cache that others use, too.
    pub cache_salt: Option<String>,
    /// Whether the engine is told its model by the name of its folder instead of by its path.
    pub model_by_name: bool,
    /// Whether vLLM's own prefix caching is on beside it.
    pub prefix_caching: PrefixCaching,
}

/// Whether vLLM's own prefix caching is on in an engine with a connector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PrefixCaching {
    /// It is off.
    #[default]
    Off,
    /// It is on, for a connector that knows blocks by its hashes; it is emptied before each request to score, and serves nothing.
    Unread,
}

/// What an engine's connector does, in vLLM's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum ConnectorRole {
    /// It stores and loads.
    #[default]
    #[serde(rename = "kv_both")]
    Both,
    /// It stores, or sends.
    #[serde(rename = "kv_producer")]
    Producer,
    /// It loads, or receives.
    #[serde(rename = "kv_consumer")]
    Consumer,
}

/// As whom an engine is asked: what tells its requests apart from others with the same tokens.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Asker {
    /// A salt, instead of the connector's.
    pub cache_salt: Option<String>,
    /// A tag, which an LMCache in the engine's process takes into its keys.
    pub tag: Option<String>,
    /// The LoRA adapter, for one.
    pub adapter: Option<Adapter>,
    /// The seed of embeddings that take the place of the tokens, for one that has such.
    pub embeddings: Option<u64>,
}

/// A LoRA adapter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Adapter {
    /// By which people know it.
    pub name: String,
    /// By which vLLM tells it from others that the same engine is asked with, from 1.
    pub number: u32,
    /// Where it lies, in PEFT's layout.
    pub folder: String,
}

/// A prompt under the number that its reply will bear.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct NumberedPrompt<'a> {
    /// The driver's number.
    pub question: u32,
    /// The whole prompt.
    pub token_ids: &'a [u32],
    /// Where another engine has left its KV, in the words of that one's connector.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transfer: Option<&'a serde_json::Value>,
}

/// A request of a schedule under the number that its reply will bear.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct NumberedPressed<'a> {
    /// The driver's number.
    pub question: u32,
    /// The whole prompt.
    pub token_ids: &'a [u32],
    /// How many others must have ended before.
    pub after: u32,
    /// Tokens to generate.
    pub answer_tokens: u32,
    /// When to break it off, if at all.
    pub abort: Option<CutOff>,
}

/// A chunk of a prompt of the last `score`, in some layers on one rank.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NumberedChunk {
    /// The number given to the prompt.
    pub question: u32,
    /// Which chunk of it, from 0.
    pub chunk: u32,
    /// On which rank.
    pub rank: u32,
    /// In which layers, by name.
    pub layers: Vec<String>,
}

/// What one chunk holds in one layer on one rank.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeenCell {
    /// The number given to the prompt.
    pub question: u32,
    /// Which chunk of it, from 0.
    pub chunk: u32,
    /// In which layer, by name.
    pub layer: String,
    /// On which rank.
    pub rank: u32,
    /// Whether a cache served it.
    pub served: bool,
    /// The digest of what it holds now.
    pub digest: LayerDigests,
    /// The file in the folder that was named: parts one behind the other, each (tokens, heads, elements).
    pub file: String,
    /// Pieces of it as they lie, all of a size.
    pub blocks: u32,
    /// torch's name of an element's data type.
    pub dtype: String,
    /// The parts; none where the layout is not understood.
    pub parts: Vec<CellPart>,
    /// Why the layout is not understood.
    pub problem: Option<String>,
}

/// What the worker says.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Reply {
    /// The engine takes prompts.
    Ready(Ready),
    /// One prompt is answered.
    Scored(Scored),
    /// The KV of one prompt.
    Digested {
        /// The number given to the prompt.
        question: u32,
        /// Its whole chunks.
        chunks: Vec<ChunkDigests>,
    },
    /// All prompts of a `score` are answered.
    Counted {
        /// vLLM's prefix-cache counters, cumulative.
        counters: BTreeMap<String, f64>,
        /// What kept digests from being taken, if anything did.
        #[serde(default)]
        digest_problem: Option<String>,
    },
    /// A fault of timing begins, or has ended.
    Planted {
        /// What the one that ends did to the prompts of the first `score` since it began.
        cells: Vec<ChangedCell>,
        /// Why this engine cannot have the one that was to begin.
        problem: Option<String>,
    },
    /// A prompt is answered three times.
    Spoilt(Box<Probed>),
    /// One request of a schedule has ended.
    Pressed(PressedRequest),
    /// All requests of a schedule have.
    Endured {
        /// What happened.
        events: PressureEvents,
        /// vLLM's prefix-cache counters, cumulative.
        counters: BTreeMap<String, f64>,
        /// What kept digests from being taken, if anything did.
        digest_problem: Option<String>,
    },
    /// What was looked at.
    Looked {
        /// As far as it is there.
        cells: Vec<SeenCell>,
        /// What kept it from being looked at, if anything did.
        problem: Option<String>,
    },
    /// The engine is shut down.
    Finished {},
    /// It did not work.
    Failed {
        /// `request`, `start`, `engine` or `observation`.
        kind: String,
        /// In the worker's or vLLM's words.
        message: String,
        /// The prompt to blame, where there is one.
        question: Option<u32>,
    },
}

/// What was started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Ready {
    /// [`PROTOCOL`].
    pub protocol: u32,
    /// Versions by package name.
    pub versions: BTreeMap<String, String>,
    /// The device as vLLM names it.
    pub device: String,
    /// The attention backend as vLLM names it.
    pub attention_backend: String,
    /// Tokens of one block of vLLM's KV cache.
    pub block_size: u32,
    /// Tokens that vLLM's KV cache holds.
    pub kv_cache_tokens: u64,
    /// What of the KV is digested; `None` where nothing was asked for.
    #[serde(default)]
    pub digests: Option<DigestedLayers>,
    /// What is not as it should be, though the engine runs, in whole sentences.
    #[serde(default)]
    pub remarks: Vec<String>,
}

/// What one prompt showed that was answered three times, the third time with spoilt KV.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probed {
    /// As it is served.
    pub alone: Scored,
    /// Once more.
    pub again: Scored,
    /// With the chunk at zero.
    pub spoilt: Scored,
    /// How often the chunk was set to zero: once in each layer on each rank.
    pub cells: u32,
    /// vLLM's prefix-cache counters, cumulative.
    pub counters: BTreeMap<String, f64>,
}

/// What one prompt showed.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scored {
    /// The number given to the prompt.
    pub question: u32,
    /// Prompt tokens whose KV was not computed.
    pub cached_tokens: u32,
    /// Log-probabilities of the letters at the first generated token.
    pub letters: [f64; 4],
    /// The generated tokens.
    pub steps: Vec<Step>,
    /// Where its KV was left for another engine, in the connector's words.
    #[serde(default)]
    pub transfer: Option<serde_json::Value>,
    /// How often it lost its blocks to other requests.
    #[serde(default)]
    pub preemptions: u32,
    /// Tokens that a connector served each time it was taken up again.
    #[serde(default)]
    pub served_again: Vec<u32>,
    /// Whether log-probabilities were no numbers; a finite one stands for each.
    #[serde(default)]
    pub no_numbers: bool,
}

impl Scored {
    /// All numbers of the reply, for the check that each is finite.
    pub(super) fn logprobs(&self) -> impl Iterator<Item = f64> {
        let of = |logprob: &TokenLogprob| logprob.nats();
        let steps = self.steps.iter().flat_map(move |step| step.top.iter().chain([&step.chosen]).map(of));
        self.letters.into_iter().chain(steps)
    }
}
