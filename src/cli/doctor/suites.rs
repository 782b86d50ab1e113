//! Whether a suite can run here, over each route. Main function: [`examine_suite`].

use super::machine::find_program;
use crate::cli::arguments::DeviceChoice;
use crate::cli::inspect::{Depth, Problem, inspect};
use crate::engine::environment::{EnvironmentError, EnvironmentRequest};
use crate::engine::{Device, DeviceKind};
use crate::fetch::Needs;
use crate::options::NotOffered;
use crate::stage::{RouteError, StageError, require_server};
use crate::suite::{Route, Suite};

/// How near a suite is to running, from the farthest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Readiness {
    /// This machine lacks what no command brings.
    Never,
    /// After the commands that are told.
    AfterCommands,
    /// At once; what is made on first use counts as there.
    Now,
}

/// What was found out about a suite.
pub(super) struct Examined {
    pub(super) readiness: Readiness,
    pub(super) lines: Vec<String>,
}

/// Where a suite would run.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) device: &'a Device,
    /// How the device was asked for, as the commands that are told must ask, too.
    pub(super) choice: DeviceChoice,
    pub(super) request: &'a EnvironmentRequest,
}

/// Examines a suite over every route there is; those that the suite names are marked.
pub(super) fn examine_suite(name: &str, suite: &Suite, place: Place<'_>, depth: Depth) -> Examined {
    let needs = Needs::of(suite, &place.request.cache, place.device);
    let mut lines = needs.lines();
    let mut readiness = Readiness::Now;
    if !needs.not_fetched().is_empty() {
        lines.push(format!("mend     kv-correctness fetch --suite {name}"));
        readiness = Readiness::AfterCommands;
    }
    if let Some(too_few) = needs.too_few_gpus() {
        lines.push(format!("mend     none: {too_few}; `--device cpu` asks for memory instead"));
        readiness = Readiness::Never;
    }
    if needs.lacks_room() {
        let mend = "memory: end what else takes it, or a larger machine, though needs are estimates; disk: free some, or `--cache DIR`";
        lines.push(format!("mend     {mend}"));
        readiness = readiness.min(Readiness::AfterCommands);
    }
    if let Some(problem) = environment_problem(place.request) {
        let hint = problem.hint().unwrap_or_else(|| "see above".to_owned());
        lines.push(format!("MISSING  Python environment: {problem}"));
        lines.push(format!("mend     {hint}"));
        readiness = readiness.min(Readiness::AfterCommands);
    }
    for Problem { setting, error } in problems(suite, place, depth) {
        lines.push(format!("WRONG    `{setting}`: failed to {}", error.in_full()));
        lines.push(format!("mend     {}", error.hint().unwrap_or_else(|| "see above".to_owned())));
        readiness = readiness.min(Readiness::AfterCommands);
    }
    let mut best = Readiness::Never;
    for route in Route::ALL {
        let (over_route, words) = examine_route(name, suite, route, place);
        let over_route = over_route.min(readiness);
        let state = match over_route {
            Readiness::Now => "ready",
            Readiness::AfterCommands => "later",
            Readiness::Never => "never",
        };
        let chosen = if suite.routes.contains(&route) { "" } else { ", not in the suite" };
        lines.push(format!("{state:<8} route {route}{chosen}: {words}"));
        best = best.max(over_route);
    }
    let refused = suite.routes.iter().any(|route| suite.lmcache.options.not_offered(*route).is_some());
    Examined { readiness: if refused { best.min(Readiness::AfterCommands) } else { best }, lines }
}

/// What a run would end with before its first engine, besides what needs the machine alone.
fn problems(suite: &Suite, place: Place<'_>, depth: Depth) -> Vec<Problem> {
    let inspected = inspect(suite, &place.request.cache, depth);
    // Options are told of route by route.
    let mut problems = inspected.problems;
    problems.retain(|problem| !matches!(problem.error, StageError::Route(_)));
    let environment = place.request.find().ok().flatten();
    // An environment that is not made yet will have none.
    let has_ray = environment.is_some_and(|environment| environment.identity().version("ray").is_some());
    for (index, _, files) in inspected.models {
        if let Some(Err(error)) = files.map(|files| files.check_parallelism(place.device, has_ray)) {
            problems.push(Problem { setting: format!("models.{index}"), error: error.into() });
        }
    }
    problems
}

/// Why there can be no Python environment; none if it is there or can be made.
fn environment_problem(request: &EnvironmentRequest) -> Option<EnvironmentError> {
    match request.find() {
        Ok(Some(_)) => None,
        Ok(None) => request.find_python().err(),
        Err(error) => Some(error),
    }
}

fn examine_route(name: &str, suite: &Suite, route: Route, place: Place<'_>) -> (Readiness, String) {
    if let Some(NotOffered { option, reason }) = suite.lmcache.options.not_offered(route) {
        let refused = RouteError::NotOffered { option, reason };
        return (Readiness::AfterCommands, format!("failed to {refused}: {}", refused.hint()));
    }
    let device = place.choice.words();
    let command = (Readiness::Now, format!("kv-correctness run --suite {name} --route {route}{device}"));
    if let Ok(Some(environment)) = place.request.find()
        && let Err(error) = require_server(&environment, route)
    {
        return (Readiness::AfterCommands, format!("failed to {error}: {}", error.hint()));
    }
    match (route, place.device.kind()) {
        (Route::InProcess, DeviceKind::Cpu) => {
            let words = "LMCache inside vLLM serves nothing on a CPU; a run ends with not exercised (4)";
            (Readiness::Never, words.to_owned())
        }
        (Route::MpRedis, _) if redis_is_named() => command,
        (Route::MpRedis, _) if find_program(&place.request.search_path, "redis-server").is_none() => {
            let words = format!("needs a Redis server: {}", RouteError::NoRedis.hint());
            (Readiness::AfterCommands, words)
        }
        (Route::InProcess | Route::Mp | Route::MpFs | Route::MpRedis | Route::MpP2p, _) => command,
    }
}

/// Whether a run would use a server that is there already.
fn redis_is_named() -> bool {
    std::env::var("KV_CORRECTNESS_REDIS_URL").is_ok_and(|url| !url.is_empty())
}
