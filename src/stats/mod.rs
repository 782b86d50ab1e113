//! Statistics of paired binary data: tests, intervals, power and a test that may be read at any time.
//!
//! Owns the formulae, each with its source; knows nothing of questions, engines or verdicts, which are
//! `comparison`'s. Throughout, a *harm* is a pair that was right without the cache and is not with it, a *gain* is
//! the reverse, and a difference is (gains − harms) ÷ pairs, so a loss is negative. Main type: [`PairedTable`].

mod binomial;
mod clusters;
mod e_process;
mod excess;
mod holm;
mod interval;
mod paired;
mod power;
mod tango;

pub use binomial::{clopper_pearson, lower_bound, no_event_upper_bound, upper_bound};
pub use clusters::{
    ClusterSum, cluster_change_p_value, cluster_interval, cluster_standard_error, sign_flip_loss_p_value,
    sum_by_cluster,
};
pub use e_process::{HarmEvidence, e_value};
pub use excess::{Events, excess_p_value};
pub use holm::holm_adjusted;
pub use interval::Interval;
pub use paired::{PairOutcome, PairedTable};
pub use power::{
    cluster_factor, design_effect, detectable_loss, loss_power, pairs_for_equivalence, pairs_in_clusters,
};
pub use tango::{tango_change_p_value, tango_interval};

/// The quantile of the standard normal distribution below which lies the share `probability`, 0 < `probability` < 1.
fn normal_quantile(probability: f64) -> f64 {
    use statrs::distribution::{ContinuousCDF, Normal};

    Normal::standard().inverse_cdf(probability)
}

/// The share of the standard normal distribution that lies below `value`.
fn normal_share_below(value: f64) -> f64 {
    use statrs::distribution::{ContinuousCDF, Normal};

    Normal::standard().cdf(value)
}
