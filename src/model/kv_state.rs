//! The state that a recurrent layer keeps of a sequence beside layers with attention. Main type: [`KvState`].

use serde_json::Value;

/// Kinds of models (`model_type`) whose layers keep KV with full attention or the last inputs of a convolution, as vLLM keeps them.
pub(super) const WITH_CONVOLUTIONS: [&str; 1] = ["lfm2"];

/// How large a state is against the KV of tokens beside it, both in elements of one data type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvState {
    /// Elements of the state in a layer.
    pub elements: u64,
    /// Elements of one token's KV in a layer with attention.
    pub elements_of_token: u64,
}

impl KvState {
    /// Reads both from a model's `config.json`; `None` where its layers keep no state, or one that is not known.
    #[must_use]
    pub fn from_config(text: &str) -> Option<Self> {
        let config: Value = serde_json::from_str(text).ok()?;
        if !has_known_convolutions(&config) {
            return None;
        }
        let number = |name: &str| config.get(name)?.as_u64();
        let width = number("conv_dim").or_else(|| number("hidden_size"))?;
        let heads = number("num_attention_heads")?;
        let head_size = number("head_dim").or_else(|| number("hidden_size")?.checked_div(heads))?;
        let kv_heads = number("num_key_value_heads").unwrap_or(heads);
        let elements = width.checked_mul(number("conv_L_cache")?.checked_sub(1)?)?;
        Some(Self { elements, elements_of_token: kv_heads.checked_mul(head_size)?.checked_mul(2)? })
    }

    /// The tokens of a block that it is as large as; `None` where that is no whole number.
    #[must_use]
    pub fn tokens(self) -> Option<u64> {
        let tokens = self.elements.checked_div(self.elements_of_token)?;
        (tokens > 0 && tokens * self.elements_of_token == self.elements).then_some(tokens)
    }
}

/// Whether some layers of this configuration are convolutions that are known, by their names and their width.
pub(super) fn has_known_convolutions(config: &Value) -> bool {
    let is_kind = config
        .get("model_type")
        .and_then(Value::as_str)
        .is_some_and(|kind| WITH_CONVOLUTIONS.contains(&kind));
    let names = config.get("layer_types").and_then(Value::as_array);
    is_kind && names.is_some_and(|names| names.iter().any(|name| name.as_str() == Some("conv")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(more: &str) -> Option<KvState> {
        KvState::from_config(&format!(
            r#"{{"hidden_size":1024,"num_attention_heads":32,"layer_types":["conv","full_attention"]{more}}}"#
        ))
    }

    #[test]
    fn a_state_is_counted_in_tokens_of_the_layers_beside_it() {
        let state = of(r#","model_type":"lfm2","conv_L_cache":3,"num_key_value_heads":1"#).unwrap();
        assert_eq!((state.elements, state.elements_of_token, state.tokens()), (2048, 64, Some(32)));
        let state = of(r#","model_type":"lfm2","conv_L_cache":3,"num_key_value_heads":8"#).unwrap();
        assert_eq!(state.tokens(), Some(4));
        let state = of(r#","model_type":"lfm2","conv_L_cache":4,"num_key_value_heads":32"#).unwrap();
        assert_eq!(state.tokens(), None);
        assert_eq!(of(r#","model_type":"lfm2","num_key_value_heads":1"#), None);
        assert_eq!(of(r#","model_type":"granitemoehybrid","conv_L_cache":3"#), None);
    }
}
