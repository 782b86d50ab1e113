//! Connectors that a file describes, vLLM's own and a user's, on the fake engine.

use fs_err as fs;
use kv_correctness::comparison::{Service, Verdict};

use super::lab::Lab;

const MINE: &str = r#"
name = "mine"
description = "a folder"
topology = "another-engine"
connector = { class = "ExampleConnector", extra = { shared_storage_path = "{folder}" } }
hits = { unit = "block", stored_less = 1, asked_less = 2, found = "whole" }
"#;

#[test]
fn a_connector_of_vllms_own_needs_no_lmcache_in_the_environment() {
    let lab = Lab::new();
    fs::remove_dir_all(lab.path("env/lib/python3.11/site-packages/lmcache-0.5.6.dist-info")).unwrap();
    let ended = lab.run("", "--route example");
    assert_eq!(ended.code, 0, "{}{}", ended.err, ended.out);
    let report = lab.report();
    let exercised = &report.findings[0].comparison.exercised;
    assert_eq!(exercised.service, Service::AsPredicted);
    assert_eq!(exercised.external.as_ref().unwrap().load, exercised.load.cached_tokens);
    assert!(exercised.load.cached_tokens > 0);

    // Those of LMCache are not run, and say why; equivalence on fewer routes is not what was asked for.
    let ended = lab.run("", "--route example,mp");
    assert_eq!(ended.code, 2, "{}{}", ended.err, ended.out);
    assert!(ended.err.contains("LMCache is not installed in it"), "{}", ended.err);
}

#[test]
fn a_route_that_a_suites_own_connector_gives_is_chosen_by_its_name() {
    let lab = Lab::new();
    fs::write(lab.path("mine.toml"), MINE).unwrap();
    lab.edit("suite.toml", "routes = ", "connectors = [\"mine.toml\"]\nroutes = ");
    let ended = lab.run("", "--route mine");
    assert_eq!(ended.code, 0, "{}{}", ended.err, ended.out);
    let routes: Vec<&str> = lab.report().findings.iter().map(|finding| finding.route.name()).collect();
    assert_eq!(routes, ["mine"]);

    let message = lab.error(&lab.run("", "--route mien"));
    assert!(
        message.contains("mien") && message.contains("mp+fs, ") && message.contains(", mine"),
        "{message}"
    );
    assert!(message.ends_with("hint: did you mean mine?"), "{message}");
}

#[test]
fn a_count_of_vllms_own_that_tells_other_hits_than_its_requests_is_no_service() {
    let lab = Lab::new();
    let ended = lab.run("miscount@engine", "--route example");
    assert_eq!(ended.code, 4, "{}{}", ended.err, ended.out);
    let finding = &lab.report().findings[0];
    assert_eq!(finding.judgement.verdict, Verdict::NotExercised);
    assert_eq!(finding.comparison.exercised.service, Service::CountersDisagree);
}

#[test]
fn what_vllms_own_prefix_cache_served_is_no_service_of_a_connector_beside_it() {
    let lab = Lab::new();
    let unread = MINE.replace("class =", "prefix_caching = \"unread\", class =");
    fs::write(lab.path("mine.toml"), unread).unwrap();
    let ended = lab.run("", "--connector mine.toml");
    assert_eq!(ended.code, 0, "{}{}", ended.err, ended.out);
    assert_eq!(lab.report().findings[0].comparison.exercised.external.as_ref().unwrap().own, 0);
    assert!(lab.steps().iter().any(|step| step == "prefix caching unread"), "{:?}", lab.steps());
    for pass in ["store", "load"] {
        let ended = lab.run(&format!("own@{pass}"), "--connector mine.toml --force cached");
        assert_eq!(ended.code, 4, "{}{}", ended.err, ended.out);
        let finding = &lab.report().findings[0];
        assert_eq!(finding.comparison.exercised.service, Service::WrongTier);
        assert!(finding.judgement.reason.contains("prefix cache served "), "{}", finding.judgement.reason);
    }
}

#[test]
fn what_came_from_another_place_than_the_descriptions_is_no_service() {
    let lab = Lab::new();
    fs::write(lab.path("mine.toml"), MINE.replace("class =", "served_from = \"disk\", class =")).unwrap();
    let ended = lab.run("", "--connector mine.toml");
    assert_eq!(ended.code, 0, "{}{}", ended.err, ended.out);
    let exercised = &lab.report().findings[0].comparison.exercised;
    let source = exercised.external.as_ref().unwrap().source.as_ref().unwrap();
    assert!(source.tokens >= source.at_least && source.at_least > 0, "{source:?}");
    let ended = lab.run("elsewhere@engine", "--connector mine.toml --force cached");
    assert_eq!(ended.code, 4, "{}{}", ended.err, ended.out);
    assert_eq!(lab.report().findings[0].comparison.exercised.service, Service::WrongTier);
}

#[test]
fn a_described_connector_is_tested_and_a_changed_description_runs_again() {
    let lab = Lab::new();
    fs::write(lab.path("mine.toml"), MINE).unwrap();
    let ended = lab.run("", "--connector mine.toml");
    assert_eq!(ended.code, 0, "{}{}", ended.err, ended.out);
    assert_eq!(lab.report().findings[0].route.name(), "mine");
    assert!(ended.err.contains("cached    tiny mine: done"), "{}", ended.err);
    // What people read of it changes nothing, and what it is does.
    fs::write(lab.path("mine.toml"), MINE.replace("a folder", "my folder")).unwrap();
    let ended = lab.run("", "--connector mine.toml");
    assert!(ended.err.contains("cached    tiny mine: re-used"), "{}", ended.err);
    fs::write(lab.path("mine.toml"), MINE.replace("{folder}", "{folder}/")).unwrap();
    let ended = lab.run("", "--connector mine.toml");
    assert!(ended.err.contains("cached    tiny mine: done"), "{}", ended.err);
}

#[test]
fn the_doctor_and_a_run_agree_that_a_suite_has_no_route_for_this_device() {
    let lab = Lab::new();
    lab.edit("suite.toml", "routes = [\"mp\"]", "routes = [\"offload+fs\", \"in-process+disk\"]");
    let doctor = lab.end(lab.driver("doctor --suite suite.toml --device cpu"));
    assert_eq!(doctor.code, 2, "{}", doctor.out);
    assert!(doctor.out.contains("ready    route mp, not in the suite"), "{}", doctor.out);
    assert!(doctor.out.contains("never    route in-process+disk: failed to run it on cpu"), "{}", doctor.out);
    let (ended, steps) = lab.steps_of(|| lab.run("", ""));
    assert_eq!((ended.code, steps.len()), (2, 0), "{steps:?} {}", ended.err);
    assert!(!ended.err.contains("extract"), "{}", ended.err);
}

#[test]
fn a_suite_names_described_connectors_and_its_check_and_doctor_read_them() {
    let lab = Lab::new();
    fs::write(lab.path("mine.toml"), MINE).unwrap();
    let suite = fs::read_to_string(lab.path("suite.toml")).unwrap();
    let with = |connectors: &str| {
        let text = suite.replacen(
            "routes = [\"mp\"]",
            &format!("connectors = {connectors}\nroutes = [\"mine\"]"),
            1,
        );
        assert_ne!(text, suite);
        fs::write(lab.path("mine-suite.toml"), text).unwrap();
    };
    with("[\"mine.toml\"]");
    let checked = lab.end(lab.driver("suite check mine-suite.toml"));
    assert_eq!(checked.code, 0, "{}", checked.err);
    assert!(checked.out.contains("connector mine (mine.toml)\nroutes mine\n"), "{}", checked.out);
    let doctor = lab.end(lab.driver("doctor --suite mine-suite.toml --device cpu"));
    assert!(doctor.out.contains("route mine: "), "{}", doctor.out);
    assert!(
        doctor.out.contains("route offload, not in the suite: failed to run it on cpu"),
        "{}",
        doctor.out
    );
    let ended = lab.end(lab.driver("run --suite mine-suite.toml --device cpu"));
    assert_eq!(ended.code, 0, "{}{}", ended.err, ended.out);

    fs::write(lab.path("mine.toml"), MINE.replace("stored_less", "stored_les")).unwrap();
    let checked = lab.end(lab.driver("suite check mine-suite.toml"));
    assert_eq!(checked.code, 2);
    assert!(checked.err.contains("understand suite mine-suite.toml: line "), "{}", checked.err);
    assert!(checked.err.contains("TOML parse error at line 6, column "), "{}", checked.err);
    with("[\"absent.toml\"]");
    let checked = lab.end(lab.driver("suite check mine-suite.toml"));
    assert!(checked.err.contains("read absent.toml"), "{}", checked.err);
    // Whoever mends one file after the other is told of all at once.
    with("[\"absent.toml\", \"mine.toml\"]");
    for command in ["suite check mine-suite.toml", "doctor --suite mine-suite.toml --device cpu"] {
        let told = lab.end(lab.driver(command));
        assert_eq!(told.code, 2);
        for expected in ["read absent.toml", "TOML parse error", "hint: check the path", "hint: compare it"] {
            assert!(told.err.contains(expected), "{command}: {}", told.err);
        }
        assert_eq!(told.err.matches("error: failed to understand suite").count(), 2, "{}", told.err);
    }
}
