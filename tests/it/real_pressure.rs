//! Real engines under pressure, and faults that only show there: only on request, as in `real.rs`.

use std::process::Command;

use kv_correctness::comparison::Verdict;
use kv_correctness::report::{Report, UnderPressure};

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

/// Runs the suite; whatever it ends with, the report.
fn run(arguments: &str) -> Report {
    let out = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_kv-correctness"));
    command.args(["run", "--device", "cpu", "--json", "--out"]).arg(out.path());
    let output = command.args(arguments.split_whitespace()).output().unwrap();
    let out = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&out).unwrap_or_else(|error| {
        panic!("{error}: {}{out}", String::from_utf8_lossy(&output.stderr));
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

/// What slots with a fault come to under pressure, on one model.
fn slots(fault: &str) -> UnderPressure {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("slots.toml");
    fs_err::write(&path, SLOTS.replace("FAULT", fault)).unwrap();
    fs_err::write(folder.path().join("slots.py"), include_str!("connectors/slots.py")).unwrap();
    let cell = format!("--cell canary-dense/slots-{fault}");
    let mut report = run(&format!("{SUITE} {cell} --connector {}", path.display()));
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
        let pressed = slots(fault);
        assert_eq!(pressed.judgement.verdict, Verdict::Degraded, "{fault}: {}", pressed.judgement.reason);
        assert!(pressed.findings.seeds.iter().any(kv_correctness::pressure::SeedFindings::is_harmed));
    }
}

#[test]
#[ignore = "runs vLLM and LMCache for minutes"]
fn a_tier_of_which_every_so_many_th_load_fails_is_not_exercised() {
    let report = run(&format!("{SUITE} --route mp+failing --cell canary-dense/mp+failing"));
    tell(&report.pressure[0]);
    assert_eq!(report.pressure[0].judgement.verdict, Verdict::NotExercised);
}
