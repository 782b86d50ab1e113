//! Gets pinned models and datasets, or says what a suite needs.

use std::process::ExitCode;

use super::arguments::FetchArguments;
use super::output::print;
use super::prepare::{cache_folder, choose_device, stack};
use crate::assets::is_name;
use crate::engine::environment::EnvironmentRequest;
use crate::event::Event;
use crate::exit_code::ERROR;
use crate::fetch::{ArchivePin, FetchError, FetchSettings, Fetcher, ModelPin, Needs};
use crate::progress::{Progress, Verbosity};
use crate::suite::Suite;

/// Gets pinned models and datasets. A download goes on where an interrupted one ended, so nothing need be undone.
pub(super) fn fetch_assets(arguments: &FetchArguments) -> anyhow::Result<ExitCode> {
    let cache = cache_folder(arguments.cache.clone())?;
    let device = choose_device(arguments.device)?;
    let (mut models, mut archives) = (Vec::new(), Vec::new());
    if let Some(name) = &arguments.suite {
        let suite = Suite::load_with(name, is_name)?;
        let events = Progress::events(Verbosity::Normal);
        let needs = Needs::of(&suite, &cache, &device, &events);
        if arguments.check {
            print(&(needs.lines().join("\n") + "\n"))?;
            return Ok(if needs.are_met() { ExitCode::SUCCESS } else { ExitCode::from(ERROR) });
        }
        events.emit(Event::SuiteNeeds { lines: needs.lines() });
        models.extend(suite.models.iter().filter_map(|model| ModelPin::find(&model.source)));
        archives.extend(ArchivePin::find(&suite.dataset));
    }
    for name in arguments.names.iter().chain(&arguments.data) {
        match (ModelPin::find(name), ArchivePin::find(name)) {
            (Some(model), _) => models.push(model),
            (None, Some(archive)) => archives.push(archive),
            (None, None) => return Err(FetchError::unknown(name).into()),
        }
    }
    let events = Progress::events(Verbosity::Normal);
    let fetcher = Fetcher::new(FetchSettings::from_variables(cache.clone()), events)?;
    let environment = EnvironmentRequest::from_variables(stack(&device), cache);
    for path in fetcher.fetch(&models, &archives, &environment)? {
        print(&format!("{path}\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}
