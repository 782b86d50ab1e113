//! The stages' names, in the order in which they run. Main type: [`StageName`]. What a stage does is in `stage`.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A stage of the pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum StageName {
    /// Archive to questions.
    Extract,
    /// Questions to token ids.
    Prompts,
    /// vLLM without LMCache.
    Baseline,
    /// The baseline's repeat, and vLLM's own prefix caching.
    Control,
    /// vLLM with LMCache: store pass, load pass.
    Cached,
    /// What the arms' answers have in common.
    Compare,
    /// What the comparison says of planted faults.
    Faults,
    /// What LMCache serves of KV of another identity.
    Foreign,
    /// Conversations over a cache.
    Turns,
    /// What is served where room runs out and requests are broken off.
    Pressure,
}

impl StageName {
    /// All stages, in the order in which they run.
    pub const ALL: [Self; 10] = [
        Self::Extract,
        Self::Prompts,
        Self::Baseline,
        Self::Control,
        Self::Cached,
        Self::Compare,
        Self::Faults,
        Self::Foreign,
        Self::Turns,
        Self::Pressure,
    ];

    /// The name on the command line, in keys and in folders.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Extract => "extract",
            Self::Prompts => "prompts",
            Self::Baseline => "baseline",
            Self::Control => "control",
            Self::Cached => "cached",
            Self::Compare => "compare",
            Self::Faults => "faults",
            Self::Foreign => "foreign",
            Self::Turns => "turns",
            Self::Pressure => "pressure",
        }
    }
}

impl fmt::Display for StageName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.as_str())
    }
}

/// A text that names no stage.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a stage (extract, prompts, baseline, control, cached, compare, faults, foreign, turns or pressure)"
)]
pub struct NotAStage(pub String);

impl FromStr for StageName {
    type Err = NotAStage;

    fn from_str(text: &str) -> Result<Self, NotAStage> {
        let named = Self::ALL.into_iter().find(|stage| stage.as_str() == text);
        named.ok_or_else(|| NotAStage(text.to_owned()))
    }
}
