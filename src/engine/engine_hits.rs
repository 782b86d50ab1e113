//! What vLLM itself counts of the tokens that were served. Main type: [`EngineHits`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// vLLM's name of the counter of what a connector served.
const EXTERNAL: &str = "vllm:external_prefix_cache_hits";
/// That of its own prefix cache.
const OWN: &str = "vllm:prefix_cache_hits";
/// That of both by where the KV came from; the worker writes the source's name behind it.
const BY_SOURCE: &str = "vllm:prompt_tokens_cached_by_source:";

/// Tokens that vLLM counts as served, since an engine's start or over some prompts. The default is what was counted before any
/// engine was asked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineHits {
    /// By its connector; none where vLLM has no such counter.
    pub external: Option<u64>,
    /// By its own prefix cache, likewise.
    pub own: Option<u64>,
    /// By either, under vLLM's name of the place that the KV came from; none where it does not tell.
    pub by_source: BTreeMap<String, u64>,
}

impl EngineHits {
    /// Those that an engine's counters tell.
    #[must_use]
    pub fn read(counters: &BTreeMap<String, f64>) -> Self {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count of tokens")]
        let tokens = |count: f64| count as u64;
        let of = |name: &str| counters.get(name).copied().map(tokens);
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

    /// Both counts, by the connector and by vLLM's own prefix cache.
    ///
    /// # Errors
    /// The name of the first counter that vLLM does not have.
    pub fn both(&self) -> Result<[u64; 2], &'static str> {
        Ok([self.external.ok_or(EXTERNAL)?, self.own.ok_or(OWN)?])
    }

    fn combined(&self, other: &Self, combine: fn(u64, u64) -> u64) -> Self {
        let either = |own: Option<u64>, others: Option<u64>| match (own, others) {
            (None, None) => None,
            _ => Some(combine(own.unwrap_or_default(), others.unwrap_or_default())),
        };
        let of = |hits: &Self, source: &str| hits.by_source.get(source).copied().unwrap_or_default();
        let sources = self.by_source.keys().chain(other.by_source.keys());
        Self {
            external: either(self.external, other.external),
            own: either(self.own, other.own),
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
        assert_eq!(grown, EngineHits { external: Some(512), own: Some(16), by_source: disk });
        assert_eq!(grown.plus(&before), EngineHits { external: Some(768), ..grown });
    }

    #[test]
    fn a_counter_that_vllm_does_not_have_counts_nothing_instead_of_zero() {
        let none = EngineHits::read(&BTreeMap::new());
        assert_eq!(none.both(), Err(EXTERNAL));
        let external = EngineHits::read(&BTreeMap::from([(EXTERNAL.to_owned(), 0.0)]));
        let before = EngineHits::default();
        let pass = before.plus(&external.since(&before));
        assert_eq!((pass.external, pass.both()), (Some(0), Err(OWN)));
    }
}
