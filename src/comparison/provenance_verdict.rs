//! What the provenance of the KV decides: harm alone, equivalence together with outputs that nothing speaks against.

use super::provenance::Provenance;
use super::verdict::{Judgement, Rung, Verdict};
use super::{Comparison, Fidelity, Outcome};

/// KV that is no copy of what an engine computed, or did not stay as it was, is harm whatever the answers are.
pub(super) fn judge_wrong_kv(comparison: &Comparison) -> Option<Judgement> {
    let traced = &comparison.kv;
    if traced.outcome != Outcome::Failed {
        return None;
    }
    let first = traced.first.first().map_or_else(String::new, |cell| format!(" (first: {})", cell.words()));
    let mut sentences = Vec::new();
    let wrong = traced.wrong_cells();
    if wrong > 0 {
        sentences.push(format!(
            "{wrong} of {} served cells (a chunk in a layer on a rank) hold other bytes than {} for their tokens{first}.",
            traced.served,
            match comparison.noise_floor.fidelity {
                Fidelity::Exact => "any engine computed",
                Fidelity::Lossy => "the lossy storage makes of what any engine computed",
            }
        ));
    }
    if traced.late > 0 {
        sentences.push(format!(
            "{} of them were right once their request ended: attention read them too early.",
            traced.late
        ));
    }
    if traced.changed > 0 {
        let first = if wrong > 0 { "" } else { first.as_str() };
        sentences.push(format!(
            "{} of {} computed cells changed while their request still held them{first}.",
            traced.changed, traced.computed
        ));
    }
    let next = if traced.late == wrong && traced.late > 0 {
        "Look at how the connector waits for its loads before the forward pass."
    } else if wrong > 0 {
        "Look at the map of that request: one cell, one layer, one rank or all; then bisect the revisions."
    } else {
        "Look for a load or a store that writes into blocks which another request holds."
    };
    Some(Judgement::new(Verdict::Degraded, Rung::Kv, sentences.join(" "), next))
}

/// KV that the store pass computed otherwise than the baseline, where the baseline repeats itself: storing disturbs.
pub(super) fn judge_disturbed_kv(comparison: &Comparison) -> Option<Judgement> {
    let computed = comparison.kv.as_baseline.as_ref().filter(|one| one.outcome == Outcome::Failed)?;
    let first = computed.first.first().map_or_else(String::new, |cell| format!(" First: {}.", cell.words()));
    let reason =
        format!("{}{first} Nothing was served there, so storing disturbs what is computed.", computed.words);
    let next = "Look at what the connector does around the forward pass that computes what it stores.";
    Some(Judgement::new(Verdict::Degraded, Rung::Kv, reason, next))
}

/// Every served cell is right, and no output speaks against it; whoever asks has looked at those.
pub(super) fn judge_right_kv(comparison: &Comparison) -> Option<Judgement> {
    let traced = &comparison.kv;
    // What is lost on the way, if it is lost as declared, is for the answers to judge.
    let lossy = comparison.noise_floor.fidelity == Fidelity::Lossy;
    if traced.outcome != Outcome::Passed || lossy || !comparison.criteria.kv_decides {
        return None;
    }
    let bits = match comparison.bit_exact.outcome {
        Outcome::Passed => " The log-probabilities equal those of vLLM alone, too, bit for bit.",
        Outcome::Failed | Outcome::DoesNotApply => {
            " What log-probabilities move is the engine's own arithmetic; no token and no letter moves farther than the \
             suite tolerates or runs of vLLM alone do."
        }
    };
    let reason = format!("{}{bits}", served_right(traced));
    Some(Judgement::new(Verdict::Equivalent, Rung::Kv, reason, "Nothing to do."))
}

fn served_right(traced: &Provenance) -> String {
    format!(
        "Each of {} served cells (a chunk in a layer on a rank) holds the bytes that an engine computed for its tokens, when \
         attention begins to read it and when its request ends.{}",
        traced.served,
        traced.not_held()
    )
}
