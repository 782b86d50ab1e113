//! Real engines under pressure, and faults that only show there: only on request, as in `real.rs`. How: docs/pressure.md.

use std::process::Command;

use camino::{Utf8Path, Utf8PathBuf};
use kv_correctness::comparison::Verdict;
use kv_correctness::report::{Report, UnderPressure};

use crate::patched_lmcache::{
    FAILING_RETRIEVE, LATE_STORE, Patch, SILENT_STORE, STALE_CHUNK, UNSAID_FAILURE,
};

const SUITE: &str = "--suite canary-pressure";
/// A connector that keeps blocks in a few slots, with a fault.
const SLOTS: &str = r#"
name = "slots-FAULT"
description = "blocks in a few slots of memory"
topology = "same-engine"

[connector]
file = "slots.py"
class = "SlotsConnector"
extra.fault = "FAULT"

[hits]
unit = "block"
asked_less = 1
stored_less = 1
"#;

/// Runs the suite; whatever it ends with, the report. Where a comparison failed it is written and not printed.
fn run(arguments: &str) -> Report {
    let out = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_kv-correctness"));
    command.args(["run", "--device", "cpu", "--out"]).arg(out.path());
    let output = command.args(arguments.split_whitespace()).output().unwrap();
    let report = fs_err::read_to_string(out.path().join("report.json")).unwrap_or_default();
    serde_json::from_str(&report).unwrap_or_else(|error| {
        panic!("{error}: {}", String::from_utf8_lossy(&output.stderr));
    })
}

fn tell(pressed: &UnderPressure) {
    println!(
        "{} over {}: {}: {}",
        pressed.model, pressed.route, pressed.judgement.verdict, pressed.judgement.reason
    );
    for seed in &pressed.findings.seeds {
        println!(
            "  seed {}: {:?}, evicted {:?}, {:?}",
            seed.seed, seed.events, seed.evicted_chunks, seed.hits
        );
    }
}

#[test]
#[ignore = "runs vLLM and LMCache for minutes"]
fn both_canaries_serve_copies_under_pressure_over_each_route() {
    let report = run(SUITE);
    assert_eq!(report.pressure.len(), 6);
    for pressed in &report.pressure {
        tell(pressed);
        assert_eq!(pressed.judgement.verdict, Verdict::Equivalent, "{}", pressed.judgement.reason);
        assert_eq!(pressed.findings.missing(), []);
    }
}

#[test]
#[ignore = "runs vLLM and LMCache for minutes"]
fn ten_seeds_raise_no_false_alarm() {
    let report = run(&format!("{SUITE} --pressure-seeds 10"));
    for pressed in &report.pressure {
        tell(pressed);
        assert_eq!(pressed.judgement.verdict, Verdict::Equivalent, "{}", pressed.judgement.reason);
    }
}

/// The suite with two questions, and so little beside pressure.
fn few_questions(folder: &Utf8Path) -> Utf8PathBuf {
    let text = include_str!("../../data/suites/canary-pressure.toml");
    let few = text.replace("subjects = \"2\"", "subjects = \"1\"");
    assert_ne!(few, text);
    let path = folder.join("few.toml");
    fs_err::write(&path, few).unwrap();
    path
}

fn folder() -> (tempfile::TempDir, Utf8PathBuf) {
    let keep = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = Utf8PathBuf::from_path_buf(keep.path().to_owned()).unwrap();
    (keep, path)
}

/// What slots with a fault come to under pressure, on one model.
fn slots(fault: &str) -> UnderPressure {
    let (_keep, folder) = folder();
    let description = folder.join("slots.toml");
    fs_err::write(&description, SLOTS.replace("FAULT", fault)).unwrap();
    fs_err::write(folder.join("slots.py"), include_str!("connectors/slots.py")).unwrap();
    let suite = few_questions(&folder);
    pressed(&format!("--suite {suite} --cell canary-dense/slots-{fault} --connector {description}"))
}

/// What canary-dense over `mp` comes to with a patched copy of LMCache.
fn patched(patch: &Patch) -> UnderPressure {
    let (_keep, folder) = folder();
    let copy = patch.apply(&folder);
    pressed(&format!("--suite {} --cell canary-dense/mp --lmcache-src {copy}", few_questions(&folder)))
}

/// Presses one cell.
fn pressed(arguments: &str) -> UnderPressure {
    let mut report = run(arguments);
    assert_eq!(report.pressure.len(), 1, "{:?}", report.not_run);
    let pressed = report.pressure.remove(0);
    tell(&pressed);
    pressed
}

#[test]
#[ignore = "runs vLLM for minutes"]
fn slots_that_are_right_are_equivalent() {
    assert_eq!(slots("none").judgement.verdict, Verdict::Equivalent);
}

#[test]
#[ignore = "runs vLLM for minutes"]
fn each_fault_of_slots_is_degraded() {
    for fault in ["stale", "silent", "early", "beyond"] {
        require_degraded(fault, &slots(fault));
    }
}

fn require_degraded(fault: &str, pressed: &UnderPressure) {
    assert_eq!(pressed.judgement.verdict, Verdict::Degraded, "{fault}: {}", pressed.judgement.reason);
    assert!(pressed.findings.seeds.iter().any(kv_correctness::pressure::SeedFindings::is_harmed));
}

#[test]
#[ignore = "builds LMCache from its source distribution, and runs vLLM and it for minutes"]
fn each_fault_within_lmcache_is_degraded_or_not_exercised() {
    for patch in [SILENT_STORE, STALE_CHUNK, UNSAID_FAILURE, LATE_STORE] {
        require_degraded(patch.name, &patched(&patch));
    }
    let failing = patched(&FAILING_RETRIEVE).judgement;
    assert_eq!(failing.verdict, Verdict::NotExercised, "{}", failing.reason);
}

/// LMCache's own tier that fails, with so many of all loads.
#[test]
#[ignore = "runs vLLM and LMCache for minutes"]
fn a_tier_of_which_every_so_many_th_load_fails_is_not_exercised() {
    for (name, rate) in [("mp+tenth", "rate = 0.1"), ("mp+second", "rate = 0.5")] {
        let (_keep, folder) = folder();
        let description = folder.join("failing.toml");
        let text = include_str!("../../data/connectors/mp+failing.toml").replace("rate = 0.1", rate);
        fs_err::write(&description, text.replace("mp+failing", name)).unwrap();
        let suite = few_questions(&folder);
        let cell = format!("--suite {suite} --cell canary-dense/{name} --connector {description}");
        assert_eq!(pressed(&cell).judgement.verdict, Verdict::NotExercised, "{name}");
    }
}
