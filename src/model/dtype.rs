//! How an element of weights and KV is kept. Main types: [`Dtype`], [`KvDtype`].

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

/// Data types of eight bits that vLLM keeps KV in, where that is another one than weights have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum KvDtype {
    /// 4 bits of exponent, 3 of mantissa.
    #[serde(rename = "fp8_e4m3")]
    Fp8E4m3,
    /// 5 bits of exponent, 2 of mantissa.
    #[serde(rename = "fp8_e5m2")]
    Fp8E5m2,
}

impl KvDtype {
    /// Bytes of one element.
    #[must_use]
    pub fn bytes(self) -> u64 {
        1
    }

    /// Of vLLM's name, `fp8` among them; `None` of any other.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "fp8" | "fp8_e4m3" => Some(Self::Fp8E4m3),
            "fp8_e5m2" => Some(Self::Fp8E5m2),
            _ => None,
        }
    }

    /// vLLM's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Fp8E4m3 => "fp8_e4m3",
            Self::Fp8E5m2 => "fp8_e5m2",
        }
    }
}
