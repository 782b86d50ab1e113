//! A closed range of plausible values. Main type: [`Interval`].

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A confidence interval, `lower` ≤ `upper`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Interval {
    /// The smallest value that the data do not contradict.
    pub lower: f64,
    /// The largest value that the data do not contradict.
    pub upper: f64,
}

impl Interval {
    /// Whether every value is strictly smaller than `margin` in size: with a 90 % interval this is the test of
    /// equivalence by two one-sided tests at 5 % each (Schuirmann, J. Pharmacokinet. Biopharm. 15:657, 1987).
    #[must_use]
    pub fn lies_within(self, margin: f64) -> bool {
        -margin < self.lower && self.upper < margin
    }

    /// Whether every value is strictly larger than `margin` in size.
    #[must_use]
    pub fn lies_outside(self, margin: f64) -> bool {
        self.upper < -margin || margin < self.lower
    }
}
