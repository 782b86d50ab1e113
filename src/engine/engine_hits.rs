//! What vLLM itself counts of the tokens that were served. Main type: [`EngineHits`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// vLLM's name of the counter of what a connector served.
const EXTERNAL: &str = "vllm:external_prefix_cache_hits";
/// That of its own prefix cache.
const OWN: &str = "vllm:prefix_cache_hits";
/// That of both by where the KV came from; the worker writes the source's name behind it.
const BY_SOURCE: &str = "vllm:prompt_tokens_cached_by_source:";

/// Tokens that vLLM counts as served, since an engine's start or over some prompts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineHits {
    /// By its connector.
    pub external: u64,
    /// By its own prefix cache.
    pub own: u64,
    /// By either, under vLLM's name of the place that the KV came from; none where it does not tell.
    pub by_source: BTreeMap<String, u64>,
}

impl EngineHits {
    /// Those that an engine's counters tell.
    #[must_use]
    pub fn read(counters: &BTreeMap<String, f64>) -> Self {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count of tokens")]
        let tokens = |count: f64| count as u64;
        let of = |name: &str| counters.get(name).copied().map_or(0, tokens);
        let sources = counters.iter().filter_map(|(name, &count)| {
            Some((name.strip_prefix(BY_SOURCE)?.to_owned(), tokens(count))).filter(|(_, tokens)| *tokens > 0)
        });
        Self { external: of(EXTERNAL), own: of(OWN), by_source: sources.collect() }
    }

    /// What was served since `before`, where this is what was served since the same start.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        self.combined(before, u64::saturating_sub)
    }

    /// Both together.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        self.combined(other, u64::saturating_add)
    }

    fn combined(&self, other: &Self, combine: fn(u64, u64) -> u64) -> Self {
        let of = |hits: &Self, source: &str| hits.by_source.get(source).copied().unwrap_or_default();
        let sources = self.by_source.keys().chain(other.by_source.keys());
        Self {
            external: combine(self.external, other.external),
            own: combine(self.own, other.own),
            by_source: sources
                .map(|source| (source.clone(), combine(of(self, source), of(other, source))))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_served_over_some_prompts_is_what_the_counters_grew_by() {
        let read = |counts: [f64; 4]| {
            let names =
                [EXTERNAL, OWN, "vllm:prompt_tokens_cached_by_source:disk", "vllm:prefix_cache_queries"];
            EngineHits::read(&names.map(str::to_owned).into_iter().zip(counts).collect())
        };
        let (before, after) = (read([256.0, 0.0, 0.0, 9.0]), read([768.0, 16.0, 512.0, 99.0]));
        assert!(before.by_source.is_empty());
        let grown = after.since(&before);
        let disk = BTreeMap::from([("disk".to_owned(), 512)]);
        assert_eq!(grown, EngineHits { external: 512, own: 16, by_source: disk });
        assert_eq!(grown.plus(&before), EngineHits { external: 768, ..grown });
        assert_eq!(EngineHits::read(&BTreeMap::new()), EngineHits::default());
    }
}
