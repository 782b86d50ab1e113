//! What moves without `LMCache`: it says which rungs can judge this model on this machine. Main type: [`NoiseFloor`].

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::difference::{count, first_difference, nats};
use super::evidence::{Batching, Case, Fidelity};
use super::tally::Tally;

/// The baseline against its repeat and the control, and whether a control of the load pass's shapes exists.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NoiseFloor {
    /// How the engine computed.
    pub batching: Batching,
    /// In what form KV was stored; there was one form before there was a choice.
    #[serde(default)]
    pub fidelity: Fidelity,
    /// Baseline against repeat, bit for bit.
    pub repeat: Tally,
    /// What the control offers; `None` where the attention backend has none.
    pub control: Option<ControlMatch>,
    /// Baseline against control, bit for bit: what computing a suffix alone changes.
    pub prefix: Option<Tally>,
    /// What this means for the rungs, in words.
    pub words: String,
}

/// Whether vLLM's own prefix cache left the same tokens to compute as the load pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ControlMatch {
    /// Questions whose control was served exactly what the load pass must be served.
    pub matched: u32,
    /// Questions whose control must by rule be served otherwise, as where a carrier serves more than whole chunks. In reports
    /// from before the control was served whole prompts, these are those.
    pub unmatched_by_rule: u32,
    /// Questions whose control was not served what it must be.
    pub missed: u32,
}

impl NoiseFloor {
    /// Whether differing bits are a failure: the baseline repeats itself, and one sequence at a time makes sure that a
    /// request's arithmetic does not depend on the requests beside it. That a control has the baseline's bits does not: on
    /// an H100, requests that met others in every arm but one had other bits where they were alone in a batch.
    #[must_use]
    pub fn lets_bits_decide(&self) -> bool {
        self.repeat.differing == 0 && self.batching == Batching::OneAtATime
    }

    /// Whether what the store pass stored was computed in the control's shapes, or shapes do not matter here. A store pass
    /// that is itself served a prefix computes the rest in others, and stores KV that may differ in rounding.
    pub(super) fn tells_that_stored_is_computed(&self, case: &Case<'_>) -> bool {
        case.store.observation.cached_tokens == 0
            || self.prefix.as_ref().is_some_and(|prefix| prefix.differing == 0)
    }
}

/// Measures the noise floor.
pub(super) fn measure_noise(cases: &[Case<'_>], batching: Batching, fidelity: Fidelity) -> NoiseFloor {
    let mut repeat = Tally::default();
    let mut control: Option<ControlMatch> = None;
    let mut prefix: Option<Tally> = None;
    for case in cases {
        let baseline = &case.baseline.observation;
        repeat.add(first_difference(baseline, &case.repeat.observation));
        if let Some(answered) = case.control {
            prefix.get_or_insert_default().add(first_difference(baseline, &answered.observation));
            let matches = control.get_or_insert_default();
            let cached = answered.observation.cached_tokens;
            if cached == case.asked.expected.load {
                matches.matched += 1;
            } else if cached == case.asked.expected.control {
                matches.unmatched_by_rule += 1;
            } else {
                matches.missed += 1;
            }
        }
    }
    let mut noise = NoiseFloor { batching, fidelity, repeat, control, prefix, words: String::new() };
    noise.words = describe(&noise, count(cases.len()));
    noise
}

fn describe(noise: &NoiseFloor, questions: u32) -> String {
    let repeat = &noise.repeat;
    let repeats = if repeat.differing == 0 {
        format!("The baseline repeats itself bit for bit on all {questions} questions.")
    } else {
        format!(
            "The baseline does not repeat itself: {} of {questions} questions differ, by up to {} nats.",
            repeat.differing,
            nats(repeat.largest)
        )
    };
    let control = match noise.control {
        None => "There is no control: this attention backend serves nothing from vLLM's own prefix cache."
            .to_owned(),
        Some(ControlMatch { matched, unmatched_by_rule, missed }) => {
            let by_rule = match unmatched_by_rule {
                0 => String::new(),
                some => format!(
                    "; {some} cannot match by rule (the route serves other tokens of them than vLLM's own prefix cache can)"
                ),
            };
            let missed = match missed {
                0 => String::new(),
                some => format!("; {some} were not served from vLLM's own prefix cache as they must be"),
            };
            format!(
                "The control computes the load pass's shapes for {matched} of {questions} questions{by_rule}{missed}."
            )
        }
    };
    let matched = noise.control.map_or(0, |control| control.matched);
    let consequence = if noise.fidelity == Fidelity::Lossy {
        "KV is stored with loss, as the suite wants it, so the load pass may move: answers alone decide, within the margin."
    } else if noise.lets_bits_decide() && matched == questions {
        "So the load pass must equal the control bit for bit."
    } else if noise.lets_bits_decide() && matched > 0 {
        "So the load pass must equal the control bit for bit on those; on the others bits decide only where it equals the \
         baseline."
    } else if noise.lets_bits_decide() {
        "So bits decide only where the load pass equals the baseline; otherwise the statistical rungs decide."
    } else if repeat.differing == 0 {
        "Requests are computed together, and which ones meet in a batch may change the last bits, so differing bits prove \
         nothing here; unless all agree, the statistical rungs decide."
    } else {
        "So differing bits prove nothing here; unless all agree, the statistical rungs decide."
    };
    format!("{repeats} {control} {consequence}")
}
