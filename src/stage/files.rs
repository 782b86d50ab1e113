//! The passes over prompts, and the files with what was observed in each. Main type: [`PassName`].

use crate::event::Answering;

pub(super) const BASELINE: &str = "baseline.jsonl";
pub(super) const REPEAT: &str = "repeat.jsonl";
pub(super) const CONTROL: &str = "control.jsonl";
pub(super) const STORE: &str = "store.jsonl";
pub(super) const LOAD: &str = "load.jsonl";
pub(super) const CUT: &str = "cut.jsonl";
pub(super) const CUT_CONTROL: &str = "cut-control.jsonl";

/// One way of asking prompts.
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
    /// Prefixes of prompts, served by the cache under test.
    Cut,
    /// Prefixes of prompts, served by vLLM's own prefix cache.
    CutControl,
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
            Self::Cut => "cut pass",
            Self::CutControl => "control of prefixes",
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
            Self::Cut => CUT,
            Self::CutControl => CUT_CONTROL,
        }
    }

    /// How its questions are answered.
    pub(super) fn answering(self) -> Answering {
        match self {
            Self::Baseline | Self::Repeat | Self::Store => Answering::Computed,
            Self::Control | Self::Load | Self::Cut | Self::CutControl => Answering::Served,
        }
    }
}
