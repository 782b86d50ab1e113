//! After a mismatch: which chunk is the first that is served wrong. The first offender's prompt is cut behind each whole
//! chunk, and the pieces go through control and cached arm once more, as jobs like any other. Main function: [`locate`].
//!
//! Where the rung `kv` has seen the wrong cell, in the load pass or in the cut pass, it is named already, and nothing is asked
//! again. The cut pass cannot stand in for the pieces elsewhere: it asks one prefix of few prompts, and the offender is seldom
//! among them.

use super::outlook::tell_work;
use super::{Bench, Cell, Locating, ModelJobs, RunGraph};
use crate::comparison::{Comparison, Location, Outcome};
use crate::dataset::QuestionId;
use crate::job::{Ended, Graph, Job, JobId, Work};
use crate::stage::{Cut, Label, StageError, find_location};
use crate::stage_name::StageName;

/// Looks for the first wrong chunk of the first question whose bits differ from the control's; `None` where that is
/// not asked, the cache was not used as it must, bits show no mismatch, or a wrong cell of KV is named.
/// What keeps it from looking is a warning: the mismatch is proven already, and its verdict must not be lost.
pub(super) async fn locate(
    bench: &Bench,
    run: &RunGraph,
    ended: &Ended,
    jobs: &ModelJobs,
    cell: Cell,
    comparison: &Comparison,
) -> Option<Location> {
    if bench.request.locating == Locating::NotAsked
        || !comparison.exercised.service.is_as_it_must_be()
        || comparison.bit_exact.outcome != Outcome::Failed
        || !comparison.kv.first.is_empty()
    {
        return None;
    }
    let difference = comparison.bit_exact.against_control.first.first()?;
    match cut_and_ask(bench, run, ended, jobs, cell, &difference.question).await {
        Ok(location) => Some(location),
        Err(error) => {
            let error = error.in_full();
            bench.desk.events.warn(format!("the chunk that is wrong was not looked for: failed to {error}"));
            None
        }
    }
}

async fn cut_and_ask(
    bench: &Bench,
    run: &RunGraph,
    ended: &Ended,
    jobs: &ModelJobs,
    cell: Cell,
    question: &QuestionId,
) -> Result<Location, StageError> {
    let mut graph = run.graph.clone();
    let cut = Cut { cut: question.clone(), chunk_tokens: bench.request.suite.lmcache.chunk_tokens };
    // The cached arm and the control once more, with the pieces in place of the prompts.
    let cached = graph.input_of(cell.compare, StageName::Cached);
    let control = graph.input_of(cell.compare, StageName::Control);
    let again = |id: JobId, pieces: JobId, graph: &Graph| {
        let job = graph.job(id);
        let inputs = job.inputs.iter().map(|&input| if input == jobs.prompts { pieces } else { input });
        Job { label: by_chunk(&job.label), inputs: inputs.collect(), ..job.clone() }
    };
    let label = by_chunk(&graph.job(jobs.prompts).label);
    let pieces = Job { label, work: Work::Cut(cut.clone()), inputs: vec![jobs.prompts], engines: 0 };
    let pieces = graph.add(pieces);
    let control = again(control, pieces, &graph);
    let control = graph.add(control);
    let cached = again(cached, pieces, &graph);
    let cached = graph.add(cached);
    let mut found = ended.artifacts();
    tell_work(bench, &graph, &[control, cached], &found)?;
    bench.executor().run(&graph, &[control, cached], &mut found, |_, _| {}).await;
    match (found.artifact(control), found.artifact(cached)) {
        (Some(control), Some(cached)) => find_location(&cut, control, cached),
        _ => Err(found.into_error().expect("a job without an artifact has an error")),
    }
}

/// The label of a job that is asked about pieces of one prompt.
fn by_chunk(label: &Label) -> Label {
    let model = label.model.as_ref().map(|model| format!("{model} by chunk"));
    Label { model, ..label.clone() }
}
