//! Evidence of a loss that may be read after every pair, as often as one likes.

use std::collections::BTreeMap;
use std::f64::consts::LN_2;

use statrs::function::gamma::ln_gamma;

use super::PairOutcome;
use super::binomial::{Odds, ln_lower_tail};

/// Stakes between 0 and 1 that the wealth is averaged over.
const STAKES: u32 = 64;

/// Evidence against "a cluster is as likely to lose as to gain", by bets on the next discordant pair being a harm.
///
/// The odds are fair for whoever knows that the flips of a cluster hang together: after h harms and g gains in the same
/// cluster the next is taken to be a harm with probability max(½, (a + h)/(2a + h + g)). The second of the two is the
/// prediction of a cluster whose share of harms is drawn from a Beta(a, a) distribution, where the directions of two flips
/// have the correlation 1/(2a + 1). So under any such correlation up to the given one, independence included, the wealth
/// ∏(1 + λ·gain) never grows on average, whatever the order of the pairs, and neither does its average over the stakes λ: it
/// exceeds 1/α at *any* time with probability at most α (Ville 1939; Ramdas and others, Statistical Science 38:576, 2023).
/// With one pair a cluster it is [`e_value`].
#[derive(Debug, Clone)]
pub struct HarmEvidence<Name> {
    /// a of the Beta distribution.
    shape: f64,
    /// Harms and gains of each cluster.
    seen: BTreeMap<Name, (f64, f64)>,
    /// Logarithm of the wealth at each stake.
    wealth: Vec<f64>,
}

impl<Name: Ord> HarmEvidence<Name> {
    /// Before the first pair, for clusters in which the directions of two flips have at most this correlation, above 0 and
    /// below 1.
    #[must_use]
    pub fn new(correlation: f64) -> Self {
        Self {
            shape: (1.0 / correlation - 1.0) / 2.0,
            seen: BTreeMap::new(),
            wealth: vec![0.0; STAKES as usize],
        }
    }

    /// Takes the next pair, of this cluster.
    pub fn observe(&mut self, cluster: Name, outcome: PairOutcome) {
        let is_harm = match outcome {
            PairOutcome::Harm => true,
            PairOutcome::Gain => false,
            PairOutcome::BothRight | PairOutcome::BothWrong => return,
        };
        let (harms, gains) = self.seen.entry(cluster).or_default();
        let expected = ((self.shape + *harms) / (2.0 * self.shape + *harms + *gains)).max(0.5);
        *(if is_harm { harms } else { gains }) += 1.0;
        let win = if is_harm { (1.0 - expected) / expected } else { -1.0 };
        for (number, wealth) in (0..STAKES).zip(&mut self.wealth) {
            let stake = (f64::from(number) + 0.5) / f64::from(STAKES);
            *wealth += (stake * win).ln_1p();
        }
    }

    /// The evidence so far: 1 before the first pair, at most `f64::MAX`.
    #[must_use]
    pub fn value(&self) -> f64 {
        let largest = self.wealth.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = self.wealth.iter().map(|wealth| (wealth - largest).exp()).sum();
        (largest + (sum / f64::from(STAKES)).ln()).exp().min(f64::MAX)
    }
}

/// [`HarmEvidence`] where each pair is a cluster of its own, in closed form; no other has more of it at the same counts.
///
/// The evidence against "a discordant pair is as likely a gain as a harm": the wealth of a gambler who starts with 1
/// and bets on harm at fair odds, ∏(1 + λ(2x − 1)), averaged over all stakes λ from 0 to 1.
///
/// Under that hypothesis it exceeds 1/α at *any* time with probability at most α (Ville 1939; Ramdas and others,
/// Statistical Science 38:576, 2023). The average has a closed form, since ∫₀¹(1 + λ)^h (1 − λ)^g dλ is an incomplete
/// beta function: 2^(h+g+1) · B(h+1, g+1) · P(X ≤ h), X binomial over h+g+1 trials at even odds. It depends on the
/// counts alone, not on their order. At most `f64::MAX`.
#[must_use]
pub fn e_value(harms: u32, gains: u32) -> f64 {
    let (h, g) = (f64::from(harms), f64::from(gains));
    let ln_beta = ln_gamma(h + 1.0) + ln_gamma(g + 1.0) - ln_gamma(h + g + 2.0);
    let tail = ln_lower_tail(harms, harms + gains + 1, Odds::EVEN);
    ((h + g + 1.0) * LN_2 + ln_beta + tail).exp().min(f64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn evidence_starts_at_one_and_nine_harms_in_a_row_reach_a_hundred() {
        assert!((e_value(0, 0) - 1.0).abs() < 1e-12);
        // ∫₀¹(1 + λ)^h dλ = (2^(h+1) − 1) ÷ (h + 1).
        assert!((e_value(9, 0) - 1023.0 / 10.0).abs() < 1e-9);
        assert!((e_value(8, 0) - 511.0 / 9.0).abs() < 1e-9);
        assert!((e_value(0, 4) - 1.0 / 5.0).abs() < 1e-12);
        assert!(e_value(100_000, 0).is_finite());
    }

    fn evidence(pairs: impl IntoIterator<Item = (u32, PairOutcome)>) -> f64 {
        let mut evidence = HarmEvidence::new(0.2);
        pairs.into_iter().for_each(|(cluster, outcome)| evidence.observe(cluster, outcome));
        evidence.value()
    }

    #[test]
    fn harms_of_one_cluster_count_for_less_than_as_many_of_several() {
        let harms = |number: u32, clusters: u32| {
            evidence((0..number).map(|pair| (pair % clusters, PairOutcome::Harm)))
        };
        assert!((harms(0, 1) - 1.0).abs() < 1e-12);
        assert!((harms(13, 13) / e_value(13, 0) - 1.0).abs() < 1e-3);
        assert!(harms(13, 13) > 1000.0 && harms(13, 4) < 400.0 && harms(13, 1) < 20.0);
        // At full stake the odds after k harms of one cluster multiply to (k + 2)(k + 3)/6, since a is 2.
        assert!(harms(40, 1) < 42.0 * 43.0 / 6.0);
    }

    #[test]
    fn the_chance_of_ever_passing_the_bound_is_kept_whatever_the_correlation_and_the_order() {
        // Twenty clusters, one after the other, whose pairs all flip; no flip hangs on another, or all do as allowed.
        let mut random = fastrand::Rng::with_seed(5);
        for correlated in [false, true] {
            let passed = (0..2000).filter(|_| {
                let mut evidence = HarmEvidence::new(0.2);
                (0..20_u32).any(|cluster| {
                    // The middle one of three uniform numbers has the Beta(2, 2) distribution.
                    let mut three = [random.f64(), random.f64(), random.f64()];
                    three.sort_by(f64::total_cmp);
                    let share = if correlated { three[1] } else { 0.5 };
                    (0..30).any(|_| {
                        let harm = random.f64() < share;
                        evidence.observe(cluster, if harm { PairOutcome::Harm } else { PairOutcome::Gain });
                        evidence.value() >= 20.0
                    })
                })
            });
            let passed = u32::try_from(passed.count()).unwrap();
            assert!(crate::stats::lower_bound(passed, 2000, 0.99) <= 0.05, "{passed} of 2000, {correlated}");
        }
    }

    proptest! {
        #[test]
        fn pairs_of_their_own_clusters_give_the_closed_form(harms in 0_u32..40, gains in 0_u32..40) {
            let outcomes = (0..harms + gains).map(|pair| (pair, if pair < harms { PairOutcome::Harm } else { PairOutcome::Gain }));
            prop_assert!((evidence(outcomes) / e_value(harms, gains) - 1.0).abs() < 3e-2);
        }

        #[test]
        fn no_bet_is_fair_to_a_cluster_as_correlated_as_allowed(harms in 0_u32..50, gains in 0_u32..50) {
            let mut before = HarmEvidence::new(0.2);
            for pair in 0..harms + gains {
                before.observe(0, if pair % (harms + gains) < harms { PairOutcome::Harm } else { PairOutcome::Gain });
            }
            let after = |outcome| { let mut after = before.clone(); after.observe(0, outcome); after.value() };
            let (h, g) = (f64::from(harms), f64::from(gains));
            for share in [0.5, (2.0 + h) / (4.0 + h + g), (9.0 + h) / (18.0 + h + g)] {
                let mean = share * after(PairOutcome::Harm) + (1.0 - share) * after(PairOutcome::Gain);
                prop_assert!(mean <= before.value() * (1.0 + 1e-9), "{} {}", mean, before.value());
            }
        }

        #[test]
        fn the_closed_form_is_the_average_over_stakes(harms in 0_i32..60, gains in 0_i32..60) {
            // Simpson's rule; the integrand is a polynomial of degree < 120.
            let steps = 4000;
            let sum: f64 = (0..=steps).map(|step| {
                let stake = f64::from(step) / f64::from(steps);
                let weight = if step == 0 || step == steps { 1.0 } else if step % 2 == 1 { 4.0 } else { 2.0 };
                weight * (1.0 + stake).powi(harms) * (1.0 - stake).powi(gains)
            }).sum();
            let average = sum / (3.0 * f64::from(steps));
            let value = e_value(harms.unsigned_abs(), gains.unsigned_abs());
            prop_assert!((value / average - 1.0).abs() < 1e-6, "{} {}", value, average);
        }

        #[test]
        fn a_fair_pair_changes_nothing_on_average(harms in 0_u32..5000, gains in 0_u32..5000) {
            let before = e_value(harms, gains);
            let after = f64::midpoint(e_value(harms + 1, gains), e_value(harms, gains + 1));
            prop_assume!(after < 1e300 && before > 1e-300);
            prop_assert!((after / before - 1.0).abs() < 1e-7, "{} {}", before, after);
        }

        #[test]
        fn a_harm_raises_the_evidence_and_a_gain_lowers_it(harms in 0_u32..400, gains in 0_u32..400) {
            prop_assert!(e_value(harms + 1, gains) > e_value(harms, gains));
            prop_assert!(e_value(harms, gains + 1) < e_value(harms, gains));
        }
    }
}
