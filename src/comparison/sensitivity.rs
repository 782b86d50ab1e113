//! Whether what a model answers moves when KV that it is served changes: without that, neither equal bits nor equal answers
//! say anything of the KV. Main type: [`Sensitivity`].

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::dataset::QuestionId;
use crate::model::{SpoiltAnswers, SpoiltProbe};

use super::difference::{first_difference, letter_difference, nats};
use super::verdict::{Judgement, Rung, Verdict};
use super::{Comparison, Outcome};

/// What one request shows that was answered three times by itself in the engine under test, the third time with a served
/// chunk of its KV set to zero before attention read it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sensitivity {
    /// Passed where the spoilt KV moved the answer by more than asking again does, failed where it did not; it does not
    /// apply where that could not be seen.
    pub outcome: Outcome,
    /// Which question.
    pub question: Option<QuestionId>,
    /// Which chunk of its prompt was spoilt, from 0.
    pub chunk: u32,
    /// Cells that were set to zero: the chunk in a layer on a rank.
    pub cells: u32,
    /// Largest change of a letter's log-probability with spoilt KV, nats.
    pub moved: f64,
    /// The same of asking again without any change.
    pub noise: f64,
    /// What was seen, in words.
    pub words: String,
}

/// Looks at what a probe showed; `None` where planted faults tell it by themselves.
pub(super) fn measure_sensitivity(probe: Option<&SpoiltProbe>) -> Sensitivity {
    match probe {
        None => Sensitivity::without(Outcome::Passed, "The faults that are planted show it.".to_owned()),
        Some(SpoiltProbe::NotAsked { reason }) => Sensitivity::without(Outcome::DoesNotApply, reason.clone()),
        Some(SpoiltProbe::Asked(answers)) => Sensitivity::of(answers),
    }
}

/// Of the probes of two parts of a run the one that stands for the whole: answers must be seen to feel their KV in each part, and
/// where all do it is that of the first question.
pub(super) fn worse_probe(one: Option<SpoiltProbe>, other: Option<SpoiltProbe>) -> Option<SpoiltProbe> {
    let rank = |probe: &Option<SpoiltProbe>| {
        let seen = measure_sensitivity(probe.as_ref());
        let outcome = match seen.outcome {
            Outcome::Failed => 0,
            Outcome::DoesNotApply => 1,
            Outcome::Passed => 2,
        };
        (outcome, seen.question)
    };
    if rank(&other) < rank(&one) { other } else { one }
}

impl Sensitivity {
    /// Reports from before answers were asked with spoilt KV have none.
    pub(super) fn not_observed() -> Self {
        Self::without(Outcome::DoesNotApply, "Nobody looked at it then.".to_owned())
    }

    fn without(outcome: Outcome, words: String) -> Self {
        Self { outcome, question: None, chunk: 0, cells: 0, moved: 0.0, noise: 0.0, words }
    }

    fn of(answers: &SpoiltAnswers) -> Self {
        let SpoiltAnswers { chunk, cells, alone, again, spoilt } = answers;
        let seen = Self {
            outcome: Outcome::DoesNotApply,
            question: Some(alone.question.clone()),
            chunk: *chunk,
            cells: *cells,
            moved: letter_difference(alone, spoilt),
            noise: letter_difference(alone, again),
            words: String::new(),
        };
        if *cells == 0 || alone.cached_tokens == 0 || alone.cached_tokens != spoilt.cached_tokens {
            let words = format!(
                "Of {} no chunk could be spoilt: it was served {} tokens, then {}, and {cells} cells were set to zero.",
                alone.question, alone.cached_tokens, spoilt.cached_tokens
            );
            return Self { words, ..seen };
        }
        let repeats = first_difference(alone, again).is_none();
        let moves = first_difference(alone, spoilt).is_some();
        let outcome =
            if moves && (repeats || seen.moved > seen.noise) { Outcome::Passed } else { Outcome::Failed };
        let found = match (moves, repeats) {
            (false, _) => "no bit of its answer moves".to_owned(),
            (true, true) => format!("its letters move by up to {} nats", nats(seen.moved)),
            (true, false) => format!(
                "its letters move by up to {} nats, and by up to {} without any change",
                nats(seen.moved),
                nats(seen.noise)
            ),
        };
        let words =
            format!("With chunk {} of {} at zero ({cells} cells), {found}.", chunk + 1, alone.question);
        Self { outcome, words, ..seen }
    }
}

/// A judgement that finds nothing wrong, held against whether this model's answers could have told: where they do not feel their
/// KV it is *insensitive*, and without having seen that they do nothing is *equivalent*.
pub(super) fn require_sensitivity(comparison: &Comparison, judgement: Judgement) -> Judgement {
    let sensitivity = &comparison.sensitivity;
    match (judgement.verdict, sensitivity.outcome) {
        (Verdict::Equivalent | Verdict::Inconclusive, Outcome::Failed) => Judgement::new(
            Verdict::Insensitive,
            Rung::Faults,
            format!(
                "This model's answers do not feel the KV that they are served, so wrong KV would pass. {}",
                sensitivity.words
            ),
            "Use trained weights, and look at whether vLLM reads what the connector loads.",
        ),
        (Verdict::Equivalent, Outcome::DoesNotApply) => Judgement::new(
            Verdict::Inconclusive,
            Rung::Faults,
            format!(
                "{} Whether this model's answers feel the KV that they are served was not seen, though: {}",
                judgement.reason, sensitivity.words
            ),
            "Use a version of vLLM and a model whose KV can be reached.",
        ),
        _ => judgement,
    }
}
