//! The engine runs that a comparison holds against each other. Main types: [`ArmName`], [`Pass`].

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The engine runs of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ArmName {
    /// vLLM alone.
    Baseline,
    /// vLLM alone, once more.
    Repeat,
    /// vLLM alone, served from its own prefix cache.
    Control,
    /// With `LMCache`, first pass.
    Store,
    /// With `LMCache`, second pass.
    Load,
}

impl std::fmt::Display for ArmName {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Baseline => "baseline",
            Self::Repeat => "repeat",
            Self::Control => "control",
            Self::Store => "store pass",
            Self::Load => "load pass",
        })
    }
}

/// One of the passes with `LMCache`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Pass {
    /// The first: it fills the cache.
    Store,
    /// The second: it is served from it.
    Load,
    /// The third: prefixes of prompts that were stored are served from it.
    Cut,
}

impl Pass {
    /// Its name.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Store => "store pass",
            Self::Load => "load pass",
            Self::Cut => "cut pass",
        }
    }
}
