//! From a graph to artifacts: each found, or made and sealed. Main types: [`Executor`], [`Ended`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::{Graph, Job, JobId};
use crate::depot::{Depot, Found};
use crate::digest::Digest;
use crate::event::Event;
use crate::stage::{Context, Desk, Inputs, StageError};
use crate::stage_name::StageName;
use crate::store::{Artifact, Claim, Draft, Reuse, StageKey, Store, StoreError};
use crate::thread::on_thread;

/// What finds or makes artifacts.
#[derive(Debug, Clone, Copy)]
pub struct Executor<'a> {
    /// Finished artifacts.
    pub store: &'a Store,
    /// Those that many machines share, if there are such.
    pub depot: Option<&'a Depot>,
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

/// Where an artifact is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whereabouts {
    /// In the store.
    Store,
    /// In the depot alone.
    Depot,
    /// Not made, as far as is known.
    Nowhere,
}

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

    /// The keys of these jobs, as far as what they are made from is in the store or the depot, and where each one's artifact is.
    /// Makes and brings nothing.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn look_up(&self, graph: &Graph) -> Result<Vec<(JobId, StageKey, Whereabouts)>, StoreError> {
        let (mut known, mut found) = (BTreeMap::<JobId, Digest>::new(), Vec::new());
        for (id, job) in graph.jobs() {
            let digest_of = |&input: &JobId| Some((graph.job(input).work.stage(), *known.get(&input)?));
            let Some(inputs) = job.inputs.iter().map(digest_of).collect::<Option<BTreeMap<_, _>>>() else {
                continue;
            };
            let key = job.work.key_of(inputs);
            let whereabouts = match (self.store.find(&key)?, self.depot) {
                (Some(artifact), _) => {
                    known.insert(id, artifact.output_digest());
                    Whereabouts::Store
                }
                (None, None) => Whereabouts::Nowhere,
                (None, Some(depot)) => {
                    let (depot, key) = (depot.clone(), key.clone());
                    let seal = on_thread(move || depot.look_up(key.stage(), key.digest()))
                        .await
                        .map_err(StoreError::NoThread)?;
                    seal.map_or(Whereabouts::Nowhere, |seal| {
                        known.insert(id, seal.output_digest());
                        Whereabouts::Depot
                    })
                }
            };
            found.push((id, key, whereabouts));
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
        let artifact = match self.claim(key.clone(), label.clone(), reuse).await? {
            Claim::Done(artifact) => {
                self.desk.events.emit(Event::StageReused { stage, label: label.clone() });
                artifact
            }
            Claim::Todo(draft) => {
                let (draft, found) = self.bring(key.clone(), draft, reuse).await?;
                if found == Found::Brought {
                    let artifact = draft.seal()?;
                    self.desk.events.emit(Event::StageBrought { stage, label });
                    return Ok(artifact);
                }
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
                let elapsed = started.elapsed();
                self.desk.events.emit(Event::StageFinished { stage, label: label.clone(), elapsed });
                artifact
            }
        };
        self.offer(key, label, artifact.clone()).await?;
        Ok(artifact)
    }

    /// Looks for the artifact in the depot and brings it into the draft.
    async fn bring(&self, key: StageKey, draft: Draft, reuse: Reuse) -> Result<(Draft, Found), StoreError> {
        let Some(depot) = self.depot.cloned().filter(|_| reuse == Reuse::Allowed) else {
            return Ok((draft, Found::Nothing));
        };
        let bring = move || {
            let found = depot.bring(&key, &draft);
            (draft, found)
        };
        on_thread(bring).await.map_err(StoreError::NoThread)
    }

    /// Whatever a run made or found here is in the depot afterwards, so that what once did not get there comes to it.
    async fn offer(&self, key: StageKey, label: String, artifact: Artifact) -> Result<(), StoreError> {
        let Some(depot) = self.depot.cloned() else { return Ok(()) };
        on_thread(move || depot.offer(&key, &label, &artifact)).await.map_err(StoreError::NoThread)
    }

    /// Looks for the artifact on a thread of its own, since it may wait for another run, and that can be interrupted.
    async fn claim(&self, key: StageKey, label: String, reuse: Reuse) -> Result<Claim, StoreError> {
        let (store, patience) = (self.store.clone(), self.desk.patience.other_run());
        let claim = on_thread(move || store.claim(&key, &label, reuse, patience));
        claim.await.map_err(StoreError::NoThread)?
    }
}
