//! The same on a real vLLM and a real LMCache: minutes of work, so only on request (`cargo test -- --ignored`).
//!
//! The environment is the one that `KV_CORRECTNESS_ENV` names, or else the driver makes it in the cache folder that
//! `KV_CORRECTNESS_CACHE` names, or else in the user's own.

use std::process::Command;

use kv_correctness::comparison::{Rung, Service, Verdict};
use kv_correctness::report::Report;

/// Runs the embedded suite on one subject; the report, and standard error for messages.
pub(crate) fn run(arguments: &str, code: i32) -> Report {
    let out = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_kv-correctness"));
    command.args(["run", "--device", "cpu", "--subjects", "1", "--json", "--out"]).arg(out.path());
    let output = command.args(arguments.split_whitespace()).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{err}{out}");
    serde_json::from_str(&out).unwrap()
}

#[test]
#[ignore = "runs vLLM and LMCache for minutes"]
fn a_real_server_serves_every_predicted_token_without_changing_a_bit() {
    let report = run("", 0);
    let shapes: Vec<&str> = report.findings.iter().map(|finding| finding.kv_shape.name()).collect();
    assert_eq!(shapes, ["dense", "MLA"]);
    for finding in report.findings {
        assert_eq!(finding.judgement.verdict, Verdict::Equivalent, "{}", finding.judgement.reason);
        assert_eq!(finding.comparison.exercised.service, Service::AsPredicted);
        if finding.judgement.decided_by == Rung::BitExact {
            assert_eq!(finding.comparison.bit_exact.against_control.differing, 0);
        }
    }
}

#[test]
#[ignore = "runs vLLM and LMCache for minutes; needs redis-server"]
fn another_engine_is_served_from_the_tier_of_each_remote_route_without_changing_a_bit() {
    let report = run("--route mp+fs,mp+redis,mp+p2p", 0);
    assert_eq!(report.findings.len(), 6);
    for finding in report.findings {
        let exercised = finding.comparison.exercised;
        let tier = exercised.server.unwrap().tier.unwrap();
        assert!(tier.second_tier_tokens >= tier.second_tier_at_least.unwrap() && tier.second_tier_loads > 0);
        assert_eq!(exercised.load.cached_tokens, exercised.load.predicted_tokens);
    }
}

#[test]
#[ignore = "runs vLLM and LMCache for minutes"]
fn a_route_that_a_cpu_cannot_serve_is_not_exercised() {
    let report = run("--route in-process", 4);
    for finding in report.findings {
        assert_eq!(finding.judgement.verdict, Verdict::NotExercised, "{}", finding.judgement.reason);
        assert_eq!(finding.comparison.exercised.service, Service::NothingServed);
    }
}

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
