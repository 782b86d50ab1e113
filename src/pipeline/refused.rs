//! What of a run cannot run on this machine, and why. Main type: [`Refused`]; main function: [`refused_cells`].

use std::collections::BTreeSet;

use super::{Bench, Request};
use crate::assets::Model;
use crate::carrier::{Here, RouteError, find_carrier, foreign_route};
use crate::model::Route;
use crate::report::{Known, NotRun};
use crate::stage::{StageError, admit_states, admit_windows, in_full};

/// What cannot run here, found out before anything starts.
pub(super) struct Refused {
    /// The one model that cannot be tested on the route; none where no model can.
    pub(super) model: Option<String>,
    /// The route.
    pub(super) route: Route,
    /// Why.
    pub(super) error: StageError,
}

impl Refused {
    /// Whether a model on a route is not run for it.
    pub(super) fn is_of(&self, model: &str, route: Route) -> bool {
        self.route == route && self.model.as_deref().is_none_or(|refused| refused == model)
    }

    /// The same, for a report.
    pub(super) fn as_not_run(&self, model: &str) -> NotRun {
        NotRun {
            model: model.to_owned(),
            route: self.route,
            known: Known::Beforehand,
            reason: format!("failed to {}", self.reason()),
            next_step: self.error.hint().unwrap_or_default(),
        }
    }

    /// Why, for people: of a route without the words that every route has.
    pub(super) fn reason(&self) -> String {
        match &self.error {
            StageError::Route(error) => in_full(error),
            error => error.in_full(),
        }
    }
}

/// What cannot run here, if anything else can.
///
/// # Errors
/// When nothing else can: why the last of it cannot.
pub(super) fn refused_cells(bench: &Bench) -> Result<Vec<Refused>, StageError> {
    let (request, models) = (&bench.request, bench.desk.sources.models());
    let mut refused = Vec::new();
    for route in request.routes() {
        if let Err(error) = admit_route(bench, route) {
            refused.push(Refused { model: None, route, error: error.into() });
        }
    }
    for model in models {
        for route in routes_of(request, model.name()) {
            let known = refused.iter().any(|one: &Refused| one.is_of(model.name(), route));
            if let Err(error) = admit_cell(request, model, route)
                && !known
            {
                refused.push(Refused { model: Some(model.name().to_owned()), route, error });
            }
        }
    }
    let is_left = |model: &Model| {
        let mut routes = request.routes_of(model.name());
        routes.any(|route| !refused.iter().any(|one| one.is_of(model.name(), route)))
    };
    if !models.iter().any(is_left)
        && let Some(last) = refused.pop()
    {
        return Err(last.error);
    }
    Ok(refused)
}

/// Every route on which a run does something with a model, each once.
fn routes_of(request: &Request, model: &str) -> BTreeSet<Route> {
    let foreign = request.foreign_keepers(model).into_iter().map(foreign_route);
    request.routes_of(model).chain(request.planting_routes(model)).chain(foreign).collect()
}

/// Refuses a route that no model can be tested on here.
///
/// # Errors
/// With what is missing.
pub(super) fn admit_route(bench: &Bench, route: Route) -> Result<(), RouteError> {
    let carrier = find_carrier(route)?;
    if let Some(refused) = carrier.refused_option(bench.request.suite.lmcache.options) {
        return Err(RouteError::NotOffered { option: refused.option, reason: refused.reason });
    }
    if bench.request.suite.lmcache.slow && !carrier.proof().is_of_a_server() {
        return Err(RouteError::NoServerToHalt);
    }
    let desk = &bench.desk;
    let device = bench.request.device.kind();
    carrier.admit(&Here { environment: desk.environment.as_ref(), redis: desk.redis.as_ref(), device })
}

/// Refuses a model on a route over which its layers' KV cannot travel, whatever the machine has.
///
/// # Errors
/// When that is so.
pub(super) fn admit_cell(request: &Request, model: &Model, route: Route) -> Result<(), StageError> {
    let (carrier, device) = (find_carrier(route)?, request.device.kind());
    admit_windows(&request.suite, model, carrier, device)?;
    admit_states(&request.suite, model, carrier, device)
}
