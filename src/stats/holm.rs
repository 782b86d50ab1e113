//! Several tests at once.

/// Holm's step-down adjusted p-values, in the order given (Scandinavian Journal of Statistics 6:65, 1979): rejecting
/// those at most α keeps the chance of any false rejection at most α, whatever the dependence.
#[must_use]
pub fn holm_adjusted(p_values: &[f64]) -> Vec<f64> {
    let mut ranks: Vec<usize> = (0..p_values.len()).collect();
    ranks.sort_by(|&one, &other| p_values[one].total_cmp(&p_values[other]));
    let mut adjusted = vec![1.0; p_values.len()];
    let mut largest: f64 = 0.0;
    let mut remaining: f64 = p_values.iter().map(|_| 1.0).sum();
    for test in ranks {
        largest = largest.max((remaining * p_values[test]).min(1.0));
        adjusted[test] = largest;
        remaining -= 1.0;
    }
    adjusted
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn adjustment_matches_the_published_procedure() {
        // The worked example of R's p.adjust(c(0.01, 0.02, 0.03, 0.04, 0.05), "holm").
        let adjusted = holm_adjusted(&[0.01, 0.02, 0.03, 0.04, 0.05]);
        for (value, expected) in adjusted.iter().zip([0.05, 0.08, 0.09, 0.09, 0.09]) {
            assert!((value - expected).abs() < 1e-15, "{adjusted:?}");
        }
        assert!(holm_adjusted(&[]).is_empty());
    }

    proptest! {
        #[test]
        fn lies_between_the_value_and_bonferroni_and_keeps_the_order(p_values in prop::collection::vec(0.0..=1.0_f64, 1..20)) {
            let adjusted = holm_adjusted(&p_values);
            #[expect(clippy::cast_precision_loss, reason = "fewer than 20")]
            let tests = p_values.len() as f64;
            for (one, (&p, &a)) in p_values.iter().zip(&adjusted).enumerate() {
                prop_assert!(p <= a && a <= (tests * p).min(1.0) + 1e-12);
                for (other, &q) in p_values.iter().enumerate() {
                    prop_assert!(p >= q || adjusted[one] <= adjusted[other]);
                }
            }
        }
    }
}
