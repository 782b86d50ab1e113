//! Whether a real vLLM, as the control, is served what LMCache serves: whole chunks, as one prompt of the same round computed them.
//! Only on request (`cargo test --test it real_control -- --ignored`).

use std::process::Command;

use kv_correctness::engine::PrefixCache;
use serde_json::json;

use crate::real_bench::{Bench, Caching, WHOLE_TOKENS, prompts, served};

/// Blocks of 4 tokens in chunks of 8: prints of two prompts which of their blocks vLLM's prefix caching holds for the same.
const HASH_BLOCKS: &str = r"
from kv_worker import adapt

adapt.tell_blocks_apart_by_chunk(8)
from vllm import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.request import Request

init_none_hash(sha256)
hasher = get_request_block_hasher(4, sha256)
prompts = ([*range(16)], [*range(12), *range(50, 54)])
one, other = (Request('a', tokens, SamplingParams(), None, block_hasher=hasher).block_hashes for tokens in prompts)
print([a == b for a, b in zip(one, other, strict=True)])
";

#[test]
#[ignore = "imports vLLM"]
fn the_control_is_served_a_block_of_another_prompt_only_with_the_whole_chunk() {
    let mut driver = Command::new(env!("CARGO_BIN_EXE_kv-correctness"));
    let made = driver.args(["env", "--device", "cpu"]).output().unwrap();
    let mut python = Command::new(String::from_utf8(made.stdout).unwrap().trim_end());
    let worker = concat!(env!("CARGO_MANIFEST_DIR"), "/src/engine/worker");
    python.env("PYTHONPATH", worker).env("PYTHONDONTWRITEBYTECODE", "1").args(["-c", HASH_BLOCKS]);
    let output = python.output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    // The first chunk is shared; of the second its first block alone, which is not enough.
    assert_eq!(out.lines().last(), Some("[True, True, False, False]"), "{err}");
}

#[test]
#[ignore = "runs vLLM"]
fn the_control_is_served_nothing_of_an_earlier_round() {
    let bench = Bench::new("canary-dense", json!({}));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let tokens = runtime.block_on(async {
        let mut worker = bench.engine("control", 1, Caching::Own).await;
        let mut tokens = Vec::new();
        for (round, cache) in [
            (0, PrefixCache::FillOnly),
            (0, PrefixCache::Read),
            (1, PrefixCache::FillOnly),
            (1, PrefixCache::Read),
            (0, PrefixCache::Read),
        ] {
            tokens.push(served(&worker.score(&prompts(round), cache, || {}).await.unwrap()));
        }
        worker.finish().await.unwrap();
        tokens
    });
    assert_eq!(tokens, [0, WHOLE_TOKENS, 0, WHOLE_TOKENS, 0]);
}

#[test]
#[ignore = "runs vLLM"]
fn the_control_keeps_what_windows_see_from_the_end_of_each_chunk() {
    // Prompts end two blocks behind their last whole chunk, and vLLM by itself keeps the windows of their last block alone.
    let bench = Bench::new("canary-swa", json!({"disable_hybrid_kv_cache_manager": false, "block_size": 32}));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let tokens = runtime.block_on(async {
        let mut worker = bench.engine("control", 1, Caching::Own).await;
        let mut tokens = Vec::new();
        for cache in [PrefixCache::FillOnly, PrefixCache::Read] {
            tokens.push(served(&worker.score(&prompts(0), cache, || {}).await.unwrap()));
        }
        worker.finish().await.unwrap();
        tokens
    });
    assert_eq!(tokens, [0, WHOLE_TOKENS]);
}
