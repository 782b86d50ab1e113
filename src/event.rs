//! What happens during a run, told as it happens: library code emits [`Event`]s and never prints.
//!
//! Owns the vocabulary and the way to hand it on; leaves bars, plain lines and JSON to the one progress reporter.
//! Main types: [`Event`], [`Events`].

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use camino::Utf8PathBuf;

use crate::stage_name::StageName;

/// A job, for those who are told of it: its stage, and what it is of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct JobName {
    /// The stage.
    pub stage: StageName,
    /// A model and a route; empty for a stage that runs once.
    pub label: String,
}

impl JobName {
    /// Of a stage and its label.
    #[must_use]
    pub fn new(stage: StageName, label: &str) -> Self {
        Self { stage, label: label.to_owned() }
    }

    /// What tells its model from others: the label's first word.
    #[must_use]
    pub fn model(&self) -> &str {
        self.label.split(' ').next().unwrap_or_default()
    }
}

/// What a job takes time for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Effort {
    /// Engines that it starts.
    pub engines: usize,
    /// Ranks of all of them besides the first one of each.
    pub further_ranks: usize,
    /// LMCache servers that it starts.
    pub servers: usize,
    /// Questions that are computed in full.
    pub computed: usize,
    /// Questions that a cache serves.
    pub served: usize,
}

/// How a question is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Answering {
    /// Its prompt is computed.
    Computed,
    /// A cache serves most of it.
    Served,
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// An environment that was made before, or given by the user, serves.
    EnvironmentReused {
        /// Its folder.
        folder: Utf8PathBuf,
    },
    /// An environment is about to be made.
    EnvironmentStarted {
        /// Its folder.
        folder: Utf8PathBuf,
        /// How many packages it will hold.
        packages: usize,
        /// Where the installer's output goes.
        log: Utf8PathBuf,
    },
    /// A step of making an environment, in the installer's words: `Downloading torch (506.1MiB)`.
    EnvironmentStep {
        /// One line, without line feed.
        text: String,
    },
    /// The environment is complete.
    EnvironmentFinished {
        /// Its folder.
        folder: Utf8PathBuf,
        /// How long it took.
        elapsed: Duration,
    },
    /// LMCache or vLLM of another version was built or installed before.
    BuildReused {
        /// What: `LMCache at 1a2b3c4d5e6f`.
        what: String,
    },
    /// LMCache or vLLM of another version is about to be built or installed.
    BuildStarted {
        /// What.
        what: String,
        /// Where the output goes.
        log: Utf8PathBuf,
    },
    /// It is there.
    BuildFinished {
        /// What.
        what: String,
        /// How long it took.
        elapsed: Duration,
    },
    /// A pair of releases of an atlas begins.
    AtlasStep {
        /// Which, and what remains.
        words: String,
    },
    /// A step of a bisection begins or has ended.
    BisectStep {
        /// Which revision, and what of it.
        words: String,
    },
    /// What a suite needs of this machine, before anything is fetched or started.
    SuiteNeeds {
        /// A line for each: model, dataset, memory, disk.
        lines: Vec<String>,
    },
    /// Files are about to be fetched.
    FetchStarted {
        /// How many.
        files: usize,
        /// Their size in bytes, as far as it is known.
        bytes: u64,
    },
    /// Some bytes came.
    FetchProgress {
        /// Bytes that are there, of all files together.
        done: u64,
        /// As in [`FetchStarted`](Self::FetchStarted).
        total: u64,
    },
    /// All files are there and verified.
    FetchFinished {
        /// How many.
        files: usize,
        /// Their size in bytes, as far as it is known.
        bytes: u64,
        /// How long it took.
        elapsed: Duration,
    },
    /// A file in another program's cache has the right digest, and is linked to.
    FileReused {
        /// The link.
        file: Utf8PathBuf,
        /// The file.
        from: Utf8PathBuf,
    },
    /// A model is about to be brought into Hugging Face's layout.
    ConversionStarted {
        /// The model.
        model: String,
    },
    /// The model is converted, and as pinned.
    ConversionFinished {
        /// The model.
        model: String,
        /// How long it took.
        elapsed: Duration,
    },
    /// What a run still has to do, as far as it takes a while. It takes the place of what was planned before and has not begun.
    WorkPlanned {
        /// The jobs that are not in the store.
        jobs: Vec<(JobName, Effort)>,
    },
    /// A stage has nothing to do: its artifact was found.
    StageReused {
        /// The stage.
        stage: StageName,
        /// What it is of: a model, a route; empty for a stage that runs once.
        label: String,
    },
    /// A stage need not run: its artifact came from the depot.
    StageBrought {
        /// The stage.
        stage: StageName,
        /// What it is of.
        label: String,
    },
    /// A stage begins.
    StageStarted {
        /// The stage.
        stage: StageName,
        /// What it is of.
        label: String,
    },
    /// A stage's artifact is sealed.
    StageFinished {
        /// The stage.
        stage: StageName,
        /// What it is of.
        label: String,
        /// How long it took.
        elapsed: Duration,
    },
    /// A stage will have no artifact: it failed, or something that it is made from did.
    StageAbandoned {
        /// The stage.
        stage: StageName,
        /// What it is of.
        label: String,
    },
    /// What the planned questions can show, before the first is asked.
    Planned {
        /// The model.
        label: String,
        /// A sentence or two.
        words: String,
    },
    /// A vLLM process starts.
    EngineStarting {
        /// What it is for.
        label: String,
        /// Where its output goes.
        log: Utf8PathBuf,
    },
    /// A vLLM process takes requests.
    EngineReady {
        /// The job that it works for.
        job: JobName,
        /// What it is for.
        label: String,
        /// How long the start took.
        elapsed: Duration,
    },
    /// Requests were answered. The first event of a pass has `done` 0.
    QuestionsDone {
        /// The job that asks.
        job: JobName,
        /// How these are answered.
        answering: Answering,
        /// Which pass, in words: `store pass`.
        pass: String,
        /// Questions answered so far in this pass.
        done: usize,
        /// Questions of this pass.
        total: usize,
    },
    /// An LMCache server or another helper process starts.
    ServerStarting {
        /// What it is: `lmcache server`.
        server: String,
        /// Where its output goes.
        log: Utf8PathBuf,
    },
    /// The server answers.
    ServerHealthy {
        /// What it is.
        server: String,
        /// How long the start took.
        elapsed: Duration,
    },
    /// Another process holds what is needed; told once per holder.
    WaitingForLock {
        /// What is locked: `the environment in …`.
        what: String,
        /// Who holds it, in words, when that could be read.
        holder: Option<String>,
    },
    /// Something that the user should know and that does not end the run.
    Warning {
        /// A sentence.
        message: String,
    },
}

/// Where events go. Cheap to clone; may be used from any thread and from asynchronous code, so it must not block.
#[derive(Clone)]
pub struct Events(Arc<dyn Fn(Event) + Send + Sync>);

impl Events {
    /// Hands every event to `receive`.
    pub fn new(receive: impl Fn(Event) + Send + Sync + 'static) -> Self {
        Self(Arc::new(receive))
    }

    /// Drops every event.
    #[must_use]
    pub fn ignored() -> Self {
        Self::new(drop)
    }

    /// Tells that something happened.
    pub fn emit(&self, event: Event) {
        (self.0)(event);
    }

    /// Tells something that the user should know.
    pub fn warn(&self, message: impl Into<String>) {
        self.emit(Event::Warning { message: message.into() });
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Events")
    }
}
