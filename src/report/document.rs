//! The report as data. Main type: [`Report`].

use std::collections::BTreeMap;

use camino::Utf8PathBuf;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::comparison::{Comparison, Judgement, Location, Verdict};
use crate::dataset::{Question, Shard};
use crate::digest::Digest;
use crate::engine::Ready;
use crate::engine::environment::EnvironmentIdentity;
use crate::fault::FaultFindings;
use crate::foreign::ForeignFindings;
use crate::machine::Device;
use crate::model::{KvShape, Route};
use crate::pressure::PressureFindings;
use crate::stage_name::StageName;
use crate::suite::Suite;
use crate::turns::TurnsFindings;

/// Number of the format of `report.json`; a change that a reader could stumble over raises it.
pub const SCHEMA: u32 = 4;
/// The oldest format that is still read.
pub const OLDEST_SCHEMA: u32 = 2;

/// Everything that a run found out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// The format: [`SCHEMA`].
    #[schemars(extend("const" = SCHEMA))]
    pub schema: u32,
    /// Version of kv-correctness.
    pub version: String,
    /// The worst verdict; *not exercised* where `findings` is empty, since nothing came to an end: there is none then.
    pub verdict: Verdict,
    /// The status that the process ends with.
    pub exit_code: u8,
    /// What was run.
    pub suite: Suite,
    /// What computed.
    pub device: Device,
    /// What vLLM and LMCache were.
    pub environment: EnvironmentIdentity,
    /// The part of the questions that was asked, where others asked the rest: a verdict on these alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<Shard>,
    /// Digests of the reports that it was merged from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub merged_from: Vec<Digest>,
    /// Each model on each route.
    pub findings: Vec<Finding>,
    /// What was asked for of a model on a route and was not done.
    #[serde(default)]
    pub not_run: Vec<NotRun>,
    /// Each model with planted faults; empty if they were not asked for.
    pub planted_faults: Vec<PlantedFaults>,
    /// Each model with what LMCache served of its KV to readers of another identity; empty if that was not asked for.
    #[serde(default)]
    pub foreign_kv: Vec<ForeignKv>,
    /// Each model on each route with conversations, answers stored and not; empty if they were not asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub talks: Vec<Talk>,
    /// Each model on each route under pressure; empty if that was not asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pressure: Vec<UnderPressure>,
}

/// What one model over one route showed under pressure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UnderPressure {
    /// The model's name.
    pub model: String,
    /// The route.
    pub route: Route,
    /// The part of a run in parts whose prompts were asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<Shard>,
    /// The verdict, and why.
    pub judgement: Judgement,
    /// What each seed's schedule showed.
    pub findings: PressureFindings,
    /// Output digest of the pressure stage.
    pub artifact: Digest,
    /// Where vLLM's and LMCache's output is, on the machine that ran them.
    #[schemars(with = "String")]
    pub log: Utf8PathBuf,
}

/// Conversations of one model over a route, and what they come to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Talk {
    /// The model's name.
    pub model: String,
    /// The route.
    pub route: Route,
    /// What they come to.
    pub judgement: Judgement,
    /// Every turn.
    pub findings: TurnsFindings,
    /// Output digest of the turns stage.
    pub artifact: Digest,
    /// Where vLLM's and LMCache's output is, on the machine that ran them.
    #[schemars(with = "String")]
    pub log: Utf8PathBuf,
}

/// What LMCache served of one model's KV to readers of another identity, on the route `mp+fs`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ForeignKv {
    /// The model's name.
    pub model: String,
    /// What each reader got.
    pub findings: ForeignFindings,
    /// Output digest of the foreign stage.
    pub artifact: Digest,
    /// Where vLLM's and LMCache's output is, on the machine that ran them.
    #[schemars(with = "String")]
    pub log: Utf8PathBuf,
}

/// Something that was asked for of a model on a route and was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NotRun {
    /// The model's name.
    pub model: String,
    /// The route.
    pub route: Route,
    /// When it was known.
    #[serde(default)]
    pub known: Known,
    /// Why: `failed to …`, with all causes.
    pub reason: String,
    /// What mends it; empty where nothing is known.
    pub next_step: String,
}

/// When it was known that something is not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Known {
    /// Before anything started: this machine or the suite does not allow it.
    #[default]
    Beforehand,
    /// It was tried, and failed.
    AfterTrying,
}

/// What planted faults showed about the verdicts on one model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PlantedFaults {
    /// The model's name.
    pub model: String,
    /// The route whose tier they were planted in.
    pub route: Route,
    /// Why the verdicts cannot be relied on, if so.
    pub doubt: Option<Judgement>,
    /// Score, smallest doses and every planting.
    pub findings: FaultFindings,
    /// Output digest of the faults stage.
    pub artifact: Digest,
    /// Where vLLM's and LMCache's output is, on the machine that ran them.
    #[schemars(with = "String")]
    pub log: Utf8PathBuf,
}

/// What was found out about one model on one route.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Finding {
    /// The model's name.
    pub model: String,
    /// SHA-256 of the model's files.
    pub model_digest: Digest,
    /// Its attention and the shape of its KV.
    pub kv_shape: KvShape,
    /// The route.
    pub route: Route,
    /// SHA-256 of what describes its connector and of the code that this names; none where nothing but this program does.
    #[serde(default)]
    pub connector_digest: Option<Digest>,
    /// The verdict, and why.
    pub judgement: Judgement,
    /// What every rung saw.
    pub comparison: Comparison,
    /// Which chunk is the first that is served wrong, where bits decided that one is.
    pub location: Option<Location>,
    /// The questions that flipped, in full, in the order of `comparison.answers.flips`.
    pub flipped_questions: Vec<Question>,
    /// What the engine with LMCache said of itself.
    pub engine: Ready,
    /// Output digests of the stages.
    pub artifacts: BTreeMap<StageName, Digest>,
    /// Digests of the keys by which a store or a depot finds them; none of what was merged.
    #[serde(default)]
    pub keys: BTreeMap<StageName, Digest>,
    /// Where vLLM's and LMCache's output is, on the machine that ran them.
    #[schemars(with = "Vec<String>")]
    pub logs: Vec<Utf8PathBuf>,
}
