//! A run as units: what each executor is handed, and the units started as runners would start them.

use std::collections::BTreeSet;
use std::process::Command;

use fs_err as fs;
use kv_correctness::report::Report;
use serde_json::Value;

use crate::lab::{Lab, archive_of};

const SUBJECTS: [&str; 4] = ["acoustics", "botany", "chemistry", "dance"];

fn lab() -> Lab {
    let lab = Lab::new();
    fs::write(lab.path("facts.tar"), archive_of(&SUBJECTS, 8)).unwrap();
    lab.edit("suite.toml", "chunk_tokens = 16", "chunk_tokens = 48");
    lab
}

fn plan(lab: &Lab, arguments: &str) -> String {
    let mut command =
        lab.driver(&format!("plan --suite suite.toml --device cpu --route mp,mp+fs --shards 2 {arguments}"));
    command.env("KV_CORRECTNESS_DEPOT", format!("file://{}", lab.path("depot")));
    let ended = lab.end(command);
    assert_eq!(ended.code, 0, "{}", ended.err);
    ended.out
}

/// Runs a script as a runner does: in a folder of its own, with a cache of its own, and the depot that all share.
fn run_script(lab: &Lab, runner: &str, script: &str) -> i32 {
    let driver = lab.driver("");
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]).current_dir(lab.path(""));
    for (name, value) in driver.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let programs = lab.path("programs");
    if !programs.exists() {
        fs::create_dir(&programs).unwrap();
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_kv-correctness"), programs.join("kv-correctness"))
            .unwrap();
    }
    let path = std::env::var("PATH").unwrap();
    command
        .env("PATH", format!("{programs}:{}:{path}", lab.path("bin")))
        .env("KV_CORRECTNESS_CACHE", lab.path(&format!("cache-{runner}")))
        .env("KV_CORRECTNESS_DEPOT", format!("file://{}", lab.path("depot")));
    lab.end(command).code
}

fn whole(lab: &Lab) -> Report {
    let mut command = lab.driver("run --suite suite.toml --device cpu --route mp,mp+fs --out whole");
    command.env("KV_CORRECTNESS_CACHE", lab.path("cache-whole"));
    assert_eq!(lab.end(command).code, 0);
    read(lab, "whole")
}

fn read(lab: &Lab, out: &str) -> Report {
    let text = fs::read_to_string(lab.path(out).join("report.json")).unwrap();
    let mut report: Report = serde_json::from_str(&text).unwrap();
    report.merged_from.clear();
    for finding in &mut report.findings {
        finding.logs.clear();
        finding.artifacts.clear();
        finding.keys.clear();
    }
    report
}

/// How often an engine of this arm was started.
fn starts(lab: &Lab, arm: &str) -> usize {
    lab.steps().iter().filter(|step| **step == format!("start {arm}")).count()
}

#[test]
fn the_units_of_a_plan_started_on_machines_of_their_own_come_to_the_report_of_one_run() {
    let lab = lab();
    let expected = whole(&lab);
    let before = starts(&lab, "baseline");
    let plan: Value = serde_json::from_str(&plan(&lab, "--run-name nightly")).unwrap();
    let units = plan["units"].as_array().unwrap();
    assert_eq!(units.len(), 2 + 4 + 1);
    let mut done = BTreeSet::new();
    for unit in units {
        let id = unit["id"].as_str().unwrap();
        assert!(unit["needs"].as_array().unwrap().iter().all(|need| done.contains(need.as_str().unwrap())));
        let words = |command: &Value| {
            command
                .as_array()
                .unwrap()
                .iter()
                .map(|word| word.as_str().unwrap())
                .collect::<Vec<_>>()
                .join(" ")
        };
        let script: Vec<String> = unit["commands"].as_array().unwrap().iter().map(words).collect();
        assert_eq!(run_script(&lab, id, &script.join(" && ")), 0, "{id}");
        done.insert(id);
    }
    assert_eq!(read(&lab, "out/merged"), expected);
    // Two parts, two routes: each part's baseline was computed once.
    assert_eq!(starts(&lab, "baseline") - before, 2);
}

#[test]
fn a_pipeline_of_buildkite_does_the_same_step_by_step() {
    let lab = lab();
    let expected = whole(&lab);
    let pipeline: Value = serde_json::from_str(&plan(&lab, "--format buildkite --run-name nightly")).unwrap();
    let mut done = BTreeSet::new();
    for step in pipeline["steps"].as_array().unwrap() {
        let key = step["key"].as_str().unwrap();
        assert!(
            step["depends_on"].as_array().unwrap().iter().all(|need| done.contains(need.as_str().unwrap()))
        );
        assert_eq!(run_script(&lab, key, &step["command"].as_str().unwrap().replace("$$", "$")), 0, "{key}");
        done.insert(key);
    }
    assert_eq!(read(&lab, "out/merged"), expected);
}

#[test]
fn the_pods_of_indexed_jobs_do_the_same_by_their_index() {
    let lab = lab();
    let expected = whole(&lab);
    let list: Value = serde_json::from_str(&plan(&lab, "--format kubernetes --run-name nightly")).unwrap();
    for job in list["items"].as_array().unwrap() {
        let script = job["spec"]["template"]["spec"]["containers"][0]["command"][2].as_str().unwrap();
        for index in 0..job["spec"]["completions"].as_u64().unwrap() {
            let pod = format!("{}-{index}", job["metadata"]["name"].as_str().unwrap());
            assert_eq!(
                run_script(&lab, &pod, &format!("JOB_COMPLETION_INDEX={index}\n{script}")),
                0,
                "{pod}"
            );
        }
        assert_eq!(run_script(&lab, "none", &format!("JOB_COMPLETION_INDEX=99\n{script}")), 2);
    }
    assert_eq!(read(&lab, "out/merged"), expected);
}

#[test]
fn the_jobs_of_a_github_matrix_do_the_same() {
    let lab = lab();
    let expected = whole(&lab);
    let text = plan(&lab, "--format github --run-name nightly");
    assert_eq!(text.lines().count(), 1, "an output of a step is one line");
    let matrices: Value = serde_json::from_str(&text).unwrap();
    for kind in ["arms", "cells", "merge"] {
        for job in matrices[kind]["include"].as_array().unwrap() {
            let id = job["id"].as_str().unwrap();
            assert_eq!(run_script(&lab, id, job["script"].as_str().unwrap()), 0, "{id}");
        }
    }
    assert_eq!(read(&lab, "out/merged"), expected);
}

#[test]
fn a_plan_tells_the_keys_that_are_known_and_starts_nothing() {
    let lab = lab();
    let (first, steps) = lab.steps_of(|| plan(&lab, ""));
    assert_eq!(steps, Vec::<String>::new());
    let keys = |text: &str| -> Vec<usize> {
        let plan: Value = serde_json::from_str(text).unwrap();
        plan["units"].as_array().unwrap().iter().map(|unit| unit["keys"].as_object().unwrap().len()).collect()
    };
    // Nothing is there yet but the questions' key, since all others are made of what is not.
    assert_eq!(keys(&first), [1, 1, 1, 1, 1, 1, 0]);
    assert_eq!(
        run_script(
            &lab,
            "a",
            "kv-correctness stage prompts --suite suite.toml --device cpu --shard 1/2 --out p"
        ),
        0
    );
    let later = plan(&lab, "");
    assert_eq!(keys(&later)[..3], [4, 4, 4], "{later}");
}

#[test]
fn a_plan_hands_on_what_its_units_are_asked_for_and_refuses_what_they_cannot_have() {
    let lab = lab();
    let text = plan(&lab, "--pressure-seed 7 --engines 2 --no-early-stop --slow");
    let plan: Value = serde_json::from_str(&text).unwrap();
    let commands: Vec<String> =
        plan["units"].as_array().unwrap().iter().map(|unit| unit["commands"].to_string()).collect();
    for words in ["\"--pressure-seed\",\"7\"", "\"--engines\",\"2\"", "\"--no-early-stop\"", "\"--slow\""] {
        let without: Vec<&String> = commands.iter().filter(|command| !command.contains(words)).collect();
        assert_eq!(without.len(), 1, "only the merge is not told {words}: {without:?}");
    }

    let asked = "plan --suite suite.toml --device cpu --faults --turns --foreign=lora --cell a/mp --no-cache \
                 --force baseline --as-bisect-step";
    insta::assert_snapshot!(lab.error(&lab.end(lab.driver(asked))), @r"
    error: failed to plan a run: its units cannot have --cell, --force, --no-cache, --faults, --foreign, --turns, --as-bisect-step

    hint: leave that out: a plan parts the questions itself and hands artifacts on; what is asked of all questions at once, `kv-correctness run` does beside it
    ");
    let ended = lab.end(lab.driver("plan --suite suite.toml --device cpu --shard 1/2"));
    assert!(lab.error(&ended).contains("its units cannot have --shard"), "{}", ended.err);
}
