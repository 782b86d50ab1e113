//! A run as a view of its graph: what is made before the environment, what can run here, what everything comes to. Main
//! functions: [`prepare_inputs`], [`run`].

use super::findings::{Findings, gather};
use super::outlook::{promise, tell_work};
use super::refused::{Refused, admit_cell, admit_route, refused_cells};
use super::{Bench, Cell, Inputs, Planting, RunGraph, Turning, graph};
use crate::assets::Model;
use crate::carrier::{RouteError, foreign_route, planting_routes};
use crate::foreign::{Keeper, ReaderGroup};
use crate::job::{Ended, JobId, Whereabouts};
use crate::model::Route;
use crate::stage::{
    StageError, admit_hybrid_manager, admit_length, admit_prompts, capacity, kv_dtype, refuses_faults,
    require_letters,
};
use crate::stage_name::StageName;
use crate::store::{Artifact, StageKey};

/// Makes questions and prompts, and refuses what cannot be asked: all that needs no environment, so that what is wrong with
/// data or models is said before one is made.
///
/// # Errors
/// When they cannot be made, or a prompt does not fit where its KV must go.
pub async fn prepare_inputs(bench: &Bench) -> Result<Inputs, StageError> {
    let (suite, sources) = (&bench.request.suite, &bench.desk.sources);
    for model in sources.models() {
        model.files().kv_shape()?;
        model.files().check_weights(suite, model.settings())?;
        require_letters(model.files(), model.name())?;
        admit_length(suite, model.name(), capacity(suite, model.settings(), model.files())?)?;
        admit_hybrid_manager(model)?;
    }
    let run = graph(&bench.request, sources, None)?;
    let wanted: Vec<JobId> = run.graph.jobs().map(|(id, _)| id).collect();
    let mut ended = Ended::default();
    bench.executor().run(&run.graph, &wanted, &mut ended, |_, _| {}).await;
    for (model, jobs) in sources.models().iter().zip(&run.models) {
        if let Some(prompts) = ended.artifact(jobs.prompts) {
            admit_prompts(model.name(), prompts, capacity(suite, model.settings(), model.files())?)?;
        }
    }
    let made = wanted.iter().filter_map(|&id| Some((id, ended.artifact(id)?.clone()))).collect();
    ended.into_error().map_or(Ok(Inputs(made)), Err)
}

/// Runs the bench's suite; what is in the store already is not run again.
///
/// # Errors
/// When no route can run here, or an artifact cannot be read. What keeps one model or route from its comparison leaves the others
/// theirs, and is told among the findings, also where none is left.
pub async fn run(bench: &Bench, inputs: &Inputs) -> Result<Findings, StageError> {
    let run = graph(&bench.request, &bench.desk.sources, bench.desk.environment.as_ref())?;
    let admitted = admit(bench, &run)?;
    let mut ended = inputs.ended();
    let alone = admitted.wanted.len() == 1;
    let told = |job: &crate::job::Job, error: &StageError| {
        if !alone {
            let (stage, label) = (job.work.stage(), &job.label);
            bench
                .desk
                .events
                .warn(format!("{stage} of {label}: failed to {}; the rest goes on", error.in_full()));
        }
    };
    promise(bench, &run, &ended)?;
    tell_work(bench, &run.graph, &admitted.wanted, &ended)?;
    bench.executor().run(&run.graph, &admitted.wanted, &mut ended, told).await;
    gather(bench, &run, ended, admitted.refused).await
}

/// Which jobs can run here, and why the others cannot.
struct Admitted {
    wanted: Vec<JobId>,
    refused: Vec<Refused>,
}

/// Refuses what cannot run on this machine: routes one by one, and all if no route is left.
fn admit(bench: &Bench, run: &RunGraph) -> Result<Admitted, StageError> {
    let request = &bench.request;
    let environment = bench.desk.environment.as_ref();
    let has_ray = environment.is_some_and(|environment| environment.identity().version("ray").is_some());
    for model in bench.desk.sources.models() {
        model.check_parallelism(&request.device, has_ray)?;
    }
    let models = request.suite.models.iter();
    if models.flat_map(|model| request.foreign_keepers(&model.name)).any(|keeper| keeper == Keeper::Server) {
        admit_route(bench, foreign_route(Keeper::Server))?;
    }
    if request.planting == Planting::Asked {
        if request.suite.lmcache.options.serde.is_some() {
            return Err(RouteError::FaultsBehindSerde.into());
        }
        if request.suite.models.iter().any(|model| kv_dtype(&request.suite, model).is_some()) {
            return Err(RouteError::FaultsInEightBits.into());
        }
        for route in planting_routes(&[]) {
            admit_route(bench, route)?;
        }
    }
    let refused = refused_cells(bench)?;
    let of_model = |(model, jobs): (&Model, &super::ModelJobs)| {
        let cells = jobs.cells.iter().map(|cell: &Cell| (cell.route, cell.compare));
        let others =
            jobs.planted.iter().chain(&jobs.foreign).chain(&jobs.talks).chain(&jobs.pressed).copied();
        let admitted =
            |(route, _): &(Route, JobId)| !refused.iter().any(|one| one.is_of(model.name(), *route));
        cells.chain(others).filter(admitted).map(|(_, job)| job).collect::<Vec<JobId>>()
    };
    let wanted = bench.desk.sources.models().iter().zip(&run.models).flat_map(of_model).collect();
    for one in &refused {
        let of = one.model.as_ref().map_or_else(String::new, |model| format!("{model} over "));
        bench.desk.events.warn(format!("{of}{} is not run: failed to {}", one.route, one.reason()));
    }
    if request.planting == Planting::Asked {
        for model in bench.desk.sources.models() {
            let is_asked = !request.planting_routes(model.name()).is_empty();
            if let Some(reason) = refuses_faults(model).filter(|_| is_asked) {
                bench.desk.events.warn(format!("no faults are planted in {}: {reason}", model.name()));
            }
        }
    }
    Ok(Admitted { wanted, refused })
}

/// Refuses a run of which no route is left, by what is known of this machine so far: before its environment is made, without it.
///
/// # Errors
/// When no route can run here: why the last one cannot.
pub fn require_a_route(bench: &Bench) -> Result<(), StageError> {
    refused_cells(bench).map(drop)
}

/// Makes what one stage needs and the stage itself; its artifacts, with what each is of.
///
/// # Errors
/// When one is not made.
pub async fn run_stage(
    bench: &Bench,
    inputs: &Inputs,
    stage: StageName,
) -> Result<Vec<(String, Artifact)>, StageError> {
    let mut request = bench.request.clone();
    match stage {
        StageName::Faults => request.planting = Planting::Asked,
        StageName::Foreign if request.foreign.is_empty() => request.foreign = ReaderGroup::ALL.into(),
        StageName::Turns => request.turns = Turning::Asked,
        StageName::Pressure => {
            request.suite.pressure.get_or_insert_default();
        }
        _ => {}
    }
    let run = graph(&request, &bench.desk.sources, bench.desk.environment.as_ref())?;
    let wanted = run.graph.of_stage(stage);
    if wanted.is_empty() {
        return Err(StageError::Nothing { stage });
    }
    for job in wanted.iter().map(|&id| run.graph.job(id)) {
        let Some(route) = job.label.route else { continue };
        admit_route(bench, route)?;
        let of_job = |model: &&Model| job.label.model.as_deref() == Some(model.name());
        if let Some(model) = bench.desk.sources.models().iter().find(of_job) {
            admit_cell(&request, model, route)?;
        }
    }
    let mut ended = inputs.ended();
    tell_work(bench, &run.graph, &wanted, &ended)?;
    bench.executor().run(&run.graph, &wanted, &mut ended, |_, _| {}).await;
    let label = |id| run.graph.job(id).label.to_string();
    let made = wanted.iter().filter_map(|&id| Some((label(id), ended.artifact(id)?.clone()))).collect();
    ended.into_error().map_or(Ok(made), Err)
}

/// Something that a run would look for.
#[derive(Debug)]
pub struct Wanted {
    /// What it is of: a model, a route.
    pub label: String,
    /// Its key.
    pub key: StageKey,
    /// Where its artifact is.
    pub whereabouts: Whereabouts,
}

/// What a run would look for, in the order of looking. Runs nothing: what comes after something that is not there has no key
/// yet, and without an environment that is all but questions and prompts.
///
/// # Errors
/// When an input or an artifact cannot be read.
pub async fn look_up(bench: &Bench) -> Result<Vec<Wanted>, StageError> {
    let run = graph(&bench.request, &bench.desk.sources, bench.desk.environment.as_ref())?;
    let mut wanted: Vec<Wanted> = Vec::new();
    for (id, key, whereabouts) in bench.executor().look_up(&run.graph).await? {
        if !wanted.iter().any(|known| known.key.digest() == key.digest()) {
            let label = run.graph.job(id).label.to_string();
            wanted.push(Wanted { label, key, whereabouts });
        }
    }
    Ok(wanted)
}
