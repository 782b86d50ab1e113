//! One verdict over all comparisons of a run. Main type: [`Conclusion`].

use serde::{Deserialize, Serialize};

use crate::stats::holm_adjusted;

use super::difference::count;
use super::ladder::{
    judge_bit_failure, judge_bit_success, judge_distribution, judge_gross_harm, judge_near_ties,
    judge_no_numbers, judge_service, judge_with_right_kv,
};
use super::last_rung::{judge_harm, judge_harmless_answers};
use super::provenance_verdict::{judge_disturbed_kv, judge_wrong_kv};
use super::sensitivity::require_sensitivity;
use super::verdict::{Judgement, Verdict};
use super::{Comparison, Service};

/// The judgement on each comparison of a run, and the worst of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conclusion {
    /// One for each comparison, in the order given.
    pub judgements: Vec<Judgement>,
    /// The worst verdict, in the order of [`Verdict`]; *not exercised* when there is no comparison.
    pub overall: Verdict,
}

/// Judges all comparisons of a run together. Their p-values are adjusted by Holm's procedure over all comparisons that the
/// run planned, whichever rung decides in the end: one that was not run counts with a p-value of 1. Equivalence needs
/// no adjustment, since the run is equivalent only if every comparison is.
#[must_use]
pub fn conclude<'a>(comparisons: impl IntoIterator<Item = &'a Comparison>) -> Conclusion {
    let comparisons: Vec<&Comparison> = comparisons.into_iter().collect();
    let planned = comparisons.iter().map(|comparison| comparison.comparisons).max().unwrap_or(0);
    let mut p_values: Vec<f64> = comparisons
        .iter()
        .map(|comparison| comparison.answers.generated.against_reference.harm_p_value())
        .collect();
    p_values.extend((count(comparisons.len())..planned).map(|_| 1.0));
    let judgements: Vec<Judgement> = comparisons
        .iter()
        .zip(holm_adjusted(&p_values))
        .map(|(comparison, p_value)| judge(comparison, p_value))
        .collect();
    let overall = judgements.iter().map(|judgement| judgement.verdict).min().unwrap_or(Verdict::NotExercised);
    Conclusion { judgements, overall }
}

/// What a comparison shows. `adjusted` is the p-value for "neither a loss nor a change beyond the margin", adjusted for all
/// comparisons that the run planned. The order matters: what is proven wrong comes first, whatever else is missing; then a
/// cache that was not used as it must be makes all else void; and right KV and bits decide before anything that needs statistics. In the end nothing
/// passes by answers that were not seen to feel their KV.
fn judge(comparison: &Comparison, adjusted: f64) -> Judgement {
    let wrong = || {
        judge_wrong_kv(comparison)
            .or_else(|| judge_disturbed_kv(comparison))
            .or_else(|| judge_no_numbers(comparison))
            .or_else(|| judge_bit_failure(comparison))
            .or_else(|| judge_gross_harm(comparison))
    };
    let far = || judge_near_ties(comparison).or_else(|| judge_distribution(comparison));
    let harmful = || judge_harm(comparison, adjusted);
    let decided = match comparison.exercised.service {
        Service::OverServed => None,
        Service::AsPredicted | Service::LoadsFailed | Service::Contended => {
            let right = || judge_with_right_kv(comparison);
            wrong().or_else(right).or_else(|| judge_bit_success(comparison)).or_else(far).or_else(harmful)
        }
        // The answers are those of plain vLLM: only storing can have disturbed, or the store pass been served wrong KV.
        Service::NothingServed | Service::NothingFailed => judge_wrong_kv(comparison)
            .or_else(|| judge_disturbed_kv(comparison))
            .or_else(|| judge_no_numbers(comparison))
            .or_else(|| judge_bit_failure(comparison)),
        Service::UnderServed | Service::CountersDisagree | Service::WrongTier => {
            wrong().or_else(far).or_else(harmful)
        }
    };
    let decided = match comparison.exercised.service {
        Service::AsPredicted => decided,
        _ => decided
            .map(|judgement| Judgement { reason: with_service(comparison, &judgement.reason), ..judgement }),
    };
    let decided =
        decided.or_else(|| judge_service(comparison)).unwrap_or_else(|| judge_harmless_answers(comparison));
    require_sensitivity(comparison, decided)
}

/// A reason, and what was not served as it must be.
fn with_service(comparison: &Comparison, reason: &str) -> String {
    let service = judge_service(comparison);
    service.map_or_else(|| reason.to_owned(), |missing| format!("{reason} {}", missing.reason))
}
