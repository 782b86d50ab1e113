//! How much KV has room at a time. Main function: [`capacity`].

use std::collections::BTreeMap;

use serde_json::Value;

use super::StageError;
use crate::assets::{AssetError, ModelFiles};
use crate::engine::{Capacity, Parallelism};
use crate::model::HitRule;
use crate::suite::{ModelSettings, Suite};

const GIB: u64 = 1 << 30;
/// vLLM's own choice of a block's tokens where a suite names none, or less than that: a plan for these fits any.
const LEAST_BLOCK: u64 = 16;

/// Bytes and chunks that the rounds of a model are made for.
///
/// # Errors
/// When the model's shape cannot be read.
pub fn capacity(suite: &Suite, settings: &ModelSettings, files: &ModelFiles) -> Result<Capacity, AssetError> {
    let (shape, ranks) = (files.kv_shape()?, Parallelism::of(settings));
    let bytes_per_token = ranks.stored_shape(shape).bytes_per_token(suite.engine.dtype.bytes());
    // Each rank has a cache of this size; those that hold the same KV are no more room.
    let bytes =
        (u64::from(suite.engine.kv_cache_gib) * GIB).saturating_mul(ranks.written_shards(shape).into());
    Ok(Capacity {
        chunk_tokens: suite.lmcache.chunk_tokens,
        bytes_per_token,
        lmcache_bytes: u64::from(suite.lmcache.memory_gib) * GIB,
        engine_bytes: blocks(suite, settings).map_or(bytes, |tokens| tokens.saturating_mul(bytes_per_token)),
        hits: HitRule::default(),
    })
}

/// Tokens of the blocks that a suite leaves vLLM, whatever memory there is; `None` where it leaves them to vLLM.
fn blocks(suite: &Suite, settings: &ModelSettings) -> Option<u64> {
    let maps: [&BTreeMap<String, Value>; 3] =
        [&suite.engine.arguments, &settings.arguments, &settings.cpu_arguments];
    // Which of them holds depends on the device; the least does for all.
    let least = |name: &str| maps.iter().filter_map(|arguments| arguments.get(name)?.as_u64()).min();
    let blocks = least("num_gpu_blocks_override")?;
    Some(blocks.saturating_mul(least("block_size").unwrap_or(LEAST_BLOCK)))
}

/// Refuses a suite whose longest sequence has no room in vLLM's KV cache, with which no engine starts.
///
/// # Errors
/// When it has none.
pub fn admit_length(suite: &Suite, model: &str, capacity: Capacity) -> Result<(), StageError> {
    let (longest, room) = (suite.engine.max_model_len, capacity.engine_tokens());
    if u64::from(longest) <= room {
        return Ok(());
    }
    Err(StageError::TooLong { model: model.to_owned(), longest, room })
}

/// Bytes of one chunk.
pub(super) fn chunk_bytes(capacity: Capacity) -> u64 {
    u64::from(capacity.chunk_tokens) * capacity.bytes_per_token
}
