//! The last rung of the ladder: what the answers decide when nothing sharper did.

use super::criteria::ANSWERS_ALPHA;
use super::ladder::{note, parted};
use super::verdict::{Judgement, Rung, Verdict};
use super::{Comparison, Fidelity, Outcome};

/// What the answers show where they show no harm and no sharper rung decided.
pub(super) fn judge_harmless_answers(comparison: &Comparison) -> Judgement {
    judge_noise(comparison).unwrap_or_else(|| judge_equivalence(comparison))
}

/// Harm that the answers show: a loss, or a change beyond the margin. `adjusted` is the p-value for neither of them, adjusted
/// for all comparisons that the run planned.
pub(super) fn judge_harm(comparison: &Comparison, adjusted: f64) -> Option<Judgement> {
    if adjusted > ANSWERS_ALPHA {
        return None;
    }
    let test = &comparison.answers.generated.against_reference;
    let shown = if test.shows_loss_first() {
        "too many to be chance".to_owned()
    } else {
        format!("a change of more than the margin of {}", points(comparison.criteria.margin))
    };
    let reason = format!(
        "Loading turned {} right answers wrong and {} wrong ones right among {} questions, {shown} (p = {adjusted:.2e}, \
         adjusted for all comparisons). Accuracy changes by {} \
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
    if let Some(seen) = unexplained(comparison, rung) {
        let reason = format!(
            "{seen} Runs of vLLM alone stay below half of what the suite tolerates, but they were held against each \
             other on {} pairs of answers that show what the load pass may move by, so chance could explain it.",
            comparison.near_ties.innocent.compared,
        );
        let next = "Run that question alone, over this route and by vLLM alone; give the control room (fewer sequences, more KV \
                    cache), or ask more questions.";
        return Some(Judgement::new(Verdict::Inconclusive, rung, reason, next));
    }
    let reason = "Runs of vLLM alone differ from each other by more than half of what the suite tolerates, so harm \
                  could not be told from noise.";
    let next = "Make the engine repeatable (one sequence at a time, batch-invariant kernels), or fix a wider tolerance \
                for this model before the next run.";
    Some(Judgement::new(Verdict::Inconclusive, rung, reason.to_owned(), next))
}

/// What moved too far in the load pass although runs of vLLM alone stay below half of it, where too few of those were
/// seen to call it harm.
fn unexplained(comparison: &Comparison, rung: Rung) -> Option<String> {
    let (ties, shift) = (&comparison.near_ties, &comparison.distribution);
    if rung == Rung::NearTies && !ties.is_noisy(&comparison.criteria) {
        return Some(format!(
            "{} in a token that was no near tie{}, where {} may.",
            parted(ties),
            note(ties.first.first(), |first| format!("first: {}", first.question)),
            ties.allowed,
        ));
    }
    (rung == Rung::Distribution && !shift.is_noisy(&comparison.criteria.tolerance)).then(|| {
        format!(
            "The letters' probabilities move farther than the suite allows{}.",
            note(shift.farthest.as_ref(), |question| format!("farthest: {question}")),
        )
    })
}

/// Whether what prefixes of stored prompts were served is held by anything: answers are read of whole prompts alone. With loss
/// nothing but these can decide.
fn holds_cuts(comparison: &Comparison) -> bool {
    let (asked, bits) = (comparison.exercised.cut.hits().requests, &comparison.bit_exact.cuts);
    asked == 0
        || comparison.noise_floor.fidelity == Fidelity::Lossy
        || comparison.kv.outcome == Outcome::Passed
        || (comparison.noise_floor.lets_bits_decide() && bits.compared == asked)
}

fn judge_equivalence(comparison: &Comparison) -> Judgement {
    let answers = &comparison.answers;
    let test = &answers.generated.against_baseline;
    let (asked, margin) = (test.table.pairs(), points(comparison.criteria.margin));
    let interval =
        format!("{} to {} points", signed_points(test.interval.lower), signed_points(test.interval.upper));
    let clusters = note(test.cluster_interval, |interval| {
        format!(
            "{} to {} with subjects as clusters",
            signed_points(interval.lower),
            signed_points(interval.upper)
        )
    });
    let inconclusive = |reason, next| Judgement::new(Verdict::Inconclusive, Rung::Answers, reason, next);
    if test.within_margin && !holds_cuts(comparison) {
        let asked = comparison.exercised.cut.hits().requests;
        let reason = format!(
            "Of the load pass the answers show that accuracy stays within the margin of {margin}, but {asked} prefixes of stored prompts were \
             asked, too, which neither their KV nor bits could be held against anything."
        );
        inconclusive(
            reason,
            "Ask one sequence at a time, so that bits decide, or see why the KV is not digested.",
        )
    } else if test.within_margin {
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
             {interval}{clusters}, and about {} questions are needed. No harm was found, which is not the same as none.",
            answers.questions_needed
        );
        inconclusive(reason, "Ask more questions (--subjects all), or use a backend with a control.")
    } else {
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
