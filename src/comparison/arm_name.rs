//! The engine runs that a comparison holds against each other. Main type: [`ArmName`].

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
