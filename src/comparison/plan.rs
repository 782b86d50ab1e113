//! What a run can show, said before it starts. Main type: [`Plan`].

use serde::{Deserialize, Serialize};

use crate::stats::{
    cluster_factor, design_effect, detectable_loss, pairs_for_equivalence, pairs_in_clusters,
};

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
    /// Smallest loss, a share of all questions, that is found with at least 90 % probability, also if the flips of a subject
    /// hang together as assumed; `None` where none is promised. It is the loss that McNemar's test alone finds with 95 %,
    /// enlarged by [`cluster_factor`] for few subjects and by the root of [`design_effect`] for flips that hang
    /// together; that the test by subjects must agree costs the rest (simulated).
    pub detectable_loss: Option<f64>,
    /// Questions that equivalence within the margin needs, for 95 % probability, if the flips of a subject hang together
    /// as assumed; where no number of questions from so many subjects would do, those that are needed if each flip is its own.
    pub questions_needed: u32,
    /// All of it in words.
    pub words: String,
}

/// Plans a run of questions from subjects of these sizes, one of `comparisons` comparisons.
#[must_use]
pub fn plan_questions(subjects: &[u32], comparisons: u32, criteria: &Criteria) -> Plan {
    let (questions, sizes) = (subjects.iter().sum(), subjects);
    let subjects = u32::try_from(sizes.len()).unwrap_or(u32::MAX);
    let alpha = LOSS_ALPHA / f64::from(comparisons.max(1));
    let (flip_rate, correlation) = (criteria.assumed_flip_rate, criteria.assumed_flip_correlation);
    let factor = cluster_factor(subjects, alpha, POWER) * design_effect(sizes, flip_rate, correlation).sqrt();
    let detectable_loss = detectable_loss(questions, flip_rate, alpha, POWER)
        .map(|loss| factor * loss)
        .filter(|loss| *loss <= flip_rate && (subjects == 1 || subjects >= FEWEST_SUBJECTS));
    let independent = pairs_for_equivalence(criteria.margin, flip_rate, POWER);
    let clustered = pairs_in_clusters(independent, sizes, flip_rate, correlation);
    let questions_needed = clustered.unwrap_or(independent);
    let assumed = format!("if {:.1} % of the answers flip without harm", 100.0 * flip_rate);
    let asked = format!("{questions} questions from {subjects} subjects");
    let loss = detectable_loss.map_or_else(
        || format!("{asked} show no loss but a gross one by their answers, {assumed}"),
        |loss| format!("{asked} show a loss of {:.2} points with 90 % probability, {assumed}", 100.0 * loss),
    );
    let enough = match clustered {
        Some(needed) if questions >= needed => ": enough",
        Some(_) => ": too few, unless bits decide",
        None => " and more subjects: too few, unless bits decide",
    };
    let margin = 100.0 * criteria.margin;
    let words = format!(
        "{loss}. Equivalence within {margin:.2} points needs about {questions_needed} questions{enough}."
    );
    Plan { questions, subjects, alpha, detectable_loss, questions_needed, words }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_says_what_the_questions_can_show() {
        let words = |subjects: &[u32]| plan_questions(subjects, 1, &Criteria::default()).words;
        insta::assert_snapshot!(words(&[246; 57]), @"14022 questions from 57 subjects show a loss of 0.35 points with 90 % probability, if 1.0 % of the answers flip without harm. Equivalence within 0.50 points needs about 6352 questions: enough.");
        insta::assert_snapshot!(words(&[40; 8]), @"320 questions from 8 subjects show no loss but a gross one by their answers, if 1.0 % of the answers flip without harm. Equivalence within 0.50 points needs about 5198 questions and more subjects: too few, unless bits decide.");
    }

    #[test]
    fn sharing_a_run_costs_power() {
        let loss = |comparisons| {
            plan_questions(&[246; 57], comparisons, &Criteria::default()).detectable_loss.unwrap()
        };
        assert!(loss(1) < loss(2) && loss(2) < loss(6));
    }
}
