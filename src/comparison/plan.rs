//! What a run can show, said before it starts. Main type: [`Plan`].

use serde::{Deserialize, Serialize};

use crate::stats::{cluster_factor, detectable_loss, pairs_for_equivalence};

use super::criteria::{Criteria, LOSS_ALPHA};

/// Probability with which McNemar's test alone finds the promised loss, and with which equivalence is shown.
const POWER: f64 = 0.95;
/// Subjects below which a loss that is not gross need not be found: whole subjects can be exchanged in too few ways.
const FEWEST_SUBJECTS: u32 = 8;

/// What the answers of a number of questions can show, where bits do not decide.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Questions to be asked.
    pub questions: u32,
    /// Subjects that they belong to.
    pub subjects: u32,
    /// Level of the test for a loss: the run's share of false alarms divided among its comparisons.
    pub alpha: f64,
    /// Smallest loss, a share of all questions, that is found with at least 90 % probability if questions are
    /// independent; `None` where none is promised. It is the loss that McNemar's test alone finds with 95 %, enlarged
    /// by [`cluster_factor`] for few subjects; that the test by subjects must agree costs the rest (simulated).
    pub detectable_loss: Option<f64>,
    /// Questions that equivalence within the margin needs, for 95 % probability.
    pub questions_needed: u32,
    /// All of it in words.
    pub words: String,
}

/// Plans a run of `questions` questions from `subjects` subjects, one of `comparisons` comparisons.
#[must_use]
pub fn plan_questions(questions: u32, subjects: u32, comparisons: u32, criteria: &Criteria) -> Plan {
    let alpha = LOSS_ALPHA / f64::from(comparisons.max(1));
    let flip_rate = criteria.assumed_flip_rate;
    let factor = cluster_factor(subjects, alpha, POWER);
    let detectable_loss = detectable_loss(questions, flip_rate, alpha, POWER)
        .map(|loss| factor * loss)
        .filter(|loss| *loss <= flip_rate && (subjects == 1 || subjects >= FEWEST_SUBJECTS));
    let questions_needed = pairs_for_equivalence(criteria.margin, flip_rate, POWER);
    let assumed = format!("if {:.1} % of the answers flip without harm", 100.0 * flip_rate);
    let asked = format!("{questions} questions from {subjects} subjects");
    let loss = detectable_loss.map_or_else(
        || format!("{asked} show no loss but a gross one by their answers, {assumed}"),
        |loss| format!("{asked} show a loss of {:.2} points with 90 % probability, {assumed}", 100.0 * loss),
    );
    let enough = if questions >= questions_needed { "enough" } else { "too few, unless bits decide" };
    let margin = 100.0 * criteria.margin;
    let words = format!(
        "{loss}. Equivalence within {margin:.2} points needs about {questions_needed} questions: {enough}."
    );
    Plan { questions, subjects, alpha, detectable_loss, questions_needed, words }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_says_what_the_questions_can_show() {
        let words = |questions, subjects| plan_questions(questions, subjects, 1, &Criteria::default()).words;
        insta::assert_snapshot!(words(14_042, 57), @"14042 questions from 57 subjects show a loss of 0.29 points with 90 % probability, if 1.0 % of the answers flip without harm. Equivalence within 0.50 points needs about 5198 questions: enough.");
        insta::assert_snapshot!(words(320, 8), @"320 questions from 8 subjects show no loss but a gross one by their answers, if 1.0 % of the answers flip without harm. Equivalence within 0.50 points needs about 5198 questions: too few, unless bits decide.");
    }

    #[test]
    fn sharing_a_run_costs_power() {
        let loss = |comparisons| {
            plan_questions(14_042, 57, comparisons, &Criteria::default()).detectable_loss.unwrap()
        };
        assert!(loss(1) < loss(2) && loss(2) < loss(6));
    }
}
