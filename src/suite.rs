//! What a run consists of, as data: a TOML file names dataset, models, engine settings, routes and criteria.
//!
//! Owns the file format and the embedded suites; leaves to `assets` and `stage` what the names stand for.
//! Main type: [`Suite`].

mod place;
mod pressure;
mod reserved;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use include_dir::{Dir, include_dir};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) use self::place::place_of;
pub use self::pressure::PressureSettings;
use crate::comparison::{Criteria, MOST_MARGIN};
use crate::dataset::{Selection, SubjectSelection};
use crate::files::{MOST_TEXT, read_text};
pub use crate::model::{Dtype, Route};
use crate::options::StoringOptions;

/// vLLM's own names of the settings that spread a model over ranks; a suite sets them beside a model's `source`.
const PARALLEL_ARGUMENTS: [&str; 4] =
    ["tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "distributed_executor_backend"];

static EMBEDDED: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/data/suites");

/// Everything that a run is made of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Suite {
    /// Its name in reports.
    pub name: String,
    /// One line for people.
    pub description: String,
    /// The name of an embedded or pinned dataset, or the path of an archive in MMLU's layout.
    pub dataset: String,
    /// Which subjects are asked.
    pub subjects: SubjectSelection,
    /// How many questions of each subject are asked at most, the first by row; all where it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub questions: Option<NonZeroUsize>,
    /// The routes to test, each against the same baseline.
    pub routes: Vec<Route>,
    /// Files that describe connectors, each a route by the name that it gives itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub connectors: Vec<String>,
    /// How questions become prompts.
    pub prompt: PromptSettings,
    /// vLLM's settings, equal in all arms.
    pub engine: EngineSettings,
    /// LMCache's settings.
    pub lmcache: LmcacheSettings,
    /// What is fixed before the run to judge it by.
    #[serde(default)]
    pub criteria: Criteria,
    /// What faults are planted in.
    #[serde(default)]
    pub faults: FaultSettings,
    /// What engines are put under pressure by, where they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pressure: Option<PressureSettings>,
    /// When a process counts as hung.
    #[serde(default)]
    pub patience: PatienceSettings,
    /// The models, each tested by itself.
    pub models: Vec<ModelSettings>,
}

/// How questions become prompts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PromptSettings {
    /// A template's name and version.
    pub template: String,
    /// Examples are added until they pass so many tokens.
    pub example_tokens: u32,
}

/// vLLM's settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EngineSettings {
    /// Data type of weights and KV.
    pub dtype: Dtype,
    /// Longest sequence in tokens, generated ones included.
    pub max_model_len: u32,
    /// Sequences in one batch. With 1, no batch's composition can differ between arms.
    pub max_num_seqs: u32,
    /// Tokens generated for each question.
    pub max_tokens: u32,
    /// How many of the most likely tokens are reported.
    pub top: u32,
    /// vLLM's seed.
    pub seed: u64,
    /// Memory for vLLM's KV cache, in GiB.
    pub kv_cache_gib: u32,
    /// Further keyword arguments of `vllm.LLM`.
    #[serde(default)]
    pub arguments: BTreeMap<String, serde_json::Value>,
}

/// LMCache's settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LmcacheSettings {
    /// Tokens of one chunk.
    pub chunk_tokens: u32,
    /// Size of the memory tier, in GiB.
    pub memory_gib: u32,
    /// What else changes what is stored.
    #[serde(default)]
    pub options: StoringOptions,
    /// Whether a server is stopped and let run in turn while it stores and loads, in the rhythm of `engine.seed`: 50 ms of each
    /// 70, a quarter more or less.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub slow: bool,
}

impl LmcacheSettings {
    /// What KV is stored with, for people, where it is not LMCache's default; empty if it is.
    #[must_use]
    pub fn words(&self) -> String {
        let slow = self.slow.then(|| "a server that is stopped and let run in turn".to_owned());
        let words = [self.options.words()].into_iter().filter(|words| !words.is_empty()).chain(slow);
        words.collect::<Vec<String>>().join(", ")
    }
}

/// What faults are planted in, where they are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FaultSettings {
    /// Questions that each fault is tried on, spread over the subjects.
    pub questions: usize,
    /// How many times bytes are written again unchanged, which no verdict may mind.
    pub identity: u32,
    /// At how many sampled places of a model's stored chunks a single bit is flipped.
    pub flips: u16,
}

impl Default for FaultSettings {
    fn default() -> Self {
        Self { questions: 8, identity: 20, flips: 200 }
    }
}

/// When a process counts as hung, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PatienceSettings {
    /// For an engine to start; the first start compiles kernels.
    pub start_seconds: u64,
    /// For one answer after another.
    pub answer_seconds: u64,
    /// For an engine to leave, a server to become healthy, and a second tier to take more of what was stored.
    pub change_seconds: u64,
    /// For another run that works on the same stage.
    pub other_run_seconds: u64,
}

impl Default for PatienceSettings {
    fn default() -> Self {
        Self { start_seconds: 900, answer_seconds: 300, change_seconds: 60, other_run_seconds: 3600 }
    }
}

impl PatienceSettings {
    /// For another run that works on the same stage.
    #[must_use]
    pub fn other_run(&self) -> Duration {
        Duration::from_secs(self.other_run_seconds)
    }
}

/// One model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelSettings {
    /// Its name in reports.
    pub name: String,
    /// The name of an embedded or pinned model, or the path of a folder in Hugging Face's layout.
    pub source: String,
    /// Ranks that share each layer: a GPU each, or a process each on a CPU.
    #[serde(default = "one")]
    pub tensor_parallel_size: u32,
    /// Stages that the layers are divided over, each with ranks of its own.
    #[serde(default = "one")]
    pub pipeline_parallel_size: u32,
    /// Copies of all that.
    #[serde(default = "one")]
    pub data_parallel_size: u32,
    /// What starts the ranks; vLLM chooses where it is not said.
    #[serde(default)]
    pub distributed_executor_backend: Option<ExecutorBackend>,
    /// Whether vLLM's hybrid KV cache manager is on, in each arm alike: layers that see a window then keep no more than that.
    /// Otherwise every layer keeps every token.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hybrid_kv_cache_manager: bool,
    /// Further keyword arguments of `vllm.LLM` for this model.
    #[serde(default)]
    pub arguments: BTreeMap<String, serde_json::Value>,
    /// The same, on a CPU only.
    #[serde(default)]
    pub cpu_arguments: BTreeMap<String, serde_json::Value>,
}

fn one() -> u32 {
    1
}

/// What starts an engine's ranks; vLLM's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ExecutorBackend {
    /// Processes on this host.
    Mp,
    /// A Ray cluster, for ranks that outgrow one host.
    Ray,
}

impl ModelSettings {
    /// The settings that spread it over ranks, as keyword arguments of `vllm.LLM`; those that vLLM defaults to are left
    /// out.
    #[must_use]
    pub fn parallel_arguments(&self) -> BTreeMap<String, serde_json::Value> {
        let sizes = [self.tensor_parallel_size, self.pipeline_parallel_size, self.data_parallel_size];
        let sizes = sizes.map(|size| (size > 1).then(|| size.into()));
        let backend =
            self.distributed_executor_backend.and_then(|backend| serde_json::to_value(backend).ok());
        let named = PARALLEL_ARGUMENTS.into_iter().zip(sizes.into_iter().chain([backend]));
        named.filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
    }
}

/// Why a suite cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SuiteError {
    /// Neither an embedded suite nor a file.
    #[error("find suite {name:?}: it is neither a file nor one of {}", names.join(", "))]
    Unknown {
        /// What was asked for.
        name: String,
        /// The embedded ones.
        names: Vec<String>,
    },
    /// The file cannot be read.
    #[error("read suite {path}")]
    Read {
        /// The file.
        path: Utf8PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The text is no suite.
    #[error("understand suite {name}: {problem}")]
    Malformed {
        /// The suite, or the report that holds it.
        name: String,
        /// What is wrong, with line and column where it is one place.
        problem: String,
        /// What to do about it, where that is known.
        instead: Option<String>,
    },
}

impl SuiteError {
    /// What to do next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Unknown { name, names } => match nearest(name, names) {
                Some(near) => format!("did you mean {near}?"),
                None => "name one of these or a TOML file; `kv-correctness suite show canary > mine.toml` begins one"
                    .to_owned(),
            },
            Self::Read { .. } => "check the path and its permissions".to_owned(),
            Self::Malformed { instead: Some(instead), .. } => instead.clone(),
            Self::Malformed { instead: None, .. } => {
                "compare it with one that is right: `kv-correctness suite show canary`".to_owned()
            }
        })
    }
}

impl Suite {
    /// The names of the embedded suites.
    #[must_use]
    pub fn names() -> Vec<String> {
        let mut names: Vec<String> =
            EMBEDDED.files().filter_map(|file| Some(file.path().file_stem()?.to_str()?.to_owned())).collect();
        names.sort();
        names
    }

    /// The text of an embedded suite.
    #[must_use]
    pub fn embedded_text(name: &str) -> Option<&'static str> {
        EMBEDDED.get_file(format!("{name}.toml"))?.contents_utf8()
    }

    /// Loads an embedded suite by name, or a file by path. Relative paths in a file are relative to its folder, but for what
    /// `is_name` says is the name of a dataset or a model.
    ///
    /// # Errors
    /// When there is no such suite, or its text is not one.
    pub fn load_with(name: &str, is_name: impl Fn(&str) -> bool) -> Result<Self, SuiteError> {
        if let Some(text) = Self::embedded_text(name) {
            return Self::parse(text, name);
        }
        let path = Utf8Path::new(name);
        if !path.exists() {
            return Err(SuiteError::Unknown { name: name.to_owned(), names: Self::names() });
        }
        let read = |source| SuiteError::Read { path: path.to_owned(), source };
        let mut suite = Self::parse(&read_text(path, MOST_TEXT).map_err(read)?, name)?;
        let folder = path.parent().unwrap_or(Utf8Path::new(""));
        let sources = suite.models.iter_mut().map(|model| &mut model.source);
        for source in sources.chain([&mut suite.dataset]).chain(&mut suite.connectors) {
            if !source.is_empty() && !is_name(source) && folder.join(&source).exists() {
                *source = folder.join(&source).into_string();
            }
        }
        Ok(suite)
    }

    /// Loads an embedded suite.
    ///
    /// # Errors
    /// As [`load_with`](Self::load_with) does.
    #[cfg(test)]
    pub(crate) fn load(name: &str) -> Result<Self, SuiteError> {
        Self::load_with(name, |_| false)
    }

    /// Where a setting stands in the text of a suite: `line 12, column 1`, for one as in `models.1.source`.
    #[must_use]
    pub fn place_of(name: &str, setting: &str) -> Option<String> {
        place_of(&read_text(name, MOST_TEXT).ok()?, setting)
    }

    /// Fails where a suite that came with something else, as a report's, could not be a file's.
    ///
    /// # Errors
    /// When a setting cannot be, or is not the suite's to set. `name` is what holds the suite.
    pub fn validate(&self, name: &str) -> Result<(), SuiteError> {
        self.check(name, |path| format!("`suite.{path}`: "))
    }

    /// Takes a suite's text; `name` is for messages.
    ///
    /// # Errors
    /// When it is none, or a setting cannot be, or is not the suite's to set.
    pub fn parse(text: &str, name: &str) -> Result<Self, SuiteError> {
        let suite: Self = toml::from_str(text).map_err(|error| SuiteError::Malformed {
            name: name.to_owned(),
            problem: error.to_string().trim_end().to_owned(),
            instead: None,
        })?;
        let place = |path: &str| place_of(text, path).map_or_else(String::new, |place| format!("{place}: "));
        suite.check(name, place)?;
        Ok(suite)
    }

    fn check(&self, name: &str, place: impl FnOnce(&str) -> String) -> Result<(), SuiteError> {
        let Some(Absurdity { path, problem, instead }) = self.first_absurdity() else { return Ok(()) };
        let problem = format!("{}{problem}", place(&path));
        Err(SuiteError::Malformed { name: name.to_owned(), problem, instead })
    }

    /// The questions that are asked.
    #[must_use]
    pub fn selection(&self) -> Selection {
        Selection { subjects: self.subjects, questions: self.questions }
    }

    /// Comparisons that a run of it plans: each model on each route.
    #[must_use]
    pub fn comparisons(&self) -> u32 {
        u32::try_from(self.models.len() * self.routes.len()).unwrap_or(u32::MAX)
    }

    fn first_absurdity(&self) -> Option<Absurdity> {
        let positive = [
            ("engine.max_num_seqs", self.engine.max_num_seqs),
            ("engine.max_tokens", self.engine.max_tokens),
            ("engine.top", self.engine.top),
            ("engine.kv_cache_gib", self.engine.kv_cache_gib),
            ("lmcache.chunk_tokens", self.lmcache.chunk_tokens),
            ("lmcache.memory_gib", self.lmcache.memory_gib),
        ];
        if let Some((field, _)) = positive.into_iter().find(|(_, value)| *value == 0) {
            return Some(Absurdity::new(field, format!("`{field}` must be at least 1")));
        }
        if let Some(field) = self.criteria.first_absurd_field() {
            let path = format!("criteria.{field}");
            let range = if field == "margin" {
                format!(
                    ": it is above 0 and at most {MOST_MARGIN}, since a model must beat guessing by ten margins"
                )
            } else {
                String::new()
            };
            return Some(Absurdity::new(&path, format!("`{path}` is out of range{range}")));
        }
        if let Some((name, problem)) = self.pressure.and_then(PressureSettings::first_absurdity) {
            return Some(Absurdity::new(&format!("pressure.{name}"), problem));
        }
        if self.engine.max_model_len <= self.engine.max_tokens {
            let problem = "`engine.max_model_len` leaves no room for a prompt before `engine.max_tokens`";
            return Some(Absurdity::new("engine.max_model_len", problem));
        }
        let missing = [("models", self.models.is_empty()), ("routes", self.routes.is_empty())];
        if let Some((path, _)) = missing.into_iter().find(|(_, missing)| *missing) {
            return Some(Absurdity::new(path, "it needs at least one model and one route"));
        }
        let names = self
            .models
            .iter()
            .enumerate()
            .map(|(index, model)| (format!("models.{index}.name"), &model.name));
        let mut names = [("name".to_owned(), &self.name)].into_iter().chain(names);
        if let Some((path, _)) =
            names.find(|(_, name)| name.trim().is_empty() || name.contains(char::is_control))
        {
            let problem = format!("`{path}` is empty or holds a control character, and is shown everywhere");
            return Some(Absurdity::new(&path, problem));
        }
        self.absurd_parallelism()
            .or_else(|| self.reserved_argument())
            .or_else(|| self.repeated_name())
            .or_else(|| self.repeated_route())
    }

    fn repeated_route(&self) -> Option<Absurdity> {
        let again =
            (0..self.routes.len()).find(|&index| self.routes[..index].contains(&self.routes[index]))?;
        let problem = format!("it names the route {} twice", self.routes[again].name());
        Some(Absurdity::new(&format!("routes.{again}"), problem))
    }

    fn repeated_name(&self) -> Option<Absurdity> {
        let name = |index: usize| &self.models[index].name;
        let again =
            (0..self.models.len()).find(|&index| (0..index).any(|other| name(other) == name(index)))?;
        let problem = format!("two models are named {}", name(again));
        Some(Absurdity::new(&format!("models.{again}.name"), problem))
    }

    fn absurd_parallelism(&self) -> Option<Absurdity> {
        for (index, model) in self.models.iter().enumerate() {
            let sizes = [model.tensor_parallel_size, model.pipeline_parallel_size, model.data_parallel_size];
            if let Some((name, _)) = PARALLEL_ARGUMENTS.into_iter().zip(sizes).find(|(_, size)| *size == 0) {
                let problem = format!("`{name}` of {} must be at least 1", model.name);
                return Some(Absurdity::new(&format!("models.{index}.{name}"), problem));
            }
        }
        None
    }

    /// The first argument of `vllm.LLM` that is the driver's own.
    fn reserved_argument(&self) -> Option<Absurdity> {
        let of_models = self.models.iter().enumerate().flat_map(|(index, model)| {
            let path = |name| format!("models.{index}.{name}");
            [(path("arguments"), &model.arguments), (path("cpu_arguments"), &model.cpu_arguments)]
        });
        let everywhere =
            [("engine.arguments".to_owned(), &self.engine.arguments)].into_iter().chain(of_models);
        everywhere.into_iter().find_map(|(path, arguments)| {
            let (name, refusal) = reserved::refusal(arguments)?;
            let instead = Some(refusal.instead.to_owned());
            let problem = format!("`{name}` {}", refusal.reason);
            Some(Absurdity { path: format!("{path}.{name}"), problem, instead })
        })
    }
}

/// A setting that is well formed and cannot be.
struct Absurdity {
    /// As in `models.1.name`.
    path: String,
    problem: String,
    /// What to do about it, where that is more than to compare.
    instead: Option<String>,
}

impl Absurdity {
    fn new(path: &str, problem: impl Into<String>) -> Self {
        Self { path: path.to_owned(), problem: problem.into(), instead: None }
    }
}

/// The name that a mistyped one most likely stands for, if one is near enough.
pub(crate) fn nearest<'a>(typed: &str, names: &'a [String]) -> Option<&'a str> {
    let likeness = |name: &&String| strsim::jaro_winkler(typed, name);
    let near = names.iter().max_by(|left, right| likeness(left).total_cmp(&likeness(right)))?;
    (likeness(&near) > 0.8).then_some(near.as_str())
}

#[cfg(test)]
mod tests;
