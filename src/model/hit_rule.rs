//! How much of a prompt a cache serves once the prompt was stored. Main type: [`HitRule`].

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a cache stores and serves of a prompt of n tokens, counted in units: it stores the first ⌊(n − `stored_less`) / unit⌋
/// units, and looks for the first ⌊(n − `asked_less`) / unit⌋. The default is LMCache's rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HitRule {
    /// What is stored and served as a whole.
    pub unit: HitUnit,
    /// Tokens at the end of a prompt that are never stored.
    pub stored_less: u32,
    /// Tokens at the end of a prompt that are never looked for.
    pub asked_less: u32,
    /// What of a stored prompt can be found.
    pub found: Found,
    /// Whether the rest behind the last whole unit is served, too.
    pub rest: bool,
}

/// What is stored and served as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum HitUnit {
    /// LMCache's chunk.
    #[default]
    Chunk,
    /// A block of vLLM's KV cache.
    Block,
}

/// What of a stored prompt can be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Found {
    /// Any number of its first units.
    #[default]
    Prefixes,
    /// All that was stored of it, or nothing.
    Whole,
}

impl HitRule {
    /// Whether it is the default, which keys do not say.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Whether a prompt of whole units is served all but its last token, and not all but its last unit.
    #[must_use]
    pub fn serves_whole_prompts(&self) -> bool {
        self.asked_less == 0
    }

    /// The rule of a control whose hits leave the tokens to compute that hits by this rule leave, as far as vLLM's own prefix cache
    /// can.
    #[must_use]
    pub fn of_control(&self) -> Self {
        Self { unit: self.unit, asked_less: self.asked_less.min(1), ..Self::default() }
    }

    /// How many units of so many tokens are stored of a prompt.
    #[must_use]
    pub fn stored_units(&self, prompt_tokens: u32, unit_tokens: u32) -> u32 {
        prompt_tokens.saturating_sub(self.stored_less) / unit_tokens
    }

    /// How many units of so many tokens are looked for.
    #[must_use]
    pub fn asked_units(&self, prompt_tokens: u32, unit_tokens: u32) -> u32 {
        prompt_tokens.saturating_sub(self.asked_less) / unit_tokens
    }

    /// Tokens that are served of a prompt for which so many units were found: never all, since the last token must be computed
    /// to have an answer.
    #[must_use]
    pub fn served_tokens(&self, prompt_tokens: u32, found_units: u32, unit_tokens: u32) -> u32 {
        let tokens = if self.rest { prompt_tokens } else { found_units * unit_tokens };
        if tokens == prompt_tokens { tokens.saturating_sub(1) } else { tokens }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served(rule: HitRule, unit: u32, lengths: &[u32]) -> Vec<u32> {
        lengths.iter().map(|&n| rule.served_tokens(n, rule.asked_units(n, unit), unit)).collect()
    }

    #[test]
    fn lmcache_serves_whole_chunks_and_of_a_prompt_of_whole_chunks_all_but_its_last_token() {
        assert_eq!(served(HitRule::default(), 4, &[0, 3, 4, 5, 8, 9]), [0, 0, 3, 4, 7, 8]);
    }

    #[test]
    fn a_control_serves_whole_prompts_where_the_rule_does() {
        let example = HitRule { unit: HitUnit::Block, stored_less: 1, asked_less: 2, ..HitRule::default() };
        let nixl = HitRule { unit: HitUnit::Block, rest: true, ..HitRule::default() };
        assert!(HitRule::default().of_control().is_default());
        assert_eq!(served(example.of_control(), 4, &[7, 8, 9]), [4, 4, 8]);
        assert_eq!(served(nixl.of_control(), 4, &[7, 8, 9]), [4, 7, 8]);
    }

    #[test]
    fn a_rule_can_leave_tokens_at_the_end_or_serve_the_rest() {
        let less = HitRule { stored_less: 1, asked_less: 2, ..HitRule::default() };
        assert_eq!(served(less, 4, &[1, 4, 5, 6, 9, 10]), [0, 0, 0, 4, 4, 8]);
        // One token behind whole units more is stored than is looked for.
        assert_eq!((less.stored_units(5, 4), less.asked_units(5, 4)), (1, 0));
        let rest = HitRule { rest: true, ..HitRule::default() };
        assert_eq!(served(rest, 4, &[3, 4, 5]), [2, 3, 4]);
    }
}
