//! One verdict over all comparisons of a run. Main type: [`Conclusion`].

use serde::{Deserialize, Serialize};

use crate::stats::holm_adjusted;

use super::Comparison;
use super::difference::count;
use super::ladder::judge_by_sharper_rungs;
use super::last_rung::judge_by_answers;
use super::verdict::{Judgement, Verdict};

/// The judgement on each comparison of a run, and the worst of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conclusion {
    /// One for each comparison, in the order given.
    pub judgements: Vec<Judgement>,
    /// The worst verdict, in the order of [`Verdict`]; *not exercised* when there is no comparison.
    pub overall: Verdict,
}

/// Judges all comparisons of a run together: the p-values of those that answers decide are adjusted by Holm's procedure.
/// Equivalence needs no adjustment, since the run is equivalent only if every comparison is.
#[must_use]
pub fn conclude<'a>(comparisons: impl IntoIterator<Item = &'a Comparison>) -> Conclusion {
    let comparisons: Vec<&Comparison> = comparisons.into_iter().collect();
    let number = count(comparisons.len());
    let decided: Vec<Option<Judgement>> =
        comparisons.iter().map(|comparison| judge_by_sharper_rungs(comparison, number)).collect();
    let left = || comparisons.iter().zip(&decided).filter(|(_, decided)| decided.is_none());
    let p_values: Vec<f64> = left()
        .map(|(comparison, _)| comparison.answers.generated.against_reference.robust_loss_p_value())
        .collect();
    let mut by_answers = left()
        .zip(holm_adjusted(&p_values))
        .map(|((comparison, _), p_value)| judge_by_answers(comparison, p_value));
    let judgements: Vec<Judgement> =
        decided.iter().filter_map(|decided| decided.clone().or_else(|| by_answers.next())).collect();
    let overall = judgements.iter().map(|judgement| judgement.verdict).min().unwrap_or(Verdict::NotExercised);
    Conclusion { judgements, overall }
}
