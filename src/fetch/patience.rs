//! When a server counts as not to be had. Main type: [`Patience`].

use std::time::Duration;

/// When a server counts as not to be had.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Tries in a row that bring less than `least_bytes`.
    pub tries: u32,
    /// Pause after the first of them; it doubles with each.
    pub first_pause: Duration,
    /// The longest pause, also of those that a server asks for.
    pub longest_pause: Duration,
    /// In so long at least `least_bytes` must come.
    pub stall: Duration,
    /// What counts as getting on.
    pub least_bytes: u64,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            tries: 5,
            first_pause: Duration::from_secs(1),
            longest_pause: Duration::from_mins(5),
            stall: Duration::from_secs(30),
            least_bytes: 64 << 10,
        }
    }
}

impl Patience {
    /// How long to wait after so many failures in a row, unless the server says.
    pub(super) fn pause(&self, failures: u32, asked: Option<Duration>) -> Duration {
        let doubled = self.first_pause.saturating_mul(1 << failures.saturating_sub(1).min(16));
        asked.unwrap_or_else(|| doubled.min(self.longest_pause))
    }
}
