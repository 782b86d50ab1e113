//! One line of what was found. Main type: [`Line`].

/// One line of findings.
pub(super) struct Line {
    pub(super) name: &'static str,
    pub(super) value: String,
}

impl Line {
    pub(super) fn new(name: &'static str, value: impl Into<String>) -> Self {
        Self { name, value: value.into() }
    }
}
