//! Rung 1: whether the load pass equals a computation without `LMCache`, bit for bit. Main type: [`BitExact`].

use std::collections::HashSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Outcome;
use super::criteria::{Criteria, PROVEN_SHARE};
use super::difference::{Parting, count, first_difference, letter_difference, part};
use super::evidence::{AskedCut, Case, CutEvidence, Fidelity};
use super::noise_floor::NoiseFloor;
use super::tally::Tally;
use crate::dataset::QuestionId;
use crate::model::Observation;

/// The load pass held against its nearest computation without `LMCache`, bit for bit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BitExact {
    /// What it amounts to. Bits that agree prove equality on any machine; bits that differ are a failure only where the
    /// noise floor [lets bits decide](super::NoiseFloor::lets_bits_decide).
    pub outcome: Outcome,
    /// Questions that were held against a control of the same shapes.
    pub against_control: Tally,
    /// Questions without such a control, held against the baseline. A difference there proves nothing: computing a
    /// suffix and computing a whole prompt need not round alike.
    pub against_baseline: Tally,
    /// The questions of `against_baseline` that differ: bits do not decide them.
    pub left_over: LeftOver,
    /// Questions that the store pass was served nothing for, held against the baseline: storing must not disturb.
    pub store_pass: Tally,
    /// Prefixes of stored prompts, held against vLLM's own prefix cache that was asked the same ones.
    #[serde(default)]
    pub cuts: Tally,
}

/// Questions that bits do not decide although they decide the others; the next rungs judge each of them.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LeftOver {
    /// How many.
    pub questions: u32,
    /// How many of them part from the baseline in a token that was no near tie.
    pub beyond_gap: u32,
    /// Largest change of a letter's log-probability, nats.
    pub letter_difference: f64,
}

/// Compares every question's bits; `otherwise` are those whose stored KV was rounded otherwise than the baseline's.
pub(super) fn compare_bits(
    cases: &[Case<'_>],
    cut: &CutEvidence,
    noise: &NoiseFloor,
    otherwise: &HashSet<&QuestionId>,
    criteria: &Criteria,
) -> BitExact {
    let tells =
        |case: &Case<'_>| noise.tells_that_stored_is_computed(case) && !otherwise.contains(&case.asked.id);
    let mut against_control = Tally::default();
    let mut against_baseline = Tally::default();
    let mut store_pass = Tally::default();
    let mut left_over = LeftOver::default();
    for case in cases {
        let (baseline, load) = (&case.baseline.observation, &case.load.observation);
        if case.store.observation.cached_tokens == 0 {
            store_pass.add(case.store_difference());
        }
        if let Some(control) = case.matched_control() {
            let difference = first_difference(&control.observation, load);
            if difference.is_none() || tells(case) {
                against_control.add(difference);
                continue;
            }
        }
        let difference = first_difference(baseline, load);
        if difference.is_some() {
            left_over.questions += 1;
            left_over.letter_difference = left_over.letter_difference.max(letter_difference(baseline, load));
            let parting = part(baseline, load, criteria.near_tie_gap);
            left_over.beyond_gap += u32::from(matches!(parting, Parting::BeyondGap { .. }));
        }
        against_baseline.add(difference);
    }
    let cuts = compare_cuts(cases, cut.asked(), tells);
    let proven = f64::from(against_control.compared + against_baseline.compared - left_over.questions);
    let lossy = noise.fidelity == Fidelity::Lossy;
    let wrong = store_pass.differing + if lossy { 0 } else { against_control.differing + cuts.differing };
    let outcome = if wrong > 0 && noise.lets_bits_decide() {
        Outcome::Failed
    } else if lossy {
        Outcome::DoesNotApply
    } else if against_control.differing + cuts.differing == 0
        && proven >= PROVEN_SHARE * f64::from(count(cases.len()))
        && f64::from(cuts.compared) >= PROVEN_SHARE * f64::from(count(cut.asked().len()))
    {
        Outcome::Passed
    } else {
        Outcome::DoesNotApply
    };
    BitExact { outcome, against_control, against_baseline, left_over, store_pass, cuts }
}

/// Holds prefixes against those controls that left the same tokens of them to compute.
fn compare_cuts(cases: &[Case<'_>], cuts: &[AskedCut], tells: impl Fn(&Case<'_>) -> bool) -> Tally {
    let mut tally = Tally::default();
    for AskedCut { observation, control, .. } in cuts {
        let shape = |one: &Observation| (one.prompt_tokens, one.cached_tokens);
        let Some(control) = control.as_ref().filter(|control| shape(control) == shape(observation)) else {
            continue;
        };
        let difference = first_difference(control, observation);
        let case = cases.iter().find(|case| case.asked.id == observation.question);
        if difference.is_none() || case.is_some_and(&tells) {
            tally.add(difference);
        }
    }
    tally
}
