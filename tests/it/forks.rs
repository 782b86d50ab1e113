//! Engines are forked from a process that has imported what they need, and start by themselves where none can be.

use crate::lab::Lab;

fn imports(steps: &[String]) -> usize {
    steps.iter().filter(|step| *step == "import").count()
}

#[test]
fn the_engines_of_a_run_are_forked_from_one_process_that_imported_once() {
    let lab = Lab::new();
    let (ended, steps) = lab.steps_of(|| lab.run("told@import", ""));
    assert_eq!(ended.code, 0, "{}", ended.err);
    assert_eq!(steps.iter().filter(|step| step.starts_with("start ")).count(), 4, "{steps:?}");
    assert_eq!(imports(&steps), 1);
}

#[test]
fn engines_with_variables_of_their_own_are_forked_from_the_same_process() {
    let lab = Lab::new();
    let (ended, steps) = lab.steps_of(|| lab.run("told@import", "--route in-process"));
    assert_eq!(ended.code, 4, "{}", ended.err);
    assert_eq!(imports(&steps), 1);
}

#[test]
fn where_nothing_can_be_imported_each_engine_starts_by_itself_and_finds_the_same() {
    let lab = Lab::new();
    let (ended, steps) = lab.steps_of(|| lab.run("told@import crash@import", ""));
    assert_eq!(ended.code, 0, "{}", ended.err);
    assert_eq!(imports(&steps), 1, "it is tried once");
    assert_eq!(lab.report(), Lab::finished().report());
}

#[test]
fn what_the_imports_say_is_in_the_log_of_the_engine_that_waited_for_them() {
    let lab = Lab::new();
    let ended = lab.run("crash@import crash@start", "");
    let message = lab.error(&ended);
    assert!(message.contains("the fake engine was told to crash"), "{message}");
}

#[test]
fn an_import_that_hangs_is_an_error_in_time_that_names_the_log() {
    let lab = Lab::new();
    lab.edit("suite.toml", "start_seconds = ", "start_seconds = 1 # ");
    let ended = lab.run("hang@import", "");
    insta::assert_snapshot!(lab.error(&ended), @r"
    error: failed to get an answer from the baseline engine of tiny within [TIME]

    hint: its log is [LAB]/cache/store-1/drafts/[DIGEST]/notes/engine.log; a slow machine may need larger values under `[patience]` in the suite
    ");
}
