//! Evidence of a loss that may be read after every pair, as often as one likes.

use std::f64::consts::LN_2;

use statrs::function::gamma::ln_gamma;

use super::binomial::{Odds, ln_lower_tail};

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

    proptest! {
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
