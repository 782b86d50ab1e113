//! Engines under pressure: what the driver says of what they serve, of what never happened, and of what cannot be asked.

use kv_correctness::comparison::{Rung, Verdict};
use kv_correctness::report::UnderPressure;

use crate::lab::{Ended, Lab};

fn pressed(lab: &Lab) -> UnderPressure {
    lab.report().pressure.remove(0)
}

/// The section of the summary on pressure.
fn section(lab: &Lab, ended: &Ended) -> String {
    let start = ended.out.find("\ntiny over mp under pressure").unwrap();
    let text = lab.redact(&ended.out[start..]);
    text.lines().filter(|line| !line.starts_with("  logs")).collect::<Vec<_>>().join("\n")
}

#[test]
fn an_engine_that_serves_copies_through_every_event_is_equivalent() {
    let lab = Lab::new();
    let ended = lab.run("", "--pressure");
    assert_eq!(ended.code, 0, "{}{}", ended.err, ended.out);
    insta::assert_snapshot!(section(&lab, &ended), @r"

    tiny over mp under pressure: EQUIVALENT
      decided by   kv: the bytes that were served against those that an engine computed
      why          Each of 6656 served cells (a block in a layer on a rank) holds the bytes that an engine computed for its tokens, when attention begins to read it and when its request ends, through 39 preemptions, 39 of them taken up again from the cache; no request was served what nobody had computed.
      events       39 preemptions
                   39 resumed loads
                   444 evicted chunks
                   26 aborts while storing
                   13 aborts while loading
                   39 stores beside loads
                   47712 tokens from the connector
                   864 tokens from vLLM's own cache
      seed 1       46 requests, served by connector: 15424 + 0 tokens; 2120 of 2120 served cells right; within bounds
      seed 2       46 requests, served by connector and vLLM's own: 16352 + 864 tokens; 2328 of 2328 served cells right; within bounds
      seed 3       46 requests, served by connector: 15936 + 0 tokens; 2208 of 2208 served cells right; within bounds

    verdict: equivalent (exit code 0)
    log: out/log.jsonl
    ");
    for file in ["summary.md", "report.html", "junit.xml"] {
        let text = fs_err::read_to_string(lab.path("out").join(file)).unwrap();
        assert!(text.contains("tiny over mp under pressure"), "{file}");
    }
}

#[test]
fn a_seed_is_asked_alone_and_its_findings_are_used_again() {
    let lab = Lab::new();
    assert_eq!(lab.run("", "--pressure-seed 7").code, 0);
    let seeds: Vec<u32> = pressed(&lab).findings.seeds.iter().map(|seed| seed.seed).collect();
    assert_eq!(seeds, [7]);
    let (ended, steps) = lab.steps_of(|| lab.run("", "--pressure-seed 7"));
    assert_eq!((ended.code, steps), (0, vec![]), "{}", ended.err);
}

#[test]
fn a_suite_with_the_table_is_pressed_without_being_asked() {
    let lab = Lab::new();
    lab.edit("suite.toml", "[patience]", "[pressure]\nseeds = 1\nrequests = 20\n\n[patience]");
    assert_eq!(lab.run("", "").code, 0);
    let findings = pressed(&lab).findings;
    assert_eq!((findings.seeds.len(), findings.seeds[0].requests), (1, 26));
}

#[test]
fn wrong_kv_beyond_bounds_and_missing_events_are_told_apart() {
    for (fault, verdict, rung, words) in [
        ("wrongkv@press", Verdict::Degraded, Rung::Kv, "Seed 1: "),
        ("beyond@press", Verdict::Degraded, Rung::Exercised, "were served what nobody had stored"),
        (
            "placid@press",
            Verdict::NotExercised,
            Rung::Exercised,
            "aborts while storing, aborts while loading",
        ),
        ("calm@press", Verdict::NotExercised, Rung::Exercised, "tokens from the connector"),
        ("roomy@server", Verdict::NotExercised, Rung::Exercised, "evicted chunks"),
        ("blind@press", Verdict::NotExercised, Rung::Kv, "No whole chunk was served"),
        ("blindfold@press", Verdict::NotExercised, Rung::Kv, "could not be observed"),
    ] {
        let lab = Lab::new();
        let ended = lab.run(fault, "--pressure");
        let judgement = pressed(&lab).judgement;
        assert_eq!(
            (judgement.verdict, judgement.decided_by),
            (verdict, rung),
            "{fault}: {}",
            judgement.reason
        );
        assert!(judgement.reason.contains(words), "{fault}: {}", judgement.reason);
        assert_eq!(ended.code, if verdict == Verdict::Degraded { 1 } else { 4 }, "{fault}");
        assert_eq!(lab.report().findings[0].judgement.verdict, Verdict::Equivalent, "{fault}");
    }
}

#[test]
fn an_engine_that_dies_under_pressure_leaves_the_comparison_its_verdict_and_the_run_without_one() {
    let lab = Lab::new();
    let ended = lab.run("crash@press", "--pressure");
    assert_eq!(ended.code, 2, "{}{}", ended.err, ended.out);
    let report = lab.report();
    assert_eq!((report.findings.len(), report.pressure.len()), (1, 0));
    assert!(report.not_run[0].reason.contains("put it under pressure"), "{}", report.not_run[0].reason);
}

#[test]
fn settings_and_prompts_of_which_no_schedule_can_be_made_are_told() {
    let lab = Lab::new();
    lab.edit("suite.toml", "[patience]", "[pressure]\nchunk_tokens = 48\n\n[patience]");
    let message = lab.error(&lab.run("", ""));
    assert!(message.contains("`pressure.chunk_tokens` must be a multiple"), "{message}");
    let lab = Lab::new();
    let ended = lab.run("", "--pressure --subjects 1");
    assert_eq!(ended.code, 0, "{}{}", ended.err, ended.out);
}
