//! What a run shows. Main type: [`Findings`].

use std::collections::BTreeSet;

use super::locate::locate;
use super::refused::Refused;
use super::{Bench, Cell, ModelJobs, RunGraph, Turning};
use crate::assets::Model;
use crate::carrier::{find_carrier, foreign_route};
use crate::comparison::{Comparison, Conclusion, Location, Verdict, conclude};
use crate::fault::FaultFindings;
use crate::foreign::ForeignFindings;
use crate::job::{Ended, JobId};
use crate::model::Route;
use crate::pressure::PressureFindings;
use crate::report::{Known, NotRun};
use crate::stage::{
    StageError, read_comparison, read_faults, read_foreign, read_pressure, read_turns, refuses_faults,
};
use crate::stage_name::StageName;
use crate::store::Artifact;
use crate::turns::TurnsFindings;

/// One model on one route: its artifacts, and what they show.
#[derive(Debug)]
pub struct Compared {
    /// The model.
    pub model: Model,
    /// The route.
    pub route: Route,
    /// Of each stage, in order.
    pub artifacts: Vec<(StageName, Artifact)>,
    /// What the load pass and the arms without a connector have in common.
    pub comparison: Comparison,
    /// Which chunk is the first that is served wrong, where bits decided that one is.
    pub location: Option<Location>,
}

/// What planted faults show of one model.
#[derive(Debug)]
pub struct Planted {
    /// The model.
    pub model: Model,
    /// The route whose tier they were planted in.
    pub route: Route,
    /// Of the faults stage.
    pub artifact: Artifact,
    /// What the ladder said of each fault.
    pub findings: FaultFindings,
}

/// What LMCache served of one model's KV to readers of another identity.
#[derive(Debug)]
pub struct ForeignFound {
    /// The model.
    pub model: Model,
    /// Of the foreign stage.
    pub artifact: Artifact,
    /// What each reader got.
    pub findings: ForeignFindings,
}

/// What conversations of one model over a route showed.
#[derive(Debug)]
pub struct Talked {
    /// The model.
    pub model: Model,
    /// The route.
    pub route: Route,
    /// Of the turns stage.
    pub artifact: Artifact,
    /// Each turn, and what they come to.
    pub findings: TurnsFindings,
}

/// What one model over one route showed under pressure.
#[derive(Debug)]
pub struct Pressed {
    /// The model.
    pub model: Model,
    /// The route.
    pub route: Route,
    /// Of the pressure stage.
    pub artifact: Artifact,
    /// What each seed's schedule showed.
    pub findings: PressureFindings,
}

/// What a run shows.
#[derive(Debug)]
pub struct Findings {
    /// Each model on each route.
    pub compared: Vec<Compared>,
    /// What was not done.
    pub not_run: Vec<NotRun>,
    /// The judgements of the compared ones, in the same order, and the worst of them.
    pub conclusion: Conclusion,
    /// Each model with planted faults, if they were asked for.
    pub planted: Vec<Planted>,
    /// Each model with foreign KV, if that was asked for. The verdict does not depend on it.
    pub foreign: Vec<ForeignFound>,
    /// Each model on each route with conversations, if they were asked for.
    pub talked: Vec<Talked>,
    /// Each model on each route under pressure, if that was asked for.
    pub pressed: Vec<Pressed>,
    /// The verdict on all: the conclusion's, unless one under pressure is worse or planted faults say that it cannot be relied on. There is
    /// none where there is a [`failure`](Self::failure).
    pub verdict: Verdict,
    /// Why nothing was compared, where nothing was: the first error.
    pub failure: Option<StageError>,
}

impl Findings {
    /// These, if anything was compared.
    ///
    /// # Errors
    /// When nothing was, with the first error.
    pub fn of_comparisons(self) -> Result<Self, StageError> {
        match self.failure {
            Some(error) => Err(error),
            None => Ok(self),
        }
    }

    /// What was tried and failed first, if anything.
    #[must_use]
    pub fn first_failure(&self) -> Option<&NotRun> {
        self.not_run.iter().find(|not_run| not_run.known == Known::AfterTrying)
    }
}

/// Reads what the jobs of a run came to, and looks for what bits say is wrong.
pub(super) async fn gather(
    bench: &Bench,
    run: &RunGraph,
    ended: Ended,
    mut refused: Vec<Refused>,
) -> Result<Findings, StageError> {
    let mut gathered = Gathered { bench, run, ended: &ended, compared: Vec::new(), not_run: Vec::new() };
    let (mut planted, mut foreign) = (Vec::new(), Vec::new());
    let (mut talked, mut pressed) = (Vec::new(), Vec::new());
    for (model, jobs) in bench.desk.sources.models().iter().zip(&run.models) {
        for cell in &jobs.cells {
            match refused.iter().find(|one| one.is_of(model.name(), cell.route)) {
                Some(one) => gathered.not_run.push(one.as_not_run(model.name())),
                None => gathered.add_cell(model, jobs, *cell).await?,
            }
        }
        // What is asked over a route that the suite does not have.
        let besides = jobs.planted.iter().chain(&jobs.foreign).map(|(route, _)| *route);
        let besides: BTreeSet<Route> =
            besides.filter(|route| jobs.cells.iter().all(|cell| cell.route != *route)).collect();
        let silent = refused.iter().filter(|one| besides.iter().any(|&route| one.is_of(model.name(), route)));
        gathered.not_run.extend(silent.map(|one| one.as_not_run(model.name())));
        for &(route, job) in &jobs.planted {
            let Some(artifact) = gathered.made(model, route, job, "plant faults") else { continue };
            let findings = read_faults(artifact)?;
            planted.push(Planted { model: model.clone(), route, artifact: artifact.clone(), findings });
        }
        gathered.note_without_faults(model, &refused);
        for &(route, job) in jobs.foreign.iter().filter(|(route, _)| runs(&refused, model.name(), *route)) {
            let Some(artifact) = gathered.made(model, route, job, "read KV of another identity") else {
                continue;
            };
            let findings = read_foreign(artifact)?;
            for finding in findings.findings() {
                bench.desk.events.warn(format!("finding about LMCache, {}: {finding}", model.name()));
            }
            foreign.push(ForeignFound { model: model.clone(), artifact: artifact.clone(), findings });
        }
        if !bench.request.foreign.is_empty() {
            gathered.note_without_readers(model, jobs, &refused)?;
        }
        if bench.request.turns == Turning::Asked {
            let untold = |cell: &&Cell| jobs.talks.iter().all(|(route, _)| *route != cell.route);
            let silent =
                jobs.cells.iter().filter(untold).filter(|cell| runs(&refused, model.name(), cell.route));
            gathered.not_run.extend(silent.map(|cell| NotRun {
                model: model.name().to_owned(),
                route: cell.route,
                known: Known::Beforehand,
                reason: NO_TALKS.to_owned(),
                next_step: "leave out `--turns` on this route, or choose `--route mp`".to_owned(),
            }));
        }
        for &(route, job) in &jobs.talks {
            let Some(artifact) = gathered.made(model, route, job, "ask conversations") else { continue };
            let findings = read_turns(artifact)?;
            talked.push(Talked { model: model.clone(), route, artifact: artifact.clone(), findings });
        }
        for &(route, job) in jobs.pressed.iter().filter(|(route, _)| runs(&refused, model.name(), *route)) {
            let Some(artifact) = gathered.made(model, route, job, "put it under pressure") else { continue };
            let findings = read_pressure(artifact)?;
            pressed.push(Pressed { model: model.clone(), route, artifact: artifact.clone(), findings });
        }
        if bench.request.pressure().is_some() {
            gathered.note_refused(model, jobs)?;
        }
    }
    let Gathered { compared, not_run, .. } = gathered;
    let failure = if compared.is_empty() {
        let error = ended.into_error().or_else(|| Some(refused.pop()?.error));
        Some(error.expect("a suite has a model and a route, and what has no artifact has an error"))
    } else {
        None
    };
    let conclusion = conclude(compared.iter().map(|compared| &compared.comparison));
    let doubts = planted.iter().filter_map(|planted| planted.findings.doubt());
    let of_pressure = pressed.iter().map(|pressed: &Pressed| pressed.findings.judgement().verdict);
    let of_talks = talked.iter().map(|talked: &Talked| talked.findings.judge().verdict);
    let verdicts = doubts.map(|doubt| doubt.verdict).chain(of_pressure).chain(of_talks);
    let verdict = verdicts.fold(conclusion.overall, Verdict::min);
    Ok(Findings { compared, not_run, conclusion, planted, foreign, talked, pressed, verdict, failure })
}

fn runs(refused: &[Refused], model: &str, route: Route) -> bool {
    !refused.iter().any(|one| one.is_of(model, route))
}

/// Why a route has no conversations.
const NO_TALKS: &str = "failed to ask conversations: only of LMCache's chunks, loaded by an engine that stores as well, is it worked out what each turn must be served";

/// Findings that are being gathered.
struct Gathered<'a> {
    bench: &'a Bench,
    run: &'a RunGraph,
    ended: &'a Ended,
    compared: Vec<Compared>,
    not_run: Vec<NotRun>,
}

impl Gathered<'_> {
    async fn add_cell(&mut self, model: &Model, jobs: &ModelJobs, cell: Cell) -> Result<(), StageError> {
        let route = cell.route;
        let Some(compare) = self.made(model, route, cell.compare, "") else { return Ok(()) };
        let comparison = read_comparison(compare)?;
        let graph = &self.run.graph;
        let with_inputs = graph.job(cell.compare).inputs.iter().copied().chain([cell.compare]);
        let artifacts: Vec<(StageName, Artifact)> = with_inputs
            .filter_map(|id| Some((graph.job(id).work.stage(), self.ended.artifact(id)?.clone())))
            .collect();
        let location = locate(self.bench, self.run, self.ended, jobs, cell, &comparison).await;
        self.compared.push(Compared { model: model.clone(), route, artifacts, comparison, location });
        Ok(())
    }

    /// Notes the routes on which nobody can ask for KV of another identity.
    fn note_without_readers(
        &mut self,
        model: &Model,
        jobs: &ModelJobs,
        refused: &[Refused],
    ) -> Result<(), StageError> {
        for cell in jobs.cells.iter().filter(|cell| runs(refused, model.name(), cell.route)) {
            let reason = match find_carrier(cell.route)?.keeper() {
                Ok(keeper) if jobs.foreign.iter().any(|(route, _)| *route == foreign_route(keeper)) => {
                    continue;
                }
                Ok(_) => "none of these groups of readers can ask there",
                Err(reason) => reason,
            };
            self.not_run.push(NotRun {
                model: model.name().to_owned(),
                route: cell.route,
                known: Known::Beforehand,
                reason: format!("failed to read KV of another identity: {reason}"),
                next_step: "leave this route out of a run with `--foreign`, or the option".to_owned(),
            });
        }
        Ok(())
    }

    /// Notes the routes in whose tiers no fault can be planted of a model.
    fn note_without_faults(&mut self, model: &Model, refused: &[Refused]) {
        let Some(reason) = refuses_faults(model) else { return };
        let routes = self.bench.request.planting_routes(model.name());
        for route in routes.into_iter().filter(|route| runs(refused, model.name(), *route)) {
            self.not_run.push(NotRun {
                model: model.name().to_owned(),
                route,
                known: Known::Beforehand,
                reason: format!("failed to plant faults in it: {reason}"),
                next_step: "leave this model out of a run with `--faults`, or the option".to_owned(),
            });
        }
    }

    /// Notes the routes that cannot be put under pressure.
    fn note_refused(&mut self, model: &Model, jobs: &ModelJobs) -> Result<(), StageError> {
        for cell in &jobs.cells {
            if let Some(reason) = find_carrier(cell.route)?.refuses_pressure() {
                self.not_run.push(NotRun {
                    model: model.name().to_owned(),
                    route: cell.route,
                    known: Known::Beforehand,
                    reason: format!("failed to put it under pressure: {reason}"),
                    next_step: "leave this route out of a run under pressure".to_owned(),
                });
            }
        }
        Ok(())
    }

    /// A job's artifact; where there is none, why is noted. `what` is what it would have been, if not the comparison.
    fn made(&mut self, model: &Model, route: Route, job: JobId, what: &str) -> Option<&'_ Artifact> {
        let made = self.ended.artifact(job);
        if made.is_none() {
            let error = self.ended.failed(job).and_then(|failed| self.ended.error(failed))?;
            let since = if what.is_empty() { String::new() } else { format!("{what}, since it failed to ") };
            self.not_run.push(NotRun {
                model: model.name().to_owned(),
                route,
                known: Known::AfterTrying,
                reason: format!("failed to {since}{}", error.in_full()),
                next_step: error.hint().unwrap_or_default(),
            });
        }
        made
    }
}
