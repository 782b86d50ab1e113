//! How much KV has room at a time. Main function: [`capacity`].

use crate::assets::{AssetError, ModelFiles};
use crate::engine::{Capacity, Parallelism};
use crate::model::HitRule;
use crate::suite::{ModelSettings, Suite};

const GIB: u64 = 1 << 30;

/// Bytes and chunks that the rounds of a model are made for.
///
/// # Errors
/// When the model's shape cannot be read.
pub fn capacity(suite: &Suite, settings: &ModelSettings, files: &ModelFiles) -> Result<Capacity, AssetError> {
    let (shape, ranks) = (files.kv_shape()?, Parallelism::of(settings));
    Ok(Capacity {
        chunk_tokens: suite.lmcache.chunk_tokens,
        bytes_per_token: ranks.stored_shape(shape).bytes_per_token(suite.engine.dtype.bytes()),
        lmcache_bytes: u64::from(suite.lmcache.memory_gib) * GIB,
        // Each rank has a cache of this size; those that hold the same KV are no more room.
        engine_bytes: (u64::from(suite.engine.kv_cache_gib) * GIB)
            .saturating_mul(ranks.written_shards(shape).into()),
        hits: HitRule::default(),
    })
}

/// Bytes of one chunk.
pub(super) fn chunk_bytes(capacity: Capacity) -> u64 {
    u64::from(capacity.chunk_tokens) * capacity.bytes_per_token
}
