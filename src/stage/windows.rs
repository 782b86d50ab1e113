//! What can be said beforehand of a model some of whose layers see a window alone. Main functions:
//! [`admit_hybrid_manager`], [`admit_windows`].

use serde_json::Value;

use super::StageError;
use crate::assets::Model;
use crate::carrier::Carrier;
use crate::machine::DeviceKind;
use crate::options::TransferMode;
use crate::suite::Suite;

/// Tokens of a block where no suite says so: vLLM's own choice.
const BLOCK_ON_CPU: u64 = 128;
const BLOCK_ON_GPU: u64 = 16;

/// Refuses vLLM's hybrid KV cache manager for a model of which it would change nothing.
///
/// # Errors
/// When the model's layers are all alike.
pub fn admit_hybrid_manager(model: &Model) -> Result<(), StageError> {
    if !model.settings().hybrid_kv_cache_manager || !model.files().windows().is_empty() {
        return Ok(());
    }
    let problem = "no layer of it sees a window beside others that see all".to_owned();
    let instead = "leave `hybrid_kv_cache_manager` out: it changes nothing there".to_owned();
    Err(StageError::Windows { model: model.name().to_owned(), problem, instead })
}

/// Refuses a model on a route where, with vLLM's hybrid KV cache manager on, no engine would start, or only wait for minutes: a
/// connector that knows one group of layers, an engine that copies by itself, and a window smaller than a chunk that is no whole
/// blocks.
///
/// # Errors
/// When that is so.
pub fn admit_windows(
    suite: &Suite,
    model: &Model,
    carrier: &dyn Carrier,
    device: DeviceKind,
) -> Result<(), StageError> {
    let windows = model.files().windows();
    if !model.settings().hybrid_kv_cache_manager || windows.is_empty() {
        return Ok(());
    }
    let refused = |problem: String, instead: String| {
        Err(StageError::Windows { model: model.name().to_owned(), problem, instead })
    };
    if let Some(problem) = carrier.refuses_groups() {
        let instead = "leave `hybrid_kv_cache_manager` out, or choose `mp` with `--route`".to_owned();
        return refused(problem.to_owned(), instead);
    }
    if !carrier.proof().is_of_a_server() {
        return Ok(());
    }
    if !takes_groups(suite, device) {
        return refused(
            "an engine that copies KV by itself supports one group of layers only".to_owned(),
            "write `transfer_mode = \"lmcache_driven\"` under `[lmcache.options]`, or leave `hybrid_kv_cache_manager` out"
                .to_owned(),
        );
    }
    let block = block_tokens(suite, model, device);
    let chunk = u64::from(suite.lmcache.chunk_tokens);
    match windows.iter().find(|&&window| window < chunk && !window.is_multiple_of(block)) {
        Some(window) => refused(
            format!("its window of {window} tokens is smaller than a chunk and no multiple of a block of {block}"),
            "name a `block_size` under `[engine.arguments]` of which windows and chunks are multiples, or leave \
             `hybrid_kv_cache_manager` out"
                .to_owned(),
        ),
        None => Ok(()),
    }
}

/// Whether whoever copies KV between engine and server takes several groups of layers: an engine that does it by itself does not.
pub(super) fn takes_groups(suite: &Suite, device: DeviceKind) -> bool {
    match suite.lmcache.options.transfer_mode {
        Some(TransferMode::LmcacheDriven) => true,
        Some(TransferMode::EngineDriven) => false,
        _ => device != DeviceKind::Cpu,
    }
}

/// Tokens of a block of vLLM's KV cache, as its arguments say.
pub(super) fn block_tokens(suite: &Suite, model: &Model, device: DeviceKind) -> u64 {
    let said = argument(suite, model, device, "block_size").and_then(Value::as_u64);
    let default = if device == DeviceKind::Cpu { BLOCK_ON_CPU } else { BLOCK_ON_GPU };
    said.unwrap_or(default).max(1)
}

/// What a model's engines are told by this name on such a device: the model's arguments come before those of the suite.
pub(super) fn argument<'a>(
    suite: &'a Suite,
    model: &'a Model,
    device: DeviceKind,
    name: &str,
) -> Option<&'a Value> {
    let settings = model.settings();
    let for_device = (device == DeviceKind::Cpu).then_some(&settings.cpu_arguments);
    let all = [for_device, Some(&settings.arguments), Some(&suite.engine.arguments)];
    all.into_iter().flatten().find_map(|arguments| arguments.get(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assets::Model;
    use crate::carrier::find_carrier;
    use crate::model::Route;

    fn refusal(edit: impl FnOnce(&mut Suite), device: DeviceKind) -> Option<String> {
        let mut suite = Suite::load("canary-swa").unwrap();
        suite.models[0].hybrid_kv_cache_manager = true;
        suite.lmcache.options.transfer_mode = Some(TransferMode::LmcacheDriven);
        edit(&mut suite);
        let cache = tempfile::tempdir().unwrap();
        let cache = camino::Utf8Path::from_path(cache.path()).unwrap();
        let model = Model::find(&suite.models[0], cache).unwrap();
        let carrier = find_carrier(suite.routes[0]).unwrap();
        let admitted =
            admit_hybrid_manager(&model).and_then(|()| admit_windows(&suite, &model, carrier, device));
        admitted.err().map(|error| format!("{error}; {}", error.hint().unwrap()))
    }

    #[test]
    fn what_a_server_would_refuse_is_refused_before_anything_starts() {
        let (cpu, gpu) = (DeviceKind::Cpu, DeviceKind::Cuda);
        assert_eq!(refusal(|_| (), cpu), None);
        assert_eq!(refusal(|suite| suite.lmcache.options.transfer_mode = None, gpu), None);
        let engine_driven = refusal(|suite| suite.lmcache.options.transfer_mode = None, cpu).unwrap();
        insta::assert_snapshot!(engine_driven, @r#"run canary-swa with vLLM's hybrid KV cache manager: an engine that copies KV by itself supports one group of layers only; write `transfer_mode = "lmcache_driven"` under `[lmcache.options]`, or leave `hybrid_kv_cache_manager` out"#);
        for route in ["in-process", "in-process+disk"] {
            let one_group = refusal(|suite| suite.routes = vec![Route::named(route)], gpu).unwrap();
            assert!(
                one_group.contains("the connector of LMCache inside vLLM knows one group of layers"),
                "{one_group}"
            );
        }
        // A window of 512 tokens in chunks of 1024.
        let blocks = |tokens: u64| {
            move |suite: &mut Suite| {
                suite.lmcache.chunk_tokens = 1024;
                suite.engine.arguments.insert("block_size".to_owned(), tokens.into());
            }
        };
        assert_eq!(refusal(blocks(256), cpu), None);
        insta::assert_snapshot!(refusal(blocks(1024), cpu).unwrap(), @"run canary-swa with vLLM's hybrid KV cache manager: its window of 512 tokens is smaller than a chunk and no multiple of a block of 1024; name a `block_size` under `[engine.arguments]` of which windows and chunks are multiples, or leave `hybrid_kv_cache_manager` out");
        assert_eq!(refusal(|suite| suite.models[0].hybrid_kv_cache_manager = false, cpu), None);
        let alike = refusal(|suite| suite.models[0].source = "canary-dense".to_owned(), cpu).unwrap();
        insta::assert_snapshot!(alike, @"run canary-swa with vLLM's hybrid KV cache manager: no layer of it sees a window beside others that see all; leave `hybrid_kv_cache_manager` out: it changes nothing there");
    }
}
