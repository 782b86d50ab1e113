//! The comparison question by question and subject by subject, for plots and tables; judges nothing. Main types:
//! [`QuestionMovement`], [`SubjectScore`].

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::dataset::{QuestionId, Subject};
use crate::model::Observation;
use crate::stats::PairOutcome;

use super::answers::pair_predictions;
use super::difference::{first_difference, letter_difference};
use super::evidence::Case;

/// How far one question's log-probabilities move.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct QuestionMovement {
    /// Which question.
    pub question: QuestionId,
    /// Length of its prompt in tokens.
    pub prompt_tokens: u32,
    /// Tokens of it that `LMCache` served in the load pass.
    pub served_tokens: u32,
    /// Whether the control left the same tokens to compute; the load pass is held against the baseline otherwise.
    pub matched: bool,
    /// Largest difference of a log-probability between the load pass and its reference, nats; see [`movement`].
    pub load: f64,
    /// The same between control and baseline: what vLLM's own prefix cache moves. `None` without a control.
    pub control: Option<f64>,
}

/// The answers to one subject's questions, as generated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SubjectScore {
    /// Which subject.
    pub subject: Subject,
    /// Questions compared.
    pub questions: u32,
    /// Right answers of the baseline.
    pub baseline_right: u32,
    /// Right answers of the load pass.
    pub load_right: u32,
    /// Questions that only the baseline got right.
    pub harms: u32,
    /// Questions that only the load pass got right.
    pub gains: u32,
    /// Questions whose letter changed, right or wrong.
    pub flips: u32,
    /// Largest movement of a question in the load pass, nats.
    pub largest: f64,
}

/// One movement a question, in the order of the cases.
pub(super) fn measure_movements(cases: &[Case<'_>]) -> Vec<QuestionMovement> {
    cases
        .iter()
        .map(|case| {
            let load = &case.load.observation;
            QuestionMovement {
                question: case.asked.id.clone(),
                prompt_tokens: case.asked.expected.prompt_tokens,
                served_tokens: load.cached_tokens,
                matched: case.matched_control().is_some(),
                load: movement(&case.reference().observation, load),
                control: case
                    .control
                    .map(|control| movement(&case.baseline.observation, &control.observation)),
            }
        })
        .collect()
}

/// Largest difference of a log-probability at the first generated token that differs, and over the letters; nats. 0 when
/// all bits agree. Answers that list no token in common have only the letters to compare.
fn movement(reference: &Observation, other: &Observation) -> f64 {
    let letters = letter_difference(reference, other);
    let first = first_difference(reference, other);
    first.and_then(|difference| difference.largest).map_or(letters, |largest| largest.max(letters))
}

/// One score a subject, in the order of the cases, which is by subject. `movements` are those of the same cases.
pub(super) fn score_subjects(cases: &[Case<'_>], movements: &[QuestionMovement]) -> Vec<SubjectScore> {
    let mut scores: Vec<SubjectScore> = Vec::new();
    for (case, movement) in cases.iter().zip(movements) {
        let subject = &case.asked.id.subject;
        if scores.last().is_none_or(|score| score.subject != *subject) {
            scores.push(SubjectScore {
                subject: subject.clone(),
                questions: 0,
                baseline_right: 0,
                load_right: 0,
                harms: 0,
                gains: 0,
                flips: 0,
                largest: 0.0,
            });
        }
        let Some(score) = scores.last_mut() else { continue };
        let (published, baseline, load) = (case.asked.answer, case.baseline.answer, case.load.answer);
        let outcome = pair_predictions(published, baseline, load);
        score.questions += 1;
        score.baseline_right += u32::from(baseline == Some(published));
        score.load_right += u32::from(load == Some(published));
        score.harms += u32::from(outcome == PairOutcome::Harm);
        score.gains += u32::from(outcome == PairOutcome::Gain);
        score.flips += u32::from(baseline != load);
        score.largest = score.largest.max(movement.load);
    }
    scores
}

#[cfg(test)]
mod tests {
    use super::super::scene::{Scene, say};
    use super::super::{ArmName, Criteria, compare};
    use crate::dataset::Choice;

    #[test]
    fn a_moved_question_shows_in_its_row_and_in_its_subject() {
        let mut scene = Scene::new(6, 2, 1.0);
        scene.edit(ArmName::Load, 3, |observation| observation.letters[0] -= 0.25);
        let moved = scene.questions[3].id.clone();
        let comparison = compare(&scene.evidence(), &Criteria::default()).unwrap();
        let rows: Vec<_> = comparison.by_question.iter().filter(|row| row.load != 0.0).collect();
        assert_eq!(rows.len(), 1);
        assert_eq!((&rows[0].question, rows[0].load, rows[0].matched), (&moved, 0.25, true));
        assert_eq!((rows[0].prompt_tokens, rows[0].served_tokens, rows[0].control), (603, 512, Some(0.0)));
        let largest: Vec<f64> = comparison.by_subject.iter().map(|score| score.largest).collect();
        assert_eq!(largest, [0.0, 0.25]);
    }

    #[test]
    fn subjects_add_up_to_the_whole() {
        let mut scene = Scene::new(40, 3, 0.8);
        scene.edit_all(ArmName::Load, |number, observation| {
            if number % 5 == 0 {
                say(observation, Choice::ALL[number % 4]);
            }
        });
        let comparison = compare(&scene.evidence(), &Criteria::default()).unwrap();
        let sum =
            |count: fn(&super::SubjectScore) -> u32| comparison.by_subject.iter().map(count).sum::<u32>();
        let scoring = &comparison.answers.generated;
        assert_eq!(sum(|score| score.questions), comparison.questions);
        assert_eq!(sum(|score| score.baseline_right), scoring.baseline.right);
        assert_eq!(sum(|score| score.load_right), scoring.load.right);
        let table = scoring.against_baseline.table;
        assert_eq!((sum(|score| score.harms), sum(|score| score.gains)), (table.harms, table.gains));
        assert_eq!(sum(|score| score.flips) as usize, comparison.answers.flips.len());
        assert!(sum(|score| score.flips) > 0);
    }
}
