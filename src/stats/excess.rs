//! Whether one run has more rare events than others that are innocent.

use statrs::function::gamma::ln_gamma;

/// Something that happens to some of a number of pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Events {
    /// Pairs that it happened to.
    pub events: u32,
    /// Pairs that were looked at.
    pub pairs: u32,
}

/// Exact one-sided p-value for more events among the pairs of `seen` than among those of `innocent`: the chance that so many
/// or more of all events fall on the pairs of `seen`, if each pair is as likely as any other (Fisher, The Design of
/// Experiments, 1935; hypergeometric). It says how much was looked at: without innocent pairs it is 1. Never 0.
#[must_use]
pub fn excess_p_value(seen: Events, innocent: Events) -> f64 {
    let (pairs, events) = (seen.pairs + innocent.pairs, seen.events + innocent.events);
    let ln_all = ln_choose(pairs, events);
    let most = events.min(seen.pairs);
    let share = |here: u32| {
        let there = events - here;
        if there > innocent.pairs {
            return 0.0;
        }
        (ln_choose(seen.pairs, here) + ln_choose(innocent.pairs, there) - ln_all).exp()
    };
    (seen.events..=most).map(share).sum::<f64>().clamp(f64::MIN_POSITIVE, 1.0)
}

/// Natural logarithm of the number of ways to choose so many.
fn ln_choose(from: u32, choose: u32) -> f64 {
    let (n, k) = (f64::from(from), f64::from(choose));
    ln_gamma(n + 1.0) - ln_gamma(k + 1.0) - ln_gamma(n - k + 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn p_value(seen: (u32, u32), innocent: (u32, u32)) -> f64 {
        let [seen, innocent] = [seen, innocent].map(|(events, pairs)| Events { events, pairs });
        excess_p_value(seen, innocent)
    }

    #[test]
    fn the_test_matches_the_published_one() {
        // Fisher's lady tasting tea: three of four cups told right, 17 of 70 ways; all four, 1 of 70.
        assert!((p_value((3, 4), (1, 4)) - 17.0 / 70.0).abs() < 1e-12);
        assert!((p_value((4, 4), (0, 4)) - 1.0 / 70.0).abs() < 1e-12);
    }

    #[test]
    fn what_was_hardly_looked_at_excuses_anything() {
        assert!((p_value((1, 320), (0, 0)) - 1.0).abs() < 1e-12);
        assert!(p_value((1, 320), (0, 4)) > 0.98 && p_value((5, 320), (0, 4)) > 0.9);
        // Looked at twice as often as the run itself: nearly one third for each event.
        assert!((p_value((1, 320), (0, 640)) - 1.0 / 3.0).abs() < 1e-12);
        assert!((p_value((0, 320), (3, 640)) - 1.0).abs() < 1e-12);
        assert!(p_value((6, 320), (0, 640)) < 0.0014);
    }
}
