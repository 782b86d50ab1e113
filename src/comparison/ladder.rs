//! The rungs of the ladder down to the answers: what each decides by itself, and what to do next.

use super::difference::nats;
use super::early_stop::stopping_bound;
use super::exercised::{Exercised, ExternalHits};
use super::provenance_verdict::judge_right_kv;
use super::verdict::{Judgement, Rung, Verdict};
use super::{
    Batching, Comparison, Fidelity, NearTies, Offender, Outcome, Pass, Service, Tally, WithoutNumbers,
};

/// What a service that is not as predicted amounts to by itself.
pub(super) fn judge_service(comparison: &Comparison) -> Option<Judgement> {
    let (exercised, cache) = (&comparison.exercised, &comparison.cache);
    let (store, load) = (exercised.store, exercised.load);
    let first = note(exercised.offenders.first(), |Offender { question, cached, predicted, .. }| {
        format!("first: {question}, {cached} tokens instead of {predicted}")
    });
    let not_exercised =
        |reason, next| Some(Judgement::new(Verdict::NotExercised, Rung::Exercised, reason, next));
    match exercised.service {
        Service::AsPredicted | Service::LoadsFailed | Service::Contended => None,
        Service::NothingFailed => not_exercised(
            "Loads were to fail, and all that was stored was served.".to_owned(),
            "Make more loads fail: the description's `tier.adapter` says how many.",
        ),
        Service::NothingServed if load.predicted_tokens == 0 => not_exercised(
            format!("No prompt is as long as one chunk, so there was nothing for {cache} to serve."),
            "Choose longer prompts or a smaller chunk size.",
        ),
        Service::NothingServed => not_exercised(
            format!(
                "{cache} served not one of the {} tokens that it must serve in the load pass. The answers are those of \
                 plain vLLM and prove nothing.",
                load.predicted_tokens
            ),
            "Look for \"degraded mode\", a failed connection or differing hash seeds in the logs.",
        ),
        Service::OverServed => Some(Judgement::new(
            Verdict::Degraded,
            Rung::Exercised,
            format!(
                "The cache claimed more tokens than earlier requests had stored, for {} requests of the store pass, {} \
                 of the load pass and {} of the cut pass{first}. It serves stale KV, another request's KV, or counts wrongly.",
                store.over_served,
                load.over_served,
                exercised.cut.hits().over_served
            ),
            &hint_for(
                comparison,
                "Look at how hits are found and counted: keys, chunk boundaries, a prompt that is served whole.",
            ),
        )),
        Service::UnderServed => not_exercised(
            format!("{}{first}.", describe_missing(exercised, cache)),
            &hint_for(
                comparison,
                "Look for evictions, failed stores or failed loads in the logs; give the cache more memory if it was full.",
            ),
        ),
        Service::CountersDisagree if exercised.server.is_none() => {
            let counted = note(exercised.external.as_ref(), |external| {
                format!(
                    "store pass: {} of {} tokens, load pass: {} of {}",
                    external.store, store.cached_tokens, external.load, load.cached_tokens
                )
            });
            not_exercised(
                format!(
                    "vLLM's counter of what its connector serves tells other hits than its requests do{counted}. One of them \
                     reports what did not happen."
                ),
                "Look for loads that failed or were repeated in vLLM's log.",
            )
        }
        Service::CountersDisagree => {
            let seen = note(exercised.server.as_ref(), |server| server.disagreements().join("; "));
            not_exercised(
                format!(
                    "vLLM and the LMCache server count different hits{seen}. One of them reports what did not happen."
                ),
                "Look for loads that failed or were repeated in LMCache's log.",
            )
        }
        Service::WrongTier if exercised.server.is_none() => {
            let seen = note(exercised.external.as_ref(), ExternalHits::wrong_words);
            not_exercised(
                format!("The KV did not travel this route{seen}. The answers say nothing about it."),
                "Look in vLLM's log for what it made of the connector's settings and of its own prefix caching.",
            )
        }
        Service::WrongTier => {
            let tier = exercised.server.as_ref().and_then(|server| server.tier.as_ref());
            let seen = note(tier, |tier| {
                let wanted = tier.second_tier_at_least.map_or_else(
                    || "none was to come from behind its memory".to_owned(),
                    |at_least| {
                        format!("at least {at_least} tokens were to come from the tier `{}`", tier.name)
                    },
                );
                format!(
                    "{wanted}; the server counts {} tokens from behind its memory, in {} loads",
                    tier.second_tier_tokens, tier.second_tier_loads
                )
            });
            not_exercised(
                format!("The KV did not travel this route{seen}. The answers say nothing about it."),
                "Look for the tier's name in LMCache's log, and for whether its counters have other names in this version.",
            )
        }
    }
}

/// What the pass that was served less than predicted was served: the load pass, if that was.
fn describe_missing(exercised: &Exercised, cache: &str) -> String {
    let (load, cut) = (exercised.load, exercised.cut.hits());
    let of_cuts = load.under_served == 0 && cut.under_served > 0;
    let (pass, hits) = if of_cuts { (Pass::Cut, cut) } else { (Pass::Load, load) };
    format!(
        "{cache} served {} of {} tokens in the {}; {} of {} requests got fewer than were stored for them",
        hits.cached_tokens,
        hits.predicted_tokens,
        pass.words(),
        hits.under_served,
        hits.requests
    )
}

/// What to do about hits that were predicted otherwise. Of a connector that a file describes the prediction may be wrong.
fn hint_for(comparison: &Comparison, hint: &str) -> String {
    let of_connector = if comparison.exercised.external.is_some() {
        "Does the connector's description say in `[hits]` what it stores and serves? "
    } else {
        ""
    };
    format!("{of_connector}{hint}")
}

/// Right KV is equivalence only where no output speaks against it: outputs are still held by tokens that were no near tie, and
/// by the letters' probabilities. Where tokens were served that no digest covers, outputs must not leave it open either.
pub(super) fn judge_with_right_kv(comparison: &Comparison) -> Option<Judgement> {
    let right = judge_right_kv(comparison)?;
    let all_seen = comparison.kv.uncovered_tokens == 0;
    let speaks_against = |judgement: &Judgement| match judgement.verdict {
        Verdict::Degraded => true,
        Verdict::Inconclusive => !all_seen,
        _ => false,
    };
    let harm = judge_bit_success(comparison).filter(speaks_against);
    let harm = harm.or_else(|| judge_near_ties(comparison)).or_else(|| judge_distribution(comparison));
    Some(harm.unwrap_or(right))
}

/// Log-probabilities that are no numbers are harm, since without a cache an engine that gives such ends the run.
pub(super) fn judge_no_numbers(comparison: &Comparison) -> Option<Judgement> {
    let WithoutNumbers { answers, first } = comparison.without_numbers.as_ref()?;
    let reason = format!(
        "The log-probabilities of {answers} answers of vLLM with a cache are no numbers (first: {first}), and all that it \
         computes alone are."
    );
    let next = "Look at the KV that was served for that question: bytes of another data type or another place do that.";
    Some(Judgement::new(Verdict::Degraded, Rung::Distribution, reason, next))
}

pub(super) fn judge_bit_failure(comparison: &Comparison) -> Option<Judgement> {
    let bits = &comparison.bit_exact;
    if bits.outcome != Outcome::Failed {
        return None;
    }
    let exact = comparison.noise_floor.fidelity == Fidelity::Exact;
    let (pass, tally, reference) = if exact && bits.against_control.differing > 0 {
        ("load pass", &bits.against_control, "the control, which computes the same shapes by vLLM alone")
    } else if exact && bits.cuts.differing > 0 {
        ("cut pass", &bits.cuts, "the control, which computes the same prefixes of prompts by vLLM alone")
    } else {
        ("store pass", &bits.store_pass, "the baseline, although nothing was served from the cache")
    };
    let disjoint = note((tally.disjoint > 0).then_some(tally.disjoint), |disjoint| {
        format!("{disjoint} share no likely token")
    });
    let reason = format!(
        "The {pass} differs from {reference}: in {} of {} questions, by up to {} nats{disjoint}{}. The baseline \
         repeats itself bit for bit, so this is no noise.",
        tally.differing,
        tally.compared,
        nats(tally.largest),
        first_differing(tally),
    );
    let next = "The KV that was stored or loaded for that question is wrong: run it alone, then bisect the revisions.";
    Some(Judgement::new(Verdict::Degraded, Rung::BitExact, reason, next))
}

pub(super) fn judge_gross_harm(comparison: &Comparison) -> Option<Judgement> {
    let scoring = &comparison.answers.generated;
    let test = &scoring.against_baseline;
    let stopped = comparison.early_stop;
    if stopped.is_none() && test.e_value < stopping_bound(comparison.comparisons) {
        return None;
    }
    let (evidence, harms, gains) = stopped
        .map_or((test.e_value, test.table.harms, test.table.gains), |stop| {
            (stop.e_value, stop.harms, stop.gains)
        });
    let when = note(stopped, |stop| format!("the run stopped after {} questions", stop.pairs));
    let control = scoring.control_noise.map_or_else(String::new, |control| {
        format!(" vLLM's own prefix cache alone turned {} wrong and {} right.", control.harms, control.gains)
    });
    let reason = format!(
        "Loading turned {harms} right answers wrong and {gains} wrong ones right; the evidence for harm is \
         {evidence:.3e}{when}.{control}"
    );
    let next = "Look at the listed flips; if the control loses as much, look at vLLM's prefix caching first.";
    Some(Judgement::new(Verdict::Degraded, Rung::EarlyStop, reason, next))
}

pub(super) fn judge_bit_success(comparison: &Comparison) -> Option<Judgement> {
    let bits = &comparison.bit_exact;
    if bits.outcome != Outcome::Passed {
        return None;
    }
    let left = bits.left_over;
    if comparison.near_ties.cuts.beyond_gap > 0 {
        return Some(judge_cuts_left_over(comparison));
    }
    if left.beyond_gap > 0 || left.letter_difference > comparison.criteria.tolerance.letter_difference {
        return Some(judge_left_over(comparison));
    }
    let mut sentences = Vec::new();
    if bits.against_control.compared > 0 {
        sentences.push(format!(
            "The load pass equals the control bit for bit on all {} questions with equal shapes.",
            bits.against_control.compared
        ));
    }
    let as_baseline = bits.against_baseline.compared - bits.against_baseline.differing;
    if as_baseline > 0 {
        sentences
            .push(format!("It equals the baseline bit for bit on {as_baseline} without a matching control."));
    }
    if left.questions > 0 {
        sentences.push(format!(
            "{} more differ from the baseline, within the tolerance (letters by up to {} nats).",
            left.questions,
            nats(left.letter_difference)
        ));
    }
    Some(Judgement::new(Verdict::Equivalent, Rung::BitExact, sentences.join(" "), "Nothing to do."))
}

/// Prompts without a matching control that moved too far although all others are bit-exact.
fn judge_left_over(comparison: &Comparison) -> Judgement {
    let bits = &comparison.bit_exact;
    let left = bits.left_over;
    let moved = format!(
        "{} prompts have no matching control and differ from the baseline: {} in a token that was no near tie, letters by \
         up to {} nats{}.",
        left.questions,
        left.beyond_gap,
        nats(left.letter_difference),
        first_differing(&bits.against_baseline),
    );
    let rung = if left.beyond_gap > 0 { Rung::NearTies } else { Rung::Distribution };
    let next = "Look at prompts that are served whole: the last token's KV, or a count that is off by one.";
    judge_moved(comparison, rung, &moved, next)
}

/// Prefixes of stored prompts that bits do not hold and that part from what vLLM alone made of them, although all that bits hold
/// is bit-exact: of what these hold no prefix parts anywhere.
fn judge_cuts_left_over(comparison: &Comparison) -> Judgement {
    let ties = &comparison.near_ties;
    let first = ties.first.iter().find(|parted| parted.pass == Pass::Cut);
    let moved = format!(
        "{} of {} prefixes of stored prompts part from what vLLM alone makes of them in a token that was no near tie{}, and bits \
         cannot be held against anything there.",
        ties.cuts.beyond_gap,
        ties.cuts.compared,
        note(first, |first| format!("first: {}, generated token {}", first.question, first.token + 1)),
    );
    let next = "Ask that prefix alone, over this route and by vLLM alone, and compare log-probabilities.";
    judge_moved(comparison, Rung::NearTies, &moved, next)
}

/// What it amounts to that answers which bits do not hold moved too far although all others are bit-exact.
fn judge_moved(comparison: &Comparison, rung: Rung, moved: &str, look: &str) -> Judgement {
    let criteria = &comparison.criteria;
    let observed = comparison.near_ties.innocent.compared;
    if comparison.near_ties.is_noisy(criteria) || comparison.distribution.is_noisy(&criteria.tolerance) {
        let reason = format!("{moved} Runs of vLLM alone move as far, so this decides nothing.");
        let next = "Leave out prompts that the control is not served as the load pass is.";
        Judgement::new(Verdict::Inconclusive, rung, reason, next)
    } else if !noise_was_seen(comparison) {
        let reason = format!(
            "{moved} What runs of vLLM alone move by was seen on {observed} pairs of answers only, so this decides nothing."
        );
        let next = "Ask one sequence at a time, or give the control room: more KV cache for vLLM.";
        Judgement::new(Verdict::Inconclusive, rung, reason, next)
    } else {
        let reason = format!("{moved} All others are bit-exact.");
        Judgement::new(Verdict::Degraded, rung, reason, look)
    }
}

/// Whether enough was seen of what innocent runs move by to hold it against single prompts. One sequence at a time it is the same each
/// time; together, chance decides which runs move, and there must be more events than it gives.
fn noise_was_seen(comparison: &Comparison) -> bool {
    let (ties, shift) = (&comparison.near_ties, &comparison.distribution);
    match comparison.noise_floor.batching {
        Batching::OneAtATime => ties.innocent.compared >= comparison.questions,
        Batching::Together => [ties.outcome, shift.outcome].contains(&Outcome::Failed),
    }
}

pub(super) fn judge_near_ties(comparison: &Comparison) -> Option<Judgement> {
    let ties = &comparison.near_ties;
    if ties.outcome != Outcome::Failed {
        return None;
    }
    let reason = format!(
        "{} in a token that was no near tie, where {} may{}. Runs of vLLM alone do so half as often at most.",
        parted(ties),
        ties.allowed,
        note(ties.first.first(), |first| format!(
            "first: {}, {}, generated token {}",
            first.question,
            first.pass.words(),
            first.token + 1
        )),
    );
    let next = "Run the first such question alone, over this route and by vLLM alone, and compare log-probabilities.";
    Some(Judgement::new(Verdict::Degraded, Rung::NearTies, reason, next))
}

/// How many part from their references, prefixes told where there are such.
pub(super) fn parted(ties: &NearTies) -> String {
    let prefixes = match ties.cuts.compared {
        0 => String::new(),
        compared => format!(" and {} of {compared} prefixes of stored prompts", ties.cuts.beyond_gap),
    };
    let NearTies { load, .. } = ties;
    format!("{} of {} questions{prefixes} part from the reference", load.beyond_gap, load.compared)
}

pub(super) fn judge_distribution(comparison: &Comparison) -> Option<Judgement> {
    let shift = &comparison.distribution;
    if shift.outcome != Outcome::Failed {
        return None;
    }
    let (load, tolerance) = (shift.load, &comparison.criteria.tolerance);
    let reason = format!(
        "The letters' probabilities move farther than the suite allows: mean divergence {} of {} nats, a letter \
         by {} of {} nats, {:.2} % of first tokens of {:.2} %{}. Runs of vLLM alone stay below half of that.",
        nats(load.mean_divergence),
        nats(tolerance.mean_divergence),
        nats(load.letter_difference),
        nats(tolerance.letter_difference),
        100.0 * load.flip_rate(),
        100.0 * tolerance.flip_rate,
        note(shift.farthest.as_ref(), |question| format!("farthest: {question}")),
    );
    let next =
        "Run the farthest question alone, over this route and by vLLM alone, and compare log-probabilities.";
    Some(Judgement::new(Verdict::Degraded, Rung::Distribution, reason, next))
}

/// The first differing question of a tally, as a remark in parentheses.
fn first_differing(tally: &Tally) -> String {
    note(tally.first.first(), |first| {
        format!("first: {}, generated token {}", first.question, first.token + 1)
    })
}

/// A remark in parentheses with a space before it, where there is one to make.
pub(super) fn note<Subject>(subject: Option<Subject>, remark: impl FnOnce(Subject) -> String) -> String {
    subject.map_or_else(String::new, |subject| format!(" ({})", remark(subject)))
}
