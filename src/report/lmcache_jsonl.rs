//! The two files that LMCache's own summary scripts read. Main function: [`to_lmcache_jsonl`].
//!
//! A line a subject, `{"anatomy": {"accuracy": 0.63, "num_questions": 135}}`, then `total`, whose accuracy is the mean of
//! the subjects' accuracies, each weighing the same, as those scripts have it. Answers that name no letter are wrong
//! here; LMCache's scripts take them for "A".

use serde_json::json;

use super::{Finding, Report};
use crate::comparison::SubjectScore;
use crate::model::Route;

/// Why there are no such files.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum JsonlError {
    /// The names of the files have no room for a route.
    #[error("choose a route: the report has {}", names(.0))]
    ManyRoutes(Vec<Route>),
    /// The report has nothing on that route.
    #[error("find route {wanted}: the report has {}", names(.present))]
    NoSuchRoute {
        /// What was asked for.
        wanted: Route,
        /// What there is.
        present: Vec<Route>,
    },
}

impl JsonlError {
    /// What to do next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let (Self::ManyRoutes(present) | Self::NoSuchRoute { present, .. }) = self;
        present.first().map(|route| format!("name one of them, as in `--route {route}`"))
    }
}

fn names(routes: &[Route]) -> String {
    let names: Vec<&str> = routes.iter().map(|route| route.name()).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// File names and contents, two a model. Of several routes one must be named.
///
/// # Errors
/// When that route is not in the report, or none is named and there are several.
pub fn to_lmcache_jsonl(report: &Report, route: Option<Route>) -> Result<Vec<(String, String)>, JsonlError> {
    let mut present: Vec<Route> = report.findings.iter().map(|finding| finding.route).collect();
    present.sort_unstable();
    present.dedup();
    let route = match (route, present.as_slice()) {
        (Some(wanted), _) if present.contains(&wanted) => wanted,
        (Some(wanted), _) => return Err(JsonlError::NoSuchRoute { wanted, present }),
        (None, [only]) => *only,
        (None, []) => return Ok(Vec::new()),
        (None, _) => return Err(JsonlError::ManyRoutes(present)),
    };
    let mut files = Vec::new();
    for finding in report.findings.iter().filter(|finding| finding.route == route) {
        let name = short_name(report, finding);
        files.push((format!("{name}-baseline.jsonl"), lines(finding, |score| score.baseline_right)));
        files.push((format!("{name}-lmcache.jsonl"), lines(finding, |score| score.load_right)));
    }
    Ok(files)
}

/// The last part of the name that the model is published under, as those scripts have it.
fn short_name<'a>(report: &'a Report, finding: &'a Finding) -> &'a str {
    let settings = report.suite.models.iter().find(|settings| settings.name == finding.model);
    let source = settings.map_or(finding.model.as_str(), |settings| settings.source.as_str());
    source.trim_end_matches('/').rsplit('/').next().unwrap_or(&finding.model)
}

fn lines(finding: &Finding, right: fn(&SubjectScore) -> u32) -> String {
    let scores = &finding.comparison.by_subject;
    let accuracy = |score: &SubjectScore| f64::from(right(score)) / f64::from(score.questions.max(1));
    let line = |name: &str, accuracy: f64, questions: u32| {
        format!("{}\n", json!({ name: { "accuracy": accuracy, "num_questions": questions } }))
    };
    let text: String =
        scores.iter().map(|score| line(score.subject.as_str(), accuracy(score), score.questions)).collect();
    let subjects = f64::from(u32::try_from(scores.len().max(1)).unwrap_or(u32::MAX));
    let mean = scores.iter().map(accuracy).sum::<f64>() / subjects;
    text + &line("total", mean, finding.comparison.questions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::fixture::named;

    #[test]
    fn each_model_has_two_files_with_a_line_a_subject_and_the_mean_of_the_subjects() {
        let files = to_lmcache_jsonl(&named("degraded"), None).unwrap();
        let shown: Vec<String> = files.iter().map(|(name, text)| format!("{name}\n{text}")).take(2).collect();
        insta::assert_snapshot!(shown.join("\n"));
        assert_eq!(files.len(), 4);
    }

    #[test]
    fn the_files_are_named_after_the_last_part_of_a_published_models_name() {
        let mut report = named("equivalent");
        report.suite = crate::suite::Suite::load("mmlu").unwrap();
        report.findings[0].model = "llama-3.1-8b-instruct".to_owned();
        let files = to_lmcache_jsonl(&report, None).unwrap();
        assert_eq!(files[0].0, "Llama-3.1-8B-Instruct-baseline.jsonl");
        assert_eq!(files[1].0, "Llama-3.1-8B-Instruct-lmcache.jsonl");
    }

    #[test]
    fn of_several_routes_one_must_be_named() {
        let report = named("every route");
        let error = to_lmcache_jsonl(&report, None).unwrap_err();
        assert_eq!(
            error,
            JsonlError::ManyRoutes(
                ["in-process", "mp", "mp+fs", "mp+p2p", "mp+redis"].map(Route::named).to_vec()
            )
        );
        assert!(error.hint().is_some());
        assert_eq!(to_lmcache_jsonl(&report, Some(Route::named("mp"))).unwrap().len(), 4);
        let error = to_lmcache_jsonl(&named("equivalent"), Some(Route::named("in-process"))).unwrap_err();
        assert_eq!(error.to_string(), "find route in-process: the report has mp");
    }
}
