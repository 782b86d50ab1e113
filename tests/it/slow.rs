//! A server that is stopped and let run in turn, and what a server refuses without telling its engine.

use std::time::{Duration, Instant};

use kv_correctness::comparison::Verdict;
use kv_correctness::report::Known;

use crate::lab::Lab;

#[test]
fn a_cache_that_is_right_is_right_behind_a_slow_server_too() {
    let lab = Lab::new();
    let ended = lab.run("", "--slow");
    assert_eq!(ended.code, 0, "{}{}", ended.err, ended.out);
    assert!(ended.out.contains("stored with a server that is stopped and let run in turn"), "{}", ended.out);
    // Another arm with LMCache, and the same ones without.
    let (ended, steps) = lab.steps_of(|| lab.run("", ""));
    assert_eq!(ended.code, 0, "{}{}", ended.err, ended.out);
    let starts: Vec<&String> = steps.iter().filter(|step| step.starts_with("start")).collect();
    assert_eq!(starts, ["start server", "start cached"]);
    assert!(!ended.out.contains("stopped"), "{}", ended.out);
}

#[test]
fn a_route_without_a_server_cannot_have_a_slow_one() {
    let lab = Lab::new();
    insta::assert_snapshot!(lab.error(&lab.run("", "--slow --route in-process")), @r"
    error: failed to run this route: stop and continue an LMCache server: this route has none

    hint: leave out `--slow` and the suite's `lmcache.slow`, or choose `mp` with `--route`
    ");
}

#[test]
fn a_model_that_a_server_would_refuse_is_not_run_and_costs_the_others_nothing() {
    let lab = Lab::new();
    lab.edit("suite.toml", "[[models]]", "[[models]]\nname = \"windows\"\nsource = \"canary-swa\"\nhybrid_kv_cache_manager = true\n\n[[models]]");
    let (ended, steps) = lab.steps_of(|| lab.run("", ""));
    assert_eq!(ended.code, 2, "{}{}", ended.err, ended.out);
    let report = lab.report();
    let [finding] = report.findings.as_slice() else { panic!("{:?}", report.findings) };
    assert_eq!((finding.model.as_str(), finding.judgement.verdict), ("tiny", Verdict::Equivalent));
    let [not_run] = report.not_run.as_slice() else { panic!("{:?}", report.not_run) };
    assert_eq!((not_run.model.as_str(), not_run.known), ("windows", Known::Beforehand));
    insta::assert_snapshot!(not_run.reason, @"failed to run windows with vLLM's hybrid KV cache manager: an engine that copies KV by itself supports one group of layers only");
    let engines = |steps: &[String]| steps.iter().filter(|step| step.starts_with("start")).count();
    assert_eq!(engines(&steps), 4, "{steps:?}");
    // Alone it is an error before anything starts.
    let (ended, steps) = lab.steps_of(|| lab.run("", "--cell windows/mp"));
    assert_eq!((ended.code, engines(&steps)), (2, 0), "{}{}", ended.err, ended.out);
    assert!(lab.error(&ended).contains("one group of layers only"), "{}", ended.err);
}

#[test]
fn no_fault_is_planted_where_groups_of_layers_are_stored_apart_and_the_comparison_is_made() {
    let lab = Lab::new();
    lab.edit("suite.toml", "[[models]]", "[lmcache.options]\ntransfer_mode = \"lmcache_driven\"\n\n[[models]]\nname = \"windows\"\nsource = \"canary-swa\"\nhybrid_kv_cache_manager = true\n\n[[models]]");
    let (ended, steps) = lab.steps_of(|| lab.run("", "--faults --cell windows/mp"));
    assert_eq!(ended.code, 2, "{}{}", ended.err, ended.out);
    let report = lab.report();
    assert_eq!(report.findings.len(), 1, "{}{}", ended.err, ended.out);
    let [not_run] = report.not_run.as_slice() else { panic!("{:?}", report.not_run) };
    assert_eq!((not_run.route.to_string().as_str(), not_run.known), ("mp+fs", Known::Beforehand));
    insta::assert_snapshot!(not_run.reason, @"failed to plant faults in it: LMCache stores each of its groups of layers for itself, and faults are known for chunks that hold all layers");
    assert!(ended.err.contains("no faults are planted in windows: LMCache stores each"), "{}", ended.err);
    let starts = |what: &str| steps.iter().filter(|step| step.as_str() == what).count();
    assert_eq!(
        (starts("start server"), starts("start cached")),
        (1, 1),
        "those of the comparison alone: {steps:?}"
    );
    // As a stage of its own there is nothing to make.
    let ended =
        lab.end(lab.driver("stage faults --suite suite.toml --device cpu --out out --cell windows/mp"));
    assert_eq!(ended.code, 2, "{}{}", ended.err, ended.out);
    insta::assert_snapshot!(lab.error(&ended), @r"
    error: failed to make the stage faults: no model of this run has it on a route that is taken

    hint: `run --faults` with the same options says why, of each model and route
    ");
}

#[test]
fn what_a_server_refuses_is_told_while_its_engine_still_waits() {
    let lab = Lab::new();
    let begun = Instant::now();
    let ended = lab.run("window@server hang@start-cached", "");
    assert!(begun.elapsed() < Duration::from_mins(2), "the engine would wait for 300 s");
    assert_eq!(ended.code, 2, "{}{}", ended.err, ended.out);
    let error = lab.error(&ended);
    assert!(
        error.starts_with(
            "error: failed to run the LMCache server: ValueError: group 1: sub-chunk sliding window size 200 must be a \
             multiple of tokens_per_block 128"
        ),
        "{error}"
    );
    assert!(error.contains("hint: a window smaller than a chunk must be whole blocks"), "{error}");
}
