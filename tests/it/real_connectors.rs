//! Connectors that a file describes, vLLM's own and a user's, on a real vLLM: only on request, as in `real.rs`.

use kv_correctness::comparison::{Rung, Service, Verdict};
use kv_correctness::report::Report;

use super::real::run;

/// Every request was served what the description's rule says, and vLLM's own counter agrees.
fn assert_served(report: &Report) {
    for finding in &report.findings {
        let exercised = &finding.comparison.exercised;
        assert_eq!(
            exercised.service,
            Service::AsPredicted,
            "{}: {}",
            finding.route,
            finding.judgement.reason
        );
        let counted = exercised.external.as_ref().expect("vLLM counts what its connectors serve").load;
        assert!(
            counted >= exercised.load.cached_tokens && exercised.load.cached_tokens > 0,
            "{}",
            finding.route
        );
    }
}

#[test]
#[ignore = "runs vLLM for minutes"]
fn vllms_own_connectors_serve_what_their_descriptions_say_without_changing_the_kv() {
    let report = run("--route example,multi", 0);
    assert_eq!(report.findings.len(), 4);
    assert_served(&report);
}

#[test]
#[ignore = "runs vLLM for minutes"]
fn vllms_own_prefix_cache_that_is_on_and_unread_serves_nothing_in_a_connectors_place() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("unread.toml");
    let example = include_str!("../../data/connectors/example.toml");
    let unread = example
        .replace("name = \"example\"", "name = \"unread\"")
        .replace("[connector]", "[connector]\nprefix_caching = \"unread\"");
    fs_err::write(&path, unread).unwrap();
    let report = run(&format!("--connector {}", path.display()), 0);
    assert_eq!(report.findings.len(), 2);
    assert_served(&report);
    for finding in &report.findings {
        assert_eq!(finding.comparison.exercised.external.as_ref().unwrap().own, 0);
    }
}

#[test]
#[ignore = "runs vLLM for minutes; fetches nixl"]
fn a_prefilling_engine_hands_its_kv_to_one_that_answers() {
    let report = run("--route nixl", 0);
    assert_eq!(report.findings.len(), 2);
    assert_served(&report);
}

#[test]
#[ignore = "runs vLLM for minutes"]
fn a_connector_of_ones_own_is_equivalent_and_degraded_at_the_chunk_and_the_layer_once_it_turns_a_bit() {
    let described =
        |name: &str| format!("--connector {}/docs/connectors/{name}.toml", env!("CARGO_MANIFEST_DIR"));
    let unchanged = run(&described("unchanged"), 0);
    assert_served(&unchanged);
    assert!(unchanged.findings.iter().all(|finding| finding.judgement.verdict == Verdict::Equivalent));

    let turned = run(&described("turned-bit"), 1);
    assert_served(&turned);
    for finding in &turned.findings {
        assert_eq!(finding.judgement.verdict, Verdict::Degraded, "{}", finding.judgement.reason);
        assert_eq!(finding.judgement.decided_by, Rung::Kv, "{}", finding.judgement.reason);
        let first = finding.comparison.kv.first.first().expect("a wrong cell is named");
        // Token 300 of the second layer, in chunks that are vLLM's blocks.
        let block = finding.engine.block_size;
        assert_eq!(first.chunk, 300 / block, "{first:?}");
        assert!(first.layer.contains(".1."), "{first:?}");
    }
}
