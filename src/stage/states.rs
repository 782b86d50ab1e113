//! What can be said beforehand of a model some of whose layers keep a state of the sequence. Main function: [`admit_states`].

use serde_json::Value;

use super::StageError;
use super::windows::{argument, block_tokens, takes_groups};
use crate::assets::Model;
use crate::carrier::Carrier;
use crate::machine::DeviceKind;
use crate::model::KvDtype;
use crate::suite::Suite;

/// Refuses what makes an engine of a model with states end behind an LMCache server, or be served less than is predicted.
///
/// vLLM keeps states where steps of the engine end, so each chunk must be a step of its own.
///
/// # Errors
/// When the engine copies by itself, a state fills no page on a processor, or steps do not end with chunks.
pub fn admit_states(
    suite: &Suite,
    model: &Model,
    carrier: &dyn Carrier,
    device: DeviceKind,
) -> Result<(), StageError> {
    let Some(state) = model.files().state() else { return Ok(()) };
    if !carrier.proof().is_of_a_server() {
        return Ok(());
    }
    let refused = |problem: String, instead: String| {
        Err(StageError::States { model: model.name().to_owned(), problem, instead })
    };
    if !takes_groups(suite, device) {
        return refused(
            "an engine that copies KV by itself supports one group of layers only".to_owned(),
            "write `transfer_mode = \"lmcache_driven\"` under `[lmcache.options]`".to_owned(),
        );
    }
    let chunk = suite.lmcache.chunk_tokens;
    let steps = argument(suite, model, device, "max_num_batched_tokens").and_then(Value::as_u64);
    if steps != Some(u64::from(chunk)) || suite.engine.max_num_seqs != 1 {
        return refused(
            "a state is kept where a step of the engine ends, and steps need not end with chunks".to_owned(),
            format!(
                "write `max_num_batched_tokens = {chunk}` under `[engine.arguments]`, as much as `lmcache.chunk_tokens`, and \
                 `max_num_seqs = 1` under `[engine]`"
            ),
        );
    }
    let block = block_tokens(suite, model, device);
    let named = |name| argument(suite, model, device, name).and_then(Value::as_str);
    let of_state = match named("mamba_cache_dtype") {
        Some("float32") => 4,
        Some("float16" | "bfloat16") => 2,
        _ => suite.engine.dtype.bytes(),
    };
    let of_kv =
        named("kv_cache_dtype").and_then(KvDtype::named).map_or(suite.engine.dtype.bytes(), KvDtype::bytes);
    let kept = state.elements * of_state;
    let asked = (block * state.elements_of_token * of_kv).max(1);
    // vLLM makes blocks larger until a state has room.
    let page = asked * kept.div_ceil(asked);
    if device == DeviceKind::Cpu && kept != page {
        return refused(
            format!("a state of {kept} bytes does not fill its page of {page}, which LMCache 0.5.6 cannot store"),
            "run it on a GPU (`--device cuda`), or name a `block_size` under `[engine.arguments]` with which both are as large, \
             where there is one (on a processor a multiple of 32)"
                .to_owned(),
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// LFM2 with a state of 2048 numbers, and a suite that runs it on a processor.
    fn refusal(edit: impl FnOnce(&mut Suite)) -> Option<String> {
        let folder = tempfile::tempdir().unwrap();
        let folder = camino::Utf8Path::from_path(folder.path()).unwrap();
        let config = r#"{"model_type":"lfm2","hidden_size":1024,"num_attention_heads":32,"num_key_value_heads":1,"num_hidden_layers":2,
            "conv_L_cache":3,"layer_types":["conv","full_attention"]}"#;
        fs_err::write(folder.join("config.json"), config).unwrap();
        let mut suite = Suite::load("canary").unwrap();
        suite.models.truncate(1);
        suite.models[0].source = folder.to_string();
        suite.lmcache.options.transfer_mode = Some(crate::options::TransferMode::LmcacheDriven);
        for (name, number) in [("block_size", 32), ("max_num_batched_tokens", 256)] {
            suite.engine.arguments.insert(name.to_owned(), number.into());
        }
        edit(&mut suite);
        let model = Model::find(&suite.models[0], folder).unwrap();
        let carrier = crate::carrier::find_carrier(suite.routes[0]).unwrap();
        let refused = admit_states(&suite, &model, carrier, DeviceKind::Cpu);
        refused
            .err()
            .map(|error| format!("{error}; {}", error.hint().unwrap()).replace(model.name(), "MODEL"))
    }

    #[test]
    fn what_a_server_cannot_store_is_refused_before_anything_starts() {
        assert_eq!(refusal(|_| ()), None);
        let told = [
            refusal(|suite| suite.lmcache.options.transfer_mode = None),
            refusal(|suite| {
                suite.engine.arguments.remove("max_num_batched_tokens");
            }),
            refusal(|suite| {
                suite.engine.arguments.insert("block_size".to_owned(), 64.into());
            }),
        ];
        insta::assert_snapshot!(told.map(Option::unwrap_or_default).join("\n"), @r#"
        run MODEL, some of whose layers keep a state: an engine that copies KV by itself supports one group of layers only; write `transfer_mode = "lmcache_driven"` under `[lmcache.options]`
        run MODEL, some of whose layers keep a state: a state is kept where a step of the engine ends, and steps need not end with chunks; write `max_num_batched_tokens = 256` under `[engine.arguments]`, as much as `lmcache.chunk_tokens`, and `max_num_seqs = 1` under `[engine]`
        run MODEL, some of whose layers keep a state: a state of 4096 bytes does not fill its page of 8192, which LMCache 0.5.6 cannot store; run it on a GPU (`--device cuda`), or name a `block_size` under `[engine.arguments]` with which both are as large, where there is one (on a processor a multiple of 32)
        "#);
        // A state of 8192 bytes has vLLM take blocks of 64 tokens.
        let in_32_bits = |suite: &mut Suite| {
            suite.engine.arguments.insert("mamba_cache_dtype".to_owned(), "float32".into());
        };
        assert_eq!(refusal(in_32_bits), None);
        // One of 4096 bytes fills 64 tokens whose KV has eight bits.
        let in_8_bits = |suite: &mut Suite| {
            suite.engine.arguments.insert("block_size".to_owned(), 64.into());
            suite.models[0].cpu_arguments.insert("kv_cache_dtype".to_owned(), "fp8_e4m3".into());
        };
        assert_eq!(refusal(in_8_bits), None);
        assert!(refusal(|suite| suite.engine.max_num_seqs = 8).is_some());
        assert_eq!(refusal(|suite| suite.routes = vec![crate::model::Route::named("offload")]), None);
    }
}
