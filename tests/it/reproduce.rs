//! Running again what a report found wrong, on the fake engine.

use fs_err as fs;
use serde_json::Value;

use crate::bisect::{drive, git, lab};
use crate::lab::Lab;

/// A lab with the report of a bad revision in `bad.json`.
fn with_report() -> Lab {
    with_report_of(lab())
}

fn with_report_of(lab: Lab) -> Lab {
    let ended =
        drive(&lab, "run --suite suite.toml --device cpu --out out --lmcache-src src --lmcache-rev culprit");
    assert_eq!(ended.code, 1, "{}", ended.err);
    fs::copy(lab.path("out/report.json"), lab.path("bad.json")).unwrap();
    lab
}

fn edit_report(lab: &Lab, edit: impl FnOnce(&mut Value)) {
    let mut report: Value = serde_json::from_str(&fs::read_to_string(lab.path("bad.json")).unwrap()).unwrap();
    edit(&mut report);
    lab.write("bad.json", &report.to_string());
}

#[test]
fn a_fault_is_reproduced_on_the_questions_that_differed_first() {
    let lab = with_report();
    let (ended, steps) = lab.steps_of(|| drive(&lab, "reproduce bad.json --lmcache-src src --questions 2"));
    assert_eq!(ended.code, 0, "{}{}", ended.err, ended.out);
    insta::assert_snapshot!(lab.redact(&ended.out), @r"
    report       tiny over mp: degraded, decided by bits; [DEVICE]; vLLM 0.32.0, LMCache 0.0.0 (revision [SHORT])
    asked again  botany/test/4, zoology/test/7
    here         degraded, decided by bits: The load pass differs from the control, which computes the same shapes by vLLM alone: in 1 of 2 questions, by up to 2.4e-7 nats (first: zoology/test/7, generated token 1). The baseline repeats itself bit for bit, so this is no noise.
    reproduced
    ");
    assert!(
        steps.contains(&"load 2".to_owned()) && !steps.contains(&"install 0.0.0".to_owned()),
        "{steps:?}"
    );

    let (again, steps) = lab.steps_of(|| drive(&lab, "reproduce bad.json --lmcache-src src --questions 2"));
    assert_eq!((again.code, again.out, steps), (0, ended.out, vec![]), "from a warm cache");
}

#[test]
fn a_fault_that_is_not_there_is_not_reproduced() {
    let lab = with_report();
    // The same questions with the environment's own LMCache, which has no fault.
    edit_report(&lab, |report| {
        let lmcache = &mut report["environment"]["packages"]["lmcache"];
        *lmcache = serde_json::json!({ "version": "0.5.6", "content": null });
    });
    let ended = drive(&lab, "reproduce bad.json");
    assert_eq!(ended.code, 1, "{}", ended.err);
    assert!(ended.out.ends_with("\nnot reproduced\n"), "{}", ended.out);
}

#[test]
fn what_cannot_be_reproduced_here_is_said_with_why() {
    let lab = with_report();
    let why = |arguments: &str, code: i32| {
        let (ended, steps) = lab.steps_of(|| drive(&lab, &format!("reproduce {arguments}")));
        assert_eq!((ended.code, steps), (code, vec![]), "{}{}", ended.err, ended.out);
        lab.redact(&ended.out).replace(&git(&lab, &["rev-parse", "culprit"])[..12], "[CULPRIT]")
    };
    insta::assert_snapshot!(why("bad.json", 3), @"cannot be reproduced here: its LMCache 0.0.0 (revision [SHORT]) was built from source; name a checkout with --lmcache-src PATH");
    edit_report(&lab, |report| report["environment"]["packages"]["lmcache"]["tree"] = "0".repeat(64).into());
    insta::assert_snapshot!(why("bad.json --lmcache-src src", 3), @"cannot be reproduced here: its LMCache was built from the tree [SHORT], and the checkout holds [SHORT]");
    edit_report(&lab, |report| report["findings"][0]["model_digest"] = "0".repeat(64).into());
    insta::assert_snapshot!(why("bad.json --lmcache-src src", 3), @"cannot be reproduced here: the files of tiny are not those of the report");
    edit_report(&lab, |report| report["suite"]["dataset"] = "nowhere.tar".into());
    assert_eq!(drive(&lab, "reproduce bad.json --lmcache-src src --data nowhere.tar").code, 3);
    edit_report(&lab, |report| report["findings"][0]["judgement"]["verdict"] = "equivalent".into());
    insta::assert_snapshot!(why("bad.json", 3), @"cannot be reproduced here: no finding of the report is degraded or not exercised");
    edit_report(&lab, |report| report["schema"] = 99.into());
    insta::assert_snapshot!(lab.error(&drive(&lab, "reproduce bad.json")), @r"
    error: failed to understand bad.json: it has schema 99, and this program reads 2 to 4

    hint: make it again with this version, whose `run` re-uses stages, or use the version that wrote it
    ");
}

#[test]
fn a_report_whose_suite_could_not_be_a_files_is_refused_before_anything_starts() {
    let lab = with_report();
    let refuse = |edit: fn(&mut Value)| {
        edit_report(&lab, edit);
        let (ended, steps) = lab.steps_of(|| drive(&lab, "reproduce bad.json --lmcache-src src"));
        assert_eq!(steps, Vec::<String>::new());
        lab.error(&ended)
    };
    insta::assert_snapshot!(refuse(|report| report["suite"]["engine"]["arguments"]["kv_transfer_config"] = serde_json::json!({})), @r"
    error: failed to understand suite bad.json: `suite.engine.arguments.kv_transfer_config`: `kv_transfer_config` gives an engine a connector, and this program gives each arm its own: baseline and control have none

    hint: leave it out, and name the ways for KV to travel in `routes`
    ");
    insta::assert_snapshot!(refuse(|report| report["suite"]["lmcache"]["chunk_tokens"] = 0.into()), @r"
    error: failed to understand suite bad.json: `suite.lmcache.chunk_tokens`: `lmcache.chunk_tokens` must be at least 1

    hint: compare it with one that is right: `kv-correctness suite show canary`
    ");
}

#[test]
fn minimising_leaves_the_questions_and_the_tokens_that_the_fault_needs_and_writes_a_script() {
    let lab = lab();
    lab.edit("suite.toml", "memory_gib = 1", "memory_gib = 1\noptions = { save_decode_cache = true }");
    let lab = with_report_of(lab);
    let ended = drive(&lab, "reproduce bad.json --lmcache-src src --minimise");
    assert_eq!(ended.code, 0, "{}{}", ended.err, ended.out);
    // The fake strikes at the second answer of a pass, so two questions are needed.
    let line = ended.out.lines().find(|line| line.starts_with("minimised")).unwrap();
    assert!(line.contains("the first 17 tokens of") && line.matches("/test/").count() == 2, "{}", ended.out);
    let script = fs::read_to_string(lab.path("kv-correctness-out/reproduced/tiny-mp.py")).unwrap();
    assert!(script.contains("\"chunk_tokens\":16") && !script.contains("@CASE@"));
    assert!(
        script.contains(r#""connector":{"lmcache.mp.save_decode_cache":true}"#),
        "options are the suite's"
    );
    assert!(script.contains(r#""LMCACHE_SAVE_DECODE_CACHE":"True""#));
}

#[test]
fn a_prompt_that_shows_a_fault_only_as_a_whole_is_not_cut_by_the_length_of_another() {
    let lab = lab();
    lab.write("src/faults", "uncut@load\n");
    git(&lab, &["commit", "--quiet", "--all", "--message", "Whole"]);
    git(&lab, &["tag", "--force", "culprit"]);
    let lab = with_report_of(lab);
    let ended = drive(&lab, "reproduce bad.json --lmcache-src src --minimise");
    assert_eq!(ended.code, 0, "{}{}", ended.err, ended.out);
    let line = ended.out.lines().find(|line| line.starts_with("minimised")).unwrap();
    assert!(line.contains(" runs: whole prompts of ") && line.matches("/test/").count() == 1, "{line}");
}
