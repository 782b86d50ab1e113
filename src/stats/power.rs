//! What a number of pairs can show, before any is seen.

use statrs::distribution::{ContinuousCDF, StudentsT};

use super::binomial::{Odds, ln_pmf, ln_upper_tail};
use super::normal_quantile;

/// Chance that the exact one-sided McNemar test at level `alpha` finds a true loss of `loss` (a share of all pairs)
/// among `pairs` pairs of which the share `flip_rate` ≥ `loss` is discordant.
///
/// Exact: the discordant pairs are binomial over all pairs, and harms binomial over the discordant ones with share
/// (1 + loss/flip rate)/2. Rare numbers of discordant pairs (together below 10⁻¹²) are left out.
#[must_use]
pub fn loss_power(pairs: u32, flip_rate: f64, loss: f64, alpha: f64) -> f64 {
    if flip_rate <= 0.0 {
        return 0.0;
    }
    let flips = Odds::of(flip_rate.min(1.0));
    let harm = Odds::of(f64::midpoint(1.0, (loss / flip_rate).min(1.0)));
    if flip_rate >= 1.0 {
        return ln_upper_tail(fewest_harms(pairs, alpha, 0), pairs, harm).exp();
    }
    let mean = f64::from(pairs) * flip_rate;
    let reach = 8.0 * (mean.sqrt() + 1.0);
    let (first, last) = (whole((mean - reach).max(0.0)), whole(mean + reach).min(pairs));
    let mut needed = 0;
    let mut power = 0.0;
    for discordant in first..=last {
        needed = fewest_harms(discordant, alpha, needed);
        power += (ln_pmf(discordant, pairs, flips) + ln_upper_tail(needed, discordant, harm)).exp();
    }
    power.min(1.0)
}

/// The smallest loss, a share of all pairs, that [`loss_power`] finds with probability `power`; `None` when even
/// a loss as large as `flip_rate` would not be found.
#[must_use]
pub fn detectable_loss(pairs: u32, flip_rate: f64, alpha: f64, power: f64) -> Option<f64> {
    let reaches = |loss: f64| loss_power(pairs, flip_rate, loss, alpha) >= power;
    if !reaches(flip_rate) {
        return None;
    }
    let (mut missed, mut found) = (0.0, flip_rate);
    while found - missed > 1e-7 * flip_rate {
        let middle = f64::midpoint(missed, found);
        if reaches(middle) {
            found = middle;
        } else {
            missed = middle;
        }
    }
    Some(found)
}

/// How many times larger a loss must be to be found cluster by cluster: (t + z) ÷ (z₁₋α + z), t being Student's quantile
/// with `clusters` − 1 degrees of freedom in place of the normal one and z the quantile of `power`; 1 for one cluster.
#[must_use]
pub fn cluster_factor(clusters: u32, alpha: f64, power: f64) -> f64 {
    let few = StudentsT::new(0.0, 1.0, f64::from(clusters) - 1.0);
    let (many, reach) = (normal_quantile(1.0 - alpha), normal_quantile(power));
    few.map_or(1.0, |few| (few.inverse_cdf(1.0 - alpha) + reach) / (many + reach))
}

/// How many times larger the variance of harms minus gains is than with independent flips, if the share `flip_rate` of the
/// pairs in each cluster is discordant and the directions of two discordant pairs of a cluster have this correlation: Kish's
/// design effect, 1 + correlation · flip rate · Σn(n − 1)/Σn over the clusters' sizes n.
#[must_use]
pub fn design_effect(clusters: &[u32], flip_rate: f64, correlation: f64) -> f64 {
    1.0 + correlation * flip_rate * mean_of_others(clusters)
}

/// The number of pairs, `independent` of which would do if flips were independent, that do where the flips of a cluster hang
/// together as for [`design_effect`], with as many clusters of the same relative sizes; `None` when no number of pairs does
/// without further clusters.
#[must_use]
pub fn pairs_in_clusters(
    independent: u32,
    clusters: &[u32],
    flip_rate: f64,
    correlation: f64,
) -> Option<u32> {
    let pairs: f64 = clusters.iter().map(|&size| f64::from(size)).sum();
    // The effect grows with the clusters: n = independent · (1 + growth · n).
    let growth = if pairs > 0.0 { correlation * flip_rate * mean_of_others(clusters) / pairs } else { 0.0 };
    let left = 1.0 - f64::from(independent) * growth;
    (left > 0.0).then(|| whole((f64::from(independent) / left).ceil()))
}

/// Other pairs in the cluster of a pair, on average over the pairs.
fn mean_of_others(clusters: &[u32]) -> f64 {
    let sizes = || clusters.iter().map(|&size| f64::from(size));
    let pairs: f64 = sizes().sum();
    if pairs > 0.0 { sizes().map(|size| size * (size - 1.0)).sum::<f64>() / pairs } else { 0.0 }
}

/// Pairs that two one-sided tests at 5 % need to show equivalence within `margin` with probability `power`, if there is
/// no difference and the share `flip_rate` of pairs is discordant: flip rate · (z₀.₉₅ + z₁₋₍₁₋power₎/₂)² ÷ margin², and
/// never fewer than the interval of [`tango_interval`](super::tango_interval) needs without a flip, z²(1 − margin)/margin.
#[must_use]
pub fn pairs_for_equivalence(margin: f64, flip_rate: f64, power: f64) -> u32 {
    let level = normal_quantile(0.95);
    let reach = level + normal_quantile(f64::midpoint(1.0, power));
    let with_flips = (flip_rate * (reach / margin).powi(2)).ceil();
    let without_flips = (level * level * (1.0 - margin) / margin).floor() + 1.0;
    whole(with_flips.max(without_flips))
}

/// The fewest harms among `discordant` pairs that the one-sided test at `alpha` calls a loss, searched upwards from
/// `start`; one more than there are pairs when none would do.
fn fewest_harms(discordant: u32, alpha: f64, start: u32) -> u32 {
    let target = alpha.ln();
    let middle = start.max(discordant / 2);
    (middle..=discordant)
        .find(|&harms| ln_upper_tail(harms, discordant, Odds::EVEN) <= target)
        .unwrap_or(discordant + 1)
}

/// A count from a number that is known to be one.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to the range before")]
fn whole(number: f64) -> u32 {
    number.clamp(0.0, f64::from(u32::MAX)) as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn detectable_losses_match_the_planned_ones() {
        // All of MMLU's 14042 questions at 5 %, in percentage points; computed for the plan, independently of this code.
        for (flip_rate, at_80, at_95) in [(0.005, 0.154, 0.199), (0.01, 0.216, 0.282), (0.02, 0.303, 0.398)] {
            for (power, points) in [(0.8, at_80), (0.95, at_95)] {
                let loss = 100.0 * detectable_loss(14_042, flip_rate, 0.05, power).unwrap();
                assert!((loss - points).abs() < 1.1e-3, "{flip_rate} {power}: {loss} instead of {points}");
            }
        }
    }

    #[test]
    fn the_design_effect_is_kishs() {
        // Kish, Survey Sampling (1965): 1 + (m − 1)·ρ for clusters of m; here every pair of a cluster is discordant.
        assert!((design_effect(&[11; 4], 1.0, 0.2) - 3.0).abs() < 1e-12);
        assert!((design_effect(&[11, 1, 1], 0.5, 0.2) - (1.0 + 0.1 * 110.0 / 13.0)).abs() < 1e-12);
        for sizes in [&[1, 1, 1][..], &[]] {
            assert!((design_effect(sizes, 0.5, 0.9) - 1.0).abs() < 1e-12, "{sizes:?}");
        }
    }

    #[test]
    fn pairs_in_clusters_make_up_for_the_effect_of_their_own_clusters() {
        let needed = pairs_in_clusters(5198, &[246; 57], 0.01, 0.2).unwrap();
        let effect = design_effect(&[needed / 57; 57], 0.01, 0.2);
        assert!((f64::from(needed) / effect - 5198.0).abs() < 60.0, "{needed} at {effect}");
        assert_eq!(pairs_in_clusters(5198, &[40; 8], 0.01, 0.2), None);
        assert_eq!(pairs_in_clusters(5198, &[40; 8], 0.01, 0.0), Some(5198));
    }

    #[test]
    fn questions_for_equivalence_match_the_planned_ones() {
        for (margin, needed) in
            [(0.0025, [10_396, 20_792, 41_584]), (0.005, [2599, 5198, 10_396]), (0.01, [650, 1300, 2599])]
        {
            let planned = [0.005, 0.01, 0.02].map(|flip_rate| pairs_for_equivalence(margin, flip_rate, 0.95));
            for (planned, needed) in planned.into_iter().zip(needed) {
                assert!(planned.abs_diff(needed) <= 1, "{margin}: {planned} instead of {needed}");
            }
        }
    }

    #[test]
    fn few_clusters_need_a_larger_loss() {
        // Quantiles at 0.95 in any table: Student's with 7 degrees of freedom 1.8946, normal 1.6449.
        let factor = (1.8946 + 1.6449) / (1.6449 + 1.6449);
        assert!((cluster_factor(8, 0.05, 0.95) - factor).abs() < 1e-4);
        assert!((cluster_factor(1, 0.05, 0.95) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn without_flips_the_interval_itself_sets_the_number() {
        use crate::stats::{PairedTable, tango_interval};

        let needed = pairs_for_equivalence(0.005, 0.0, 0.95);
        let of = |both_right| tango_interval(PairedTable { both_right, ..PairedTable::default() }, 0.9);
        assert!(of(needed).lies_within(0.005) && !of(needed - 1).lies_within(0.005), "{needed}");
    }

    #[test]
    fn too_few_pairs_detect_nothing() {
        assert_eq!(detectable_loss(100, 0.01, 0.05, 0.8), None);
    }

    #[test]
    fn with_every_pair_discordant_power_is_a_binomial_tail() {
        // 20 pairs at 5 %: 15 harms are needed (0.0207); with 9 of 10 harms P(X ≥ 15) = 0.98875 (any binomial table).
        assert!((loss_power(20, 1.0, 0.8, 0.05) - 0.988_75).abs() < 1e-5);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn power_grows_with_the_loss_and_starts_below_the_level(pairs in 50_u32..3000, flip_rate in 0.005..0.3, part in 0.0..0.9) {
            let at = |part: f64| loss_power(pairs, flip_rate, part * flip_rate, 0.05);
            prop_assert!(at(0.0) <= 0.05 + 1e-9);
            prop_assert!(at(part) <= at(part + 0.1) + 1e-9);
            prop_assert!((0.0..=1.0).contains(&at(part)));
        }
    }
}
