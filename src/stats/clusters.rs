//! Pairs that belong together: questions of one subject share a prompt prefix, so their flips need not be independent.
//! Main type: [`ClusterSum`].

use std::collections::BTreeMap;

use statrs::distribution::{ContinuousCDF, StudentsT};

use super::Interval;

/// What the pairs of one cluster add up to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ClusterSum {
    /// Number of pairs.
    pub pairs: u32,
    /// Gains minus harms.
    pub net: i32,
}

/// Adds pairs up by their cluster, in the order of the clusters' names. Each pair is +1 for a gain, −1 for a harm, else 0.
pub fn sum_by_cluster<Name: Ord>(pairs: impl IntoIterator<Item = (Name, i32)>) -> Vec<ClusterSum> {
    let mut sums = BTreeMap::<Name, ClusterSum>::new();
    for (name, change) in pairs {
        let sum = sums.entry(name).or_default();
        sum.pairs += 1;
        sum.net += change;
    }
    sums.into_values().collect()
}

/// Standard error of the mean difference that allows any correlation within clusters:
/// `√(Σ_c(Σ_i(d_i − d̄))²) ÷ n` (Miller, arXiv 2411.00640, equation 4). `None` for fewer than two clusters.
#[must_use]
pub fn cluster_standard_error(clusters: &[ClusterSum]) -> Option<f64> {
    if clusters.len() < 2 {
        return None;
    }
    let (pairs, mean) = pairs_and_mean(clusters);
    let squares: f64 =
        clusters.iter().map(|sum| (f64::from(sum.net) - f64::from(sum.pairs) * mean).powi(2)).sum();
    Some(squares.sqrt() / pairs)
}

/// Interval of the mean difference that allows any correlation within clusters and few clusters of uneven size: from
/// the jackknife error √((G − 1)/G · `Σ_c(d̄ without c − d̄)²`) and Student's quantile with G − 1 degrees of freedom, G
/// being the number of clusters (MacKinnon, Nielsen and Webb, Journal of Econometrics 232:272, 2023). `None` for fewer
/// than two clusters.
#[must_use]
pub fn cluster_interval(clusters: &[ClusterSum], confidence: f64) -> Option<Interval> {
    let Jackknife { mean, error, student } = Jackknife::of(clusters)?;
    let reach = student.inverse_cdf(f64::midpoint(confidence, 1.0)) * error;
    Some(Interval { lower: mean - reach, upper: mean + reach })
}

/// As [`tango_change_p_value`](super::tango_change_p_value), with the error and the distribution of [`cluster_interval`].
/// `None` for fewer than two clusters.
#[must_use]
pub fn cluster_change_p_value(clusters: &[ClusterSum], margin: f64) -> Option<f64> {
    let Jackknife { mean, error, student } = Jackknife::of(clusters)?;
    if mean.abs() <= margin {
        return Some(1.0);
    }
    let tail = |distance: f64| if error > 0.0 { student.cdf(-distance / error) } else { 0.0 };
    Some((tail(mean.abs() - margin) + tail(mean.abs() + margin)).clamp(f64::MIN_POSITIVE, 1.0))
}

/// The mean difference, its error by leaving out one cluster at a time, and what their ratio is distributed as.
struct Jackknife {
    mean: f64,
    error: f64,
    student: StudentsT,
}

impl Jackknife {
    fn of(clusters: &[ClusterSum]) -> Option<Self> {
        let count: f64 = clusters.iter().map(|_| 1.0).sum();
        let student = StudentsT::new(0.0, 1.0, count - 1.0).ok()?;
        let (pairs, mean) = pairs_and_mean(clusters);
        let shift_without = |sum: &ClusterSum| {
            let (others, net) = (pairs - f64::from(sum.pairs), pairs * mean - f64::from(sum.net));
            net / others - mean
        };
        let squares: f64 = clusters.iter().map(|sum| shift_without(sum).powi(2)).sum();
        Some(Self { mean, error: ((count - 1.0) / count * squares).sqrt(), student })
    }
}

/// Exact one-sided p-value for a loss if whole clusters are exchanged: the share of all 2^G ways to swap the two sides
/// of each cluster that give a net difference at most the one seen (a sign-flip test; Fisher's randomisation test for
/// matched groups). Within a cluster any correlation is allowed. With one pair in each cluster it is exactly McNemar's
/// test. It can never be smaller than 2^−G, G counting the clusters with a net difference.
#[must_use]
pub fn sign_flip_loss_p_value(clusters: &[ClusterSum]) -> f64 {
    // Entry i is the chance that, of the net differences so far, each taken with its size, i are losses.
    let mut chance = vec![1.0];
    let mut lost = 0;
    for sum in clusters.iter().filter(|sum| sum.net != 0) {
        let size = sum.net.unsigned_abs() as usize;
        lost += if sum.net < 0 { size } else { 0 };
        let mut wider = vec![0.0; chance.len() + size];
        for (losses, share) in chance.iter().enumerate() {
            wider[losses] += share / 2.0;
            wider[losses + size] += share / 2.0;
        }
        chance = wider;
    }
    chance[lost..].iter().rev().sum::<f64>().clamp(f64::MIN_POSITIVE, 1.0)
}

fn pairs_and_mean(clusters: &[ClusterSum]) -> (f64, f64) {
    let pairs: f64 = clusters.iter().map(|sum| f64::from(sum.pairs)).sum();
    let net: f64 = clusters.iter().map(|sum| f64::from(sum.net)).sum();
    (pairs, net / pairs)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::PairedTable;
    use super::*;

    fn clusters(sums: &[(u32, i32)]) -> Vec<ClusterSum> {
        sums.iter().map(|&(pairs, net)| ClusterSum { pairs, net }).collect()
    }

    #[test]
    fn the_error_follows_the_published_formula() {
        // By hand: n = 10, mean −0.1; sums of deviations are −0.5, −0.7 and 1.2, of squares 2.18.
        let error = cluster_standard_error(&clusters(&[(5, -1), (3, -1), (2, 1)])).unwrap();
        assert!((error - 2.18_f64.sqrt() / 10.0).abs() < 1e-15, "{error}");
        assert_eq!(cluster_standard_error(&clusters(&[(5, -1)])), None);
    }

    #[test]
    fn even_clusters_give_students_interval_of_their_means() {
        // Means of equal clusters −0.3, 0, 0.1, …: the ordinary one-sample interval, standard deviation over √G times
        // the quantile of any table: 6.3138 for 1 degree of freedom, 2.3534 for 3.
        let reach = |sums: &[(u32, i32)]| {
            let interval = cluster_interval(&clusters(sums), 0.9).unwrap();
            (interval.upper - interval.lower) / 2.0
        };
        assert!((reach(&[(10, -3), (10, 1)]) - 6.3138 * 0.2).abs() < 1e-4);
        // Deviations from −0.05: −0.25, 0.05, 0.15, 0.05; their squares sum to 0.09.
        let standard_deviation = (0.09_f64 / 3.0).sqrt();
        assert!(
            (reach(&[(10, -3), (10, 0), (10, 1), (10, 0)]) - 2.3534 * standard_deviation / 2.0).abs() < 1e-4
        );
        assert_eq!(cluster_interval(&clusters(&[(10, -3)]), 0.9), None);
    }

    #[test]
    fn a_change_by_clusters_is_tested_by_student() {
        // Even clusters with means −0.3, −0.1, −0.2, −0.2: mean −0.2, error √(0.02/3)/2 = 0.0408. Against a margin of 0.1 the
        // distances are 2.449 and 7.348; with 3 degrees of freedom the tails are 0.0459 and 0.0026 (any calculator).
        let sums = clusters(&[(10, -3), (10, -1), (10, -2), (10, -2)]);
        let p_value = cluster_change_p_value(&sums, 0.1).unwrap();
        assert!((p_value - 0.0485).abs() < 1e-4, "{p_value}");
        assert_eq!(cluster_change_p_value(&sums, 0.25), Some(1.0));
        assert_eq!(cluster_change_p_value(&sums[..1], 0.1), None);
    }

    #[test]
    fn whole_subjects_that_lose_are_counted_by_subject() {
        // Three subjects, all losing: only one of eight ways is as bad.
        assert!((sign_flip_loss_p_value(&clusters(&[(9, -4), (9, -2), (9, -7)])) - 0.125).abs() < 1e-15);
        // The swap of the smallest alone leaves −9, of the two larger ones +9: 2 of 8 ways are at most −9.
        assert!((sign_flip_loss_p_value(&clusters(&[(9, -4), (9, 2), (9, -7)])) - 0.25).abs() < 1e-15);
        assert!((sign_flip_loss_p_value(&clusters(&[(9, 0), (9, 0)])) - 1.0).abs() < 1e-15);
    }

    proptest! {
        #[test]
        fn one_pair_a_cluster_is_mcnemars_test(harms in 0_u32..60, gains in 0_u32..60, agreeing in 0_u32..20) {
            let changes = [(harms, -1), (gains, 1), (agreeing, 0)];
            let sums: Vec<ClusterSum> = changes
                .into_iter()
                .flat_map(|(count, net)| (0..count).map(move |_| ClusterSum { pairs: 1, net }))
                .collect();
            let table = PairedTable { both_right: agreeing, harms, gains, both_wrong: 0 };
            prop_assert!((sign_flip_loss_p_value(&sums) / table.loss_p_value() - 1.0).abs() < 1e-10);
            if sums.len() > 1 {
                let error = cluster_standard_error(&sums).unwrap();
                prop_assert!((error - table.standard_error()).abs() < 1e-12);
            }
        }

        #[test]
        fn both_directions_share_the_outcome_between_them(nets in prop::collection::vec(-9_i32..9, 1..9)) {
            let sums: Vec<ClusterSum> = nets.iter().map(|&net| ClusterSum { pairs: 9, net }).collect();
            let mirrored: Vec<ClusterSum> = nets.iter().map(|&net| ClusterSum { pairs: 9, net: -net }).collect();
            let total = sign_flip_loss_p_value(&sums) + sign_flip_loss_p_value(&mirrored);
            // All ways, and those that give exactly the difference seen once more.
            prop_assert!((1.0..=2.0 + 1e-12).contains(&total), "{}", total);
        }
    }
}
