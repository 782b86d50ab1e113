//! Why a stage did not finish. Main type: [`StageError`].

use std::io;

use camino::Utf8PathBuf;

use crate::assets::AssetError;
use crate::carrier::{CarrierError, RouteError};
use crate::comparison::EvidenceError;
use crate::dataset::{ExtractError, PromptError, QuestionId, ReadQuestionsError, Shard, TokenizerError};
use crate::engine::environment::EnvironmentError;
use crate::engine::{EngineError, TooLarge};
use crate::fault::FaultError;
use crate::pressure::NoPrompts;
use crate::stage_name::StageName;
use crate::store::StoreError;

/// Why a stage did not finish. None of these is a verdict.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// A dataset or a model.
    #[error(transparent)]
    Asset(#[from] AssetError),
    /// The archive.
    #[error("extract {archive}")]
    Extract {
        /// The archive's name.
        archive: String,
        /// Why.
        source: Box<ExtractError>,
    },
    /// A prompt.
    #[error(transparent)]
    Prompt(#[from] PromptError),
    /// A tokenizer.
    #[error("use the tokenizer of {model}")]
    Tokenizer {
        /// The model.
        model: String,
        /// Why.
        source: TokenizerError,
    },
    /// A suite's template.
    #[error("find prompt template {0:?}")]
    Template(String),
    /// A question of an excerpt.
    #[error("find question {0} in the suite's dataset")]
    NoSuchQuestion(QuestionId),
    /// More parts than subjects.
    #[error("ask shard {shard}: there are {subjects} subjects, and each is asked as a whole")]
    EmptyShard {
        /// The part.
        shard: Shard,
        /// Subjects of the suite.
        subjects: usize,
    },
    /// Prompts of which no schedule can be made.
    #[error(transparent)]
    NoPrompts(#[from] NoPrompts),
    /// Questions of an artifact.
    #[error(transparent)]
    Questions(#[from] ReadQuestionsError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The environment lacks what the stage runs.
    #[error(transparent)]
    Environment(#[from] EnvironmentError),
    /// vLLM or LMCache.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The KV of one subject.
    #[error("plan the rounds of {model}")]
    TooLarge {
        /// The model.
        model: String,
        /// Why.
        source: TooLarge,
    },
    /// A connector made vLLM choose blocks of another size than without it.
    #[error(
        "keep vLLM's blocks as they are without the connector: they have {seen} tokens instead of {expected}"
    )]
    OtherBlocks {
        /// Without it.
        expected: u32,
        /// With it.
        seen: u32,
    },
    /// vLLM lacks a counter that would prove the service.
    #[error("prove that the connector served: this vLLM has no counter `{counter}`")]
    NotCounted {
        /// Its name.
        counter: &'static str,
    },
    /// The suite's longest sequence.
    #[error(
        "have room for the longest sequence of {model}: `engine.max_model_len` is {longest} tokens, and vLLM's KV cache holds \
         {room}"
    )]
    TooLong {
        /// The model.
        model: String,
        /// Tokens of the longest sequence.
        longest: u32,
        /// Tokens that have room.
        room: u64,
    },
    /// A few turns of a conversation are longer than the suite's longest sequence.
    #[error(
        "have room for conversations with {model}: a few turns take {needed} tokens, and `engine.max_model_len` is {room}"
    )]
    NoRoomForTurns {
        /// The model.
        model: String,
        /// Tokens of the longest sequence.
        room: u32,
        /// Tokens of the fewest turns.
        needed: usize,
    },
    /// Layers that see a window, in a way that cannot be.
    #[error("run {model} with vLLM's hybrid KV cache manager: {problem}")]
    Windows {
        /// The model.
        model: String,
        /// Why not.
        problem: String,
        /// What to do instead.
        instead: String,
    },
    /// Layers that keep a state, in a way that cannot be.
    #[error("run {model}, some of whose layers keep a state: {problem}")]
    States {
        /// The model.
        model: String,
        /// Why not.
        problem: String,
        /// What to do instead.
        instead: String,
    },
    /// A stage that nothing of a run has.
    #[error("make the stage {stage}: no model of this run has it on a route that is taken")]
    Nothing {
        /// The stage.
        stage: StageName,
    },
    /// An engine with less room than its rounds were planned for.
    #[error(
        "hold a round of the control: it takes {needed} tokens of vLLM's KV cache, which says that it holds {room}, in blocks of \
         {block_size}, where {planned} were planned for"
    )]
    LessRoom {
        /// Tokens of the largest round.
        needed: u64,
        /// Tokens that the engine has room for.
        room: u64,
        /// Tokens of a block.
        block_size: u32,
        /// Tokens that the plan took it to have room for.
        planned: u64,
    },
    /// A route that cannot run on this machine.
    #[error("run this route")]
    Route(#[from] RouteError),
    /// The arms do not fit together.
    #[error(transparent)]
    Evidence(#[from] EvidenceError),
    /// Planting faults.
    #[error(transparent)]
    Fault(#[from] FaultError),
    /// An output cannot be written.
    #[error("write {path}")]
    Write {
        /// The file.
        path: Utf8PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An artifact cannot be read.
    #[error("read {path}")]
    Read {
        /// The file.
        path: Utf8PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A line of an artifact is not what this version writes.
    #[error("read {path}, line {number}: {problem}")]
    Line {
        /// The file.
        path: Utf8PathBuf,
        /// From 1.
        number: usize,
        /// In serde's words.
        problem: String,
    },
}

impl From<CarrierError> for StageError {
    fn from(error: CarrierError) -> Self {
        match error {
            CarrierError::Route(error) => Self::Route(error),
            CarrierError::Engine(error) => Self::Engine(error),
            CarrierError::Write { path, source } => Self::Write { path, source },
        }
    }
}

impl StageError {
    /// The message with all its causes.
    #[must_use]
    pub fn in_full(&self) -> String {
        in_full(self)
    }

    /// What to do next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Asset(error) => error.hint(),
            Self::Extract { source, .. } => source.hint(),
            Self::Prompt(error) => error.hint(),
            Self::Tokenizer { source, .. } => source.hint(),
            Self::Template(_) => Some("the built-in template is `single-letter/1`".to_owned()),
            Self::NoSuchQuestion(_) => {
                Some("name the archive that the report was made with: `--data FILE`".to_owned())
            }
            Self::NoPrompts(NoPrompts { .. }) => Some(
                "ask more subjects (`--subjects all`), or lower `pressure.max_model_len` in the suite".to_owned(),
            ),
            Self::EmptyShard { subjects, .. } => Some(format!("make at most {subjects} shards of it")),
            Self::Questions(error) => error.hint(),
            Self::Store(error) => error.hint(),
            Self::Environment(error) => error.hint(),
            Self::Engine(error) => error.hint(),
            Self::TooLarge { source, .. } => Some(source.hint()),
            Self::OtherBlocks { .. } => Some(
                "set `engine.arguments.block_size` in the suite to a size that vLLM takes with and without the connector".to_owned(),
            ),
            Self::NotCounted { .. } => Some(
                "test this connector with a vLLM that has it, as the pinned one has: leave `KV_CORRECTNESS_ENV` and other versions out".to_owned(),
            ),
            Self::TooLong { room, .. } => Some(format!(
                "set `engine.max_model_len` to {room} or less, or raise `engine.kv_cache_gib`; where the suite names \
                 `num_gpu_blocks_override`, raise that, and name `block_size` beside it unless that is 16"
            )),
            Self::NoRoomForTurns { needed, .. } => Some(format!(
                "set `engine.max_model_len` to {needed} or more, if the model has as many positions, or leave out `--turns`"
            )),
            Self::Nothing { stage } => {
                Some(format!("`run --{stage}` with the same options says why, of each model and route"))
            }
            Self::Windows { instead, .. } | Self::States { instead, .. } => Some(instead.clone()),
            Self::LessRoom { block_size, .. } => Some(format!(
                "raise `engine.kv_cache_gib` and leave `lmcache.memory_gib` as it is, which bounds a round, too; where the suite \
                 names `num_gpu_blocks_override`, raise that, with `block_size = {block_size}` beside it"
            )),
            Self::Route(error) => Some(error.hint()),
            Self::Evidence(error) => error.hint(),
            Self::Fault(error) => error.hint(),
            Self::Write { .. } => Some(
                "make room there, or name a folder on another disk with --cache DIR; what is finished is kept".to_owned(),
            ),
            Self::Read { .. } | Self::Line { .. } => {
                Some("run the stage again: `--force` with the stage's name".to_owned())
            }
        }
    }
}

/// An error's message with all its causes.
#[must_use]
pub fn in_full(error: &dyn std::error::Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        message = format!("{message}: {error}");
        cause = error.source();
    }
    message
}
