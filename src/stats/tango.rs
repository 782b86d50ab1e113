//! Tango's score interval for a paired difference of shares (Statistics in Medicine 17:891, 1998).

use super::{Interval, PairedTable, normal_quantile, normal_share_below};

/// The interval of all differences δ = (gains − harms) ÷ pairs that the score test does not reject at 1 − `confidence`.
///
/// It is defined for every table, also without discordant pairs, where it is ± z²/(n + z²); without pairs it is the
/// whole range −1 to 1.
#[must_use]
pub fn tango_interval(table: PairedTable, confidence: f64) -> Interval {
    if table.pairs() == 0 {
        return Interval { lower: -1.0, upper: 1.0 };
    }
    let critical = normal_quantile(f64::midpoint(confidence, 1.0));
    let estimate = table.difference();
    Interval {
        lower: crossing(-1.0, estimate, |difference| score(table, difference) > critical),
        upper: crossing(estimate, 1.0, |difference| score(table, difference) > -critical),
    }
}

/// The p-value for a change that is no larger than `margin` on either side: the chance, if the true difference lies just on
/// the margin, of one at least as far beyond it, on this side or on the other (a test of a minimum effect: Murphy and Myors,
/// Journal of Applied Psychology 84:234, 1999, with Tango's score in place of F). 1 for a difference within the margin;
/// without a margin it is the two-sided score test. Never 0.
#[must_use]
pub fn tango_change_p_value(table: PairedTable, margin: f64) -> f64 {
    let estimate = table.difference();
    if table.pairs() == 0 || estimate.abs() <= margin {
        return 1.0;
    }
    let near = margin.copysign(estimate);
    let tail = |limit: f64| normal_share_below(-score(table, limit).abs());
    (tail(near) + tail(-near)).clamp(f64::MIN_POSITIVE, 1.0)
}

/// The score statistic for the hypothesis that the difference is `difference`: (c − b − nδ) ÷ √(n(2q + δ(1 − δ))),
/// where q is the share of harms that is most likely under the hypothesis. It falls as δ grows.
fn score(table: PairedTable, difference: f64) -> f64 {
    let (n, harms, gains) = (f64::from(table.pairs()), f64::from(table.harms), f64::from(table.gains));
    let surplus = gains - harms - n * difference;
    let variance =
        n * (2.0 * likeliest_harm_share(n, harms, gains, difference) + difference * (1.0 - difference));
    if surplus == 0.0 {
        0.0
    } else if variance <= 0.0 {
        surplus.signum() * f64::INFINITY
    } else {
        surplus / variance.sqrt()
    }
}

/// The larger root of 2n·q² + B·q + C = 0 with B = (2n + b − c)δ − b − c and C = −bδ(1 − δ), where b counts harms and
/// c gains, in the form that does not subtract nearly equal numbers.
fn likeliest_harm_share(n: f64, harms: f64, gains: f64, difference: f64) -> f64 {
    let linear = (2.0 * n + harms - gains) * difference - harms - gains;
    let constant = -harms * difference * (1.0 - difference);
    let root = (linear * linear - 8.0 * n * constant).max(0.0).sqrt();
    if linear > 0.0 { -2.0 * constant / (linear + root) } else { (root - linear) / (4.0 * n) }
}

/// Where a property that holds at `lower` and fails at `upper` changes.
fn crossing(mut lower: f64, mut upper: f64, holds: impl Fn(f64) -> bool) -> f64 {
    for _ in 0..200 {
        let middle = f64::midpoint(lower, upper);
        if holds(middle) {
            lower = middle;
        } else {
            upper = middle;
        }
    }
    f64::midpoint(lower, upper)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn table(pairs: u32, harms: u32, gains: u32) -> PairedTable {
        PairedTable { both_right: pairs - harms - gains, harms, gains, both_wrong: 0 }
    }

    #[test]
    fn intervals_match_published_ones() {
        // Airway data, Fagerland, Lydersen and Laake, Statistics in Medicine 33:2850 (2014): −0.517 to −0.026.
        let airway = tango_interval(table(21, 7, 1), 0.95);
        assert!((airway.lower + 0.517).abs() < 5e-4 && (airway.upper + 0.026).abs() < 5e-4, "{airway:?}");
    }

    /// The score from the likelihood alone: the share of harms is found by search, not by the closed form.
    fn searched_score(table: PairedTable, difference: f64) -> f64 {
        let (n, harms, gains) = (f64::from(table.pairs()), f64::from(table.harms), f64::from(table.gains));
        let term = |count: f64, share: f64| if count == 0.0 { 0.0 } else { count * share.ln() };
        let likelihood = |q: f64| {
            term(harms, q) + term(gains, q + difference) + term(n - harms - gains, 1.0 - 2.0 * q - difference)
        };
        let (mut lower, mut upper) = ((-difference).max(0.0), f64::midpoint(1.0, -difference));
        for _ in 0..300 {
            let (left, right) = (lower + (upper - lower) / 3.0, upper - (upper - lower) / 3.0);
            if likelihood(left) < likelihood(right) { lower = left } else { upper = right }
        }
        let q = f64::midpoint(lower, upper);
        (gains - harms - n * difference) / (n * (2.0 * q + difference - difference * difference)).sqrt()
    }

    #[test]
    fn no_discordant_pairs_give_the_closed_form() {
        let z_squared = normal_quantile(0.95).powi(2);
        for pairs in [1, 40, 540, 14_042] {
            let interval = tango_interval(table(pairs, 0, 0), 0.9);
            let limit = z_squared / (f64::from(pairs) + z_squared);
            assert!(
                (interval.upper - limit).abs() < 1e-12 && (interval.lower + limit).abs() < 1e-12,
                "{pairs}: {interval:?}"
            );
        }
    }

    #[test]
    fn without_a_margin_the_test_of_a_change_is_mcnemars_score_test() {
        // The score at no difference is (c − b) ÷ √(b + c): 6 ÷ √8 for the airway data, 2·Φ(−2.1213) = 0.0339 in any table.
        let airway = tango_change_p_value(table(21, 7, 1), 0.0);
        assert!((airway - 0.0339).abs() < 5e-5, "{airway}");
        assert!((tango_change_p_value(table(21, 3, 1), 0.2) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn every_pair_lost_reaches_the_end_of_the_range() {
        let lost = tango_interval(table(30, 30, 0), 0.9);
        assert!((lost.lower + 1.0).abs() < 1e-12 && lost.upper < -0.8, "{lost:?}");
    }

    proptest! {
        #[test]
        fn the_score_at_each_limit_is_critical(pairs in 5_u32..400, harms in 0.0..0.5, gains in 0.0..0.5) {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "parts of a small count")]
            let count = |part: f64| (part * f64::from(pairs)) as u32;
            let table = table(pairs, count(harms), count(gains));
            prop_assume!(table.discordant() > 0);
            let interval = tango_interval(table, 0.9);
            let critical = normal_quantile(0.95);
            prop_assert!((searched_score(table, interval.lower) - critical).abs() < 1e-5);
            prop_assert!((searched_score(table, interval.upper) + critical).abs() < 1e-5);
        }

        #[test]
        fn the_test_of_a_change_agrees_with_the_interval(pairs in 200_u32..20_000, harms in 0.0..0.3, gains in 0.0..0.3) {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "parts of a small count")]
            let count = |part: f64| (part * f64::from(pairs)) as u32;
            let table = table(pairs, count(harms), count(gains));
            let p_value = tango_change_p_value(table, 0.005);
            prop_assert!((0.0..=1.0).contains(&p_value));
            // The interval leaves 5 % on one side; the test counts the other side as well.
            if p_value <= 0.05 {
                prop_assert!(tango_interval(table, 0.9).lies_outside(0.005));
            }
            prop_assert!(tango_change_p_value(table, 0.01) >= p_value);
        }

        #[test]
        fn the_interval_mirrors_widens_and_holds_the_estimate(pairs in 1_u32..20_000, harms in 0.0..0.5, gains in 0.0..0.5) {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "parts of a small count")]
            let count = |part: f64| (part * f64::from(pairs)) as u32;
            let (one, other) = (table(pairs, count(harms), count(gains)), table(pairs, count(gains), count(harms)));
            let (interval, mirrored) = (tango_interval(one, 0.9), tango_interval(other, 0.9));
            prop_assert!((interval.lower + mirrored.upper).abs() < 1e-9);
            prop_assert!((-1.0..=1.0).contains(&interval.lower) && (-1.0..=1.0).contains(&interval.upper));
            prop_assert!(interval.lower <= one.difference() && one.difference() <= interval.upper);
            let wider = tango_interval(one, 0.99);
            prop_assert!(wider.lower <= interval.lower && interval.upper <= wider.upper);
        }
    }
}
