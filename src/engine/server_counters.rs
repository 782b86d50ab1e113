//! What an LMCache server counts. Main type: [`ServerCounters`].

use serde::{Deserialize, Serialize};

/// What the counters of one server are of.
#[derive(Debug)]
pub(super) struct Counted {
    /// LMCache's name of its second tier, if it has one.
    pub(super) second_tier: Option<&'static str>,
    /// Tokens of a chunk.
    pub(super) chunk_tokens: u32,
    /// Objects that a chunk is stored as, one for each rank that writes.
    pub(super) shards_of_chunk: u32,
}

/// The server's own counters of lookups and chunks, cumulative. Sources: `/metrics`, prefix `lmcache_mp_`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerCounters {
    /// Lookups, one a request.
    pub lookups: u64,
    /// Tokens that were looked up, in whole chunks.
    pub requested_tokens: u64,
    /// Tokens that were found, in whole chunks.
    pub hit_tokens: u64,
    /// Of these, found in the memory tier.
    pub hit_memory_tokens: u64,
    /// Of these, found in a second tier.
    pub hit_second_tier_tokens: u64,
    /// Loads that the second tier of the route finished, told by its name.
    pub second_tier_loads: u64,
    /// Chunks that second tiers found and were asked for, counted for each rank.
    #[serde(default)]
    pub asked_chunks: u64,
    /// Of these, those that they gave.
    #[serde(default)]
    pub given_chunks: u64,
    /// Chunks that a second tier had and was not asked for, since another request was just loading them (in LMCache 0.5.6:
    /// had loaded them since the lookup): LMCache serves the request that comes second less then.
    #[serde(default)]
    pub contended_chunks: u64,
    /// Chunks that a second tier took, counted for each rank.
    pub second_tier_chunks: u64,
    /// Chunks written into the memory tier, counted for each rank.
    pub written_chunks: u64,
    /// Chunks read from the memory tier, counted for each rank.
    pub read_chunks: u64,
    /// Chunks that a second tier had found and did not give.
    #[serde(default)]
    pub lost_chunks: u64,
    /// Chunks that the memory tier gave up for others, counted for each rank.
    #[serde(default)]
    pub evicted_chunks: u64,
}

impl ServerCounters {
    /// What was counted since an earlier reading.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        let less = u64::saturating_sub;
        Self {
            lookups: less(self.lookups, earlier.lookups),
            requested_tokens: less(self.requested_tokens, earlier.requested_tokens),
            hit_tokens: less(self.hit_tokens, earlier.hit_tokens),
            hit_memory_tokens: less(self.hit_memory_tokens, earlier.hit_memory_tokens),
            hit_second_tier_tokens: less(self.hit_second_tier_tokens, earlier.hit_second_tier_tokens),
            second_tier_loads: less(self.second_tier_loads, earlier.second_tier_loads),
            asked_chunks: less(self.asked_chunks, earlier.asked_chunks),
            given_chunks: less(self.given_chunks, earlier.given_chunks),
            contended_chunks: less(self.contended_chunks, earlier.contended_chunks),
            second_tier_chunks: less(self.second_tier_chunks, earlier.second_tier_chunks),
            written_chunks: less(self.written_chunks, earlier.written_chunks),
            read_chunks: less(self.read_chunks, earlier.read_chunks),
            lost_chunks: less(self.lost_chunks, earlier.lost_chunks),
            evicted_chunks: less(self.evicted_chunks, earlier.evicted_chunks),
        }
    }

    /// Adds what another pass counted.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            lookups: self.lookups + other.lookups,
            requested_tokens: self.requested_tokens + other.requested_tokens,
            hit_tokens: self.hit_tokens + other.hit_tokens,
            hit_memory_tokens: self.hit_memory_tokens + other.hit_memory_tokens,
            hit_second_tier_tokens: self.hit_second_tier_tokens + other.hit_second_tier_tokens,
            second_tier_loads: self.second_tier_loads + other.second_tier_loads,
            asked_chunks: self.asked_chunks + other.asked_chunks,
            given_chunks: self.given_chunks + other.given_chunks,
            contended_chunks: self.contended_chunks + other.contended_chunks,
            second_tier_chunks: self.second_tier_chunks + other.second_tier_chunks,
            written_chunks: self.written_chunks + other.written_chunks,
            read_chunks: self.read_chunks + other.read_chunks,
            lost_chunks: self.lost_chunks + other.lost_chunks,
            evicted_chunks: self.evicted_chunks + other.evicted_chunks,
        }
    }

    /// Reads them from `/metrics`.
    ///
    /// # Errors
    /// With the line that is no count.
    pub(super) fn read(text: &str, counted: &Counted) -> Result<Self, String> {
        let sum = |name: &str| sum_metric(text, name, "");
        // Without a second tier any load from one counts, so that none goes unseen.
        let named = counted.second_tier.map_or_else(String::new, |name| format!("l2_name=\"{name}\""));
        let hit_tokens = sum("lmcache_mp_lookup_hit_tokens_total")?;
        let split =
            [sum("lmcache_mp_lookup_hit_l1_tokens_total")?, sum("lmcache_mp_lookup_hit_l2_tokens_total")?];
        let loaded_objects = sum("lmcache_mp_l2_prefetch_load_completed_chunks_total")?;
        let loaded =
            loaded_objects / u64::from(counted.shards_of_chunk.max(1)) * u64::from(counted.chunk_tokens);
        let [hit_memory_tokens, hit_second_tier_tokens] = split_hits(hit_tokens, split, loaded);
        Ok(Self {
            lookups: sum("lmcache_mp_lookups_requests_total")?,
            requested_tokens: sum("lmcache_mp_lookup_requested_tokens_total")?,
            hit_tokens,
            hit_memory_tokens,
            hit_second_tier_tokens,
            second_tier_loads: sum_metric(text, "lmcache_mp_l2_load_completed_requests_total", &named)?,
            asked_chunks: sum("lmcache_mp_l2_prefetch_load_submitted_objects_chunks_total")?,
            given_chunks: loaded_objects,
            contended_chunks: sum_metric(
                text,
                "lmcache_mp_l2_prefetch_failure_chunks_total",
                "reason=\"l1_contended\"",
            )?,
            second_tier_chunks: sum("lmcache_mp_l2_store_completed_objects_chunks_total")?,
            written_chunks: sum("lmcache_mp_l1_write_chunks_total")?,
            read_chunks: sum("lmcache_mp_l1_read_chunks_total")?,
            lost_chunks: sum_metric(
                text,
                "lmcache_mp_l2_prefetch_failure_chunks_total",
                "reason=\"not_found\"",
            )?,
            evicted_chunks: sum("lmcache_mp_l1_evicted_chunks_total")?,
        })
    }
}

/// Tokens found in memory and in the second tier, `split` where the server tells them apart. LMCache up to 0.5.4 does not, but
/// counts what it loads from the second tier: `loaded` tokens.
fn split_hits(hit_tokens: u64, split: [u64; 2], loaded: u64) -> [u64; 2] {
    if split == [0, 0] {
        let from_second_tier = loaded.min(hit_tokens);
        return [hit_tokens - from_second_tier, from_second_tier];
    }
    split
}

/// The sum over all label sets with this label of a counter in Prometheus' text format; 0 for one not counted yet.
fn sum_metric(text: &str, name: &str, label: &str) -> Result<u64, String> {
    let mut sum = 0.0;
    for line in text.lines() {
        let Some(rest) = line.strip_prefix(name) else { continue };
        if !rest.starts_with(['{', ' ']) || !rest.contains(label) {
            continue;
        }
        let value = rest.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok());
        let value = value.filter(|value| (0.0..9e15).contains(value));
        sum += value.ok_or_else(|| format!("{line:?} is no count"))?;
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked to be a count below 2^53"
    )]
    Ok(sum as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_summed_over_its_labels_and_absent_ones_are_zero() {
        let text =
            "# HELP a_total x\na_total{m=\"x\"} 3.0\na_total{m=\"y z\"} 1.0e2\na_total_more 7\nb_total 2\n";
        assert_eq!(sum_metric(text, "a_total", ""), Ok(103));
        assert_eq!(sum_metric(text, "a_total", "m=\"x\""), Ok(3));
        assert_eq!(sum_metric(text, "b_total", ""), Ok(2));
        assert_eq!(sum_metric(text, "c_total", ""), Ok(0));
    }

    #[test]
    fn a_server_that_does_not_tell_tiers_apart_is_known_by_what_it_loaded() {
        assert_eq!(split_hits(512, [256, 256], 9999), [256, 256]);
        assert_eq!(split_hits(512, [0, 0], 0), [512, 0]);
        assert_eq!(split_hits(512, [0, 0], 256), [256, 256]);
        assert_eq!(split_hits(512, [0, 0], 768), [0, 512], "the chunk behind a gap is loaded and not served");
        assert_eq!(split_hits(0, [0, 0], 0), [0, 0]);
    }

    #[test]
    fn a_counter_that_is_no_count_is_refused_with_its_line() {
        assert_eq!(sum_metric("a_total NaN\n", "a_total", ""), Err("\"a_total NaN\" is no count".to_owned()));
        assert_eq!(sum_metric("a_total -1\n", "a_total", ""), Err("\"a_total -1\" is no count".to_owned()));
    }
}
