//! Keyword arguments of `vllm.LLM` that a suite may not name, since the driver or its worker sets them or relies on what
//! they are. Main function: [`refusal`].

use std::collections::BTreeMap;

use serde_json::Value;

use crate::model::KvDtype;

/// What is the driver's own, and what says it instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refusal {
    /// Completes "`name` …".
    pub(super) reason: &'static str,
    /// What to do instead.
    pub(super) instead: &'static str,
}

/// Why several arguments are refused, with their names.
struct Group {
    names: &'static [&'static str],
    refusal: Refusal,
}

const fn group(names: &'static [&'static str], reason: &'static str, instead: &'static str) -> Group {
    Group { names, refusal: Refusal { reason, instead } }
}

const PARALLEL: &str = "stands beside a model's `source`, not among `arguments`";
const SPREAD: &str = "write `tensor_parallel_size`, `pipeline_parallel_size` or `distributed_executor_backend` beside the \
                      model's `source`";
const OTHER_PARALLEL: &str = "spreads the model in a way for which this program predicts no KV";
const OTHER_FILES: &str = "brings in files whose digest is in no key";
const SEES_COUNTERS: &str = "is set by this program, which reads the engine's counters";

/// The list. Names are those of vLLM 0.24 to 0.33; one that a version lacks it refuses itself.
const RESERVED: &[Group] = &[
    group(
        &["kv_transfer_config", "kv_offloading_size", "kv_offloading_backend", "ec_transfer_config"],
        "gives an engine a connector, and this program gives each arm its own: baseline and control have none",
        "leave it out, and name the ways for KV to travel in `routes`",
    ),
    group(
        &["kv_events_config"],
        "opens a port, the same one in engines that run beside each other",
        "leave it out: no verdict needs it",
    ),
    group(
        &["enable_prefix_caching", "prefix_match_unit"],
        "is set by this program: on in the control, off in every other arm",
        "leave it out; the control is always run",
    ),
    group(
        &["disable_hybrid_kv_cache_manager"],
        "is set by this program, in every arm alike",
        "write `hybrid_kv_cache_manager = true` beside the model's `source`, or leave it out: every layer then keeps every token",
    ),
    group(&["model"], "is the model's own", "write the folder or the name as the model's `source`"),
    group(
        &["model_weights", "hf_config_path", "revision"],
        OTHER_FILES,
        "put all files into one folder and name it as the model's `source`",
    ),
    group(
        &["hf_overrides"],
        "changes the model behind `config.json`, from which this program takes the KV's shape",
        "change `config.json` in the model's folder",
    ),
    group(
        &["tokenizer", "skip_tokenizer_init"],
        "is set by this program, which tokenizes by itself",
        "put the right `tokenizer.json` into the model's folder",
    ),
    group(
        &["speculative_config", "spec_method", "spec_model", "spec_tokens"],
        "lets drafts write KV, which this program does not predict",
        "leave it out",
    ),
    group(&["dtype"], "is set by this program", "write `engine.dtype`"),
    group(&["max_model_len"], "is set by this program", "write `engine.max_model_len`"),
    group(&["max_num_seqs"], "is set by this program", "write `engine.max_num_seqs`"),
    group(&["seed"], "is set by this program", "write `engine.seed`"),
    group(&["max_logprobs"], "is set by this program", "write `engine.top`"),
    group(
        &["kv_cache_memory_bytes", "gpu_memory_utilization"],
        "is set by this program",
        "write `engine.kv_cache_gib`",
    ),
    group(
        &["logprobs_mode"],
        "would make other numbers of the log-probabilities that are compared",
        "leave it out: they are compared raw",
    ),
    group(
        &["enforce_eager"],
        "is set by this program: captured graphs would make other shapes of equal prompts",
        "leave it out: it is always on",
    ),
    group(&["disable_log_stats"], SEES_COUNTERS, "leave it out: they are always on"),
    group(
        &["worker_cls", "worker_extension_cls"],
        "is set by this program, whose extension must be in every rank",
        "leave it out",
    ),
    group(
        &["tensor_parallel_size", "pipeline_parallel_size", "distributed_executor_backend"],
        PARALLEL,
        SPREAD,
    ),
    group(
        &[
            "data_parallel_size",
            "data_parallel_rank",
            "data_parallel_start_rank",
            "data_parallel_size_local",
            "data_parallel_address",
            "data_parallel_rpc_port",
            "data_parallel_backend",
            "data_parallel_hybrid_lb",
            "data_parallel_external_lb",
            "data_parallel_multi_port_external_lb",
        ],
        PARALLEL,
        "leave it out: copies share no KV; spread a model with `tensor_parallel_size` beside its `source`",
    ),
    group(
        &[
            "prefill_context_parallel_size",
            "decode_context_parallel_size",
            "nnodes",
            "node_rank",
            "master_addr",
            "master_port",
        ],
        OTHER_PARALLEL,
        SPREAD,
    ),
    group(
        &["device_ids"],
        "chooses GPUs behind this program, which looks at those that are visible",
        "name the GPUs by the variable CUDA_VISIBLE_DEVICES",
    ),
];

const DUMMY: Refusal = Refusal {
    reason: "makes up weights whose outputs do not feel their KV, so wrong KV would pass",
    instead: "leave it out and give the model trained weights; the embedded `canary-dense` and `canary-mla` are small ones",
};

const KV_FORM: Refusal = Refusal {
    reason: "keeps KV in a form whose size this program does not know",
    instead: "write auto, fp8, fp8_e4m3 or fp8_e5m2",
};

/// The first of these arguments that is not the suite's to set.
pub(super) fn refusal(arguments: &BTreeMap<String, Value>) -> Option<(&str, Refusal)> {
    arguments.iter().find_map(|(name, value)| {
        // vLLM's command line spells names with dashes.
        let plain = name.trim_start_matches('-').replace('-', "_").to_lowercase();
        let reserved = RESERVED.iter().find(|group| group.names.contains(&plain.as_str()));
        let is_dummy = || value.as_str().is_some_and(|format| format.eq_ignore_ascii_case("dummy"));
        let dummy = (plain == "load_format" && is_dummy()).then_some(DUMMY);
        let is_known = || value.as_str().is_some_and(|form| form == "auto" || KvDtype::named(form).is_some());
        let form = (plain == "kv_cache_dtype" && !is_known()).then_some(KV_FORM);
        Some((name.as_str(), reserved.map(|group| group.refusal).or(dummy).or(form)?))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;

    use super::*;

    fn refused(name: &str, value: Value) -> bool {
        refusal(&BTreeMap::from([(name.to_owned(), value)])).is_some()
    }

    #[test]
    fn each_name_stands_once_and_is_refused_however_it_is_spelled() {
        let names: Vec<&str> = RESERVED.iter().flat_map(|group| group.names).copied().collect();
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
        for name in names {
            let dashed = name.replace('_', "-");
            for spelled in [name.to_owned(), format!("--{dashed}"), dashed, name.to_uppercase()] {
                assert!(refused(&spelled, json!(1)), "{spelled}");
            }
        }
    }

    /// The worker's own keyword arguments and the driver's are read off their sources, so that none is forgotten.
    #[test]
    fn what_the_driver_and_its_worker_set_is_refused() {
        let worker = include_str!("../engine/worker/kv_worker/engine.py");
        let (_, call) = worker.split_once("return LLM(").unwrap();
        let (call, _) = call.split_once("**arguments").unwrap();
        let mut set: Vec<&str> =
            call.split(',').filter_map(|part| Some(part.trim().split_once('=')?.0)).collect();
        assert!(set.len() >= 7, "{set:?}");
        let added = worker.split("arguments[\"").skip(1).map(|rest| rest.split('"').next().unwrap());
        set.extend(added);
        let driver = include_str!("../stage/engine_run.rs");
        let (_, body) = driver.split_once("fn llm_arguments(").unwrap();
        let (body, _) = body.split_once("\n}\n").unwrap();
        let named = body.split('"').skip(1).step_by(2).filter(|name| !name.contains(' '));
        set.extend(named);
        assert!(set.contains(&"kv_transfer_config") && set.contains(&"enforce_eager"), "{set:?}");
        for name in set {
            assert!(refused(name, json!(1)), "{name} is set and not refused");
        }
    }

    #[test]
    fn kv_of_a_form_whose_size_is_not_known_is_refused() {
        for form in ["auto", "fp8", "fp8_e4m3", "fp8_e5m2"] {
            assert!(!refused("kv_cache_dtype", json!(form)), "{form}");
            assert!(KV_FORM.instead.contains(form), "{form}");
        }
        assert!(refused("kv_cache_dtype", json!("nvfp4")) && refused("kv-cache-dtype", json!(8)));
    }

    #[test]
    fn random_weights_are_refused_and_other_formats_are_not() {
        assert!(refused("load_format", json!("dummy")) && refused("load-format", json!("Dummy")));
        assert!(!refused("load_format", json!("gguf")) && !refused("block_size", json!(32)));
    }
}
