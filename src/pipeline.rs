//! The whole flow: extract → prompts → baseline → control → cached → compare → conclude; planted faults, foreign KV and
//! pressure if asked for.
//!
//! [`graph`] is the run as data: every job with what it is made from. `run`, `stage`, `explain` and reports are views of it.
//! Data moves forward; no job sees more than its parameters and inputs. Main functions: [`graph`], [`run`].

mod arms_of;
mod bench;
mod cells;
mod findings;
mod locate;
mod merge;
mod outlook;
mod refused;
#[cfg(test)]
mod tests;

use self::arms_of::ArmsOf;
use std::collections::BTreeMap;

use crate::carrier::{find_carrier, foreign_route};
use crate::engine::environment::Environment;
use crate::foreign::Keeper;
use crate::job::{Graph, Job, JobId, Work};
use crate::model::{HitRule, HitUnit, Route};
use crate::stage::{Extract, Label, Sources, StageError, refuses_faults};

pub use self::bench::{Bench, EarlyStopping, Inputs, Locating, Planting, Request, Turning};
pub use self::cells::{Wanted, look_up, prepare_inputs, require_a_route, run, run_stage};
pub use self::findings::{Compared, Findings, ForeignFound, Planted, Pressed, Talked};
pub use self::merge::{MergeError, Part, merge};
pub use self::outlook::foretell;

/// A run's jobs, and where each is.
#[derive(Debug, Clone, Default)]
pub struct RunGraph {
    /// All of them.
    pub graph: Graph,
    /// Those of each model, in the suite's order.
    pub models: Vec<ModelJobs>,
}

/// One model's jobs.
#[derive(Debug, Clone)]
pub struct ModelJobs {
    /// Its prompts.
    pub prompts: JobId,
    /// Those that need an environment, in the suite's order of routes; none where there is none yet.
    pub cells: Vec<Cell>,
    /// Planted faults, by route, if they are asked for.
    pub planted: Vec<(Route, JobId)>,
    /// Foreign KV, by the route on which it is read, if that is asked for.
    pub foreign: Vec<(Route, JobId)>,
    /// Conversations, by route, if they are asked for.
    pub talks: Vec<(Route, JobId)>,
    /// Pressure, by route, if that is asked for.
    pub pressed: Vec<(Route, JobId)>,
}

/// One model on one route.
#[derive(Debug, Clone, Copy)]
pub struct Cell {
    /// The route.
    pub route: Route,
    /// What it comes to.
    pub compare: JobId,
}

/// The jobs of a run, made of what was asked for, of what its names stand for here, and of the environment. Without an
/// environment it ends with the prompts, which need none.
///
/// # Errors
/// When a route is unknown or a model's configuration cannot be read.
pub fn graph(
    request: &Request,
    sources: &Sources,
    environment: Option<&Environment>,
) -> Result<RunGraph, StageError> {
    let mut run = RunGraph::default();
    let extract = Extract { archive: sources.archive().1 };
    let questions = run.graph.add(job(Label::default(), Work::Extract(extract), [], 0));
    for (model, tokenizer) in sources.models_with_tokenizers() {
        let work = arms_of::prompts(request, tokenizer);
        let prompts = run.graph.add(job(Label::of_model(model.name()), work, [questions], 0));
        let (cells, planted, foreign) = (Vec::new(), Vec::new(), Vec::new());
        run.models.push(ModelJobs {
            prompts,
            cells,
            planted,
            foreign,
            talks: Vec::new(),
            pressed: Vec::new(),
        });
    }
    let Some(environment) = environment else { return Ok(run) };
    for ((model, tokenizer), jobs) in sources.models_with_tokenizers().zip(&mut run.models) {
        let (graph, name, prompts) = (&mut run.graph, model.name(), jobs.prompts);
        let arms = ArmsOf::new(request, model, environment)?;
        let (work, engines) = (arms.baseline(), request.engines_of_baseline());
        let baseline = graph.add(job(Label::of_model(name), work, [prompts], engines));
        // One control for each way of serving that routes have: it must leave the tokens to compute that a hit leaves.
        let mut controls = BTreeMap::new();
        let mut undamaged = |graph: &mut Graph, hits: HitRule| {
            let hits = arms.served_by(hits).of_control();
            let control = *controls.entry(hits).or_insert_with(|| {
                let (words, inputs) = match (hits.unit, hits.serves_whole_prompts()) {
                    (HitUnit::Chunk, true) => ("", vec![prompts]),
                    (HitUnit::Chunk, false) => (" by chunks but the last", vec![prompts]),
                    (HitUnit::Block, true) => (" by blocks", vec![baseline, prompts]),
                    (HitUnit::Block, false) => (" by blocks but the last", vec![baseline, prompts]),
                };
                let label = Label::of_model(&format!("{name}{words}"));
                graph.add(job(label, arms.control(hits), inputs, request.engines_of_control()))
            });
            [questions, prompts, baseline, control]
        };
        for route in request.routes_of(name) {
            let label = Label::on_route(name, route);
            let hits = find_carrier(route)?.hits();
            let undamaged = undamaged(graph, hits);
            let watched: &[JobId] = match hits.unit {
                _ if request.stops_early() => &[questions, baseline],
                HitUnit::Block => &[baseline],
                HitUnit::Chunk => &[],
            };
            let inputs = watched.iter().copied().chain([prompts]);
            let cached = graph.add(job(label.clone(), arms.cached(route)?, inputs, arms.engines(route)?));
            let work = arms.compare(route, tokenizer)?;
            let compare = graph.add(job(label, work, undamaged.into_iter().chain([cached]), 0));
            jobs.cells.push(Cell { route, compare });
        }
        if request.planting == Planting::Asked && refuses_faults(model).is_none() {
            for route in request.planting_routes(name) {
                let (label, work) = (Label::on_route(name, route), arms.faults(route)?);
                let undamaged = undamaged(graph, HitRule::default());
                jobs.planted.push((route, graph.add(job(label, work, undamaged, 1))));
            }
        }
        for keeper in request.foreign_keepers(name) {
            let Some(work) = arms.foreign(&request.foreign, keeper) else { continue };
            let route = foreign_route(keeper);
            let label = match keeper {
                Keeper::Server => Label::of_model(name),
                Keeper::Engine => Label::on_route(name, route),
            };
            jobs.foreign.push((route, graph.add(job(label, work, [prompts], 1))));
        }
        if request.turns == Turning::Asked {
            for route in request.routes_of(name) {
                for (words, work) in arms.turns(route)? {
                    let label = Label::on_route(&format!("{name}{words}"), route);
                    jobs.talks.push((route, graph.add(job(label, work, [prompts], 1))));
                }
            }
        }
        if let Some(settings) = request.pressure() {
            for route in request.routes_of(name) {
                if find_carrier(route)?.refuses_pressure().is_some() {
                    continue;
                }
                let (label, work) = (Label::on_route(name, route), arms.pressure(settings, route)?);
                jobs.pressed.push((route, graph.add(job(label, work, [prompts], 1))));
            }
        }
    }
    Ok(run)
}

fn job(label: Label, work: Work, inputs: impl IntoIterator<Item = JobId>, engines: usize) -> Job {
    Job { label, work, inputs: inputs.into_iter().collect(), engines }
}
