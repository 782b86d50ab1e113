//! The passes over all prompts, and the files with what was observed in each. Main type: [`PassName`].

use crate::event::Answering;

pub(super) const BASELINE: &str = "baseline.jsonl";
pub(super) const REPEAT: &str = "repeat.jsonl";
pub(super) const CONTROL: &str = "control.jsonl";
pub(super) const STORE: &str = "store.jsonl";
pub(super) const LOAD: &str = "load.jsonl";

/// One way of asking every prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PassName {
    /// Without any cache.
    Baseline,
    /// Without reading the cache that it fills.
    Repeat,
    /// Served by vLLM's own prefix cache.
    Control,
    /// Stored by the cache under test.
    Store,
    /// Served by the cache under test.
    Load,
}

impl PassName {
    /// For people.
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Baseline => "baseline",
            Self::Repeat => "repeat",
            Self::Control => "control",
            Self::Store => "store pass",
            Self::Load => "load pass",
        }
    }

    /// The file of its observations.
    pub(super) fn file(self) -> &'static str {
        match self {
            Self::Baseline => BASELINE,
            Self::Repeat => REPEAT,
            Self::Control => CONTROL,
            Self::Store => STORE,
            Self::Load => LOAD,
        }
    }

    /// How its questions are answered.
    pub(super) fn answering(self) -> Answering {
        match self {
            Self::Baseline | Self::Repeat | Self::Store => Answering::Computed,
            Self::Control | Self::Load => Answering::Served,
        }
    }
}
