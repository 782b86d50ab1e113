//! A run in parts, on machines with caches of their own, and what `merge` makes of the parts.

use fs_err as fs;
use kv_correctness::comparison::Verdict;
use kv_correctness::report::Report;

use crate::lab::{Ended, Lab, archive_of, at_once};

const SUBJECTS: [&str; 10] = [
    "acoustics",
    "botany",
    "chemistry",
    "dance",
    "ethics",
    "forestry",
    "geology",
    "history",
    "italian",
    "zoology",
];

/// Ten subjects of eight questions, so that no round ends within one: then even a server counts the same in parts. Chunks are longer
/// than what prompts of all subjects begin with.
fn lab(questions: u32) -> Lab {
    let lab = Lab::new();
    fs::write(lab.path("facts.tar"), archive_of(&SUBJECTS, questions)).unwrap();
    lab.edit("suite.toml", "chunk_tokens = 16", "chunk_tokens = 48");
    lab
}

/// Runs a part on one of three machines.
fn run_part(lab: &Lab, machine: u32, faults: &str, out: &str, arguments: &str) -> Ended {
    let mut command = lab.driver(&format!("run --suite suite.toml --device cpu --out {out} {arguments}"));
    command.env("KV_CORRECTNESS_CACHE", lab.path(&format!("cache-{machine}"))).env("FAKE_FAULTS", faults);
    lab.end(command)
}

fn shards(lab: &Lab, of: u32, faults: &str, arguments: &str) -> String {
    let mut folders = Vec::new();
    for number in 1..=of {
        let out = format!("part-{number}");
        let ended = run_part(lab, number % 3, faults, &out, &format!("--shard {number}/{of} {arguments}"));
        assert_eq!(ended.code, 0, "{}{}", ended.err, ended.out);
        assert!(
            ended.out.contains(&format!("on the questions of shard {number}/{of} alone")),
            "{}",
            ended.out
        );
        folders.push(out);
    }
    folders.join(" ")
}

fn merge(lab: &Lab, arguments: &str) -> Ended {
    let mut command = lab.driver(&format!("merge --out merged {arguments}"));
    command.env("KV_CORRECTNESS_CACHE", lab.path("cache-of-merge"));
    lab.end(command)
}

/// A report without where things lie and what they were made of: shards and the whole differ in that alone.
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

#[test]
fn eight_shards_on_three_machines_merge_to_the_report_of_one_run_bit_for_bit() {
    let cases = [
        ("", Verdict::Equivalent),
        ("rot@load", Verdict::Degraded),
        ("noise@engine chance@engine blindfold@load", Verdict::Inconclusive),
    ];
    at_once(cases, |(faults, verdict)| {
        let lab = lab(8);
        let whole = run_part(&lab, 9, faults, "whole", "");
        let parts = shards(&lab, 8, faults, "");
        let merged = merge(&lab, &parts);
        assert_eq!(merged.code, whole.code, "{faults}: {}{}", merged.err, merged.out);
        let (whole, merged) = (read(&lab, "whole"), read(&lab, "merged"));
        assert_eq!(merged.verdict, verdict, "{faults}");
        let texts = [&whole, &merged].map(|report| serde_json::to_string_pretty(report).unwrap());
        for (one, other) in texts[0].lines().zip(texts[1].lines()) {
            assert_eq!(other, one, "{faults}");
        }
        assert_eq!(texts[0], texts[1]);
    });
}

#[test]
fn each_part_is_put_under_pressure_by_its_own_prompts() {
    let lab = lab(8);
    let parts = shards(&lab, 2, "", "--pressure-seeds 2");
    let merged = merge(&lab, &format!("{parts} part-2"));
    assert_eq!(merged.code, 0, "{}{}", merged.err, merged.out);
    let titles: Vec<&str> = merged.out.lines().filter(|line| line.contains("under pressure")).collect();
    insta::assert_snapshot!(titles.join("\n"), @r"
    tiny over mp under pressure, shard 1/2: EQUIVALENT
    tiny over mp under pressure, shard 2/2: EQUIVALENT
    ");
    let pressure = read(&lab, "merged").pressure;
    let key = |place: usize| pressure[place].log.parent().unwrap().file_name().unwrap().to_owned();
    assert_ne!(key(0), key(1), "the prompts of another part");
    assert!(pressure.iter().all(|pressed| pressed.findings.seeds.len() == 2));
}

#[test]
fn a_depot_brings_the_parts_of_a_run_together_by_its_name() {
    let lab = lab(8);
    let depot = format!("--depot file://{} --run-name nightly-7", lab.path("depot"));
    let parts = shards(&lab, 3, "", &depot);
    let by_folder = merge(&lab, &parts);
    let report = read(&lab, "merged");
    for part in parts.split(' ') {
        fs::remove_dir_all(lab.path(part)).unwrap();
    }
    let by_depot = merge(&lab, &depot);
    assert_eq!((by_depot.code, by_folder.code), (0, 0), "{}", by_depot.err);
    assert_eq!(read(&lab, "merged"), report);
    let nothing = merge(&lab, &depot.replace("nightly-7", "another"));
    insta::assert_snapshot!(lab.error(&nothing), @r"
    error: failed to merge: there is no part

    hint: name the folders that `run --shard K/N --out DIR` wrote to, or a depot and a run in it
    ");
}

#[test]
fn cells_that_were_run_apart_merge_to_the_report_of_all() {
    let lab = lab(8);
    let whole = run_part(&lab, 9, "", "whole", "--route mp,mp+fs");
    assert_eq!(whole.code, 0, "{}", whole.err);
    for (machine, out, cell) in [(0, "one", "tiny/mp"), (1, "other", "tiny/mp+fs")] {
        let ended = run_part(&lab, machine, "", out, &format!("--route mp,mp+fs --cell {cell}"));
        assert_eq!(ended.code, 0, "{}", ended.err);
    }
    let merged = merge(&lab, "one other");
    assert_eq!(merged.code, 0, "{}", merged.err);
    assert_eq!(read(&lab, "merged"), read(&lab, "whole"));
    insta::assert_snapshot!(lab.error(&merge(&lab, "one")), @r"
    error: failed to merge: no part has tiny over mp+fs

    hint: run that part, or name its folder, too
    ");
    let unknown = run_part(&lab, 0, "", "one", "--cell tiny/mp+fs");
    insta::assert_snapshot!(lab.error(&unknown), @r"
    error: failed to find tiny over mp+fs in suite facts: it has no such cell

    hint: `kv-correctness plan` lists them; `--route` gives the suite other routes, in all parts alike
    ");
}

#[test]
fn what_does_not_belong_together_is_refused_with_the_field_that_differs() {
    let lab = lab(8);
    let parts = shards(&lab, 2, "", "");
    let missing = merge(&lab, "part-1");
    assert!(lab.error(&missing).contains("no part has shard 2/2 of tiny over mp"), "{}", missing.err);
    assert_eq!(merge(&lab, &format!("{parts} part-2")).code, 0, "the same part twice is one");
    lab.edit("suite.toml", "seed = 42", "seed = 7");
    assert_eq!(run_part(&lab, 0, "", "another", "--shard 2/2").code, 0);
    insta::assert_snapshot!(lab.error(&merge(&lab, "part-1 another")), @r"
    error: failed to merge part-1 with another: /suite/engine/seed differs, 42 in the first and 7 in the other

    hint: run all parts of one suite on machines and in environments of one kind
    ");
    lab.edit("suite.toml", "seed = 7", "seed = 42");
    lab.install("lmcache-0.5.7", "package/__init__.py,sha256=1,1\n");
    fs::remove_dir_all(lab.path("env/lib/python3.11/site-packages/lmcache-0.5.6.dist-info")).unwrap();
    assert_eq!(run_part(&lab, 0, "", "another", "--shard 2/2").code, 0);
    let other = lab.error(&merge(&lab, "part-1 another"));
    assert!(other.contains("/environment/packages/lmcache/"), "{other}");
    let thirds = run_part(&lab, 0, "", "third", "--shard 2/3");
    assert_eq!(thirds.code, 0);
    // A part whose evidence was left behind, or changed on the way.
    fs::rename(lab.path("part-2/evidence"), lab.path("elsewhere")).unwrap();
    assert!(lab.error(&merge(&lab, &parts)).contains("the evidence of tiny over mp is not with part-2"));
    fs::rename(lab.path("elsewhere"), lab.path("part-2/evidence")).unwrap();
    let folder = lab.path("part-2/evidence").read_dir_utf8().unwrap().next().unwrap().unwrap().into_path();
    let text = fs::read_to_string(folder.join("output/evidence.json")).unwrap();
    fs::write(folder.join("output/evidence.json"), text.replacen('1', "2", 1)).unwrap();
    assert!(lab.error(&merge(&lab, &parts)).contains("another content than when it was sealed"));
}

#[test]
fn parts_whose_connectors_are_described_otherwise_are_not_one_run() {
    let lab = lab(8);
    let description = |note: &str| {
        let text = format!(
            r#"
name = "mine"
description = "a folder"
topology = "another-engine"
connector = {{ class = "ExampleConnector", extra = {{ shared_storage_path = "{{folder}}", note = "{note}" }} }}
hits = {{ unit = "block", stored_less = 1, asked_less = 2, found = "whole" }}
"#
        );
        fs::write(lab.path("mine.toml"), text).unwrap();
    };
    for (number, note) in [(1, "one"), (2, "another")] {
        description(note);
        let arguments = format!("--connector mine.toml --shard {number}/2");
        let ended = run_part(&lab, number, "", &format!("part-{number}"), &arguments);
        assert_eq!(ended.code, 0, "{}{}", ended.err, ended.out);
    }
    let error = lab.error(&merge(&lab, "part-1 part-2"));
    assert!(error.contains("failed to merge part-1 with part-2: /connector_digest differs, "), "{error}");
    description("one");
    assert_eq!(run_part(&lab, 2, "", "part-2", "--connector mine.toml --shard 2/2").code, 0);
    assert_eq!(merge(&lab, "part-1 part-2").code, 0);
}

#[test]
fn what_one_part_was_not_served_by_its_route_no_other_part_makes_up_for() {
    let lab = lab(8);
    let parts = shards(&lab, 2, "", "");
    let report = lab.path("part-2/report.json");
    let text = fs::read_to_string(&report).unwrap();
    let served = r#""service": "as_predicted""#;
    assert!(text.contains(served), "{text}");
    for service in ["wrong_tier", "counters_disagree"] {
        fs::write(&report, text.replace(served, &format!(r#""service": "{service}""#))).unwrap();
        let merged = merge(&lab, &parts);
        assert_eq!(merged.code, 4, "{service}: {}{}", merged.err, merged.out);
        assert_eq!(read(&lab, "merged").verdict, Verdict::NotExercised, "{service}");
    }
}

#[test]
fn a_part_asks_its_own_questions_and_has_keys_of_its_own() {
    let lab = lab(8);
    assert_eq!(run_part(&lab, 0, "", "whole", "").code, 0);
    let mut command = lab.driver("explain --suite suite.toml --device cpu --shard 2/4");
    command.env("KV_CORRECTNESS_CACHE", lab.path("cache-0"));
    let explained = lab.end(command);
    let changed: Vec<&str> = explained.out.lines().filter(|line| line.starts_with("  ")).collect();
    assert_eq!(changed, ["  /parameters/shard is new: \"2/4\""], "{}", explained.out);
    let ended = run_part(&lab, 0, "", "part", "--shard 2/4");
    assert_eq!(ended.code, 0);
    let asked = read(&lab, "part").findings[0].comparison.questions;
    assert!((16..=24).contains(&asked), "{asked}");
    let none = run_part(&lab, 0, "", "none", "--shard 11/11");
    insta::assert_snapshot!(lab.error(&none), @r"
    error: failed to ask shard 11/11: there are 10 subjects, and each is asked as a whole

    hint: make at most 10 shards of it
    ");
}

#[test]
fn harm_beyond_doubt_ends_a_part_and_the_whole_is_degraded() {
    let lab = lab(40);
    let parts = shards(&lab, 2, "wrong@load", "");
    let merged = merge(&lab, &parts);
    assert_eq!(merged.code, 1, "{}{}", merged.err, merged.out);
    let finding = &read(&lab, "merged").findings[0];
    let stop = finding.comparison.early_stop.unwrap();
    // Each of two parts has half of the budget: its bound is twice that of a run as a whole.
    assert!((stop.bound - 2000.0).abs() < 1e-6, "{stop:?}");
    assert!(finding.comparison.questions < 400);
}
