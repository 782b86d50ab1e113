//! Whole runs: what they print, leave behind and re-use.

use std::collections::BTreeSet;

use fs_err as fs;
use kv_correctness::comparison::Verdict;
use kv_correctness::report::Report;

use crate::lab::{Lab, archive, archive_of, xz};

#[test]
fn a_run_with_a_sound_cache_is_equivalent_and_says_why() {
    let lab = Lab::new();
    let ended = lab.run("", "");
    assert_eq!(ended.code, 0, "{}{}", ended.err, ended.out);
    insta::assert_snapshot!(lab.redact(&ended.err), @r"
    extract  : done in [TIME]
    prompts   tiny: done in [TIME]
    tiny: 24 questions from 2 subjects show no loss but a gross one by their answers, if 1.0 % of the answers flip without harm. Equivalence within 0.50 points needs about 5198 questions and more subjects: too few, unless bits decide. Where kv or bits decide, a fault that strikes one request in 8 meets one of these with 95 % probability.
    baseline engine of tiny: ready after [TIME]
    tiny, baseline: 24 of 24 questions, [TIME][RUN]
    baseline  tiny: done in [TIME]
    control engine of tiny: ready after [TIME]
    tiny, repeat: 24 of 24 questions, [TIME][RUN]
    tiny, control: 24 of 24 questions, [TIME][RUN]
    tiny, control of prefixes: 6 of 6 questions, [TIME][RUN]
    control   tiny: done in [TIME]
    lmcache server: healthy after [TIME]
    mp cached engine of tiny: ready after [TIME]
    tiny, store pass: 24 of 24 questions, [TIME][RUN]
    tiny, load pass: 24 of 24 questions, [TIME][RUN]
    tiny, cut pass: 6 of 6 questions, [TIME][RUN]
    cached    tiny mp: done in [TIME]
    compare   tiny mp: done in [TIME]
    ");
    insta::assert_snapshot!(lab.redact(&ended.out), @r"
    suite facts on [DEVICE]; vLLM 0.32.0, LMCache 0.5.6

    tiny (dense) over mp: EQUIVALENT
      decided by   kv: the bytes that were served against those that an engine computed
      why          Each of 1146 served cells (a chunk in a layer on a rank) holds the bytes that an engine computed for its tokens, when attention begins to read it and when its request ends. Prefixes of stored prompts read 110 of them. The log-probabilities equal those of vLLM alone, too, bit for bit.
      asked        24 questions: a fault that strikes one request in 8 meets one of these with 95 % probability
      hits         load pass 8287 of 8287 predicted tokens, 0 of 24 requests off; cut pass 880 of 880 predicted, 0 of 6 off; store pass 0 of at most 5632
      kv           1146 of 1146 served cells (a chunk in a layer on a rank) are copies of computed ones, when read and at the end. Prefixes of stored prompts read 110 of them.
      store pass   0 of 1036 cells that the store pass computed differ from the baseline's, 0 of 1036 of its repeat. Storing did not disturb.
      felt         With chunk 21 of botany/test/1 at zero (2 cells), its letters move by up to 2.4e-7 nats.
      bits         load pass differs from its control in 0 of 24; cut pass from its own in 0 of 6; baseline from its repeat in 0 of 24
      accuracy     baseline 83.3 %, with LMCache 83.3 %; difference +0.00 points (90 % interval -10.13 to +10.13), exact McNemar p = 1.000
      unparsable   2 answers of the baseline, 2 with LMCache
      flips        0 of 24 answers changed
      noise floor  The baseline repeats itself bit for bit on all 24 questions. The control computes the load pass's shapes for 24 of 24 questions. So the load pass must equal the control bit for bit.
      logs         [LAB]/cache/store-1/entries/baseline/[DIGEST]/notes/
                   [LAB]/cache/store-1/entries/control/[DIGEST]/notes/
                   [LAB]/cache/store-1/entries/cached/[DIGEST]/notes/

    verdict: equivalent (exit code 0)
    log: out/log.jsonl
    ");
    let summary = fs::read_to_string(lab.path("out/summary.txt")).unwrap();
    assert_eq!(summary + "log: out/log.jsonl\n", ended.out);
    let report = lab.report();
    assert_eq!((report.verdict, report.exit_code), (Verdict::Equivalent, 0));
}

#[test]
fn engines_beside_each_other_find_what_they_find_one_after_the_other() {
    let lab = Lab::new();
    lab.edit(
        "suite.toml",
        "source = \"model\"",
        "source = \"model\"\n[[models]]\nname = \"other\"\nsource = \"other\"",
    );
    fs::create_dir(lab.path("other")).unwrap();
    for file in fs::read_dir(lab.path("model")).unwrap() {
        let path = file.unwrap().path();
        fs::copy(&path, lab.path("other").join(path.file_name().unwrap().to_str().unwrap())).unwrap();
    }
    lab.write("other/notes.txt", "another model, since its files are others");
    let apart = lab.run("", "");
    assert_eq!(apart.code, 0, "{}{}", apart.err, apart.out);
    let apart = lab.report();
    let beside = lab.run("", "--no-cache --engines 4 --verbose");
    assert_eq!(beside.code, 0, "{}{}", beside.err, beside.out);
    for (engine, done) in
        [("control engine of tiny", "baseline  tiny: "), ("baseline engine of other", "cached    tiny mp: ")]
    {
        let started = beside.err.find(&format!("starting the {engine}")).unwrap();
        assert!(started < beside.err.find(&format!("{done}done in")).unwrap(), "{engine}: {}", beside.err);
    }
    let mut findings = lab.report().findings;
    for (finding, apart) in findings.iter_mut().zip(&apart.findings) {
        finding.artifacts.clone_from(&apart.artifacts);
    }
    assert_eq!(serde_json::to_value(findings).unwrap(), serde_json::to_value(apart.findings).unwrap());
}

#[test]
fn variables_that_could_change_numbers_reach_no_process() {
    let lab = Lab::new();
    let mut command = lab.driver("run --suite suite.toml --device cpu --out out --route mp+redis -q");
    command.env("FAKE_FAULTS", "variables@start variables@import variables@server variables@redis");
    let foreign = [
        "ATEN_CPU_CAPABILITY",
        "CUBLAS_WORKSPACE_CONFIG",
        "GOMP_CPU_AFFINITY",
        "KMP_AFFINITY",
        "LD_PRELOAD",
        "LMCACHE_CHUNK_SIZE",
        "MALLOC_ARENA_MAX",
        "MKL_CBWR",
        "NVIDIA_TF32_OVERRIDE",
        "ONEDNN_MAX_CPU_ISA",
        "PYTORCH_CUDA_ALLOC_CONF",
        "RAYON_NUM_THREADS",
        "UCX_TLS",
        "VLLM_LOGGING_LEVEL",
    ];
    command.envs(foreign.map(|name| (name, ""))).env("LC_ALL", "C.UTF-8").env("NCCL_ALGO", "Ring");
    let ended = lab.end(command);
    assert_eq!(ended.code, 0, "{}{}", ended.err, ended.out);
    let mut processes = BTreeSet::new();
    for step in lab.steps() {
        let Some((process, names)) =
            step.strip_prefix("variables of ").and_then(|told| told.split_once(": "))
        else {
            continue;
        };
        processes.insert(process.to_owned());
        let names: Vec<&str> = names.split(' ').collect();
        for name in foreign {
            assert!(!names.contains(&name), "{process} has {name}");
        }
        for name in ["HOME", "PATH", "LC_ALL", "NCCL_ALGO"] {
            assert!(names.contains(&name), "{process} lacks {name}");
        }
    }
    assert_eq!(Vec::from_iter(processes), ["import", "redis", "server", "start"]);
}

#[test]
fn a_second_run_reuses_every_stage_says_so_and_starts_no_process() {
    let lab = Lab::finished();
    let report = lab.report();
    let (ended, steps) = lab.steps_of(|| lab.run("", ""));
    assert_eq!((ended.code, steps), (0, vec![]));
    assert_eq!(lab.report(), report);
    insta::assert_snapshot!(ended.err, @r"
    extract  : re-used
    prompts   tiny: re-used
    tiny: 24 questions from 2 subjects show no loss but a gross one by their answers, if 1.0 % of the answers flip without harm. Equivalence within 0.50 points needs about 5198 questions and more subjects: too few, unless bits decide. Where kv or bits decide, a fault that strikes one request in 8 meets one of these with 95 % probability.
    baseline  tiny: re-used
    control   tiny: re-used
    cached    tiny mp: re-used
    compare   tiny mp: re-used
    ");
}

#[test]
fn forcing_the_baseline_runs_it_alone_when_its_output_is_the_same() {
    let lab = Lab::finished();
    let (ended, steps) = lab.steps_of(|| lab.run("", "--force baseline"));
    assert_eq!(ended.code, 0, "{}", ended.err);
    insta::assert_snapshot!(steps.join("\n"), @"
    start baseline
    baseline 8
    baseline 8
    baseline 8
    ");
}

#[test]
fn stages_behind_one_that_was_forced_run_again_when_its_output_changed() {
    let lab = Lab::finished();
    let (ended, steps) = lab.steps_of(|| lab.run("wrong@baseline", "--force baseline"));
    assert_eq!(ended.code, 0, "{}", ended.err);
    assert_eq!(
        steps[..6],
        ["start baseline", "baseline 8", "baseline 8", "baseline 8", "start server", "start cached"]
    );
    assert!(ended.err.contains("control   tiny: re-used"), "{}", ended.err);
    assert!(ended.err.contains("compare   tiny mp: done in"), "{}", ended.err);
}

#[test]
fn without_a_cache_nothing_is_kept_and_nothing_is_reused() {
    let lab = Lab::finished();
    let report = lab.report();
    let (ended, steps) = lab.steps_of(|| lab.run("", "--no-cache"));
    assert_eq!(ended.code, 0, "{}", ended.err);
    assert!(steps.contains(&"start baseline".to_owned()) && !ended.err.contains("re-used"), "{}", ended.err);
    assert_eq!(lab.report(), report);
    assert!(!ended.out.contains("  logs"), "the logs are gone, too: {}", ended.out);
    let mut left: Vec<String> = lab
        .path("cache")
        .read_dir_utf8()
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_owned())
        .collect();
    left.sort();
    assert_eq!(left, ["CACHEDIR.TAG", "store-1", "worker"]);
}

#[test]
fn json_is_the_report_and_quiet_says_nothing_else() {
    let lab = Lab::new();
    let ended = lab.run("", "--json -q");
    assert_eq!((ended.code, ended.err.as_str()), (0, ""));
    assert_eq!(ended.out, fs::read_to_string(lab.path("out/report.json")).unwrap());
    serde_json::from_str::<Report>(&ended.out).unwrap();
}

#[test]
fn a_run_leaves_a_log_of_json_lines_without_secrets_and_names_it() {
    let lab = Lab::new();
    let mut command = lab.driver("run --suite suite.toml --device cpu --out out");
    let secret = "hush-5e1f";
    for name in ["HF_TOKEN", "KV_CORRECTNESS_REDIS_PASSWORD"] {
        command.env(name, secret);
    }
    command.env("RUST_LOG", "trace");
    let ended = lab.end(command);
    assert_eq!(ended.code, 0, "{}", ended.err);
    assert!(ended.out.ends_with("log: out/log.jsonl\n"), "{}", ended.out);
    let text = fs::read_to_string(lab.path("out/log.jsonl")).unwrap();
    assert!(!text.contains(secret), "{text}");
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let finished: Vec<&str> = lines
        .iter()
        .filter(|line| line["event"] == "StageFinished")
        .map(|line| line["message"].as_str().unwrap().split(':').next().unwrap())
        .collect();
    let stages = [
        "extract  ",
        "prompts   tiny",
        "baseline  tiny",
        "control   tiny",
        "cached    tiny mp",
        "compare   tiny mp",
    ];
    assert_eq!(finished, stages);
    assert!(lines.iter().all(|line| line["target"].as_str().unwrap().starts_with("kv_correctness")));
    assert!(lines.iter().all(|line| line["timestamp"].is_string() && line["level"].is_string()));
}

#[test]
fn a_failed_run_leaves_its_error_in_the_log_and_the_engines_words_in_a_file_of_their_own() {
    let lab = Lab::new();
    let mut command = lab.driver("run --suite suite.toml --device cpu --out out");
    command.env("FAKE_FAULTS", "crash@baseline").env("RUST_LOG", ""); // as builders of nixpkgs have it: asks for nothing
    let ended = lab.end(command);
    assert_eq!(ended.code, 2);
    let text = fs::read_to_string(lab.path("out/log.jsonl")).unwrap();
    let last: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(last["level"], "ERROR");
    assert_eq!(
        format!("error: {}\n", last["message"].as_str().unwrap()),
        ended.err[ended.err.find("error:").unwrap()..]
    );
}

#[test]
fn one_stage_can_be_had_alone_with_its_artifact() {
    let lab = Lab::new();
    let ended = lab.end(lab.driver("stage prompts --suite suite.toml --device cpu --out out -q"));
    assert_eq!((ended.code, ended.err.as_str()), (0, ""));
    insta::assert_snapshot!(lab.redact(&ended.out), @"out/prompts/tiny [DIGEST]");
    assert_eq!(lab.steps(), Vec::<String>::new());
    let prompts = fs::read_to_string(lab.path("out/prompts/tiny/prompts.jsonl")).unwrap();
    assert_eq!(prompts.lines().count(), 24);
    assert!(prompts.starts_with(
        r#"{"question":{"subject":"botany","split":"test","row":1},"examples":2,"token_ids":["#
    ));
}

#[test]
fn each_round_is_loaded_before_the_next_is_stored() {
    let lab = Lab::new();
    // So many layers make a subject fill most of LMCache's memory.
    lab.edit("model/config.json", r#""num_hidden_layers": 6"#, r#""num_hidden_layers": 350"#);
    let ended = lab.run("", "");
    assert_eq!(ended.code, 0, "{}{}", ended.err, ended.out);
    let steps = lab.steps();
    let cached = steps.iter().position(|step| step == "start cached").unwrap();
    insta::assert_snapshot!(steps[cached..].join("\n"), @r"
start cached
store 8
load 8
cut 1
clear 61
store 12
load 12
cut 4
clear 100
store 4
load 4
cut 1
clear 37
");
}

#[test]
fn engines_that_share_rounds_write_down_what_one_does() {
    let lab = Lab::new();
    lab.edit("model/config.json", r#""num_hidden_layers": 6"#, r#""num_hidden_layers": 350"#);
    let arms = || -> Vec<String> {
        let entries = |stage: &str| fs::read_dir(lab.path("cache/store-1/entries").join(stage)).unwrap();
        let file = |(stage, file): (&str, &str)| {
            let entry = entries(stage).next().unwrap().unwrap().path();
            fs::read_to_string(entry.join("output").join(file)).unwrap()
        };
        let files =
            [("baseline", "baseline"), ("control", "control"), ("cached", "store"), ("cached", "load")];
        files.map(|(stage, name)| file((stage, &format!("{name}.jsonl")))).to_vec()
    };
    assert_eq!(lab.run("", "").code, 0);
    let alone = arms();
    fs::remove_dir_all(lab.path("cache/store-1")).unwrap();
    let ended = lab.run("", "--engines 4 --verbose");
    assert_eq!(ended.code, 0, "{}{}", ended.err, ended.out);
    for engine in ["baseline engine 2 of tiny", "control engine 2 of tiny", "mp cached engine 2 of tiny"] {
        assert!(ended.err.contains(&format!("starting the {engine}")), "{engine}: {}", ended.err);
    }
    let steps = lab.steps();
    let cleared = |chunks: &str| steps.iter().filter(|step| *step == &format!("clear {chunks}")).count();
    assert_eq!(["61", "100", "37"].map(cleared), [2, 2, 2], "each round twice in all: {steps:?}");
    assert!(arms() == alone, "the arms' files differ");
}

#[test]
fn harm_that_one_engine_finds_ends_the_others() {
    let lab = Lab::new();
    let subjects = [
        "acoustics",
        "botany",
        "chemistry",
        "drama",
        "ethics",
        "forestry",
        "geology",
        "history",
        "irony",
        "jazz",
        "knots",
        "law",
        "music",
        "navigation",
        "optics",
        "poetry",
    ];
    fs::write(lab.path("facts.tar"), archive_of(&subjects, 4)).unwrap();
    lab.edit("model/config.json", r#""num_hidden_layers": 6"#, r#""num_hidden_layers": 350"#);
    let ended = lab.run("noise@engine swap@load", "--engines 4");
    assert_eq!(ended.code, 1, "{}{}", ended.err, ended.out);
    assert!(ended.out.contains("the run stopped after"), "{}", ended.out);
}

#[test]
fn an_engine_that_fails_ends_those_that_share_its_rounds() {
    let lab = Lab::new();
    lab.edit("model/config.json", r#""num_hidden_layers": 6"#, r#""num_hidden_layers": 350"#);
    let ended = lab.run("crash@load", "--engines 4");
    assert_eq!(ended.code, 2, "{}{}", ended.err, ended.out);
}

#[test]
fn chunks_that_arrive_after_the_answer_are_waited_for() {
    let lab = Lab::new();
    let ended = lab.run("late@server", "");
    assert_eq!(ended.code, 0, "{}{}", ended.err, ended.out);
}

#[test]
fn routes_share_one_baseline_and_the_worst_verdict_counts() {
    let lab = Lab::new();
    let ended = lab.run("", "--route mp,in-process,mp"); // a route named twice is one route
    assert_eq!(ended.code, 4, "{}{}", ended.err, ended.out);
    let starts: Vec<String> = lab.steps().into_iter().filter(|step| step.starts_with("start")).collect();
    assert_eq!(starts, ["start baseline", "start control", "start server", "start cached", "start cached"]);
    let verdicts: Vec<Verdict> =
        lab.report().findings.into_iter().map(|finding| finding.judgement.verdict).collect();
    assert_eq!(verdicts, [Verdict::Equivalent, Verdict::NotExercised]);
}

#[test]
fn the_embedded_suite_runs_a_dense_and_an_mla_model() {
    let lab = Lab::new();
    let ended = lab.end(lab.driver("run --subjects 1 --device cpu --out out"));
    assert_eq!(ended.code, 0, "{}{}", ended.err, ended.out);
    let report = lab.report();
    let shapes: Vec<&str> = report.findings.iter().map(|finding| finding.kv_shape.name()).collect();
    assert_eq!(shapes, ["dense", "MLA"]);
    for finding in report.findings {
        let load = finding.comparison.exercised.load;
        assert!(load.predicted_tokens >= 4 * 256 * u64::from(load.requests), "prompts span four chunks");
    }
}

#[test]
fn an_archive_is_the_same_dataset_however_it_is_compressed() {
    let lab = Lab::finished();
    let report = lab.report();
    fs::write(lab.path("facts.tar.xz"), xz(&archive(12))).unwrap();
    let (ended, steps) = lab.steps_of(|| lab.run("", "--data facts.tar.xz"));
    assert_eq!((ended.code, steps), (0, vec![]), "{}", ended.err);
    assert_eq!(lab.report().findings, report.findings);
}

#[test]
fn a_model_whose_engine_does_not_start_leaves_the_others_their_verdicts() {
    let lab = Lab::new();
    let second = "source = \"model\"\n\n[[models]]\nname = \"broken\"\nsource = \"broken\"";
    lab.edit("suite.toml", "source = \"model\"", second);
    lab.edit("suite.toml", r#"["mp"]"#, r#"["mp", "mp+fs"]"#);
    fs::create_dir(lab.path("broken")).unwrap();
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        fs::copy(lab.path("model").join(file), lab.path("broken").join(file)).unwrap();
    }
    lab.write("broken/faults", "failed@start");
    let ended = lab.run("", "");
    assert_eq!(ended.code, 2, "equivalent, but not all was done: {}{}", ended.err, ended.out);
    let report = lab.report();
    let compared: Vec<String> =
        report.findings.iter().map(|one| format!("{} {}", one.model, one.route)).collect();
    assert_eq!(compared, ["tiny mp", "tiny mp+fs"]);
    let lost: Vec<String> = report.not_run.iter().map(|one| format!("{} {}", one.model, one.route)).collect();
    assert_eq!(lost, ["broken mp", "broken mp+fs"]);
    assert!(
        ended.err.contains("baseline of broken: failed to run the baseline engine of broken"),
        "{}",
        ended.err
    );
    insta::assert_snapshot!(lab.redact(&report.not_run[0].reason), @"failed to run the baseline engine of broken: no weights for start");
    let told = "2 of 4 combinations of model and route did not come to an end (exit code 2)";
    assert!(ended.out.contains(told), "{}", ended.out);
    // What was finished is kept, and what was not is tried again.
    fs::remove_file(lab.path("broken/faults")).unwrap();
    let ended = lab.run("", "");
    assert_eq!(ended.code, 0, "{}{}", ended.err, ended.out);
    assert!(ended.err.contains("baseline  tiny: re-used"), "{}", ended.err);
}

#[test]
fn the_control_is_asked_in_the_load_passs_slices() {
    let lab = Lab::new();
    fs::write(lab.path("facts.tar"), archive(24)).unwrap();
    let (ended, steps) = lab.steps_of(|| lab.run("", ""));
    assert_eq!(ended.code, 0, "{}", ended.err);
    let asked = |place: &str| -> Vec<&str> {
        steps.iter().filter_map(|step| step.strip_prefix(place)?.strip_prefix(' ')).collect()
    };
    assert_eq!(asked("control"), ["8", "32", "8"]);
    assert_eq!((asked("load"), asked("store")), (asked("control"), vec!["8", "40"]));
}

#[test]
fn a_run_in_which_nothing_came_to_an_end_leaves_its_report_too() {
    let lab = Lab::new();
    let message = lab.error(&lab.run("failed@start", ""));
    assert!(
        message.starts_with("error: failed to run the baseline engine of tiny: no weights for start"),
        "{message}"
    );
    let report = lab.report();
    assert_eq!((report.exit_code, report.findings.len(), report.not_run.len()), (2, 0, 1));
    assert!(report.not_run[0].next_step.contains("its log is"), "{}", report.not_run[0].next_step);
    for name in ["report.html", "junit.xml", "summary.md"] {
        assert!(lab.path("out").join(name).is_file(), "{name}");
    }
    let summary = fs::read_to_string(lab.path("out/summary.txt")).unwrap();
    assert!(summary.ends_with("no verdict: nothing came to an end (exit code 2)\n"), "{summary}");
}
