//! Whether a suite can run here, over each route. Main function: [`examine_suite`].

use crate::assets::ModelFiles;
use crate::carrier::{Here, RouteError, find_carrier, routes};
use crate::cli::inspect::{Depth, Problem, inspect};
use crate::cli::run_arguments::DeviceChoice;
use crate::engine::RedisAddress;
use crate::engine::environment::{EnvironmentError, EnvironmentRequest, Extension, Stack, try_extension};
use crate::fetch::Needs;
use crate::machine::Device;
use crate::model::Route;
use crate::progress::{Progress, Verbosity};
use crate::stage::StageError;
use crate::suite::Suite;

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
    /// A Redis server that a run would use.
    pub(super) redis: Option<&'a RedisAddress>,
    /// Why an engine would not copy KV by LMCache's compiled extension, if it would not.
    pub(super) extension: Option<&'a str>,
}

/// Examines a suite over every route there is; those that the suite names are marked.
pub(super) fn examine_suite(name: &str, suite: &Suite, place: Place<'_>, depth: Depth) -> Examined {
    let needs = Needs::of(suite, &place.request.cache, place.device, &Progress::events(Verbosity::Normal));
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
    if let Some(words) = place.extension {
        lines.push(format!("WRONG    LMCache's compiled extension: {words}"));
        lines.push(format!("mend     {}", Extension::HINT));
        readiness = readiness.min(Readiness::AfterCommands);
    }
    for Problem { setting, error } in problems(suite, place, depth) {
        lines.push(format!("WRONG    `{setting}`: failed to {}", error.in_full()));
        lines.push(format!("mend     {}", error.hint().unwrap_or_else(|| "see above".to_owned())));
        readiness = readiness.min(Readiness::AfterCommands);
    }
    let mut best = Readiness::Never;
    for route in routes() {
        let (over_route, words) = examine_route(name, suite, route, place);
        let over_route = over_route.min(readiness);
        let state = match over_route {
            Readiness::Now => "ready",
            Readiness::AfterCommands => "later",
            Readiness::Never => "never",
        };
        let is_chosen = suite.routes.contains(&route);
        let chosen = if is_chosen { "" } else { ", not in the suite" };
        lines.push(format!("{state:<8} route {route}{chosen}: {words}"));
        if is_chosen {
            best = best.max(over_route);
        }
    }
    let refused = |route: &Route| {
        find_carrier(*route).is_ok_and(|carrier| carrier.refused_option(suite.lmcache.options).is_some())
    };
    let most = if suite.routes.iter().any(refused) { Readiness::AfterCommands } else { Readiness::Now };
    Examined { readiness: best.min(most), lines }
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
        let check = |files: ModelFiles| files.check_parallelism(&suite.models[index], place.device, has_ray);
        if let Some(Err(error)) = files.map(check) {
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

/// Why an engine here would not copy KV by LMCache's compiled extension; none where there is no environment yet.
pub(super) fn extension_problem(request: &EnvironmentRequest) -> Option<String> {
    let environment = request.find().ok().flatten()?;
    match try_extension(&environment, request.stack) {
        Ok(Extension::Loads) => None,
        // Releases differ in what they have for a CPU.
        Ok(Extension::Absent) => {
            (request.stack == Stack::Cuda).then(|| "there is none for CUDA in this build".to_owned())
        }
        Ok(Extension::Fails(words)) => Some(words),
        Err(error) => Some(format!("it could not be tried: {error}")),
    }
}

fn examine_route(name: &str, suite: &Suite, route: Route, place: Place<'_>) -> (Readiness, String) {
    let device = place.choice.words();
    let carrier = match find_carrier(route) {
        Ok(carrier) => carrier,
        Err(error) => return (Readiness::Never, format!("failed to {error}: {}", error.hint())),
    };
    if let Some(refused) = carrier.refused_option(suite.lmcache.options) {
        let refused = RouteError::NotOffered { option: refused.option, reason: refused.reason };
        return (Readiness::AfterCommands, format!("failed to {refused}: {}", refused.hint()));
    }
    if let Some(words) = carrier.serves_nothing_on(place.device.kind()) {
        return (Readiness::Never, words.to_owned());
    }
    let environment = place.request.find().ok().flatten();
    match carrier.admit(&Here {
        environment: environment.as_ref(),
        redis: place.redis,
        device: place.device.kind(),
    }) {
        Ok(()) => (Readiness::Now, format!("kv-correctness run --suite {name} --route {route}{device}")),
        Err(error) => {
            let readiness = match error {
                RouteError::Device { .. } => Readiness::Never,
                _ => Readiness::AfterCommands,
            };
            (readiness, format!("failed to {error}: {}", error.hint()))
        }
    }
}
