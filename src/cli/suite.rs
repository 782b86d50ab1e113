//! Shows and checks suites without running them.

use std::fmt::Write;
use std::process::ExitCode;

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;

use super::output::print;
use super::prepare::cache_folder;
use crate::assets::{Archive, AssetError, Model};
use crate::dataset::{Limits, PromptTemplate, Split};
use crate::stage::StageError;
use crate::suite::{ModelSettings, Suite};

/// Prints a suite's text, so that a suite of one's own can begin with it.
pub(super) fn show_suite(name: &str) -> anyhow::Result<ExitCode> {
    Suite::load(name)?;
    match Suite::embedded_text(name) {
        Some(text) => print(text)?,
        None => print(&fs::read_to_string(name)?)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads a suite, its questions and its models as far as they are here. Whoever lacks a pinned file has no wrong suite.
pub(super) fn check_suite(name: &str, cache: Option<Utf8PathBuf>) -> anyhow::Result<ExitCode> {
    let suite = Suite::load(name)?;
    let cache = cache_folder(cache)?;
    let at = |setting: &str| {
        let place = Suite::place_of(name, setting).map_or_else(String::new, |place| format!(", {place}"));
        format!("check suite {name}{place}")
    };
    if suite.prompt.template != PromptTemplate::single_letter().name() {
        return Err(StageError::Template(suite.prompt.template)).context(at("prompt.template"));
    }
    let mut text = format!("suite {}: {}\n", suite.name, suite.description);
    let questions = describe_questions(&suite, &cache).with_context(|| at("dataset"))?;
    writeln!(text, "questions {}: {questions}", suite.dataset)?;
    for (index, settings) in suite.models.iter().enumerate() {
        let words = describe_model(&suite, settings, &cache)
            .with_context(|| at(&format!("models.{index}.source")))?;
        writeln!(text, "model {} ({}): {words}", settings.name, settings.source)?;
    }
    let routes: Vec<&str> = suite.routes.iter().map(|route| route.name()).collect();
    writeln!(text, "routes {}", routes.join(", "))?;
    writeln!(text, "right; whether it can run here: `kv-correctness doctor --suite {name}`")?;
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn describe_model(suite: &Suite, settings: &ModelSettings, cache: &Utf8Path) -> Result<String, StageError> {
    let model = match Model::find(settings, cache) {
        Err(error @ AssetError::NotFetched { .. }) => return Ok(not_fetched(&error)),
        model => model?,
    };
    model.files().read("tokenizer.json")?;
    // Under another `load_format` weights have other names, or there are none.
    if ![&suite.engine.arguments, &settings.arguments].iter().any(|all| all.contains_key("load_format")) {
        model.files().check_weights()?;
    }
    Ok(format!("{}, files {}", model.files().kv_shape()?.name(), model.digest().short()))
}

fn describe_questions(suite: &Suite, cache: &Utf8Path) -> Result<String, StageError> {
    let archive = match Archive::find(&suite.dataset, cache) {
        Err(error @ AssetError::NotFetched { .. }) => return Ok(not_fetched(&error)),
        archive => archive?,
    };
    let dataset = crate::dataset::extract(archive.open()?, &Limits::default())
        .map_err(|error| StageError::Extract { archive: suite.dataset.clone(), source: Box::new(error) })?;
    let (mut subjects, mut questions) = (0, 0);
    for (_, subject) in dataset.select(suite.subjects) {
        subjects += 1;
        questions += subject.split(Split::Test).len();
    }
    Ok(format!("{questions} in {subjects} subjects"))
}

fn not_fetched(error: &AssetError) -> String {
    format!("not fetched yet; {}", error.hint().unwrap_or_default())
}
