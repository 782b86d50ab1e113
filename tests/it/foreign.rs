//! KV of another identity: what the driver says where LMCache serves it, where it does not, and where that proves nothing.

use fs_err as fs;
use kv_correctness::foreign::{Difference, Meaning, Reading};
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
fn kv_that_is_served_to_others_is_a_finding_and_no_change_of_the_verdict() {
    let lab = Lab::new();
    let ended = lab.run("", "--foreign");
    assert_eq!(ended.code, 0, "{}{}", ended.err, ended.out);
    let section = section(&lab, &ended);
    let (findings, rows): (Vec<_>, Vec<_>) = section.lines().partition(|line| line.starts_with("  finding"));
    insta::assert_snapshot!(rows.join("\n"), @r"

    tiny, KV of another identity: 12 FINDINGS ABOUT LMCACHE
      differs in   nothing                                                                  1360 of 1360 tokens: served, as it must be
                   salt                                                                     0 of 1360 tokens: miss, as it must be
                   chunk size (32)                                                          0 of 1312 tokens: miss, as it must be
                   data type (float16)                                                      0 of 1360 tokens: miss, as it must be
                   data type (float32)                                                      0 of 1360 tokens: miss, as it must be
                   quantisation (fp8_per_channel)                                           1360 of 1360 tokens: FINDING about LMCache: served; with a salt 0, then 1360
                   rope scaling, under the same path                                        1360 of 1360 tokens: FINDING about LMCache: served; with a salt 0, then 1360
                   weights, under a colliding path                                          1360 of 1360 tokens: FINDING about LMCache: served; with a salt 0, then 1360
                   weights, under the same path                                             1360 of 1360 tokens: FINDING about LMCache: served; with a salt 0, then 1360
                   number of ranks (2)                                                      1360 of 1360 tokens: FINDING about LMCache: served; with a salt 0, then 1360
                   data type of KV (fp8_e4m3)                                               1360 of 1360 tokens: FINDING about LMCache: served; with a salt 0, then 1360
                   nothing, stored with a LoRA adapter                                      1360 of 1360 tokens: served, as it must be
                   LoRA adapter (another), stored with a LoRA adapter                       1360 of 1360 tokens: FINDING about LMCache: served; with a salt 0, then 1360
                   LoRA adapter (none), stored with a LoRA adapter                          1360 of 1360 tokens: FINDING about LMCache: served; with a salt 0, then 1360
                   LoRA adapter (another revision), stored with a LoRA adapter              1360 of 1360 tokens: FINDING about LMCache: served; with a salt 0, then 1360
                   nothing, stored as fp8_e4m3                                              1360 of 1360 tokens: served, as it must be
                   data type of KV (fp8_e5m2), stored as fp8_e4m3                           1360 of 1360 tokens: FINDING about LMCache: served; with a salt 0, then 1360
                   nothing, stored as fp8_e4m3, over mp, lmcache_driven                     1360 of 1360 tokens: served, as it must be
                   data type of KV (fp8_e5m2), stored as fp8_e4m3, over mp, lmcache_driven  1360 of 1360 tokens: FINDING about LMCache: served; with a salt 0, then 1360
                   nothing, over mp                                                         1360 of 1360 tokens: served, as it must be
                   data type (float16), over mp                                             0 of 1360 tokens: miss, as it must be
                   nothing, over mp, lmcache_driven                                         1360 of 1360 tokens: served, as it must be
                   data type (float16), over mp, lmcache_driven                             0 of 1360 tokens: miss, as it must be
                   nothing, stored of embeddings                                            336 of 336 tokens: served, as it must be
                   prompt embeddings, stored of embeddings                                  336 of 336 tokens: FINDING about LMCache: served; with a salt 0, then 336

    verdict: equivalent (exit code 0)
    log: out/log.jsonl
    ");
    assert_eq!(findings.len(), 12);
    insta::assert_snapshot!(findings[6].trim(), @"finding      LMCache serves KV, stored with a LoRA adapter, to a reader that differs in LoRA adapter (another): 1360 of 1360 tokens, which moves letters by up to 2.5e-4 nats, where KV of its own does by 2.5e-4; of 170 served cells that were held 0 are not what its engine computes; requests of each LoRA adapter, and those of none, need a cache or a cache_salt of their own; with a salt of its own it is served none of this, and then 1360 tokens of its own");
    assert!(ended.err.contains("warning: finding about LMCache, tiny: LMCache serves KV"), "{}", ended.err);
    let finding = "LMCache serves KV to a reader that differs in weights, under the same path";
    for file in ["summary.md", "report.html", "junit.xml"] {
        assert!(fs::read_to_string(lab.path("out").join(file)).unwrap().contains(finding), "{file}");
    }
    let left = lab.path("cache/models").read_dir_utf8().map_or(0, Iterator::count);
    assert_eq!(left, 0, "the folder with other models and adapters is removed");
    let notes = lab.path("cache/store-1/entries/foreign").read_dir_utf8().unwrap();
    let notes = notes.flat_map(|entry| entry.unwrap().path().join("notes").read_dir_utf8().unwrap());
    assert!(notes.map(|note| note.unwrap()).all(|note| note.path().extension() == Some("log")));
}

/// What each reader but the controls means, which must all hold.
fn meanings_of_others(lab: &Lab) -> Vec<Meaning> {
    let findings = &lab.report().foreign_kv[0].findings;
    let (controls, others): (Vec<_>, Vec<_>) =
        findings.readings.iter().partition(|reading| reading.differs_in == Difference::Nothing);
    assert!(
        controls.iter().all(|control| findings.meaning(control) == Meaning::ControlHolds),
        "{controls:?}"
    );
    others.into_iter().map(|reading| findings.meaning(reading)).collect()
}

#[test]
fn an_lmcache_that_tells_everything_apart_has_no_finding() {
    let lab = Lab::new();
    let ended = lab.run("wary@server", "--foreign");
    assert_eq!(ended.code, 0, "{}{}", ended.err, ended.out);
    assert!(meanings_of_others(&lab).iter().all(|meaning| *meaning == Meaning::Miss), "{}", ended.out);
    assert!(section(&lab, &ended).contains("KV of another identity: nothing served\n"), "{}", ended.out);
}

#[test]
fn an_lmcache_that_tells_nothing_apart_has_a_finding_for_each_reader_and_no_salt_mends_it() {
    let lab = Lab::new();
    let ended = lab.run("deaf-salt@server deaf-chunk@server deaf-dtype@server", "--foreign");
    assert_eq!(ended.code, 0, "{}{}", ended.err, ended.out);
    let meanings = meanings_of_others(&lab);
    assert!(meanings.iter().all(|meaning| *meaning == Meaning::Finding), "{meanings:?}");
    let report = lab.report();
    let findings = &report.foreign_kv[0].findings;
    assert_eq!(findings.findings().len(), meanings.len());
    let mended: Vec<_> = findings.readings.iter().filter_map(Reading::is_mended).collect();
    assert_eq!(mended, vec![false; meanings.len() - 2], "all but the salt and the chunk size");
    assert!(ended.out.contains("A SALT OF ITS OWN DOES NOT MEND THIS"), "{}", ended.out);
}

#[test]
fn a_reader_or_a_writer_that_does_not_start_is_shown_with_its_words_and_ends_nothing() {
    let lab = Lab::new();
    let ended = lab.run("failed@start-float32 failed@start-fp8_e4m3", "--foreign=basic,fp8");
    assert_eq!(ended.code, 0, "{}{}", ended.err, ended.out);
    let section = section(&lab, &ended);
    let lines: Vec<_> =
        section.lines().filter(|line| line.contains("no weights for")).map(str::trim).collect();
    insta::assert_snapshot!(lines.join("\n"), @r"
    data type (float32)                                                      – of 1360 tokens: no answer: failed to run the foreign KV reading (differs in data type (float32)) engine of tiny: no weights for start-float32
    data type of KV (fp8_e4m3)                                               – of 1360 tokens: no answer: failed to run the foreign KV reading (differs in data type of KV (fp8_e4m3)) engine of tiny: no weights for start-fp8_e4m3
    nothing, stored as fp8_e4m3                                              – of 1360 tokens: nothing was stored: failed to run the foreign KV writing engine of tiny: no weights for start-fp8_e4m3
    data type of KV (fp8_e5m2), stored as fp8_e4m3                           – of 1360 tokens: nothing was stored: failed to run the foreign KV writing engine of tiny: no weights for start-fp8_e4m3
    nothing, stored as fp8_e4m3, over mp, lmcache_driven                     – of 1360 tokens: nothing was stored: failed to run the foreign KV writing engine of tiny: no weights for start-fp8_e4m3
    data type of KV (fp8_e5m2), stored as fp8_e4m3, over mp, lmcache_driven  – of 1360 tokens: nothing was stored: failed to run the foreign KV writing engine of tiny: no weights for start-fp8_e4m3
    ");
}

#[test]
fn what_fails_while_it_reads_foreign_kv_is_asked_again_with_a_salt() {
    let lab = Lab::new();
    let ended = lab.run("deaf-dtype@server choke@float16", "--foreign=memory");
    assert_eq!(ended.code, 0, "{}{}", ended.err, ended.out);
    let section = section(&lab, &ended);
    let line = section.lines().find(|line| line.contains("float16")).map(str::to_owned);
    insta::assert_snapshot!(line.unwrap().trim(), @r"data type (float16), over mp                  – of 1360 tokens: no answer: failed to run the foreign KV reading (differs in data type (float16), over mp) engine of tiny at botany/test/1: the engine gave no token; it said: RuntimeError: what was found is of another type; with a salt 0, then 1360");
}

#[test]
fn in_process_the_engine_that_stored_and_others_over_files_are_readers_and_a_tag_is_the_mend() {
    let lab = Lab::new();
    let ended = lab.run("inside@engine", "--foreign --route in-process");
    assert_eq!(ended.code, 0, "{}{}", ended.err, ended.out);
    let section = section(&lab, &ended);
    let (findings, rows): (Vec<_>, Vec<_>) = section.lines().partition(|line| line.starts_with("  finding"));
    insta::assert_snapshot!(rows.join("\n"), @"

    tiny, KV of another identity in process: 16 FINDINGS ABOUT LMCACHE
      differs in   nothing, in process                                                                  1360 of 1360 tokens: served, as it must be
                   salt, in process                                                                     1360 of 1360 tokens: FINDING about LMCache: served; with a tag 0, then 1360
                   nothing, stored with a LoRA adapter, in process                                      1360 of 1360 tokens: served, as it must be
                   LoRA adapter (another), stored with a LoRA adapter, in process                       1360 of 1360 tokens: FINDING about LMCache: served; with a tag 0, then 1360
                   LoRA adapter (none), stored with a LoRA adapter, in process                          1360 of 1360 tokens: FINDING about LMCache: served; with a tag 0, then 1360
                   LoRA adapter (another revision), stored with a LoRA adapter, in process              1360 of 1360 tokens: FINDING about LMCache: served; with a tag 0, then 1360
                   nothing, stored of embeddings, in process                                            336 of 336 tokens: served, as it must be
                   prompt embeddings, stored of embeddings, in process                                  336 of 336 tokens: FINDING about LMCache: served; with a tag 0, then 336
                   nothing, in process, over files                                                      1360 of 1360 tokens: served, as it must be
                   salt, in process, over files                                                         1360 of 1360 tokens: FINDING about LMCache: served; with a tag 0, then 1360
                   chunk size (32), in process, over files                                              0 of 1312 tokens: miss, as it must be
                   data type (float16), in process, over files                                          0 of 1360 tokens: miss, as it must be
                   data type (float32), in process, over files                                          0 of 1360 tokens: miss, as it must be
                   quantisation (fp8_per_channel), in process, over files                               1360 of 1360 tokens: FINDING about LMCache: served; with a tag 0, then 1360
                   rope scaling, under the same path, in process, over files                            1360 of 1360 tokens: FINDING about LMCache: served; with a tag 0, then 1360
                   weights, under a colliding path, in process, over files                              0 of 1360 tokens: miss, as it must be
                   weights, under the same path, in process, over files                                 1360 of 1360 tokens: FINDING about LMCache: served; with a tag 0, then 1360
                   number of ranks (2), in process, over files                                          1360 of 1360 tokens: FINDING about LMCache: served; with a tag 0, then 1360
                   data type of KV (fp8_e4m3), in process, over files                                   1360 of 1360 tokens: FINDING about LMCache: served; with a tag 0, then 1360
                   nothing, stored with a LoRA adapter, in process, over files                          1360 of 1360 tokens: served, as it must be
                   LoRA adapter (another), stored with a LoRA adapter, in process, over files           1360 of 1360 tokens: FINDING about LMCache: served; with a tag 0, then 1360
                   LoRA adapter (none), stored with a LoRA adapter, in process, over files              1360 of 1360 tokens: FINDING about LMCache: served; with a tag 0, then 1360
                   LoRA adapter (another revision), stored with a LoRA adapter, in process, over files  1360 of 1360 tokens: FINDING about LMCache: served; with a tag 0, then 1360
                   nothing, stored as fp8_e4m3, in process, over files                                  1360 of 1360 tokens: served, as it must be
                   data type of KV (fp8_e5m2), stored as fp8_e4m3, in process, over files               1360 of 1360 tokens: FINDING about LMCache: served; with a tag 0, then 1360
                   nothing, stored of embeddings, in process, over files                                336 of 336 tokens: served, as it must be
                   prompt embeddings, stored of embeddings, in process, over files                      336 of 336 tokens: FINDING about LMCache: served; with a tag 0, then 336

    verdict: equivalent (exit code 0)
    log: out/log.jsonl
    ");
    insta::assert_snapshot!(findings[..2].join("\n"), @"
    finding      LMCache serves KV, in process, to a reader that differs in salt: 1360 of 1360 tokens, which moves letters by up to 2.5e-4 nats, where KV of its own does by 2.5e-4; of 170 served cells that were held 0 are not what its engine computes; salts do not keep users apart; with a tag of its own it is served none of this, and then 1360 tokens of its own
    finding      LMCache serves KV, stored with a LoRA adapter, in process, to a reader that differs in LoRA adapter (another): 1360 of 1360 tokens, which moves letters by up to 2.5e-4 nats, where KV of its own does by 2.5e-4; of 170 served cells that were held 0 are not what its engine computes; requests of each LoRA adapter, and those of none, need a cache or an `lmcache.tag` of their own; with a tag of its own it is served none of this, and then 1360 tokens of its own
    ");
}

#[test]
fn in_process_nobody_else_is_asked_where_the_reader_that_differs_in_nothing_is_served_nothing() {
    let lab = Lab::new();
    let (ended, steps) = lab.steps_of(|| lab.run("", "--foreign --route in-process"));
    assert_eq!(ended.code, 4, "{}{}", ended.err, ended.out);
    insta::assert_snapshot!(section(&lab, &ended).lines().skip(1).take(3).collect::<Vec<_>>().join("\n"), @"
    tiny, KV of another identity in process: PROVES NOTHING, since its control was not served
      differs in   nothing, in process                                                                  0 of 1360 tokens: NOT SERVED: the other rows prove nothing
                   salt, in process                                                                     – of 1360 tokens: no answer: LMCache in the engine's process served nothing to the reader that differs in nothing, so this one was not asked
    ");
    assert_eq!(steps.iter().filter(|step| step.starts_with("start cached")).count(), 2, "{steps:?}");
}

#[test]
fn cells_that_are_not_what_the_reader_computes_are_counted_and_the_first_is_named() {
    let lab = Lab::new();
    let ended = lab.run("wrongkv@load", "--foreign=lora --cell tiny/mp");
    assert_eq!(ended.code, 1, "{}{}", ended.err, ended.out);
    let [foreign] = &lab.report().foreign_kv[..] else { panic!("{}{}", ended.err, ended.out) };
    insta::assert_snapshot!(foreign.findings.findings()[0], @"LMCache serves KV, stored with a LoRA adapter, to a reader that differs in LoRA adapter (another): 1360 of 1360 tokens, which moves letters by up to 2.5e-4 nats, where KV of its own does by 2.5e-4; of 170 served cells that were held 23 are not what its engine computes (first: botany/test/2, chunk 1, layer 1, rank 0), where of KV of its own 23 of 170 are not; requests of each LoRA adapter, and those of none, need a cache or a cache_salt of their own; with a salt of its own it is served none of this, and then 1360 tokens of its own");
}

#[test]
fn each_kind_of_route_that_is_asked_for_has_its_readers_and_one_without_says_why() {
    let lab = Lab::new();
    let ended = lab.run("inside@engine", "--foreign=lora --route mp,in-process,example");
    assert_eq!(lab.report().foreign_kv.len(), 2, "{}{}", ended.err, ended.out);
    assert_eq!(ended.code, 2, "{}{}", ended.err, ended.out);
    let not_run: Vec<_> = ended.out.lines().filter(|line| line.contains("failed to read KV")).collect();
    insta::assert_snapshot!(not_run.join("\n").trim(), @"why          failed to read KV of another identity: only what LMCache keeps is asked for, and none keeps any there");
    let ended = lab.run("inside@engine", "--foreign=memory --route in-process");
    assert!(
        ended.out.contains("none of these groups of readers can ask there"),
        "{}{}",
        ended.err,
        ended.out
    );
}

#[test]
fn readers_of_one_kind_can_be_asked_for_alone() {
    let lab = Lab::new();
    let ended = lab.run("", "--foreign=lora");
    assert_eq!(ended.code, 0, "{}{}", ended.err, ended.out);
    assert_eq!(meanings(&lab), [Meaning::ControlHolds, Meaning::Finding, Meaning::Finding, Meaning::Finding]);
}

#[test]
fn what_came_out_of_the_tier_is_not_waited_for_when_a_salt_is_tried() {
    let lab = Lab::new();
    lab.edit("suite.toml", "change_seconds = 300", "change_seconds = 20");
    let ended = lab.run("recount@server", "--foreign=lora");
    assert_eq!(ended.code, 0, "{}{}", ended.err, ended.out);
    let report = lab.report();
    let mended = report.foreign_kv[0].findings.readings.iter().filter_map(Reading::is_mended);
    assert_eq!(mended.collect::<Vec<_>>(), [true; 3], "{}", ended.out);
}

#[test]
fn a_model_without_weights_is_not_asked_under_others_and_gets_no_adapter() {
    let lab = Lab::new();
    // In another format than the one whose bits are turned.
    lab.edit("suite.toml", "swap_space = 0", "swap_space = 0\nload_format = \"pt\"");
    fs::remove_file(lab.path("model/model.safetensors")).unwrap();
    let ended = lab.run("", "--foreign=basic,lora");
    assert_eq!(ended.code, 0, "{}{}", ended.err, ended.out);
    let failed = lab.report().foreign_kv[0]
        .findings
        .readings
        .iter()
        .filter(|reading| reading.served_tokens().is_none())
        .map(Reading::words)
        .collect::<Vec<_>>();
    insta::assert_snapshot!(failed.join("\n"), @r"
    weights, under a colliding path
    weights, under the same path
    nothing, stored with a LoRA adapter
    LoRA adapter (another), stored with a LoRA adapter
    LoRA adapter (none), stored with a LoRA adapter
    LoRA adapter (another revision), stored with a LoRA adapter
    ");
}

#[test]
fn options_that_the_route_of_foreign_kv_does_not_offer_are_refused_beforehand() {
    let lab = Lab::new();
    lab.edit("suite.toml", "memory_gib = 1", "memory_gib = 1\noptions = { layerwise = true }");
    let message = lab.error(&lab.run("", "--foreign --route mp,in-process"));
    assert!(
        message.starts_with("error: failed to run this route: store with `lmcache.options.layerwise`"),
        "{message}"
    );
    assert_eq!(lab.steps(), Vec::<String>::new());
}

#[test]
fn what_was_read_is_used_again_until_an_ingredient_changes() {
    let lab = Lab::new();
    assert_eq!(lab.run("", "--foreign=basic").code, 0);
    let (ended, steps) = lab.steps_of(|| lab.run("", "--foreign=basic"));
    assert_eq!((ended.code, steps), (0, vec![]), "{}", ended.err);
    let explain =
        || lab.end(lab.driver("explain foreign --suite suite.toml --device cpu --foreign=basic")).out;
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
      /parameters/readers/2/differs_in/chunk_tokens changed from 32 to 64
    ");
}
