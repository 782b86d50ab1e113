//! What a run can show, said before it starts. Main type: [`Plan`].

use serde::{Deserialize, Serialize};

use crate::stats::{
    cluster_factor, design_effect, detectable_loss, pairs_for_equivalence, pairs_in_clusters,
};

use super::criteria::{ANSWERS_ALPHA, Criteria, LOSS_SHARE};

/// Probability with which McNemar's test alone finds the promised loss, and with which equivalence is shown.
const POWER: f64 = 0.95;
/// Ways to exchange whole subjects that the level of the test must allow for a loss to be promised: with fewer, nearly every
/// subject would have to lose.
const FEWEST_WAYS: f64 = 32.0;

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

/// How many questions equivalence within the margin needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Needed {
    /// Questions, for 95 % probability.
    pub(super) questions: u32,
    /// Whether no number of questions from so many subjects would do; then `questions` is what would if each flip were its
    /// own.
    pub(super) more_subjects: bool,
}

/// Counts what equivalence needs at this flip rate, for subjects of these relative sizes whose flips hang together as the
/// criteria assume.
pub(super) fn count_needed(sizes: &[u32], flip_rate: f64, criteria: &Criteria) -> Needed {
    let independent = pairs_for_equivalence(criteria.margin, flip_rate, POWER);
    let clustered = pairs_in_clusters(independent, sizes, flip_rate, criteria.assumed_flip_correlation);
    Needed { questions: clustered.unwrap_or(independent), more_subjects: clustered.is_none() }
}

/// Plans a run of questions from subjects of these sizes, one of `comparisons` comparisons.
#[must_use]
pub fn plan_questions(subjects: &[u32], comparisons: u32, criteria: &Criteria) -> Plan {
    let (questions, sizes) = (subjects.iter().sum(), subjects);
    let subjects = u32::try_from(sizes.len()).unwrap_or(u32::MAX);
    let alpha = LOSS_SHARE * ANSWERS_ALPHA / f64::from(comparisons.max(1));
    let ways_allowed = alpha * 2.0_f64.powi(i32::try_from(subjects).unwrap_or(i32::MAX));
    let (flip_rate, correlation) = (criteria.assumed_flip_rate, criteria.assumed_flip_correlation);
    let factor = cluster_factor(subjects, alpha, POWER) * design_effect(sizes, flip_rate, correlation).sqrt();
    let detectable_loss = detectable_loss(questions, flip_rate, alpha, POWER)
        .map(|loss| factor * loss)
        .filter(|loss| *loss <= flip_rate && (subjects == 1 || ways_allowed >= FEWEST_WAYS));
    let Needed { questions: questions_needed, more_subjects } = count_needed(sizes, flip_rate, criteria);
    let assumed = format!("if {:.1} % of the answers flip without harm", 100.0 * flip_rate);
    let asked = format!("{questions} questions from {subjects} subjects");
    let loss = detectable_loss.map_or_else(
        || format!("{asked} show no loss but a gross one by their answers, {assumed}"),
        |loss| format!("{asked} show a loss of {:.2} points with 90 % probability, {assumed}", 100.0 * loss),
    );
    let enough = match more_subjects {
        false if questions >= questions_needed => ": enough",
        false => ": too few, unless bits decide",
        true => " and more subjects: too few, unless bits decide",
    };
    let margin = 100.0 * criteria.margin;
    let (reach, sharp) =
        (reach(questions), if criteria.kv_decides { "kv or bits decide" } else { "bits decide" });
    let words = format!(
        "{loss}. Equivalence within {margin:.2} points needs about {questions_needed} questions{enough}. Where {sharp}, {reach}."
    );
    Plan { questions, subjects, alpha, detectable_loss, questions_needed, words }
}

/// How rare a fault so many questions meet, in words: what a rung that no wrong bit escapes can show of them.
#[must_use]
pub fn reach(questions: u32) -> String {
    let rarity = rarest_met(questions);
    format!("a fault that strikes one request in {rarity} meets one of these with 95 % probability")
}

/// The largest whole N for which a fault that strikes each request with probability 1/N strikes at least one of so many with
/// probability [`POWER`]: 1 − (1 − 1/N)ⁿ ≥ 0.95.
fn rarest_met(questions: u32) -> u64 {
    let share = 1.0 - (1.0 - POWER).powf(1.0 / f64::from(questions.max(1)));
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 1 to 2^31")]
    let rarity = (1.0 / share).floor() as u64;
    rarity
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rarest_fault_that_is_met_follows_the_rule_of_three() {
        // 1 - 0.05^(1/n): Clopper and Pearson's upper limit for none of n; about 3/n.
        assert_eq!([1, 2, 64, 320].map(rarest_met), [1, 1, 21, 107]);
        for questions in 1..2000 {
            let (n, met) = (f64::from(questions), rarest_met(questions));
            #[expect(clippy::cast_precision_loss, reason = "small")]
            let probability = |rarity: u64| 1.0 - (1.0 - 1.0 / rarity as f64).powf(n);
            assert!(probability(met) >= POWER && probability(met + 1) < POWER, "{questions}");
        }
    }

    #[test]
    fn a_plan_says_what_the_questions_can_show() {
        let words = |subjects: &[u32]| plan_questions(subjects, 1, &Criteria::default()).words;
        insta::assert_snapshot!(words(&[246; 57]), @"14022 questions from 57 subjects show a loss of 0.36 points with 90 % probability, if 1.0 % of the answers flip without harm. Equivalence within 0.50 points needs about 6352 questions: enough. Where kv or bits decide, a fault that strikes one request in 4681 meets one of these with 95 % probability.");
        insta::assert_snapshot!(words(&[40; 8]), @"320 questions from 8 subjects show no loss but a gross one by their answers, if 1.0 % of the answers flip without harm. Equivalence within 0.50 points needs about 5198 questions and more subjects: too few, unless bits decide. Where kv or bits decide, a fault that strikes one request in 107 meets one of these with 95 % probability.");
    }

    #[test]
    fn sharing_a_run_costs_power() {
        let loss = |comparisons| {
            plan_questions(&[246; 57], comparisons, &Criteria::default()).detectable_loss.unwrap()
        };
        assert!(loss(1) < loss(2) && loss(2) < loss(6));
    }
}
