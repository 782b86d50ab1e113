//! A server that is stopped and let run in turn, and what a server refuses without telling its engine.

use std::time::{Duration, Instant};

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
