//! KV of another identity: what the driver says where LMCache serves it, where it does not, and where that proves nothing.

use fs_err as fs;
use kv_correctness::foreign::Meaning;
use serde_json::Value;

use crate::lab::{Ended, Lab};

fn meanings(lab: &Lab) -> Vec<Meaning> {
    let findings = &lab.report().foreign_kv[0].findings;
    findings.readings.iter().map(|reading| findings.meaning(reading)).collect()
}

/// The section of the summary on foreign KV.
pub(crate) fn section(lab: &Lab, ended: &Ended) -> String {
    let start = ended.out.find("\ntiny, KV of another identity").unwrap();
    let text = lab.redact(&ended.out[start..]);
    text.lines().filter(|line| !line.starts_with("  logs")).collect::<Vec<_>>().join("\n")
}

#[test]
fn kv_of_other_weights_that_is_served_is_a_finding_and_no_change_of_the_verdict() {
    let lab = Lab::new();
    let ended = lab.run("", "--foreign");
    assert_eq!(ended.code, 0, "{}{}", ended.err, ended.out);
    insta::assert_snapshot!(section(&lab, &ended), @r"

    tiny, KV of another identity over mp+fs: 1 FINDING ABOUT LMCACHE
      differs in   nothing                       1360 of 1360 tokens: served, as it must be
                   salt                          0 of 1360 tokens: miss, as it must be
                   chunk size (32)               0 of 1312 tokens: miss, as it must be
                   data type (float16)           0 of 1360 tokens: miss, as it must be
                   data type (float32)           0 of 1360 tokens: miss, as it must be
                   weights, under the same path  1360 of 1360 tokens: FINDING about LMCache: served
      finding      LMCache serves KV to a reader that differs in weights, under the same path: 1360 of 1360 tokens, which moves letters by up to 2.5e-4 nats, where KV of its own does by 2.5e-4; whoever replaces a model in place must clear the cache

    verdict: equivalent (exit code 0)
    log: out/log.jsonl
    ");
    assert!(ended.err.contains("warning: finding about LMCache, tiny: LMCache serves KV"), "{}", ended.err);
    let finding = "LMCache serves KV to a reader that differs in weights, under the same path";
    for file in ["summary.md", "report.html", "junit.xml"] {
        assert!(fs::read_to_string(lab.path("out").join(file)).unwrap().contains(finding), "{file}");
    }
    let left = lab.path("cache/models").read_dir_utf8().map_or(0, Iterator::count);
    assert_eq!(left, 0, "the folder with other weights is removed");
    let notes = lab.path("cache/store-1/entries/foreign").read_dir_utf8().unwrap();
    let notes = notes.flat_map(|entry| entry.unwrap().path().join("notes").read_dir_utf8().unwrap());
    assert!(notes.map(|note| note.unwrap()).all(|note| note.path().extension() == Some("log")));
}

#[test]
fn an_lmcache_that_tells_everything_apart_has_no_finding() {
    let lab = Lab::new();
    let ended = lab.run("wary@server", "--foreign");
    assert_eq!(ended.code, 0, "{}{}", ended.err, ended.out);
    assert_eq!(meanings(&lab)[0], Meaning::ControlHolds);
    assert_eq!(meanings(&lab)[1..], [Meaning::Miss; 5]);
    assert!(section(&lab, &ended).contains("over mp+fs: nothing served\n"), "{}", ended.out);
}

#[test]
fn an_lmcache_that_tells_nothing_apart_has_a_finding_for_each_reader() {
    let lab = Lab::new();
    let ended = lab.run("deaf-salt@server deaf-chunk@server deaf-dtype@server", "--foreign");
    assert_eq!(ended.code, 0, "{}{}", ended.err, ended.out);
    assert_eq!(meanings(&lab)[1..], [Meaning::Finding; 5]);
    assert_eq!(lab.report().foreign_kv[0].findings.findings().len(), 5);
}

#[test]
fn a_reader_that_fails_is_shown_with_its_words_and_ends_nothing() {
    let lab = Lab::new();
    let ended = lab.run("failed@start-float32", "--foreign");
    assert_eq!(ended.code, 0, "{}{}", ended.err, ended.out);
    let line = section(&lab, &ended).lines().find(|line| line.contains("float32")).map(str::to_owned);
    insta::assert_snapshot!(line.unwrap().trim(), @"data type (float32)           – of 1360 tokens: no answer: failed to run the foreign KV reading (differs in data type (float32)) engine of tiny: no weights for start-float32");
}

#[test]
fn a_model_without_weights_is_not_asked_under_others() {
    let lab = Lab::new();
    // In another format than the one whose bits are turned.
    lab.edit("suite.toml", "swap_space = 0", "swap_space = 0\nload_format = \"pt\"");
    fs::remove_file(lab.path("model/model.safetensors")).unwrap();
    let ended = lab.run("", "--foreign");
    assert_eq!(ended.code, 0, "{}{}", ended.err, ended.out);
    assert_eq!(meanings(&lab)[5], Meaning::Failed);
}

#[test]
fn options_that_the_route_of_foreign_kv_does_not_offer_are_refused_beforehand() {
    let lab = Lab::new();
    lab.edit("suite.toml", "memory_gib = 1", "memory_gib = 1\noptions = { layerwise = true }");
    let message = lab.error(&lab.run("", "--foreign --route in-process"));
    assert!(
        message.starts_with("error: failed to run this route: store with `lmcache.options.layerwise`"),
        "{message}"
    );
    assert_eq!(lab.steps(), Vec::<String>::new());
}

#[test]
fn what_was_read_is_used_again_until_an_ingredient_changes() {
    let lab = Lab::new();
    assert_eq!(lab.run("", "--foreign").code, 0);
    let (ended, steps) = lab.steps_of(|| lab.run("", "--foreign"));
    assert_eq!((ended.code, steps), (0, vec![]), "{}", ended.err);
    let explain = || lab.end(lab.driver("explain foreign --suite suite.toml --device cpu --foreign")).out;
    insta::assert_snapshot!(explain(), @"foreign tiny: unchanged, re-used");
    let entry = lab.path("cache/store-1/entries/foreign").read_dir_utf8().unwrap().next().unwrap().unwrap();
    let key: Value = serde_json::from_slice(&fs::read(entry.path().join("key.json")).unwrap()).unwrap();
    let fields: Vec<&String> = key["fields"]["parameters"].as_object().unwrap().keys().collect();
    assert_eq!(fields, ["capacity", "engine", "lmcache", "prompts", "readers"]);
    lab.edit("suite.toml", "memory_gib = 1", "memory_gib = 2\noptions = { save_decode_cache = true }");
    lab.edit("suite.toml", "chunk_tokens = 16", "chunk_tokens = 32");
    insta::assert_snapshot!(explain(), @"
    foreign tiny: runs again, since
      /parameters/capacity/chunk_tokens changed from 16 to 32
      /parameters/capacity/lmcache_bytes changed from 1073741824 to 2147483648
      /parameters/engine/digest_chunk_tokens changed from 16 to 32
      /parameters/lmcache/chunk_tokens changed from 16 to 32
      /parameters/lmcache/memory_gib changed from 1 to 2
      /parameters/lmcache/options/save_decode_cache changed from false to true
      /parameters/readers/2/chunk_tokens changed from 32 to 64
    ");
}
