//! How much KV has room at a time. Main function: [`capacity`].

use std::collections::BTreeMap;

use serde_json::Value;

use super::StageError;
use crate::assets::{AssetError, ModelFiles};
use crate::engine::{Capacity, Parallelism};
use crate::model::{HitRule, KvDtype};
use crate::suite::{ModelSettings, Suite};

const GIB: u64 = 1 << 30;
/// vLLM's argument.
const KV_DTYPE: &str = "kv_cache_dtype";
/// vLLM's own choice of a block's tokens where a suite names none, or less than that: a plan for these fits any.
const LEAST_BLOCK: u64 = 16;

/// Bytes and chunks that the rounds of a model are made for.
///
/// # Errors
/// When the model's shape cannot be read.
pub fn capacity(suite: &Suite, settings: &ModelSettings, files: &ModelFiles) -> Result<Capacity, AssetError> {
    let (shape, ranks) = (files.kv_shape()?, Parallelism::of(settings));
    let element = kv_dtype(suite, settings).map_or(suite.engine.dtype.bytes(), KvDtype::bytes);
    let bytes_per_token = ranks.stored_shape(shape).bytes_per_token(element);
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

/// What a model's KV is kept in, where that is another data type than its weights have on any device.
#[must_use]
pub fn kv_dtype(suite: &Suite, settings: &ModelSettings) -> Option<KvDtype> {
    let of = |arguments: &BTreeMap<String, Value>| Some(arguments.get(KV_DTYPE)?.as_str()?.to_owned());
    let everywhere = of(&settings.arguments).or_else(|| of(&suite.engine.arguments));
    let named = |name: Option<String>| KvDtype::named(&name?);
    match of(&settings.cpu_arguments) {
        // Which of both holds depends on the device; a plan for the larger fits either.
        Some(on_cpu) => named(Some(on_cpu)).filter(|_| named(everywhere).is_some()),
        None => named(everywhere),
    }
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

#[cfg(test)]
mod tests {
    use camino::Utf8Path;
    use serde_json::json;

    use super::*;
    use crate::stage::Sources;

    fn set(arguments: &mut BTreeMap<String, Value>, dtype: &str) {
        arguments.insert(KV_DTYPE.to_owned(), json!(dtype));
    }

    #[test]
    fn an_element_of_kv_takes_what_the_suite_keeps_it_in() {
        let bytes_per_token = |change: fn(&mut Suite)| {
            let mut suite = Suite::load("canary").unwrap();
            change(&mut suite);
            let sources = Sources::find(&suite, Utf8Path::new("/nonexistent")).unwrap();
            let model = &sources.models()[0];
            capacity(&suite, model.settings(), model.files()).unwrap().bytes_per_token
        };
        // Two of keys and values, 6 layers, 2 heads of 64.
        assert_eq!(bytes_per_token(|_| ()), 1536 * 2);
        assert_eq!(bytes_per_token(|suite| set(&mut suite.engine.arguments, "fp8")), 1536);
        assert_eq!(bytes_per_token(|suite| set(&mut suite.models[0].arguments, "fp8_e5m2")), 1536);
        assert_eq!(bytes_per_token(|suite| set(&mut suite.models[1].arguments, "fp8_e5m2")), 1536 * 2);
        // On a GPU it is sixteen bits.
        assert_eq!(bytes_per_token(|suite| set(&mut suite.models[0].cpu_arguments, "fp8")), 1536 * 2);
        assert_eq!(
            bytes_per_token(|suite| {
                set(&mut suite.engine.arguments, "fp8");
                set(&mut suite.models[0].arguments, "auto");
            }),
            1536 * 2
        );
    }
}
