//! Jobs and what they are made from. Main type: [`Graph`].

use std::collections::BTreeSet;

use super::Work;
use crate::stage::Label;
use crate::stage_name::StageName;

/// Which job of a graph. Jobs are numbered in the order in which they are added, inputs before what is made from them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(usize);

/// Something to find or to make.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// What it is of, for people.
    pub label: Label,
    /// What is done.
    pub work: Work,
    /// The jobs whose artifacts it is made from.
    pub inputs: Vec<JobId>,
    /// How many engines it may have at a time. It is in no key: what one computes does not depend on others.
    pub engines: usize,
}

/// Jobs, each behind those that it is made from.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Graph {
    jobs: Vec<Job>,
}

impl Graph {
    /// Adds a job, which is made from earlier ones.
    pub fn add(&mut self, job: Job) -> JobId {
        debug_assert!(job.inputs.iter().all(|input| input.0 < self.jobs.len()), "inputs come first");
        self.jobs.push(job);
        JobId(self.jobs.len() - 1)
    }

    /// A job.
    #[must_use]
    pub fn job(&self, id: JobId) -> &Job {
        &self.jobs[id.0]
    }

    /// The job of this stage that a job is made from.
    #[must_use]
    pub fn input_of(&self, id: JobId, stage: StageName) -> JobId {
        let mut inputs = self.job(id).inputs.iter();
        let input = inputs.find(|&&input| self.job(input).work.stage() == stage);
        *input.expect("whoever asks knows what a job is made from")
    }

    /// All jobs, in their order.
    pub fn jobs(&self) -> impl Iterator<Item = (JobId, &Job)> {
        self.jobs.iter().enumerate().map(|(number, job)| (JobId(number), job))
    }

    /// The jobs of one stage.
    #[must_use]
    pub fn of_stage(&self, stage: StageName) -> Vec<JobId> {
        self.jobs().filter(|(_, job)| job.work.stage() == stage).map(|(id, _)| id).collect()
    }

    /// These jobs and all that they are made from.
    #[must_use]
    pub fn needed_for(&self, wanted: &[JobId]) -> BTreeSet<JobId> {
        let mut needed: BTreeSet<JobId> = wanted.iter().copied().collect();
        for (id, job) in self.jobs.iter().enumerate().rev() {
            if needed.contains(&JobId(id)) {
                needed.extend(&job.inputs);
            }
        }
        needed
    }
}
