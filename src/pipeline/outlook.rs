//! What a run can show and what it takes, told before it begins. Main functions: [`tell_work`], [`promise`].

use std::collections::BTreeMap;

use super::{Bench, Inputs, RunGraph, graph};
use crate::comparison::plan_questions;
use crate::dataset::{Selection, Subject};
use crate::engine::environment::{Environment, EnvironmentIdentity};
use crate::event::{Event, JobName};
use crate::job::{Ended, Graph, JobId};
use crate::stage::{StageError, count_prompts, read_dataset, read_prompts};
use crate::stage_name::StageName;

/// Tells what a run will have to do, before the environment is there by which that could be known better: all that is asked for.
pub fn foretell(bench: &Bench, inputs: &Inputs) {
    let identity = EnvironmentIdentity {
        python: String::new(),
        platform: String::new(),
        packages: BTreeMap::new(),
        store_path: None,
    };
    let not_made = Environment::new("".into(), identity);
    // What cannot be told yet is told later, or is an error by then.
    if let Ok(run) = graph(&bench.request, &bench.desk.sources, Some(&not_made)) {
        let wanted: Vec<JobId> = run.graph.jobs().map(|(id, _)| id).collect();
        tell_work(bench, &run.graph, &wanted, &inputs.ended()).ok();
    }
}

/// Tells what the jobs among these that are not in the store will take.
pub(super) fn tell_work(
    bench: &Bench,
    graph: &Graph,
    wanted: &[JobId],
    ended: &Ended,
) -> Result<(), StageError> {
    let mut jobs = Vec::new();
    for id in bench.executor().missing(graph, wanted) {
        let job = graph.job(id);
        if !job.work.has_engines() {
            continue;
        }
        let prompts = ended.artifact(graph.input_of(id, StageName::Prompts));
        let prompts = prompts.map_or(Ok(0), count_prompts)?;
        let name = JobName::new(job.work.stage(), &job.label.to_string());
        jobs.extend(job.work.effort(prompts).map(|effort| (name, effort)));
    }
    bench.desk.events.emit(Event::WorkPlanned { jobs });
    Ok(())
}

/// Tells of each model what its questions can show, and how many are left out.
pub(super) fn promise(bench: &Bench, run: &RunGraph, ended: &Ended) -> Result<(), StageError> {
    let suite = &bench.request.suite;
    for (model, jobs) in bench.desk.sources.models().iter().zip(&run.models) {
        let Some(prompts) = ended.artifact(jobs.prompts) else { continue };
        let mut subjects = BTreeMap::<Subject, u32>::new();
        for prompt in read_prompts(prompts)? {
            *subjects.entry(prompt?.question.subject).or_default() += 1;
        }
        let sizes: Vec<u32> = subjects.into_values().collect();
        let mut words = plan_questions(&sizes, suite.comparisons(), &suite.criteria).words;
        let questions = run.graph.input_of(jobs.prompts, StageName::Extract);
        if let (Some(most), Some(questions)) = (suite.questions, ended.artifact(questions)) {
            let all = Selection { questions: None, ..suite.selection() };
            let all: usize = read_dataset(questions)?.select(all).map(|(_, _, asked)| asked.len()).sum();
            let left_out = format!(
                "At most {most} questions of each subject are asked, of {all} in all; `--subjects all` asks them all."
            );
            words = format!("{words} {left_out}");
        }
        bench.desk.events.emit(Event::Planned { label: model.name().to_owned(), words });
    }
    Ok(())
}
