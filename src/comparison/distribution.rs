//! Rung 3: how far the probabilities of the four letters move. Main type: [`Distribution`].

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::dataset::QuestionId;
use crate::model::Observation;
use crate::stats::upper_bound;

use super::Outcome;
use super::criteria::{CONFIDENCE, NOISE_SHARE, Tolerance};
use super::difference::letter_difference;
use super::evidence::Case;

/// How far the first token's distribution moves, for the load pass and for runs without `LMCache`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Distribution {
    /// What it amounts to.
    pub outcome: Outcome,
    /// The load pass against its reference: the matched control, else the baseline.
    pub load: Shift,
    /// The repeat against the baseline.
    pub repeat: Shift,
    /// The control against the baseline.
    pub control: Option<Shift>,
    /// The question whose letters move most in the load pass, if any moves.
    pub farthest: Option<QuestionId>,
}

/// How far one run's first tokens lie from another's.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Shift {
    /// Questions compared.
    pub compared: u32,
    /// Mean Kullback–Leibler divergence from the reference over the four letters, their sum scaled to 1, nats.
    pub mean_divergence: f64,
    /// The largest such divergence, nats.
    pub largest_divergence: f64,
    /// Largest change of a letter's log-probability, nats.
    pub letter_difference: f64,
    /// Questions whose first generated token differs.
    pub first_token_flips: u32,
    /// Exact 95 % upper bound of the share of such questions.
    pub flip_rate_at_most: f64,
}

/// Measures every question's shift.
pub(super) fn measure_shifts(cases: &[Case<'_>], tolerance: &Tolerance) -> Distribution {
    let mut load = Shift::default();
    let mut repeat = Shift::default();
    let mut control: Option<Shift> = None;
    let mut farthest = None;
    for case in cases {
        let baseline = &case.baseline.observation;
        if load.add(&case.reference().observation, &case.load.observation) {
            farthest = Some(&case.asked.id);
        }
        repeat.add(baseline, &case.repeat.observation);
        if let Some(answered) = case.control {
            control.get_or_insert_default().add(baseline, &answered.observation);
        }
    }
    let (load, repeat, control) = (load.finish(), repeat.finish(), control.map(Shift::finish));
    let innocent = [Some(repeat), control].into_iter().flatten();
    let outcome = if innocent.into_iter().any(|shift| shift.exceeds(tolerance, NOISE_SHARE)) {
        Outcome::DoesNotApply
    } else if load.exceeds(tolerance, 1.0) {
        Outcome::Failed
    } else {
        Outcome::Passed
    };
    Distribution { outcome, load, repeat, control, farthest: farthest.cloned() }
}

impl Shift {
    /// Notes one question; says whether it lies farther off than all before. Until [`finish`](Self::finish) the mean
    /// holds a sum.
    fn add(&mut self, reference: &Observation, other: &Observation) -> bool {
        let divergence = letter_divergence(&reference.letters, &other.letters);
        let farther = divergence > self.largest_divergence;
        self.compared += 1;
        self.mean_divergence += divergence;
        self.largest_divergence = self.largest_divergence.max(divergence);
        self.letter_difference = self.letter_difference.max(letter_difference(reference, other));
        let first = |observation: &Observation| observation.steps.first().map(|step| step.chosen.token);
        self.first_token_flips += u32::from(first(reference) != first(other));
        farther
    }

    fn finish(self) -> Self {
        Self {
            mean_divergence: self.mean_divergence / f64::from(self.compared.max(1)),
            flip_rate_at_most: upper_bound(self.first_token_flips, self.compared, CONFIDENCE),
            ..self
        }
    }

    /// Share of questions whose first generated token differs.
    #[must_use]
    pub fn flip_rate(self) -> f64 {
        f64::from(self.first_token_flips) / f64::from(self.compared.max(1))
    }

    /// Whether any measure exceeds `share` of its tolerance.
    fn exceeds(self, tolerance: &Tolerance, share: f64) -> bool {
        self.mean_divergence > share * tolerance.mean_divergence
            || self.letter_difference > share * tolerance.letter_difference
            || self.flip_rate() > share * tolerance.flip_rate
    }
}

/// Kullback–Leibler divergence Σ p·ln(p/q) between two distributions over the letters, each scaled to sum to 1; nats.
fn letter_divergence(reference: &[f64; 4], other: &[f64; 4]) -> f64 {
    let (reference, other) = (scaled(reference), scaled(other));
    let sum: f64 = reference.iter().zip(other).map(|(p, q)| p.exp() * (p - q)).sum();
    sum.max(0.0)
}

/// Log-probabilities shifted so that the probabilities sum to 1.
fn scaled(letters: &[f64; 4]) -> [f64; 4] {
    let largest = letters.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total = largest + letters.iter().map(|letter| (letter - largest).exp()).sum::<f64>().ln();
    letters.map(|letter| letter - total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_matches_a_value_by_hand() {
        // ½·ln 2 + ¼·ln 1 + ⅛·ln ½ + ⅛·ln ½ = ¼·ln 2 for (½, ¼, ⅛, ⅛) against (¼, ¼, ¼, ¼), whatever the scale.
        let reference = [0.5_f64, 0.25, 0.125, 0.125].map(|share| (0.3 * share).ln());
        let even = [0.01_f64.ln(); 4];
        assert!((letter_divergence(&reference, &even) - 0.25 * 2.0_f64.ln()).abs() < 1e-12);
        assert!(letter_divergence(&reference, &reference).abs() < 1e-15);
    }

    #[test]
    fn letters_too_unlikely_for_a_double_do_no_harm() {
        let divergence = letter_divergence(&[-0.1, -900.0, -2.5, -1000.0], &[-0.1, -950.0, -2.5, -990.0]);
        assert!(divergence.abs() < 1e-12, "{divergence}");
    }
}
