//! Engines and servers that fail: no verdict, a message that says what to do, and nothing left behind.

use fs_err as fs;

use crate::lab::Lab;

/// The message of a run that fails for these faults, after which a run without them must be equivalent.
fn fail(faults: &str) -> String {
    let lab = Lab::new();
    let message = lab.error(&lab.run(faults, ""));
    let ended = lab.run("", "-q");
    assert_eq!((ended.code, ended.err.as_str()), (0, ""), "{}", ended.out);
    message
}

#[test]
fn an_engine_that_is_killed_is_told_by_its_signal_and_its_last_words() {
    insta::assert_snapshot!(fail("crash@start-baseline"), @r"
    error: failed to keep the baseline engine of tiny running: it ended (killed, signal 9); it said: RuntimeError: the fake engine was told to crash

    hint: somebody ended it, or the kernel for lack of memory (`dmesg` tells); what is finished is kept, and the same command goes on from there; its log is [LAB]/cache/store-1/drafts/[DIGEST]/notes/engine.log
    ");
    insta::assert_snapshot!(fail("crash@load"), @r"
    error: failed to keep the mp cached engine of tiny running: it ended (killed, signal 9); it said: RuntimeError: the fake engine was told to crash

    hint: somebody ended it, or the kernel for lack of memory (`dmesg` tells); what is finished is kept, and the same command goes on from there; its log is [LAB]/cache/store-1/drafts/[DIGEST]/notes/engine.log
    ");
}

#[test]
fn a_line_that_is_no_reply_is_shown() {
    insta::assert_snapshot!(fail("garbage@store"), @r#"
    error: failed to understand the mp cached engine of tiny: "INFO 11-24 05:00:00 loading weights took [TIME]" is no reply (expected value at line 1 column 1)

    hint: its log is [LAB]/cache/store-1/drafts/[DIGEST]/notes/engine.log
    "#);
    insta::assert_snapshot!(fail("garbage@start-baseline"), @r#"
    error: failed to understand the baseline engine of tiny: "INFO 11-24 05:00:00 loading weights took [TIME]" is no reply (expected value at line 1 column 1)

    hint: its log is [LAB]/cache/store-1/drafts/[DIGEST]/notes/engine.log
    "#);
}

#[test]
fn a_remark_of_the_engine_is_warned_of_and_stands_in_the_report() {
    let lab = Lab::new();
    let ended = lab.run("remark@start", "");
    assert!(
        ended.err.contains("warning: mp cached engine of tiny: The compiled copies do not load."),
        "{}",
        ended.err
    );
    assert!(ended.out.contains("  remark       The compiled copies do not load."), "{}", ended.out);
    assert_eq!(lab.report().findings[0].engine.remarks, ["The compiled copies do not load."]);
}

#[test]
fn another_protocol_is_refused() {
    insta::assert_snapshot!(fail("version@start"), @r"
    error: failed to understand the baseline engine of tiny: it speaks protocol 6, not 5

    hint: its log is [LAB]/cache/store-1/drafts/[DIGEST]/notes/engine.log
    ");
}

#[test]
fn a_log_probability_that_is_no_number_is_refused() {
    insta::assert_snapshot!(fail("nan@baseline"), @r#"
    error: failed to understand the baseline engine of tiny: "{\"type\":\"scored\",\"question\":1,\"cached_tokens\":0,\"letters\":[NaN,-3.2734375,-3.166015625,-3.4765625],\"steps\":[{\"chosen\":{\"token\":463,\"logprob\":-0.4789062440395355},\"top\":[{\"token\":463,\"logprob\":-0.47890" is no reply (expected value at line 1 column 60)

    hint: its log is [LAB]/cache/store-1/drafts/[DIGEST]/notes/engine.log
    "#);
    insta::assert_snapshot!(fail("null@control"), @r#"
    error: failed to understand the control engine of tiny: "{\"type\":\"scored\",\"question\":1,\"cached_tokens\":336,\"letters\":[null,-3.3123440742492676,-0.4513244926929474,-3.347592353820801],\"steps\":[{\"chosen\":{\"token\":487,\"logprob\":-0.4513244926929474},\"top\":[{\"to" is no reply (invalid type: null, expected f64)

    hint: its log is [LAB]/cache/store-1/drafts/[DIGEST]/notes/engine.log
    "#);
}

#[test]
fn every_prompt_is_answered_exactly_once() {
    insta::assert_snapshot!(fail("missing@load"), @r"
    error: failed to understand the mp cached engine of tiny: no answer came for botany/test/4

    hint: its log is [LAB]/cache/store-1/drafts/[DIGEST]/notes/engine.log
    ");
    insta::assert_snapshot!(fail("twice@store"), @r"
    error: failed to understand the mp cached engine of tiny: an answer came for prompt 1, which waits for none

    hint: its log is [LAB]/cache/store-1/drafts/[DIGEST]/notes/engine.log
    ");
    insta::assert_snapshot!(fail("stranger@repeat"), @r"
    error: failed to understand the control engine of tiny: an answer came for prompt 9999, which waits for none

    hint: its log is [LAB]/cache/store-1/drafts/[DIGEST]/notes/engine.log
    ");
}

#[test]
fn a_failure_that_the_worker_reports_is_passed_on_with_its_question() {
    insta::assert_snapshot!(fail("failed@start-control"), @r"
    error: failed to run the control engine of tiny: no weights for start-control

    hint: its log is [LAB]/cache/store-1/drafts/[DIGEST]/notes/engine.log
    ");
    insta::assert_snapshot!(fail("failed@store"), @r"
    error: failed to run the mp cached engine of tiny at botany/test/2: no weights for store

    hint: damaged KV, a broken kernel or broken weights do that: if an engine without a cache answered this question, suspect the cache; its log is [LAB]/cache/store-1/drafts/[DIGEST]/notes/engine.log
    ");
}

#[test]
fn a_server_that_ends_at_once_is_told_by_its_last_words() {
    insta::assert_snapshot!(fail("die@server"), @r"
    error: failed to keep the LMCache server running: it ended (exit status: 3); it said: OSError: the fake server was told to die

    hint: its log is [LAB]/cache/store-1/drafts/[DIGEST]/notes/lmcache-server.log
    ");
}

#[test]
fn servers_whose_port_was_taken_meanwhile_are_started_on_another() {
    let lab = Lab::new();
    lab.install("nixl-1.5.1", "package/__init__.py,sha256=0,1\n");
    let ended = lab.run("taken@server taken@redis", "--route mp,mp+redis,mp+p2p");
    assert_eq!(ended.code, 0, "{}{}", ended.err, ended.out);
    let count = |step: &str| lab.steps().iter().filter(|seen| *seen == step).count();
    // One, two and two servers.
    assert_eq!([count("start redis"), count("start coordinator"), count("start server")], [2, 2, 5 + 3]);
}

#[test]
fn a_server_of_somebody_elses_that_won_the_port_is_not_taken_for_ours() {
    let lab = Lab::new();
    let ended = lab.run("squatted@server", "-q");
    assert_eq!((ended.code, ended.err.as_str()), (0, ""), "{}", ended.out);
    let count = |step: &str| lab.steps().iter().filter(|seen| *seen == step).count();
    assert_eq!([count("another listens"), count("start server")], [1, 2]);
    assert_eq!(lab.report(), Lab::finished().report());
}

#[test]
fn the_memory_pool_of_a_server_that_is_killed_goes_with_it() {
    let lab = Lab::new();
    let ended = lab.run("pool@server", "-q");
    assert_eq!((ended.code, ended.err.as_str()), (0, ""), "{}", ended.out);
    let pools: Vec<String> =
        lab.steps().iter().filter_map(|step| Some(step.strip_prefix("pool ")?.to_owned())).collect();
    assert_eq!(pools.len(), 1);
    assert!(!camino::Utf8Path::new(&pools[0]).exists(), "{}", pools[0]);
}

#[test]
fn a_server_that_leaves_between_the_passes_is_no_verdict() {
    insta::assert_snapshot!(fail("leave@server"), @r"
    error: failed to ask http://127.0.0.1:[PORT]/metrics: io: Peer disconnected; it said: RuntimeError: the fake server was told to leave

    hint: its log is [LAB]/cache/store-1/drafts/[DIGEST]/notes/lmcache-server.log
    ");
}

#[test]
fn a_counter_that_is_no_number_is_no_verdict() {
    insta::assert_snapshot!(fail("garbled@server"), @r#"
    error: failed to ask http://127.0.0.1:[PORT]/metrics: "lmcache_mp_lookup_hit_tokens_total{model_name=\"fake\"} NaN" is no count

    hint: its log is [LAB]/cache/store-1/drafts/[DIGEST]/notes/lmcache-server.log
    "#);
}

#[test]
fn an_environment_without_python_is_named() {
    let lab = Lab::new();
    fs::remove_file(lab.path("env/bin/python")).unwrap();
    insta::assert_snapshot!(lab.error(&lab.run("", "")), @r"
    error: failed to keep the baseline engine of tiny running: it ended (exit status: 2); it said: error: failed to start [LAB]/env/bin/python: No such file or directory (os error 2)

    hint: its log is [LAB]/cache/store-1/drafts/[DIGEST]/notes/engine.log
    ");
}

#[test]
fn the_log_of_a_failure_is_kept_even_without_a_cache() {
    let lab = Lab::new();
    let message = lab.error(&lab.run("crash@repeat", "--no-cache"));
    assert!(message.contains("its log is"), "{message}"); // and it is there: `error` looks
}
