//! What a run leaves behind, in every format, and the commands of everyday use around it.

use std::io::Read;

use fs_err as fs;
use serde_json::Value;

use crate::lab::{Ended, Lab, at_once};

fn end(lab: &Lab, arguments: &str) -> Ended {
    lab.end(lab.driver(arguments))
}

fn output(lab: &Lab, arguments: &str) -> String {
    let ended = end(lab, arguments);
    assert_eq!((ended.code, ended.err.as_str()), (0, ""), "{arguments}");
    ended.out
}

/// Fails unless the report of the last run follows the committed schema.
fn check_schema(lab: &Lab) {
    let read = |path: &str| serde_json::from_str::<Value>(&fs::read_to_string(path).unwrap()).unwrap();
    let schema = read(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/report.schema.json"));
    let validator = jsonschema::draft202012::new(&schema).unwrap();
    let report = read(lab.path("out/report.json").as_str());
    let errors: Vec<String> = validator.iter_errors(&report).map(|error| error.to_string()).collect();
    assert_eq!(errors, Vec::<String>::new());
}

#[test]
fn the_report_of_every_verdict_follows_the_schema_and_every_format_is_written() {
    let cases = [
        ("", 0),
        ("swap@load", 1),
        ("noise@engine chance@engine blindfold@load", 3),
        ("empty@server", 4),
        ("wrong@load noise@engine", 1),
    ];
    at_once(cases, |(faults, code)| {
        let lab = Lab::new();
        let ended = lab.run(faults, "");
        assert_eq!(ended.code, code, "{faults}: {}{}", ended.err, ended.out);
        check_schema(&lab);
        for (file, format) in [
            ("report.html", "html"),
            ("junit.xml", "junit"),
            ("summary.md", "markdown"),
            ("summary.txt", "text"),
            ("report.json", "json"),
        ] {
            let written = fs::read_to_string(lab.path("out").join(file)).unwrap();
            assert_eq!(output(&lab, &format!("report out --format {format}")), written, "{file}");
            assert_eq!(output(&lab, &format!("report out/report.json --format {format} --out again")), "");
            assert_eq!(fs::read_to_string(lab.path("again")).unwrap(), written, "{file}");
        }
        let page = fs::read_to_string(lab.path("out/report.html")).unwrap();
        assert!(!page.contains("<script") && !page.contains("src=") && page.contains("</html>"));
        let failed = fs::read_to_string(lab.path("out/junit.xml")).unwrap().matches("<failure").count();
        assert_eq!(failed, usize::from(code == 1 || code == 4), "{faults}");
    });
}

#[test]
fn the_committed_schema_is_what_the_program_prints() {
    let committed =
        fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/report.schema.json")).unwrap();
    assert_eq!(output(&Lab::new(), "schema"), committed);
}

#[test]
fn the_published_reports_of_earlier_versions_can_be_read() {
    let lab = Lab::new();
    let evidence = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/evidence");
    let mut read = 0;
    let folders =
        ["h100", "h200", "two-gpus"].map(|folder| fs::read_dir(format!("{evidence}/{folder}")).unwrap());
    let paths = folders.into_iter().flatten().map(|entry| entry.unwrap().path());
    // Beside them lie their suites, what made a model, and what the plain script printed.
    for path in paths.filter(|path| path.extension().is_some_and(|extension| extension == "xz")) {
        let packed = fs::read(path).unwrap();
        let mut report = String::new();
        xz2::read::XzDecoder::new(packed.as_slice()).read_to_string(&mut report).unwrap();
        lab.write("report.json", &report);
        assert!(output(&lab, "report .").contains("over "));
        assert!(output(&lab, "report . --format html").contains("</html>"));
        read += 1;
    }
    assert!(read > 0);
    let checked = output(&lab, &format!("suite check {evidence}/h100/smollm2-h100.toml"));
    assert!(checked.starts_with("suite smollm2-h100"), "{checked}");
}

#[test]
fn lmcaches_own_scripts_find_their_two_files() {
    let lab = Lab::new();
    assert_eq!(lab.run("swap@load", "").code, 1);
    let told = output(&lab, "report out --format lmcache-jsonl --out results");
    assert_eq!(told, "results/model-baseline.jsonl\nresults/model-lmcache.jsonl\n");
    insta::assert_snapshot!(fs::read_to_string(lab.path("results/model-baseline.jsonl")).unwrap());
    insta::assert_snapshot!(fs::read_to_string(lab.path("results/model-lmcache.jsonl")).unwrap());
}

#[test]
fn a_file_that_is_no_report_is_refused() {
    let lab = Lab::new();
    insta::assert_snapshot!(lab.error(&end(&lab, "report")));
    lab.write("report.json", "{\"schema\": 1}");
    insta::assert_snapshot!(lab.error(&end(&lab, "report report.json")));
    lab.write("report.json", "<html>");
    insta::assert_snapshot!(lab.error(&end(&lab, "report .")));
}

#[test]
fn the_summary_is_published_where_the_ci_system_says_unless_it_is_switched_off() {
    let lab = Lab::finished();
    lab.write_program(
        "bin/buildkite-agent",
        "#!/bin/sh\necho \"$@\" > \"$HOME/agent.log\"\ncat >> \"$HOME/agent.log\"\n",
    );
    let path = format!("{}:{}", lab.path("bin"), std::env::var("PATH").unwrap());
    let run = |arguments: &str| {
        let mut command =
            lab.driver(&format!("run --suite suite.toml --device cpu --out out -q {arguments}"));
        command.env("GITHUB_STEP_SUMMARY", lab.path("step.md")).env("BUILDKITE", "true").env("PATH", &path);
        let ended = lab.end(command);
        assert_eq!((ended.code, ended.err.as_str()), (0, ""), "{}", ended.out);
    };
    lab.write("step.md", "# Before\n");
    run("--github=off --buildkite=off");
    assert_eq!(fs::read_to_string(lab.path("step.md")).unwrap(), "# Before\n");
    assert!(!lab.path("agent.log").exists());
    run("");
    let summary = fs::read_to_string(lab.path("out/summary.md")).unwrap();
    assert_eq!(fs::read_to_string(lab.path("step.md")).unwrap(), format!("# Before\n{summary}"));
    let told = fs::read_to_string(lab.path("agent.log")).unwrap();
    assert_eq!(told, format!("annotate --style success --context kv-correctness-facts\n{summary}"));
}

#[test]
fn a_ci_system_that_cannot_be_reached_is_a_warning_and_one_that_is_not_there_an_error_beforehand() {
    let lab = Lab::finished();
    let mut command = lab.driver("run --suite suite.toml --device cpu --out out -q");
    command.env("GITHUB_STEP_SUMMARY", lab.path("nowhere/step.md"));
    let ended = lab.end(command);
    assert_eq!(ended.code, 0);
    assert!(
        ended.err.starts_with("warning: the summary was not added to GitHub's step summary"),
        "{}",
        ended.err
    );
    let mut command = lab.driver("run --suite suite.toml --device cpu --out out --github");
    command.env_remove("GITHUB_STEP_SUMMARY");
    insta::assert_snapshot!(lab.error(&lab.end(command)));
}

#[test]
fn ls_lists_and_gc_removes_only_what_is_old_and_only_when_told() {
    let lab = Lab::finished();
    let listed = output(&lab, "ls");
    for stage in ["extract", "prompts", "baseline", "control", "cached", "compare"] {
        assert!(listed.lines().any(|line| line.starts_with(stage)), "{stage}: {listed}");
    }
    assert!(listed.contains("tiny mp") && listed.contains("in all"), "{listed}");
    assert!(output(&lab, "gc").starts_with("removed: 0 artifacts"));
    let told = output(&lab, "gc --unused-days 0 --dry-run");
    assert!(told.contains("would go: 6 artifacts") && told.contains("baseline"), "{told}");
    assert_eq!(output(&lab, "ls").lines().count(), listed.lines().count());
    let told = output(&lab, "gc --unused-days 0");
    assert!(told.contains("removed: 6 artifacts"), "{told}");
    assert!(!output(&lab, "ls").contains("baseline"));
}

#[test]
fn gc_removes_nothing_while_a_run_uses_the_store() {
    let lab = Lab::finished();
    let mut command = lab.driver("run --suite suite.toml --device cpu --out out --force baseline");
    command.env("FAKE_FAULTS", "hang@start-baseline");
    let running = lab.start(command);
    lab.wait_for_step("start baseline");
    let ended = lab.start(lab.driver("gc --unused-days 0")).wait();
    running.signal(rustix::process::Signal::INT);
    assert_eq!(running.wait().code, 130);
    insta::assert_snapshot!(lab.error(&ended));
    assert!(output(&lab, "ls").contains("compare"));
}

#[test]
fn the_doctor_says_what_can_run_here_and_never_shows_a_token() {
    let lab = Lab::new();
    let mut command = lab.driver("doctor --suite suite.toml --device cpu");
    command.env("HF_TOKEN", "hf_secret");
    let ended = lab.end(command);
    assert_eq!((ended.code, ended.err.as_str()), (0, ""), "{}", ended.out);
    assert!(ended.out.contains("HF_TOKEN is set") && !ended.out.contains("hf_secret"), "{}", ended.out);
    assert!(
        ended
            .out
            .contains("ready    route mp: kv-correctness run --suite suite.toml --route mp --device cpu\n"),
        "{}",
        ended.out
    );
    let mut command = lab.driver("doctor --suite suite.toml --device cpu");
    command.env("FAKE_FAULTS", "unloadable@extension");
    let ended = lab.end(command);
    assert_eq!(ended.code, 2, "{}", ended.out);
    let wrong = "WRONG    LMCache's compiled extension: it does not load behind torch : ";
    assert!(ended.out.contains(wrong) && ended.out.contains("later    route mp: "), "{}", ended.out);
    fs::remove_file(lab.path("bin/redis-server")).unwrap();
    let doctor = |variables: &[(&str, &str)]| {
        let mut command = lab.driver("doctor --suite suite.toml --device cpu");
        command.env("PATH", lab.path("bin")).envs(variables.iter().copied());
        lab.end(command).out
    };
    let without = doctor(&[]);
    let missing =
        "later    route mp+redis, not in the suite: failed to find `redis-server` on PATH: install it";
    assert!(without.contains(missing), "{without}");
    let named = doctor(&[("KV_CORRECTNESS_REDIS_URL", "redis://127.0.0.1:1")]);
    let refused = "later    route mp+redis, not in the suite: failed to reach redis://127.0.0.1:1: ";
    assert!(named.contains(refused), "{named}");
    assert!(without.contains("C++ compiler   not found; PyTorch's inductor needs one"), "{without}");
    let named = doctor(&[("CXX", "/store/bin/c++")]);
    assert!(named.contains("C++ compiler   /store/bin/c++ (CXX)"), "{named}");
    fs::remove_file(lab.path("env/bin/lmcache")).unwrap();
    let without = doctor(&[]);
    assert!(without.contains("later    route mp: failed to find LMCache's server: "), "{without}");
    let ended = end(&lab, "doctor --suite mmlu --device cpu");
    assert_eq!(ended.code, 2, "{}", ended.out);
    assert!(ended.out.contains("mend     kv-correctness fetch --suite mmlu"), "{}", ended.out);
    assert!(ended.out.contains("later    route mp"), "{}", ended.out);
}

#[test]
fn every_command_has_a_manual_page_and_completions() {
    let lab = Lab::new();
    assert_eq!(output(&lab, "man pages"), "");
    for page in ["kv-correctness", "kv-correctness-run", "kv-correctness-report", "kv-correctness-doctor"] {
        let text = fs::read_to_string(lab.path(&format!("pages/{page}.1"))).unwrap();
        assert!(text.contains(".SH") && text.contains("DESCRIPTION"), "{page}");
    }
    assert!(!lab.path("pages/kv-correctness-internal-guard.1").exists());
    lab.write("completions", &output(&lab, "completions bash"));
    let complete = |words: &str| {
        let script = "source ./completions; COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1))
            _kv__correctness kv-correctness \"${COMP_WORDS[COMP_CWORD]}\" \"${COMP_WORDS[COMP_CWORD - 1]}\"
            echo ${COMPREPLY[@]}";
        let mut command = std::process::Command::new("bash");
        command.current_dir(lab.path("")).args(["-c", script, "bash", "kv-correctness"]);
        command.args(words.split(' '));
        lab.end(command).out.trim().to_owned()
    };
    assert_eq!(
        complete("run --route mp+"),
        "mp+fs mp+redis mp+p2p mp+restart mp+failing mp+fs-native mp+late mp+s3 mp+unreadable mp+valkey"
    );
    assert_eq!(complete("stage --force ba"), "baseline");
    assert_eq!(complete("suite check --ca"), "--cache");
    for shell in ["bash", "zsh", "fish"] {
        let text = output(&lab, &format!("completions {shell}"));
        assert!(text.contains("kv-correctness") && text.contains("doctor"), "{shell}");
        assert!(!text.contains("internal-guard"), "{shell}");
    }
}
