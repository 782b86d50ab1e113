//! The two-by-two table of paired right and wrong answers, and McNemar's exact test. Main type: [`PairedTable`].

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::binomial::{Odds, ln_lower_tail, ln_upper_tail};

/// What one pair of answers shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PairOutcome {
    /// Right on both sides.
    BothRight,
    /// Right without the cache, not right with it.
    Harm,
    /// Not right without the cache, right with it.
    Gain,
    /// Right on neither side.
    BothWrong,
}

impl PairOutcome {
    /// The change in the number of right answers: −1, 0 or 1.
    #[must_use]
    pub fn change(self) -> i32 {
        match self {
            Self::Harm => -1,
            Self::Gain => 1,
            Self::BothRight | Self::BothWrong => 0,
        }
    }
}

/// How many pairs were right on both sides, on one, or on none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PairedTable {
    /// Right on both sides.
    pub both_right: u32,
    /// Right without the cache, not right with it.
    pub harms: u32,
    /// Not right without the cache, right with it.
    pub gains: u32,
    /// Right on neither side.
    pub both_wrong: u32,
}

impl FromIterator<PairOutcome> for PairedTable {
    fn from_iter<Outcomes: IntoIterator<Item = PairOutcome>>(outcomes: Outcomes) -> Self {
        let mut table = Self::default();
        for outcome in outcomes {
            let cell = match outcome {
                PairOutcome::BothRight => &mut table.both_right,
                PairOutcome::Harm => &mut table.harms,
                PairOutcome::Gain => &mut table.gains,
                PairOutcome::BothWrong => &mut table.both_wrong,
            };
            *cell += 1;
        }
        table
    }
}

impl PairedTable {
    /// All pairs.
    #[must_use]
    pub fn pairs(self) -> u32 {
        self.both_right + self.harms + self.gains + self.both_wrong
    }

    /// Pairs whose two sides disagree: the only ones that bear on a difference.
    #[must_use]
    pub fn discordant(self) -> u32 {
        self.harms + self.gains
    }

    /// (gains − harms) ÷ pairs, negative for a loss; 0 without pairs.
    #[must_use]
    pub fn difference(self) -> f64 {
        self.per_pair(f64::from(self.gains) - f64::from(self.harms))
    }

    /// Discordant pairs ÷ pairs; 0 without pairs.
    #[must_use]
    pub fn flip_rate(self) -> f64 {
        self.per_pair(f64::from(self.discordant()))
    }

    /// Standard error of [`difference`](Self::difference) if pairs are independent:
    /// √(b + c − (b − c)²/n) ÷ n (Fleiss, Statistical Methods for Rates and Proportions, ch. 13); 0 without pairs.
    #[must_use]
    pub fn standard_error(self) -> f64 {
        let net = f64::from(self.gains) - f64::from(self.harms);
        let spread = f64::from(self.discordant()) - self.per_pair(net * net);
        self.per_pair(spread.max(0.0).sqrt())
    }

    /// Exact one-sided p-value for a loss: P(X ≥ harms), X binomial with even odds over the discordant pairs
    /// (McNemar, Psychometrika 12:153, 1947, in its exact form). 1 without discordant pairs; never 0.
    #[must_use]
    pub fn loss_p_value(self) -> f64 {
        ln_upper_tail(self.harms, self.discordant(), Odds::EVEN).exp().max(f64::MIN_POSITIVE)
    }

    /// Exact two-sided p-value: twice the smaller tail, at most 1.
    #[must_use]
    pub fn two_sided_p_value(self) -> f64 {
        let (harms, discordant) = (self.harms, self.discordant());
        let smaller =
            ln_upper_tail(harms, discordant, Odds::EVEN).min(ln_lower_tail(harms, discordant, Odds::EVEN));
        (2.0 * smaller.exp()).clamp(f64::MIN_POSITIVE, 1.0)
    }

    fn per_pair(self, quantity: f64) -> f64 {
        if self.pairs() == 0 { 0.0 } else { quantity / f64::from(self.pairs()) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn discordant(harms: u32, gains: u32) -> PairedTable {
        PairedTable { both_right: 10, harms, gains, both_wrong: 5 }
    }

    #[test]
    fn exact_test_matches_published_values() {
        // Fagerland, Lydersen and Laake, BMC Med. Res. Methodol. 13:91 (2013): airway data, 1 against 7 pairs,
        // exact conditional two-sided P = 0.070.
        let airway = PairedTable { both_right: 1, harms: 7, gains: 1, both_wrong: 12 };
        assert!((airway.two_sided_p_value() - 18.0 / 256.0).abs() < 1e-12);
        assert!((airway.loss_p_value() - 9.0 / 256.0).abs() < 1e-12);
    }

    #[test]
    fn without_discordant_pairs_nothing_is_shown() {
        let none = discordant(0, 0);
        assert_eq!((none.loss_p_value(), none.two_sided_p_value()), (1.0, 1.0));
        assert_eq!((none.difference(), none.standard_error()), (0.0, 0.0));
        assert!(PairedTable::default().difference().abs() < 1e-12);
    }

    #[test]
    fn a_hundred_thousand_discordant_pairs_are_no_trouble() {
        let even = discordant(50_000, 50_000).two_sided_p_value();
        assert!((even - 1.0).abs() < 1e-12, "{even}");
        let lopsided = discordant(100_000, 0).loss_p_value();
        assert!(lopsided > 0.0 && lopsided < 1e-300, "{lopsided}");
        // Three standard deviations (σ = 158.1) above the mean: 0.00135 of a normal distribution.
        let three = discordant(50_474, 49_526).loss_p_value();
        assert!((three - 0.001_36).abs() < 2e-5, "{three}");
    }

    proptest! {
        #[test]
        fn swapping_the_sides_mirrors_the_result(harms in 0_u32..3000, gains in 0_u32..3000) {
            let (one, other) = (discordant(harms, gains), discordant(gains, harms));
            prop_assert!((one.difference() + other.difference()).abs() < 1e-12);
            prop_assert_eq!(one.standard_error().to_bits(), other.standard_error().to_bits());
            prop_assert!((one.two_sided_p_value() - other.two_sided_p_value()).abs() < 1e-9);
        }

        #[test]
        fn another_harm_never_weakens_the_evidence(harms in 0_u32..3000, gains in 0_u32..3000) {
            prop_assert!(discordant(harms + 1, gains).loss_p_value() <= discordant(harms, gains).loss_p_value());
            prop_assert!(discordant(harms, gains + 1).loss_p_value() >= discordant(harms, gains).loss_p_value());
        }
    }
}
