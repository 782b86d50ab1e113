//! Counting pairs of answers that were held against each other bit for bit. Main type: [`Tally`].

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::criteria::NAMED_OFFENDERS;
use super::difference::{Difference, DifferenceKind};

/// How many pairs of answers were compared, and which differ.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tally {
    /// Questions compared.
    pub compared: u32,
    /// Questions that differ.
    pub differing: u32,
    /// Largest difference of a log-probability at any question's first differing token, nats.
    pub largest: f64,
    /// Questions whose most likely tokens had none in common.
    pub disjoint: u32,
    /// The first that differ, in the order of the questions.
    pub first: Vec<Difference>,
}

impl Tally {
    /// Notes one comparison.
    pub(super) fn add(&mut self, difference: Option<Difference>) {
        self.compared += 1;
        let Some(difference) = difference else { return };
        self.differing += 1;
        self.disjoint += u32::from(difference.kind == DifferenceKind::Disjoint);
        self.largest = self.largest.max(difference.largest.unwrap_or(0.0));
        if self.first.len() < NAMED_OFFENDERS {
            self.first.push(difference);
        }
    }
}
