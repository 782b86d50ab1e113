//! Engines and LMCache servers are forked from processes that have imported what they need, and start by themselves where
//! none can be.

use crate::lab::Lab;

/// How often something was imported, a worker was forked, an engine was started.
fn counts(steps: &[String]) -> [usize; 3] {
    let count = |is: fn(&str) -> bool| steps.iter().filter(|step| is(step)).count();
    [
        count(|step| step == "import"),
        count(|step| step == "fork"),
        count(|step| step.starts_with("start ") && step != "start server"),
    ]
}

#[test]
fn the_engines_of_a_run_are_forked_from_one_process_that_imported_once() {
    // Those in process have variables of their own.
    for (route, code) in [("mp", 0), ("in-process", 4)] {
        let lab = Lab::new();
        let (ended, steps) = lab.steps_of(|| lab.run("told@import", &format!("--route {route}")));
        assert_eq!(ended.code, code, "{}", ended.err);
        assert_eq!(counts(&steps), [1, 3, 3], "{steps:?}");
    }
}

#[test]
fn the_lmcache_servers_of_a_run_are_forked_from_one_process_that_imported_once() {
    let lab = Lab::new();
    let (ended, steps) = lab.steps_of(|| lab.run("told@import", "--route mp+fs"));
    assert_eq!(ended.code, 0, "{}", ended.err);
    let count = |wanted: &str| steps.iter().filter(|step| *step == wanted).count();
    assert_eq!(
        [count("import of lmcache"), count("fork of lmcache"), count("start server")],
        [1, 2, 2],
        "{steps:?}"
    );
}

#[test]
fn where_nothing_can_be_imported_each_engine_starts_by_itself_and_finds_the_same() {
    let lab = Lab::new();
    let (ended, steps) = lab.steps_of(|| lab.run("told@import crash@import", ""));
    assert_eq!(ended.code, 0, "{}", ended.err);
    assert_eq!(counts(&steps), [1, 0, 3], "{steps:?}");
    assert_eq!(lab.report(), Lab::finished().report());
}

#[test]
fn what_the_imports_say_is_in_the_log_of_the_engine_that_waited_for_them() {
    let lab = Lab::new();
    assert_eq!(lab.run("crash@import", "").code, 0);
    let said = ["baseline", "control"].map(|stage| {
        let entries = std::fs::read_dir(lab.path(&format!("cache/store-1/entries/{stage}"))).unwrap();
        let entry = entries.flatten().next().unwrap();
        let log = std::fs::read_to_string(entry.path().join("notes/engine.log")).unwrap();
        log.contains("the fake engine was told to crash")
    });
    assert_eq!(said, [true, false]);
}
