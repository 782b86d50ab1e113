//! What the page shows of foreign KV. Main type: [`ForeignView`].

use super::shown::Badge;
use crate::comparison::Verdict;
use crate::foreign::Meaning;
use crate::report::ForeignKv;
use crate::report::foreign::{ForeignRow, foreign_rows, foreign_words};

pub(super) struct ForeignView<'a> {
    pub(super) foreign: &'a ForeignKv,
    pub(super) class: &'static str,
    pub(super) symbol: &'static str,
    pub(super) words: String,
    pub(super) findings: Vec<String>,
    pub(super) rows: Vec<ForeignRow>,
}

impl<'a> ForeignView<'a> {
    pub(super) fn of(foreign: &'a ForeignKv) -> Self {
        let findings = foreign.findings.findings();
        // A finding fails nothing and must be seen; misses without a control prove nothing.
        let like = match (foreign.findings.control_holds(), findings.is_empty()) {
            (true, true) => Verdict::Equivalent,
            (true, false) => Verdict::Insensitive,
            (false, _) => Verdict::Inconclusive,
        };
        let Badge { class, symbol, .. } = like.into();
        let (words, rows) = (foreign_words(&foreign.findings), foreign_rows(&foreign.findings));
        Self { foreign, class, symbol, words, findings, rows }
    }
}

impl ForeignRow {
    /// Whether the row is to catch the eye.
    pub(super) fn is_marked(&self) -> bool {
        matches!(self.kind, Meaning::Finding | Meaning::ControlFails)
    }
}
