//! What every stage works with. Main type: [`Bench`].

use std::time::Instant;

use camino::Utf8PathBuf;

use super::StageError;
use crate::engine::{Device, Environment};
use crate::event::{Event, Events};
use crate::stage_name::StageName;
use crate::store::{Artifact, Claim, Draft, Reuse, StageKey, Store};
use crate::suite::Suite;

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
    /// A stage that runs even if its artifact is there.
    pub force: Option<StageName>,
}

impl Bench {
    /// The artifact of `key`: found, or filled by `fill` and sealed.
    pub(super) async fn make(
        &self,
        key: &StageKey,
        label: &str,
        fill: impl AsyncFnOnce(&Draft) -> Result<(), StageError>,
    ) -> Result<Artifact, StageError> {
        let stage = key.stage();
        let reuse = if self.force == Some(stage) { Reuse::Refused } else { Reuse::Allowed };
        let label = label.to_owned();
        match self.store.claim(key, &label, reuse, self.suite.patience.other_run())? {
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
}
