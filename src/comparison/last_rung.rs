//! The last rung of the ladder: what the answers decide when nothing sharper did.

use super::criteria::LOSS_ALPHA;
use super::ladder::note;
use super::verdict::{Judgement, Rung, Verdict};
use super::{Comparison, Fidelity, Outcome};

/// What the answers decide, when no sharper rung did. `adjusted_loss` is the p-value for a loss, adjusted for all
/// comparisons of the run that answers decide.
pub(super) fn judge_by_answers(comparison: &Comparison, adjusted_loss: f64) -> Judgement {
    judge_loss(comparison, adjusted_loss)
        .or_else(|| judge_noise(comparison))
        .unwrap_or_else(|| judge_equivalence(comparison))
}

fn judge_loss(comparison: &Comparison, adjusted_loss: f64) -> Option<Judgement> {
    let test = &comparison.answers.generated.against_reference;
    let margin = comparison.criteria.margin;
    let shown = if adjusted_loss <= LOSS_ALPHA {
        format!("too many to be chance (p = {adjusted_loss:.2e}, adjusted for all comparisons)")
    } else if test.beyond_margin {
        format!("a change of more than the margin of {}", points(margin))
    } else {
        return None;
    };
    let reason = format!(
        "Loading turned {} right answers wrong and {} wrong ones right among {} questions, {shown}. Accuracy changes by {} \
         points (90 % interval {} to {}).",
        test.table.harms,
        test.table.gains,
        test.table.pairs(),
        signed_points(test.difference),
        signed_points(test.interval.lower),
        signed_points(test.interval.upper),
    );
    let next = "Look at the listed flips, then bisect the revisions.";
    Some(Judgement::new(Verdict::Degraded, Rung::Answers, reason, next))
}

/// What keeps answers from showing equivalence, whatever they are: a model that guesses, or too much noise.
fn judge_noise(comparison: &Comparison) -> Option<Judgement> {
    let answers = &comparison.answers;
    if answers.baseline_at_least <= answers.needed_accuracy {
        let reason = format!(
            "The model hardly beats guessing: at least {:.1} % right (95 % bound), where {:.1} % are needed and one letter, \
             always given, reaches {:.1} %. A broken cache could not make its answers worse, and bits do not decide here.",
            100.0 * answers.baseline_at_least,
            100.0 * answers.needed_accuracy,
            100.0 * answers.guessing,
        );
        let next = "Use a model that can answer, more questions, or a backend with a control.";
        return Some(Judgement::new(Verdict::Inconclusive, Rung::Answers, reason, next));
    }
    let rung = if comparison.noise_floor.fidelity == Fidelity::Lossy {
        return None;
    } else if comparison.distribution.outcome == Outcome::DoesNotApply {
        Rung::Distribution
    } else if comparison.near_ties.outcome == Outcome::DoesNotApply {
        Rung::NearTies
    } else {
        return None;
    };
    let reason = "Runs without LMCache differ from each other by more than half of what the suite tolerates, so harm \
                  could not be told from noise.";
    let next = "Make the engine repeatable (one sequence at a time, batch-invariant kernels), or fix a wider tolerance \
                for this model before the next run.";
    Some(Judgement::new(Verdict::Inconclusive, rung, reason.to_owned(), next))
}

fn judge_equivalence(comparison: &Comparison) -> Judgement {
    let answers = &comparison.answers;
    let test = &answers.generated.against_baseline;
    let (asked, margin) = (test.table.pairs(), points(comparison.criteria.margin));
    let interval =
        format!("{} to {} points", signed_points(test.interval.lower), signed_points(test.interval.upper));
    let inconclusive = |reason, next| Judgement::new(Verdict::Inconclusive, Rung::Answers, reason, next);
    if test.within_margin {
        let reason = format!(
            "Accuracy changes by {} points on {asked} questions (90 % interval {interval}), inside the margin of {margin}, \
             also with subjects as clusters. {} right answers turned wrong, {} wrong ones right.",
            signed_points(test.difference),
            test.table.harms,
            test.table.gains,
        );
        Judgement::new(Verdict::Equivalent, Rung::Answers, reason, "Nothing to do.")
    } else if asked < answers.questions_needed {
        let reason = format!(
            "{asked} questions are too few for a margin of {margin}: the 90 % interval of the change in accuracy is \
             {interval}, and about {} questions are needed. No harm was found, which is not the same as none.",
            answers.questions_needed
        );
        inconclusive(reason, "Ask more questions (--subjects all), or use a backend with a control.")
    } else {
        let clusters = note(test.cluster_interval, |interval| {
            format!(
                "{} to {} with subjects as clusters",
                signed_points(interval.lower),
                signed_points(interval.upper)
            )
        });
        let reason = format!(
            "The 90 % interval of the change in accuracy, {interval}{clusters}, is not inside the margin of {margin}, yet \
             no loss is proven either."
        );
        inconclusive(reason, "Look at the listed flips; ask more questions or more subjects.")
    }
}

/// A share in percentage points.
fn points(share: f64) -> String {
    format!("{} points", rounded(100.0 * share))
}

/// A signed share in percentage points, without the unit.
fn signed_points(share: f64) -> String {
    let rounded = rounded(100.0 * share);
    if rounded > 0.0 { format!("+{rounded}") } else { format!("{rounded}") }
}

/// To three places; never the negative zero.
fn rounded(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0 + 0.0
}
