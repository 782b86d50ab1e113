//! The report as one HTML file that needs nothing else: no script, no address, light and dark, readable on paper. Main
//! function: [`to_html`].
//!
//! This module turns a report into what `templates/report.html` shows; the template escapes whatever it is given.

mod cells;
mod faults;
mod finding;
mod foreign;
mod forest;
mod plot;
mod pressure;
mod shown;

use askama::Template;

use self::faults::FaultsView;
use self::finding::FindingView;
use self::foreign::ForeignView;
use self::forest::Forest;
use self::pressure::PressureView;
use self::shown::Badge;
use super::Report;
use super::section::Section;
use super::words::{counted, one_line, short_rung};
use crate::comparison::Verdict;
use crate::model::Route;
use crate::suite::Suite;

/// The report as HTML.
#[must_use]
pub fn to_html(report: &Report) -> String {
    Page::of(report).render().expect("a page can be written to a string")
}

#[derive(Template)]
#[template(path = "report.html")]
struct Page<'a> {
    report: &'a Report,
    verdict: Badge,
    meaning: &'static str,
    sentence: String,
    next_step: Option<String>,
    matrix: Matrix,
    forest: Forest,
    findings: Vec<FindingView<'a>>,
    faults: Vec<FaultsView<'a>>,
    foreign: Vec<ForeignView<'a>>,
    sections: Vec<SectionView>,
    pressure: Vec<PressureView<'a>>,
    provenance: Vec<(&'static str, String)>,
    settings: String,
}

/// A part of the run with a verdict of its own.
struct SectionView {
    section: Section,
    badge: Badge,
}

impl SectionView {
    fn of(section: Section) -> Self {
        let badge = section.judgement.verdict.into();
        Self { section, badge }
    }
}

/// Columns of the matrix, besides the first, where routes are the columns: on a phone no more have room.
const MOST_ROUTES_ABREAST: usize = 4;

/// Models and routes, a cell each: routes are the columns, or the rows where there are many.
struct Matrix {
    corner: &'static str,
    heads: Vec<MatrixHead>,
    rows: Vec<MatrixRow>,
}

/// A model or a route.
struct MatrixHead {
    name: String,
    remark: Option<&'static str>,
}

struct MatrixRow {
    head: MatrixHead,
    cells: Vec<Option<MatrixCell>>,
}

struct MatrixCell {
    /// Number of the finding.
    place: usize,
    badge: Badge,
    decided_by: &'static str,
    flips: String,
}

impl<'a> Page<'a> {
    fn of(report: &'a Report) -> Self {
        let (sentence, next_step) = headline(report);
        Self {
            report,
            verdict: report.verdict.into(),
            meaning: meaning(report.verdict),
            sentence,
            next_step,
            matrix: matrix(report),
            forest: Forest::of(report),
            findings: report
                .findings
                .iter()
                .enumerate()
                .map(|(place, finding)| FindingView::of(report, place, finding))
                .collect(),
            faults: report.planted_faults.iter().map(FaultsView::of).collect(),
            foreign: report.foreign_kv.iter().map(ForeignView::of).collect(),
            sections: report.talks.iter().map(|talk| SectionView::of(Section::of_talk(talk))).collect(),
            pressure: report.pressure.iter().map(PressureView::of).collect(),
            provenance: provenance(report),
            settings: serde_json::to_string_pretty(&report.suite).expect("a suite has a JSON form"),
        }
    }
}

/// The reason for the worst verdict, and what to do; what was not run is said with it.
fn headline(report: &Report) -> (String, Option<String>) {
    let (mut sentence, next) = worst(report);
    if !report.foreign_kv.iter().all(|foreign| foreign.findings.control_holds()) {
        sentence.push_str(" But what was read of foreign KV proves nothing.");
    }
    let Some(first) = report.not_run.first() else { return (sentence, next) };
    let missing = counted(report.not_run.len(), "combination");
    let not_run = format!("{missing} of model and route not run, first {} over {}", first.model, first.route);
    let sentence = format!("{sentence} But {not_run}: {}", one_line(&first.reason));
    (sentence, next.or_else(|| Some(first.next_step.clone())))
}

fn worst(report: &Report) -> (String, Option<String>) {
    let count = report.findings.len();
    if report.verdict == Verdict::Equivalent && count > 1 {
        return (format!("All {count} comparisons are equivalent."), None);
    }
    let judged = report.findings.iter().map(|finding| (&finding.model, &finding.judgement));
    let doubted =
        report.planted_faults.iter().filter_map(|planted| Some((&planted.model, planted.doubt.as_ref()?)));
    let talked = report.talks.iter().map(|talk| (&talk.model, &talk.judgement));
    let pressed = report.pressure.iter().map(|pressed| (&pressed.model, &pressed.judgement));
    let all = judged.chain(talked).chain(pressed).chain(doubted);
    let worst: Vec<_> = all.filter(|(_, it)| it.verdict == report.verdict).collect();
    let Some((model, judgement)) = worst.first() else {
        return ("Nothing was compared.".to_owned(), None);
    };
    let others = match worst.len() - 1 {
        0 => String::new(),
        more => format!(" {} more like it.", counted(more, "comparison")),
    };
    let sentence = format!("{model}: {}{others}", judgement.reason);
    (sentence, (report.verdict != Verdict::Equivalent).then(|| judgement.next_step.clone()))
}

fn meaning(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Equivalent => {
            "KV that travelled gave the same answers: bit for bit, or within the margin fixed beforehand."
        }
        Verdict::Degraded => {
            "KV that travelled changes what the model computes, by more than runs without it differ."
        }
        Verdict::Inconclusive => "Neither harm nor equivalence is shown.",
        Verdict::NotExercised => "Less was served than must be, so the answers prove nothing.",
        Verdict::Insensitive => "A planted fault went unseen, so a pass would prove nothing.",
    }
}

fn matrix(report: &Report) -> Matrix {
    let mut routes: Vec<Route> = report.findings.iter().map(|finding| finding.route).collect();
    routes.sort_unstable();
    routes.dedup();
    let mut models: Vec<MatrixHead> = Vec::new();
    for finding in &report.findings {
        if models.iter().all(|model| model.name != finding.model) {
            models.push(MatrixHead { name: finding.model.clone(), remark: Some(finding.kv_shape.name()) });
        }
    }
    let routes: Vec<MatrixHead> =
        routes.iter().map(|route| MatrixHead { name: route.to_string(), remark: None }).collect();
    let (corner, rows, heads, route_of) = if routes.len() > MOST_ROUTES_ABREAST {
        ("Route", routes, models, Axis::Rows)
    } else {
        ("Model", models, routes, Axis::Columns)
    };
    let cell = |row: &MatrixHead, head: &MatrixHead| {
        let (model, route) = match route_of {
            Axis::Rows => (&head.name, &row.name),
            Axis::Columns => (&row.name, &head.name),
        };
        let found = report.findings.iter().enumerate();
        let mut found = found.filter(|(_, one)| one.model == *model && one.route.name() == *route);
        found.next_back().map(|(place, finding)| MatrixCell {
            place,
            badge: finding.judgement.verdict.into(),
            decided_by: short_rung(finding.judgement.decided_by),
            flips: format!("{} of {}", finding.comparison.answers.flips.len(), finding.comparison.questions),
        })
    };
    let rows = rows.into_iter().map(|row| {
        let cells = heads.iter().map(|head| cell(&row, head)).collect();
        MatrixRow { head: row, cells }
    });
    Matrix { corner, rows: rows.collect(), heads }
}

/// Where routes are.
#[derive(Clone, Copy)]
enum Axis {
    Rows,
    Columns,
}

fn provenance(report: &Report) -> Vec<(&'static str, String)> {
    let environment = &report.environment;
    let version = |version: Option<&str>| version.unwrap_or("unknown").to_owned();
    let options = report.suite.lmcache.words();
    let stored = if options.is_empty() { "as LMCache does by default".to_owned() } else { options };
    vec![
        ("kv-correctness", format!("{}, report schema {}", report.version, report.schema)),
        ("Suite", format!("{}: {}", report.suite.name, report.suite.description)),
        ("Dataset", dataset(&report.suite)),
        ("Device", report.device.to_string()),
        ("vLLM", version(environment.vllm_version())),
        ("LMCache", version(environment.version("lmcache"))),
        ("KV is stored", stored),
        ("torch", version(environment.version("torch"))),
        ("Python", format!("{} on {}", environment.python, environment.platform)),
    ]
}

fn dataset(suite: &Suite) -> String {
    let most = suite.questions.map_or_else(String::new, |most| format!(", at most {most} questions of each"));
    format!("{}, subjects: {}{most}", suite.dataset, suite.subjects)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
