//! From a graph to artifacts: each found, or made and sealed. Main types: [`Executor`], [`Ended`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::{Graph, Job, JobId};
use crate::event::Event;
use crate::stage::{Context, Desk, Inputs, StageError};
use crate::stage_name::StageName;
use crate::store::{Artifact, Claim, Reuse, StageKey, Store, StoreError};
use crate::thread::on_thread;

/// What finds or makes artifacts.
#[derive(Debug, Clone, Copy)]
pub struct Executor<'a> {
    /// Finished artifacts.
    pub store: &'a Store,
    /// What jobs work with.
    pub desk: &'a Desk,
    /// The stage that runs even if its artifact is there.
    pub force: Option<StageName>,
    /// Engines that may run beside each other.
    pub engines: usize,
}

/// Jobs that have ended, each with its artifact or with what kept it from one.
#[derive(Debug, Default)]
pub struct Ended(BTreeMap<JobId, Result<Artifact, Failure>>);

/// Why a job has no artifact.
#[derive(Debug)]
pub enum Failure {
    /// It failed.
    Itself(StageError),
    /// This job, which it is made from, has none.
    Input(JobId),
}

impl Ended {
    /// The artifact of a job that has one.
    #[must_use]
    pub fn artifact(&self, id: JobId) -> Option<&Artifact> {
        self.0.get(&id)?.as_ref().ok()
    }

    /// The artifacts that a job is made from; none where one is missing.
    #[must_use]
    pub fn inputs(&self, graph: &Graph, id: JobId) -> Option<Inputs> {
        let mut inputs = Inputs::default();
        for &input in &graph.job(id).inputs {
            inputs.add(graph.job(input).work.stage(), self.artifact(input)?.clone());
        }
        Some(inputs)
    }

    /// The first error, which leaves the others behind; none where every job has its artifact.
    #[must_use]
    pub fn into_error(self) -> Option<StageError> {
        self.0.into_values().find_map(|ended| match ended {
            Err(Failure::Itself(error)) => Some(error),
            Ok(_) | Err(Failure::Input(_)) => None,
        })
    }

    /// The job that failed where this one has no artifact: itself, or one that it is made from.
    #[must_use]
    pub fn failed(&self, id: JobId) -> Option<JobId> {
        match self.0.get(&id)? {
            Ok(_) => None,
            Err(Failure::Itself(_)) => Some(id),
            Err(Failure::Input(input)) => self.failed(*input),
        }
    }

    /// The error of a job that failed itself.
    #[must_use]
    pub fn error(&self, id: JobId) -> Option<&StageError> {
        match self.0.get(&id)? {
            Err(Failure::Itself(error)) => Some(error),
            Ok(_) | Err(Failure::Input(_)) => None,
        }
    }

    /// The jobs that have an artifact.
    #[must_use]
    pub fn artifacts(&self) -> Self {
        self.0.iter().filter_map(|(id, ended)| Some((*id, ended.as_ref().ok()?.clone()))).collect()
    }

    fn note(&mut self, id: JobId, outcome: Result<Artifact, Failure>) {
        self.0.insert(id, outcome);
    }
}

impl FromIterator<(JobId, Artifact)> for Ended {
    fn from_iter<T: IntoIterator<Item = (JobId, Artifact)>>(artifacts: T) -> Self {
        Self(artifacts.into_iter().map(|(id, artifact)| (id, Ok(artifact))).collect())
    }
}

impl Executor<'_> {
    /// Finds or makes the artifacts of these jobs and of all that they are made from, less those that have ended already. Jobs
    /// begin in their order as soon as their inputs and engines are there; one that fails ends what is made from it, and
    /// nothing else. `failed` is told at once.
    pub async fn run(
        &self,
        graph: &Graph,
        wanted: &[JobId],
        ended: &mut Ended,
        failed: impl Fn(&Job, &StageError),
    ) {
        let mut waiting: BTreeSet<JobId> =
            graph.needed_for(wanted).into_iter().filter(|id| !ended.0.contains_key(id)).collect();
        let (mut running, mut free) = (FuturesUnordered::new(), self.engines.max(1));
        loop {
            for id in waiting.clone() {
                let job = graph.job(id);
                let lost = job.inputs.iter().find(|input| matches!(ended.0.get(input), Some(Err(_))));
                if let Some(&lost) = lost {
                    waiting.remove(&id);
                    self.abandon(job);
                    ended.note(id, Err(Failure::Input(lost)));
                    continue;
                }
                let Some(inputs) = ended.inputs(graph, id) else { continue };
                let engines =
                    if job.work.has_engines() { job.engines.clamp(1, self.engines.max(1)) } else { 0 };
                if engines > free {
                    break; // no later job takes an engine that this one waits for
                }
                waiting.remove(&id);
                free -= engines;
                running.push(async move { (id, engines, self.provide(job, inputs).await) });
            }
            let Some((id, engines, outcome)) = running.next().await else { break };
            free += engines;
            if let Err(error) = &outcome {
                self.abandon(graph.job(id));
                failed(graph.job(id), error);
            }
            ended.note(id, outcome.map_err(Failure::Itself));
        }
    }

    fn abandon(&self, job: &Job) {
        let (stage, label) = (job.work.stage(), job.label.to_string());
        self.desk.events.emit(Event::StageAbandoned { stage, label });
    }

    /// The keys of these jobs, as far as what they are made from is in the store, and the artifacts that are there. Makes nothing.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn look_up(&self, graph: &Graph) -> Result<Vec<(JobId, StageKey, Option<Artifact>)>, StoreError> {
        let (mut known, mut found) = (Ended::default(), Vec::new());
        for (id, job) in graph.jobs() {
            let Some(inputs) = known.inputs(graph, id) else { continue };
            let key = job.work.key(&inputs);
            let artifact = self.store.find(&key)?;
            if let Some(artifact) = &artifact {
                known.note(id, Ok(artifact.clone()));
            }
            found.push((id, key, artifact));
        }
        Ok(found)
    }

    /// Of these jobs and all that they are made from, those that will have to be made, as far as that can be seen.
    #[must_use]
    pub fn missing(&self, graph: &Graph, wanted: &[JobId]) -> Vec<JobId> {
        let (mut known, needed) = (Ended::default(), graph.needed_for(wanted));
        for (id, job) in graph.jobs().filter(|(id, _)| needed.contains(id)) {
            let forced = self.force == Some(job.work.stage());
            let key = known.inputs(graph, id).map(|inputs| job.work.key(&inputs)).filter(|_| !forced);
            if let Some(artifact) = key.and_then(|key| self.store.peek(&key)) {
                known.note(id, Ok(artifact));
            }
        }
        needed.into_iter().filter(|id| known.artifact(*id).is_none()).collect()
    }

    /// The artifact of a job: found, or filled and sealed.
    async fn provide(&self, job: &Job, inputs: Inputs) -> Result<Artifact, StageError> {
        let (key, label) = (job.work.key(&inputs), job.label.to_string());
        let stage = key.stage();
        let reuse = if self.force == Some(stage) { Reuse::Refused } else { Reuse::Allowed };
        match self.claim(key, label.clone(), reuse).await? {
            Claim::Done(artifact) => {
                self.desk.events.emit(Event::StageReused { stage, label });
                Ok(artifact)
            }
            Claim::Todo(draft) => {
                let started = Instant::now();
                self.desk.events.emit(Event::StageStarted { stage, label: label.clone() });
                let context = Context {
                    stage,
                    label: &job.label,
                    inputs: &inputs,
                    draft: &draft,
                    engines: job.engines.max(1),
                    desk: self.desk,
                };
                job.work.fill(&context).await?;
                let artifact = draft.seal()?;
                self.desk.events.emit(Event::StageFinished { stage, label, elapsed: started.elapsed() });
                Ok(artifact)
            }
        }
    }

    /// Looks for the artifact on a thread of its own, since it may wait for another run, and that can be interrupted.
    async fn claim(&self, key: StageKey, label: String, reuse: Reuse) -> Result<Claim, StoreError> {
        let (store, patience) = (self.store.clone(), self.desk.patience.other_run());
        let claim = on_thread(move || store.claim(&key, &label, reuse, patience));
        claim.await.map_err(StoreError::NoThread)?
    }
}
