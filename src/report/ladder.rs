//! The rungs of one finding, each with its state and its numbers in words. Main type: [`RungState`].

use super::Finding;
use super::words::{nats, percent, points};
use crate::comparison::{Comparison, CutHits, Outcome, Rung, Tally, Verdict};

/// What a rung amounts to in a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RungState {
    /// It decided, and so.
    Decided(Verdict),
    /// It found nothing, and did not decide.
    Passed,
    /// It found something that does not decide.
    Failed,
    /// It cannot judge here.
    DoesNotApply,
    /// The cache was not used as it must be, so that nothing else means anything.
    Void,
}

impl RungState {
    /// In a word or two.
    pub(super) fn words(self) -> String {
        match self {
            Self::Decided(verdict) => format!("decided: {verdict}"),
            Self::Passed => "passed".to_owned(),
            Self::Failed => "differs, does not decide".to_owned(),
            Self::DoesNotApply => "does not decide here".to_owned(),
            Self::Void => "void".to_owned(),
        }
    }
}

/// The rungs from sharp to blunt. The early stop and the KV that was spoilt on purpose are among them only where they decided.
pub(super) fn rungs(finding: &Finding) -> Vec<(Rung, RungState, String)> {
    let comparison = &finding.comparison;
    let ladder = [
        Rung::Exercised,
        Rung::Kv,
        Rung::BitExact,
        Rung::NearTies,
        Rung::Distribution,
        Rung::Answers,
        Rung::EarlyStop,
        Rung::Faults,
    ];
    let beside = |rung: &Rung| matches!(rung, Rung::EarlyStop | Rung::Faults);
    ladder
        .into_iter()
        .filter(|rung| !beside(rung) || finding.judgement.decided_by == *rung)
        .map(|rung| (rung, state(finding, rung), numbers(comparison, rung)))
        .collect()
}

fn state(finding: &Finding, rung: Rung) -> RungState {
    let comparison = &finding.comparison;
    if finding.judgement.decided_by == rung {
        return RungState::Decided(finding.judgement.verdict);
    }
    let of = |outcome: Outcome| match outcome {
        Outcome::Passed => RungState::Passed,
        Outcome::Failed => RungState::Failed,
        Outcome::DoesNotApply => RungState::DoesNotApply,
    };
    let as_predicted = comparison.exercised.service.is_as_it_must_be();
    match rung {
        Rung::Exercised if as_predicted => RungState::Passed,
        Rung::Exercised => RungState::Failed,
        _ if !as_predicted => RungState::Void,
        Rung::Kv => of(comparison.kv.outcome),
        Rung::BitExact => of(comparison.bit_exact.outcome),
        Rung::NearTies => of(comparison.near_ties.outcome),
        Rung::Distribution => of(comparison.distribution.outcome),
        Rung::Answers => {
            let test = &comparison.answers.generated.against_baseline;
            match (test.within_margin, test.beyond_margin) {
                (true, _) => RungState::Passed,
                (_, true) => RungState::Failed,
                _ => RungState::DoesNotApply,
            }
        }
        Rung::EarlyStop | Rung::Faults => RungState::DoesNotApply,
    }
}

/// What prefixes of prompts were served, as a part of a sentence.
fn describe_cut_pass(cut: &CutHits) -> String {
    match cut {
        CutHits::Asked(cut) => format!(
            "; cut pass {} of {} predicted, {} of {} off",
            cut.cached_tokens,
            cut.predicted_tokens,
            cut.under_served + cut.over_served,
            cut.requests
        ),
        CutHits::LeftOut { reason } => format!("; no cut pass: {reason}"),
    }
}

/// How many prefixes differ from their controls, as a part of a sentence; nothing where none has one.
fn describe_cut_bits(cuts: &Tally) -> String {
    match cuts.compared {
        0 => String::new(),
        compared => format!("; cut pass from its own in {} of {compared}", cuts.differing),
    }
}

/// A rung's numbers in words.
pub(super) fn numbers(comparison: &Comparison, rung: Rung) -> String {
    let criteria = &comparison.criteria;
    match rung {
        Rung::Exercised => {
            let (store, load) = (&comparison.exercised.store, &comparison.exercised.load);
            let cut = comparison.exercised.cut.hits();
            let preempted = match load.preemptions + store.preemptions + cut.preemptions {
                0 => String::new(),
                times => format!(
                    "; requests lost their blocks {times} times and were served {} tokens again",
                    load.served_again_tokens + store.served_again_tokens + cut.served_again_tokens
                ),
            };
            let failed = comparison
                .exercised
                .failed
                .map_or_else(String::new, |failed| format!("; {}", failed.words()));
            let asked = describe_cut_pass(&comparison.exercised.cut);
            format!(
                "load pass {} of {} predicted tokens, {} of {} requests off{asked}; store pass {} of at most \
                 {}{preempted}{failed}",
                load.cached_tokens,
                load.predicted_tokens,
                load.under_served + load.over_served,
                load.requests,
                store.cached_tokens,
                store.predicted_tokens
            )
        }
        Rung::Kv if criteria.kv_decides => comparison.kv.words.clone(),
        Rung::Kv => {
            format!("{} That decides nothing here: the suite says `kv_decides = false`.", comparison.kv.words)
        }
        Rung::BitExact => {
            let control = &comparison.bit_exact.against_control;
            let repeat = &comparison.noise_floor.repeat;
            let cuts = describe_cut_bits(&comparison.bit_exact.cuts);
            format!(
                "load pass differs from its control in {} of {}{cuts}; baseline from its repeat in {} of {}",
                control.differing, control.compared, repeat.differing, repeat.compared
            )
        }
        Rung::NearTies => {
            let ties = &comparison.near_ties;
            format!(
                "{} of {} questions{} part beyond {} nats, {} may; {} part in a near tie",
                ties.load.beyond_gap,
                ties.load.compared,
                match ties.cuts.compared {
                    0 => String::new(),
                    compared => format!(" and {} of {compared} prefixes", ties.cuts.beyond_gap),
                },
                criteria.near_tie_gap,
                ties.allowed,
                ties.with_cuts().near_ties
            )
        }
        Rung::Distribution => {
            let (load, tolerance) = (&comparison.distribution.load, &criteria.tolerance);
            format!(
                "mean divergence {} of {} nats, a letter by {} of {} nats, {} of {} first tokens differ",
                nats(load.mean_divergence),
                tolerance.mean_divergence,
                nats(load.letter_difference),
                tolerance.letter_difference,
                load.first_token_flips,
                load.compared
            )
        }
        Rung::Answers => {
            let answers = &comparison.answers.generated;
            let paired = &answers.against_baseline;
            format!(
                "baseline {} %, with {} {} %; difference {} points (90 % interval {} to {}), margin {}",
                percent(answers.baseline.share),
                comparison.cache,
                percent(answers.load.share),
                points(paired.difference),
                points(paired.interval.lower),
                points(paired.interval.upper),
                100.0 * criteria.margin
            )
        }
        Rung::Faults => comparison.sensitivity.words.clone(),
        Rung::EarlyStop => {
            let stopped = comparison.early_stop.map(|stop| {
                format!(
                    "stopped after {} questions: {} turned wrong, {} right; evidence {:.2e} of {:.0}",
                    stop.pairs, stop.harms, stop.gains, stop.e_value, stop.bound
                )
            });
            stopped.unwrap_or_else(|| {
                let test = &comparison.answers.generated.against_baseline;
                format!(
                    "{} turned wrong, {} right; evidence {:.2e}",
                    test.table.harms, test.table.gains, test.e_value
                )
            })
        }
    }
}
