//! Shows and checks suites without running them.

use std::fmt::Write;
use std::process::ExitCode;

use anyhow::Context;
use camino::Utf8PathBuf;
use fs_err as fs;

use super::hint::all;
use super::inspect::{Depth, Problem, inspect};
use super::output::print;
use super::prepare::{cache_folder, load_suite};
use crate::assets::{Model, is_name};
use crate::carrier::learn;
use crate::suite::Suite;

/// Prints a suite's text, so that a suite of one's own can begin with it.
pub(super) fn show_suite(name: &str) -> anyhow::Result<ExitCode> {
    Suite::load_with(name, is_name)?;
    match Suite::embedded_text(name) {
        Some(text) => print(text)?,
        None => print(&fs::read_to_string(name)?)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads a suite, its questions and its models as far as they are here. Whoever lacks a pinned file has no wrong suite.
pub(super) fn check_suite(name: &str, cache: Option<Utf8PathBuf>) -> anyhow::Result<ExitCode> {
    let suite = load_suite(name)?;
    let cache = cache_folder(cache)?;
    let at = |setting: &str| {
        let place = Suite::place_of(name, setting).map_or_else(String::new, |place| format!(", {place}"));
        format!("check suite {name}{place}")
    };
    let inspected = inspect(&suite, &cache, Depth::Prompts);
    let problems = inspected.problems.into_iter();
    all(problems.map(|Problem { setting, error }| Err::<(), _>(error).context(at(&setting))))?;
    let mut text = format!("suite {}: {}\n", suite.name, suite.description);
    writeln!(text, "questions {}: {}", suite.dataset, inspected.questions.unwrap_or_default())?;
    for (index, words, files) in inspected.models {
        let settings = &suite.models[index];
        write!(text, "model {} ({}): {words}", settings.name, settings.source)?;
        if files.is_some() {
            let model =
                Model::find(settings, &cache).with_context(|| at(&format!("models.{index}.source")))?;
            write!(text, ", files {}", model.digest().short())?;
        }
        writeln!(text)?;
    }
    let routes: Vec<&str> = suite.routes.iter().map(|route| route.name()).collect();
    for connector in &suite.connectors {
        writeln!(text, "connector {} ({connector})", learn(connector.as_ref())?)?;
    }
    writeln!(text, "routes {}", routes.join(", "))?;
    writeln!(text, "right; whether it can run here: `kv-correctness doctor --suite {name}`")?;
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}
