//! What every stage works with. Main type: [`Bench`].

use std::cell::RefCell;
use std::time::Instant;

use camino::Utf8PathBuf;
use serde::Serialize;

use super::{EarlyStopping, StageError};
use crate::dataset::QuestionId;
use crate::engine::environment::Environment;
use crate::engine::{Device, ForkServers, RedisAddress};
use crate::event::{Event, Events};
use crate::stage_name::StageName;
use crate::store::{Artifact, Claim, Draft, Reuse, StageKey, Store, StoreError};
use crate::suite::Suite;
use crate::thread::on_thread;

/// The surroundings of a run: where things are kept, what computes, which stage is forced.
#[derive(Debug)]
pub struct Bench {
    /// Finished stages.
    pub store: Store,
    /// Who is told what happens.
    pub events: Events,
    /// Folder of everything that is kept between runs.
    pub cache: Utf8PathBuf,
    /// The driver's own executable.
    pub executable: Utf8PathBuf,
    /// The suite that is run.
    pub suite: Suite,
    /// What computes.
    pub device: Device,
    /// The Python environment of vLLM and LMCache.
    pub environment: Environment,
    /// A Redis server to use on `mp+redis` instead of one of our own. It is in no key: only bytes pass through it.
    pub redis: Option<RedisAddress>,
    /// The questions to ask, if not all of the suite's.
    pub excerpt: Option<Excerpt>,
    /// Whether load passes may end before their last question.
    pub early_stopping: EarlyStopping,
    /// Whether faults are planted once the comparison is done.
    pub planting: Planting,
    /// Whether LMCache is asked for KV of another identity.
    pub foreign: ForeignReading,
    /// Whether the chunk that is served wrong is looked for after a mismatch.
    pub locating: Locating,
    /// Engines that may run beside each other. It is in no key: what one computes does not depend on others.
    pub engines_at_a_time: usize,
    /// Where engines are forked from.
    pub fork_servers: ForkServers,
    /// What to do about stages that are not there.
    pub mode: Mode,
}

/// Some questions of a suite, each once.
pub type Excerpt = Vec<ExcerptQuestion>;

/// A question of an excerpt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExcerptQuestion {
    /// Which.
    pub question: QuestionId,
    /// How many of its prompt's first tokens are asked, if not all.
    pub tokens: Option<u32>,
}

/// Whether faults are planted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Planting {
    /// All that apply, on every model.
    Asked,
    /// None.
    NotAsked,
}

/// Whether LMCache is asked for KV that was stored under another identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForeignReading {
    /// By every kind of reader, of every model.
    Asked,
    /// By none.
    NotAsked,
}

/// Whether the chunk that is served wrong is looked for, which takes two more engine starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Locating {
    /// After a mismatch.
    Asked,
    /// Never: the verdict is enough.
    NotAsked,
}

/// What a bench does about stages.
#[derive(Debug)]
pub enum Mode {
    /// Runs those that are not there, and the named one in any case.
    Run {
        /// The stage that runs even if its artifact is there.
        force: Option<StageName>,
    },
    /// Runs none, and notes what each is of and the key that it was looked for by.
    Ask(RefCell<Vec<(String, StageKey)>>),
}

impl Bench {
    /// Models that are gone through beside each other: each takes two engines at least.
    #[must_use]
    pub fn models_at_a_time(&self) -> usize {
        (self.engines_at_a_time / 2).clamp(1, self.suite.models.len().max(1))
    }

    /// Engines that one model may have at a time, and that its arm with LMCache shares its rounds among.
    #[must_use]
    pub fn engines_of_a_model(&self) -> usize {
        (self.engines_at_a_time / self.models_at_a_time()).max(1)
    }

    /// Of a model's engines, those of the baseline, while others are the control's.
    pub(super) fn engines_of_baseline(&self) -> usize {
        (self.engines_of_a_model() / 2).max(1)
    }

    /// Of a model's engines, those of the control, which has two passes.
    pub(super) fn engines_of_control(&self) -> usize {
        self.engines_of_a_model().div_ceil(2)
    }

    /// The artifact of `key`: found, or filled by `fill` and sealed.
    pub(super) async fn make(
        &self,
        key: &StageKey,
        label: &str,
        fill: impl AsyncFnOnce(&Draft) -> Result<(), StageError>,
    ) -> Result<Artifact, StageError> {
        let stage = key.stage();
        let label = label.to_owned();
        let reuse = match &self.mode {
            Mode::Run { force } if *force == Some(stage) => Reuse::Refused,
            Mode::Run { .. } => Reuse::Allowed,
            Mode::Ask(asked) => {
                asked.borrow_mut().push((label.clone(), key.clone()));
                return self.store.find(key)?.ok_or(StageError::NotRun { stage, label });
            }
        };
        match self.claim(key.clone(), label.clone(), reuse).await? {
            Claim::Done(artifact) => {
                self.events.emit(Event::StageReused { stage, label });
                Ok(artifact)
            }
            Claim::Todo(draft) => {
                let started = Instant::now();
                self.events.emit(Event::StageStarted { stage, label: label.clone() });
                fill(&draft).await?;
                let artifact = draft.seal()?;
                self.events.emit(Event::StageFinished { stage, label, elapsed: started.elapsed() });
                Ok(artifact)
            }
        }
    }

    /// Looks for the artifact on a thread of its own, since it may wait for another run, and that can be interrupted.
    async fn claim(&self, key: StageKey, label: String, reuse: Reuse) -> Result<Claim, StoreError> {
        let (store, patience) = (self.store.clone(), self.suite.patience.other_run());
        let claim = on_thread(move || store.claim(&key, &label, reuse, patience));
        claim.await.map_err(StoreError::NoThread)?
    }
}
