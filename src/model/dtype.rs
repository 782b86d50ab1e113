//! How an element of weights and KV is kept. Main type: [`Dtype`].

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Data types of weights and KV.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 16 bits, 8 of them exponent.
    Bfloat16,
    /// 16 bits, 5 of them exponent.
    Float16,
    /// 32 bits.
    Float32,
}

impl Dtype {
    /// Bytes of one element.
    #[must_use]
    pub fn bytes(self) -> u64 {
        match self {
            Self::Bfloat16 | Self::Float16 => 2,
            Self::Float32 => 4,
        }
    }

    /// vLLM's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Bfloat16 => "bfloat16",
            Self::Float16 => "float16",
            Self::Float32 => "float32",
        }
    }
}
