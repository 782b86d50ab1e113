//! What the page shows of engines under pressure. Main type: [`PressureView`].

use super::shown::Badge;
use crate::report::UnderPressure;
use crate::report::pressure::{EventRow, SeedRow, event_rows, offender_lines, pressure_name, seed_rows};

pub(super) struct PressureView<'a> {
    pub(super) pressed: &'a UnderPressure,
    pub(super) name: String,
    pub(super) badge: Badge,
    pub(super) events: Vec<EventRow>,
    pub(super) seeds: Vec<SeedRow>,
    pub(super) offenders: Vec<String>,
}

impl<'a> PressureView<'a> {
    pub(super) fn of(pressed: &'a UnderPressure) -> Self {
        let findings = &pressed.findings;
        Self {
            pressed,
            name: pressure_name(pressed),
            badge: pressed.judgement.verdict.into(),
            events: event_rows(findings),
            seeds: seed_rows(findings),
            offenders: offender_lines(findings),
        }
    }

    /// Whether there is something to do next.
    pub(super) fn has_next_step(&self) -> bool {
        self.pressed.judgement.next_step != "Nothing to do."
    }
}
