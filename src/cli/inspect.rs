//! What a suite names, looked at as far as a run would get before its first engine. Main function: [`inspect`].
//!
//! `suite check` and `doctor` tell of it, and `run` ends with the same errors. Weights are not read but for their headers.

use camino::Utf8Path;

use crate::assets::{Archive, AssetError, ModelFiles};
use crate::carrier::{RouteError, find_carrier};
use crate::dataset::{Dataset, Limits, Split, extract_with_rest};
use crate::stage::{StageError, admit_length, capacity, check_prompts, require_letters, template};
use crate::suite::{ModelSettings, Suite};

/// How much of a suite is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Depth {
    /// Files.
    Files,
    /// Also every prompt that is made of them, which takes a while where there are many.
    Prompts,
}

/// What is wrong with a suite, where that is not of the machine.
pub(super) struct Problem {
    /// The setting that names it, as in `models.1.source`.
    pub(super) setting: String,
    pub(super) error: StageError,
}

/// What a suite names.
pub(super) struct Inspected {
    /// In words; none if it is wrong.
    pub(super) questions: Option<String>,
    /// In words, each with its files unless they are not here; those that are wrong are left out.
    pub(super) models: Vec<(usize, String, Option<ModelFiles>)>,
    pub(super) problems: Vec<Problem>,
}

/// Looks at everything that a suite names. Whoever lacks a pinned file has no wrong suite.
pub(super) fn inspect(suite: &Suite, cache: &Utf8Path, depth: Depth) -> Inspected {
    let mut inspected = Inspected { questions: None, models: Vec::new(), problems: Vec::new() };
    if let Err(error) = template(&suite.prompt.template) {
        inspected.problems.push(Problem { setting: "prompt.template".to_owned(), error });
    }
    let dataset = match look_at_questions(suite, cache) {
        Ok((words, dataset)) => {
            inspected.questions = Some(words);
            dataset
        }
        Err(error) => {
            inspected.problems.push(Problem { setting: "dataset".to_owned(), error });
            None
        }
    };
    let dataset = dataset.filter(|_| depth == Depth::Prompts && inspected.problems.is_empty());
    for (index, settings) in suite.models.iter().enumerate() {
        match look_at_model(suite, settings, cache, dataset.as_ref()) {
            Ok((words, files)) => inspected.models.push((index, words, files)),
            Err(error) => {
                // What is wrong with a prompt is so for a setting of the engine, and there it is told.
                let setting = match &error {
                    StageError::Prompt(_) | StageError::TooLong { .. } => "engine.max_model_len".to_owned(),
                    StageError::TooLarge { source, .. } => source.setting().to_owned(),
                    _ => format!("models.{index}.source"),
                };
                inspected.problems.push(Problem { setting, error });
            }
        }
    }
    inspected.problems.extend(refused_option(suite));
    inspected
}

/// The first option that one of the suite's routes does not offer.
fn refused_option(suite: &Suite) -> Option<Problem> {
    let carriers = suite.routes.iter().filter_map(|route| find_carrier(*route).ok());
    let refused = carriers.into_iter().find_map(|carrier| carrier.refused_option(suite.lmcache.options))?;
    let setting = format!("lmcache.options.{}", refused.option);
    let error = RouteError::NotOffered { option: refused.option, reason: refused.reason };
    Some(Problem { setting, error: error.into() })
}

fn look_at_model(
    suite: &Suite,
    settings: &ModelSettings,
    cache: &Utf8Path,
    dataset: Option<&Dataset>,
) -> Result<(String, Option<ModelFiles>), StageError> {
    let files = match ModelFiles::find(&settings.source, cache) {
        Err(error @ AssetError::NotFetched { .. }) => return Ok((not_fetched(&error), None)),
        files => files?,
    };
    let shape = files.kv_shape()?;
    files.check_weights(suite, settings)?;
    require_letters(&files, &settings.name)?;
    admit_length(suite, &settings.name, capacity(suite, settings, &files)?)?;
    if let Some(dataset) = dataset {
        check_prompts(suite, settings, &files, dataset)?;
    }
    Ok((shape.name().to_owned(), Some(files)))
}

fn look_at_questions(suite: &Suite, cache: &Utf8Path) -> Result<(String, Option<Dataset>), StageError> {
    let archive = match Archive::find(&suite.dataset, cache) {
        Err(error @ AssetError::NotFetched { .. }) => return Ok((not_fetched(&error), None)),
        archive => archive?,
    };
    let (dataset, left_out) = extract_with_rest(archive.open()?, &Limits::default())
        .map_err(|error| StageError::Extract { archive: suite.dataset.clone(), source: Box::new(error) })?;
    let (mut subjects, mut asked, mut all) = (0, 0, 0);
    for (_, subject, questions) in dataset.select(suite.selection()) {
        subjects += 1;
        asked += questions.len();
        all += subject.split(Split::Test).len();
    }
    let of_all = if asked < all { format!(" of {all}") } else { String::new() };
    let mut words = format!("{asked}{of_all} in {subjects} subjects");
    let left_out = archive.left_out().and(&left_out);
    if !left_out.is_empty() {
        words = format!("{words}; not read, since no tables of dev, val or test: {left_out}");
    }
    Ok((words, Some(dataset)))
}

fn not_fetched(error: &AssetError) -> String {
    format!("not fetched yet; {}", error.hint().unwrap_or_default())
}
