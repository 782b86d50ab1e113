//! What a suite fixes before a run, and the levels that this program fixes for every suite. Main type: [`Criteria`].

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Chance, over all comparisons that a run plans and given no effect, that the tests of the answers at the end find a loss,
/// or a change beyond the margin. With [`TOLERANCE_ALPHA`] and [`EARLY_STOP_ALPHA`] it makes 5 %, spent whether or not a
/// run may stop early.
pub const ANSWERS_ALPHA: f64 = 0.04;
/// Part of [`ANSWERS_ALPHA`] that is spent on a loss; the rest is spent on a change beyond the margin.
pub const LOSS_SHARE: f64 = 0.9;
/// Chance, over all comparisons that a run plans and given runs without `LMCache` that are as noisy, that a count of rare
/// events fails: partings beyond the gap, flips of first tokens. Each of the two has half.
pub const TOLERANCE_ALPHA: f64 = 0.009;
/// Chance, over all comparisons that a run plans and given no effect, that the test after each pair ever finds a loss.
pub const EARLY_STOP_ALPHA: f64 = 0.001;
/// Correlation between the directions of two flips of one subject up to which [`EARLY_STOP_ALPHA`] is kept.
pub(super) const FLIP_CORRELATION: f64 = 0.2;
/// Confidence of the interval that must lie within the margin: two one-sided tests at 5 %.
pub(super) const EQUIVALENCE_CONFIDENCE: f64 = 0.9;
/// Confidence of every interval and bound that only informs, and of the test that a model is above chance.
pub(super) const CONFIDENCE: f64 = 0.95;
/// A model must beat guessing by so many margins: a fault that spoils one question in so many then costs a margin.
pub(super) const MARGINS_ABOVE_GUESSING: f64 = 10.0;
/// The largest margin with which a model can beat guessing among four by so many margins.
pub(crate) const MOST_MARGIN: f64 = (1.0 - 0.25) / MARGINS_ABOVE_GUESSING;
/// The bit-exact rung shows equivalence when at least this share of the questions was held against it.
pub(super) const PROVEN_SHARE: f64 = 0.9;
/// A tolerance can judge only where two runs without `LMCache` use at most this share of it.
pub(super) const NOISE_SHARE: f64 = 0.5;
/// How many questions a list of first offenders names.
pub(super) const NAMED_OFFENDERS: usize = 10;

/// What a suite fixes before the run; nothing here is ever adapted to the run that it judges.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Criteria {
    /// Largest difference in accuracy, as a share of all questions, that counts as none. 0.005 is half a point.
    pub margin: f64,
    /// Share of questions expected to flip between two innocent runs; plans the number of questions, judges nothing.
    pub assumed_flip_rate: f64,
    /// Correlation expected between the directions of two flips of one subject, innocent or not: 0 if each flip is its
    /// own, 1 if a subject's flips are all harms or all gains. Plans the number of questions, judges nothing.
    pub assumed_flip_correlation: f64,
    /// Nats between the chosen token and the runner-up within which they may change places. The default is two steps
    /// of bfloat16 at logits from 16 to 32: each of the two may be rounded by one.
    pub near_tie_gap: f64,
    /// Whether right KV makes a comparison *equivalent*, where no output speaks against it. If not, bits or answers must
    /// show it; wrong KV is *degraded* all the same.
    pub kv_decides: bool,
    /// How far the load pass may move where bits cannot decide.
    pub tolerance: Tolerance,
}

/// Limits for what moves between a reference and the load pass.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Tolerance {
    /// Share of questions whose first differing token was no near tie.
    pub beyond_gap_rate: f64,
    /// Mean Kullback–Leibler divergence over the four letters, nats.
    pub mean_divergence: f64,
    /// Largest change of a letter's log-probability, nats.
    pub letter_difference: f64,
    /// Share of questions whose first generated token differs.
    pub flip_rate: f64,
}

impl Default for Criteria {
    fn default() -> Self {
        Self {
            margin: 0.005,
            assumed_flip_rate: 0.01,
            assumed_flip_correlation: 0.2,
            near_tie_gap: 0.25,
            kv_decides: true,
            tolerance: Tolerance::default(),
        }
    }
}

impl Default for Tolerance {
    fn default() -> Self {
        Self { beyond_gap_rate: 0.001, mean_divergence: 0.01, letter_difference: 1.0, flip_rate: 0.02 }
    }
}

impl Criteria {
    /// The name of the first field whose value makes no sense, if any.
    pub(crate) fn first_absurd_field(&self) -> Option<&'static str> {
        let share = |value: f64| (0.0..1.0).contains(&value);
        let size = |value: f64| value.is_finite() && value >= 0.0;
        [
            ("margin", self.margin > 0.0 && self.margin <= MOST_MARGIN),
            ("assumed_flip_rate", share(self.assumed_flip_rate)),
            ("assumed_flip_correlation", share(self.assumed_flip_correlation)),
            ("near_tie_gap", size(self.near_tie_gap)),
            ("tolerance.beyond_gap_rate", share(self.tolerance.beyond_gap_rate)),
            ("tolerance.mean_divergence", size(self.tolerance.mean_divergence)),
            ("tolerance.letter_difference", size(self.tolerance.letter_difference)),
            ("tolerance.flip_rate", share(self.tolerance.flip_rate)),
        ]
        .into_iter()
        .find_map(|(field, sensible)| (!sensible).then_some(field))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suite_names_only_what_it_changes_and_nothing_unknown() {
        let criteria: Criteria = toml::from_str("margin = 0.01\n[tolerance]\nflip_rate = 0.03").unwrap();
        let tolerance = Tolerance { flip_rate: 0.03, ..Tolerance::default() };
        assert_eq!(criteria, Criteria { margin: 0.01, tolerance, ..Criteria::default() });
        assert!(toml::from_str::<Criteria>("margins = 0.01").is_err());
    }

    #[test]
    fn the_defaults_make_sense_and_absurd_values_are_named() {
        assert_eq!(Criteria::default().first_absurd_field(), None);
        let negative = Criteria { near_tie_gap: -0.1, ..Criteria::default() };
        assert_eq!(negative.first_absurd_field(), Some("near_tie_gap"));
        for (margin, absurd) in
            [(0.075, None), (0.076, Some("margin")), (0.0, Some("margin")), (f64::NAN, Some("margin"))]
        {
            assert_eq!(Criteria { margin, ..Criteria::default() }.first_absurd_field(), absurd);
        }
        let tolerance = Tolerance { mean_divergence: f64::NAN, ..Tolerance::default() };
        assert_eq!(
            Criteria { tolerance, ..Criteria::default() }.first_absurd_field(),
            Some("tolerance.mean_divergence")
        );
    }
}
