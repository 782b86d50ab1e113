//! Binomial tails, computed in logarithms so that neither large counts nor tiny probabilities lose their meaning,
//! and the exact limits for a share that follow from them.

use statrs::function::gamma::ln_gamma;

use super::Interval;

/// The chance of success and of failure, both kept because `1 − p` forgets a small `p`.
#[derive(Clone, Copy)]
pub(super) struct Odds {
    success: f64,
    failure: f64,
}

impl Odds {
    pub(super) const EVEN: Self = Self { success: 0.5, failure: 0.5 };

    pub(super) fn of(success: f64) -> Self {
        Self { success, failure: 1.0 - success }
    }

    fn swapped(self) -> Self {
        Self { success: self.failure, failure: self.success }
    }
}

/// Natural logarithm of P(X = `successes`), X binomial. Needs 0 < p < 1 and `successes` ≤ `trials`.
pub(super) fn ln_pmf(successes: u32, trials: u32, odds: Odds) -> f64 {
    let (k, n) = (f64::from(successes), f64::from(trials));
    let ln_choose = ln_gamma(n + 1.0) - ln_gamma(k + 1.0) - ln_gamma(n - k + 1.0);
    ln_choose + k * odds.success.ln() + (n - k) * odds.failure.ln()
}

/// Natural logarithm of P(X ≥ `successes`), X binomial.
pub(super) fn ln_upper_tail(successes: u32, trials: u32, odds: Odds) -> f64 {
    if successes == 0 || odds.failure <= 0.0 && successes <= trials {
        0.0
    } else if successes > trials || odds.success <= 0.0 {
        f64::NEG_INFINITY
    } else if f64::from(successes) > f64::from(trials) * odds.success {
        ln_falling_tail(successes, trials, odds)
    } else {
        // The other tail is the smaller one.
        let others = trials - successes + 1;
        (-ln_falling_tail(others, trials, odds.swapped()).exp()).ln_1p()
    }
}

/// Natural logarithm of P(X ≤ `successes`), X binomial.
pub(super) fn ln_lower_tail(successes: u32, trials: u32, odds: Odds) -> f64 {
    if successes >= trials { 0.0 } else { ln_upper_tail(trials - successes, trials, odds.swapped()) }
}

/// [`ln_upper_tail`] from at or above the mean, where each term is smaller than the one before: the first term times
/// the sum of the others' ratios to it, which ends as soon as a term no longer changes the sum.
fn ln_falling_tail(successes: u32, trials: u32, odds: Odds) -> f64 {
    let step = odds.success / odds.failure;
    let mut ratio = 1.0;
    let mut sum = 1.0;
    for reached in successes..trials {
        ratio *= f64::from(trials - reached) / f64::from(reached + 1) * step;
        let longer = sum + ratio;
        if longer.to_bits() == f64::to_bits(sum) {
            break;
        }
        sum = longer;
    }
    ln_pmf(successes, trials, odds) + f64::ln(sum)
}

/// Exact two-sided interval for a share (Clopper and Pearson, Biometrika 26:404, 1934): it covers the true share at
/// least with probability `confidence`. With no trials it is the whole range.
#[must_use]
pub fn clopper_pearson(successes: u32, trials: u32, confidence: f64) -> Interval {
    let each_side = f64::midpoint(confidence, 1.0);
    Interval {
        lower: lower_bound(successes, trials, each_side),
        upper: upper_bound(successes, trials, each_side),
    }
}

/// The exact one-sided upper limit: the share at which so few successes have probability 1 − `confidence`.
#[must_use]
pub fn upper_bound(successes: u32, trials: u32, confidence: f64) -> f64 {
    if successes >= trials {
        1.0
    } else if successes == 0 {
        no_event_upper_bound(trials, confidence)
    } else {
        let target = (1.0 - confidence).ln();
        last_share(share(successes, trials), 1.0, |share| {
            ln_lower_tail(successes, trials, Odds::of(share)) >= target
        })
    }
}

/// The exact one-sided lower limit: the share at which so many successes have probability 1 − `confidence`.
#[must_use]
pub fn lower_bound(successes: u32, trials: u32, confidence: f64) -> f64 {
    if successes == 0 {
        0.0
    } else if successes >= trials {
        1.0 - no_event_upper_bound(trials, confidence)
    } else {
        let target = (1.0 - confidence).ln();
        last_share(0.0, share(successes, trials), |share| {
            ln_upper_tail(successes, trials, Odds::of(share)) <= target
        })
    }
}

/// The upper limit for a share when none of `trials` was a success: 1 − (1 − `confidence`)^(1/`trials`).
#[must_use]
pub fn no_event_upper_bound(trials: u32, confidence: f64) -> f64 {
    if trials == 0 { 1.0 } else { -((-confidence).ln_1p() / f64::from(trials)).exp_m1() }
}

/// The largest share between two bounds for which `holds`, which is true below some share and false above it.
fn last_share(mut lower: f64, mut upper: f64, holds: impl Fn(f64) -> bool) -> f64 {
    loop {
        let middle = f64::midpoint(lower, upper);
        if middle <= lower || middle >= upper {
            return lower;
        }
        if holds(middle) {
            lower = middle;
        } else {
            upper = middle;
        }
    }
}

/// `successes` ÷ `trials`.
fn share(successes: u32, trials: u32) -> f64 {
    f64::from(successes) / f64::from(trials)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use statrs::distribution::{Binomial, DiscreteCDF};

    use super::*;

    fn close(left: f64, right: f64, relative: f64) -> bool {
        (left - right).abs() <= relative * right.abs()
    }

    /// P(X ≥ k) at even odds by whole numbers alone; exact for up to 120 trials.
    fn counted_upper_tail(successes: u32, trials: u32) -> f64 {
        let mut row = vec![1_u128];
        for _ in 0..trials {
            let shifted = row.iter().copied().chain([0]);
            row = shifted.zip([0].into_iter().chain(row.iter().copied())).map(|(a, b)| a + b).collect();
        }
        let ways: u128 = row[successes as usize..].iter().sum();
        #[expect(clippy::cast_precision_loss, reason = "both are rounded once, far below the tolerance")]
        let share = ways as f64 / (1_u128 << trials) as f64;
        share
    }

    #[test]
    fn tails_at_even_odds_equal_counting() {
        for trials in [1, 2, 7, 40, 119] {
            for successes in 0..=trials {
                let tail = ln_upper_tail(successes, trials, Odds::EVEN).exp();
                assert!(close(tail, counted_upper_tail(successes, trials), 1e-12), "{successes} of {trials}");
            }
        }
    }

    #[test]
    fn a_tail_too_small_for_a_double_keeps_its_logarithm() {
        let all = ln_upper_tail(100_000, 100_000, Odds::EVEN);
        assert!(close(all, -100_000.0 * std::f64::consts::LN_2, 1e-12), "{all}");
        let half = ln_upper_tail(50_000, 100_000, Odds::EVEN).exp();
        // One half and half of the central term, 1/√(πn/2) to first order.
        let central = (2.0 / (std::f64::consts::PI * 1e5)).sqrt();
        assert!(close(half, 0.5 + central / 2.0, 1e-6), "{half}");
    }

    #[test]
    fn exact_limits_match_published_ones() {
        // Clopper and Pearson's method as tabulated in Newcombe, Statistics in Medicine 17:857 (1998), table I.
        for (successes, trials, lower, upper) in [
            (81, 263, 0.2527, 0.3676),
            (15, 148, 0.0578, 0.1617),
            (0, 20, 0.0, 0.1684),
            (1, 29, 0.0009, 0.1776),
        ] {
            let limits = clopper_pearson(successes, trials, 0.95);
            assert!((limits.lower - lower).abs() < 5.1e-5, "{successes} of {trials}: {limits:?}");
            assert!((limits.upper - upper).abs() < 5.1e-5, "{successes} of {trials}: {limits:?}");
        }
    }

    #[test]
    fn no_event_in_so_many_questions_bounds_the_rate() {
        for (trials, percent) in [(300, 0.99), (1319, 0.227), (14_042, 0.0213)] {
            let bound = 100.0 * no_event_upper_bound(trials, 0.95);
            assert!(close(bound, percent, 5e-3), "{trials}: {bound}");
        }
    }

    #[test]
    fn no_trials_exclude_nothing() {
        assert_eq!(clopper_pearson(0, 0, 0.95), Interval { lower: 0.0, upper: 1.0 });
    }

    proptest! {
        #[test]
        fn tails_agree_with_the_incomplete_beta_function(trials in 1_u32..2000, part in 0.0..1.0, p in 0.01..0.99) {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "part of a small count")]
            let successes = (part * f64::from(trials)) as u32;
            let known = Binomial::new(p, u64::from(trials)).unwrap();
            let (upper, lower) = (ln_upper_tail(successes + 1, trials, Odds::of(p)), ln_lower_tail(successes, trials, Odds::of(p)));
            prop_assert!((upper.exp() - known.sf(u64::from(successes))).abs() < 1e-10);
            prop_assert!((lower.exp() - known.cdf(u64::from(successes))).abs() < 1e-10);
            prop_assert!((upper.exp() + lower.exp() - 1.0).abs() < 1e-10);
        }

        #[test]
        fn limits_mirror_widen_and_hold_the_estimate(trials in 1_u32..3000, part in 0.0..=1.0) {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "part of a small count")]
            let successes = (part * f64::from(trials)) as u32;
            let limits = clopper_pearson(successes, trials, 0.95);
            let mirrored = clopper_pearson(trials - successes, trials, 0.95);
            prop_assert!((limits.lower + mirrored.upper - 1.0).abs() < 1e-9);
            prop_assert!(limits.lower <= share(successes, trials) && share(successes, trials) <= limits.upper);
            let wider = clopper_pearson(successes, trials, 0.99);
            prop_assert!(wider.lower <= limits.lower && limits.upper <= wider.upper);
        }
    }
}
