//! How large a model's KV cache is. Main type: [`KvShape`]. How it is read from a configuration is told in `kv_groups`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What one token's KV is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "attention", rename_all = "lowercase", deny_unknown_fields)]
pub enum KvShape {
    /// A key and a value for each KV head.
    Dense {
        /// Layers with attention.
        layers: u64,
        /// KV heads of a layer.
        kv_heads: u64,
        /// Elements of a key, and of a value.
        head_size: u64,
    },
    /// One latent vector for all heads, with the rotary part of the key (multi-head latent attention).
    Mla {
        /// Layers with attention.
        layers: u64,
        /// Elements of the latent vector.
        latent: u64,
        /// Elements of the rotary part.
        rotary: u64,
    },
}

impl KvShape {
    /// Bytes of one token's KV over all layers, where an element takes `element` bytes.
    #[must_use]
    pub fn bytes_per_token(self, element: u64) -> u64 {
        match self {
            Self::Dense { layers, kv_heads, head_size } => {
                [layers, kv_heads, head_size, element].into_iter().fold(2, u64::saturating_mul)
            }
            Self::Mla { layers, latent, rotary } => {
                latent.saturating_add(rotary).saturating_mul(layers).saturating_mul(element)
            }
        }
    }

    /// `dense` or `MLA`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Dense { .. } => "dense",
            Self::Mla { .. } => "MLA",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Llama-3.1-8B: 32 layers, 8 KV heads of 128: 128 KiB a token in bfloat16.
    #[test]
    fn a_dense_models_kv_is_counted_by_its_kv_heads() {
        let config =
            r#"{"num_hidden_layers":32,"num_attention_heads":32,"num_key_value_heads":8,"hidden_size":4096}"#;
        assert_eq!(KvShape::from_config(config).unwrap().bytes_per_token(2), 131_072);
    }

    // DeepSeek-V2-Lite: 27 layers of 512 + 64: 31104 bytes a token in bfloat16.
    #[test]
    fn an_mla_models_kv_is_its_latent_and_rotary_part() {
        let config = r#"{"num_hidden_layers":27,"num_attention_heads":16,"num_key_value_heads":16,"hidden_size":2048,
            "kv_lora_rank":512,"qk_rope_head_dim":64}"#;
        assert_eq!(KvShape::from_config(config).unwrap().bytes_per_token(2), 31_104);
    }
}
