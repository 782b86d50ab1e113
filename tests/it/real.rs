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

#[test]
#[ignore = "runs vLLM and LMCache for minutes; needs AVX-512"]
fn kv_of_eight_bits_comes_back_to_the_bit() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("eight-bits.toml");
    let canary = include_str!("../../data/suites/canary.toml");
    let arguments = "[engine.arguments]\nkv_cache_dtype = \"fp8_e4m3\"\n\n[lmcache]";
    fs_err::write(&path, canary.replacen("[lmcache]", arguments, 1)).unwrap();
    let report = run(&format!("--suite {} --cell canary-dense/mp", path.display()), 0);
    let [finding] = report.findings.as_slice() else { panic!("{:?}", report.findings) };
    assert_eq!(finding.judgement.verdict, Verdict::Equivalent, "{}", finding.judgement.reason);
    assert_eq!(finding.judgement.decided_by, Rung::Kv);
    assert_eq!(finding.comparison.bit_exact.against_control.differing, 0);
}
