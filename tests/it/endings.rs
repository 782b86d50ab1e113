//! However the driver ends, its processes end with it, and the same command goes on from there.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::lab::{Lab, REAPING, at_once};

/// What a process gets between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(5);

/// Runs that hang in each process and pass, and the steps that are left to do when they have ended there.
const PLACES: [(&str, &str, &[&str]); 7] = [
    ("hang@import", "hang import", &BASELINE),
    ("hang@start-baseline", "hang start-baseline", &BASELINE),
    ("hang@baseline", "hang baseline", &BASELINE),
    ("hang@repeat", "hang repeat", &CONTROL),
    ("unhealthy@server", "start server", &CACHED),
    ("hang@store", "hang store", &CACHED),
    ("hang@load", "hang load", &CACHED),
];
const BASELINE: [&str; 4] = ["start baseline", "start control", "start server", "start cached"];
const CONTROL: [&str; 3] = ["start control", "start server", "start cached"];
const CACHED: [&str; 2] = ["start server", "start cached"];

/// What was started. A server whose port another test's process has won is started once more.
fn starts(steps: Vec<String>) -> Vec<String> {
    let mut starts: Vec<String> = steps.into_iter().filter(|step| step.starts_with("start")).collect();
    starts.dedup_by(|again, first| first == again && again == "start server");
    starts
}

#[test]
fn an_interrupted_driver_leaves_no_process_and_its_finished_stages() {
    let expected = Lab::finished().report();
    at_once(PLACES.into_iter().step_by(2), |(faults, step, left)| {
        let lab = Lab::new();
        let running = lab.start_run(faults);
        lab.wait_for_step(step);
        running.signal(Signal::INT);
        let ended = running.wait();
        assert_eq!(lab.processes(), Vec::<String>::new(), "{faults}");
        assert_eq!((ended.code, ended.out.as_str()), (130, ""), "{faults}: {}", ended.err);
        let (_, last_words) = ended.err.split_once("interrupted: ").unwrap();
        let words = "ending what still runs, or at once if told so again\nwhat is finished is kept, and the same command goes on from there\n";
        assert_eq!(last_words, words);
        let (ended, steps) = lab.steps_of(|| lab.run("", ""));
        assert_eq!(ended.code, 0, "{}", ended.err);
        assert_eq!(starts(steps), left, "{faults}");
        assert_eq!(lab.report(), expected);
    });
}

#[test]
fn an_interrupted_driver_takes_its_progress_line_from_the_terminal() {
    let lab = Lab::new();
    let waiting = lab.interrupt_on_terminal("hang@start-baseline", "hang start-baseline");
    assert_eq!((waiting.code, waiting.err.as_str()), (130, ""));
    let asking = lab.interrupt_on_terminal("hang@store", "hang store");
    assert_eq!((asking.code, asking.err.as_str()), (130, ""));
    insta::assert_snapshot!(lab.redact(&waiting.out), @r"
    extract  : done in [TIME]
    prompts   tiny: done in [TIME]
    tiny: 24 questions from 2 subjects show no loss but a gross one by their answers
    , if 1.0 % of the answers flip without harm. Equivalence within 0.50 points need
    s about 5198 questions and more subjects: too few, unless bits decide. Where kv
    or bits decide, a fault that strikes one request in 8 meets one of these with 95
     % probability.
    interrupted: ending what still runs, or at once if told so again
    what is finished is kept, and the same command goes on from there
    ");
    insta::assert_snapshot!(lab.redact(&asking.out), @r"
    extract  : re-used
    prompts   tiny: re-used
    tiny: 24 questions from 2 subjects show no loss but a gross one by their answers
    , if 1.0 % of the answers flip without harm. Equivalence within 0.50 points need
    s about 5198 questions and more subjects: too few, unless bits decide. Where kv
    or bits decide, a fault that strikes one request in 8 meets one of these with 95
     % probability.
    baseline engine of tiny: ready after [TIME]
    baseline  tiny: done in [TIME]
    control engine of tiny: ready after [TIME]
    control   tiny: done in [TIME]
    lmcache server: healthy after [TIME]
    mp cached engine of tiny: ready after [TIME]
    interrupted: ending what still runs, or at once if told so again
    what is finished is kept, and the same command goes on from there
    ");
}

#[test]
fn a_driver_that_is_killed_outright_leaves_no_process_and_its_finished_stages() {
    let expected = Lab::finished().report();
    at_once(PLACES, |(faults, step, left)| {
        let lab = Lab::new();
        let running = lab.start_run(faults);
        lab.wait_for_step(step);
        running.signal(Signal::KILL);
        running.wait();
        lab.wait_until_no_process_is_left(REAPING);
        let (ended, steps) = lab.steps_of(|| lab.run("", ""));
        assert_eq!(ended.code, 0, "{}", ended.err);
        assert_eq!(starts(steps), left, "{faults}");
        assert_eq!(lab.report(), expected);
    });
}

#[test]
fn a_driver_that_is_killed_at_any_moment_can_be_run_again() {
    let lab = Lab::new();
    for milliseconds in (0..12).map(|step| step * step * 6) {
        let running = lab.start_run("");
        std::thread::sleep(Duration::from_millis(milliseconds));
        running.signal(Signal::KILL);
        running.wait();
        lab.wait_until_no_process_is_left(REAPING);
    }
    let ended = lab.run("", "");
    assert_eq!(ended.code, 0, "{}", ended.err);
    assert_eq!(lab.report(), Lab::finished().report());
}

#[test]
fn a_terminated_driver_leaves_no_process() {
    let lab = Lab::new();
    let running = lab.start_run("hang@load");
    lab.wait_for_step("hang load");
    running.signal(Signal::TERM);
    let ended = running.wait();
    assert_eq!(lab.processes(), Vec::<String>::new());
    assert_eq!((ended.code, ended.out.as_str()), (143, ""), "{}", ended.err);
}

/// Runs so many engines, each behind its server, none of which heeds SIGTERM, and interrupts them once they are stuck: by so many
/// signals. How long the driver went on from the last one.
fn interrupt_stuck(stubborn: &str, engines: usize, interrupts: usize) -> Duration {
    let lab = Lab::new();
    let mut command =
        lab.driver(&format!("run --suite suite.toml --device cpu --out out --engines {engines}"));
    command.env("FAKE_FAULTS", format!("hang@load {stubborn}"));
    let running = lab.start(command);
    lab.wait_for_steps("hang load", engines);
    let mut asked = Instant::now();
    running.signal(Signal::INT);
    if interrupts == 2 {
        running.wait_for_words("interrupted");
        asked = Instant::now();
        running.signal(Signal::INT);
    }
    let ended = running.wait();
    let took = asked.elapsed();
    lab.wait_until_no_process_is_left(REAPING);
    assert_eq!(ended.code, 130, "{}", ended.err);
    assert_eq!(ended.err.contains("what is finished is kept"), interrupts == 1, "{}", ended.err);
    took
}

#[test]
fn processes_that_ignore_sigterm_are_killed_after_one_grace_period_together_or_at_once_if_told_so_again() {
    // Held against one another, since all of them are slower on a machine that is busy.
    let took = at_once([(1, 1), (2, 1), (2, 2)], |(engines, interrupts)| {
        interrupt_stuck("stubborn@load stubborn@server", engines, interrupts)
    });
    let [of_one, of_two, at_a_second_interrupt] = took[..] else { unreachable!("as many as were asked for") };
    assert!(of_one >= GRACE && of_two >= GRACE, "{took:?}");
    // One after another, four processes would take four grace periods.
    assert!(of_two < of_one + GRACE, "{took:?}");
    assert!(at_a_second_interrupt < of_one, "{took:?}");
}

#[test]
fn a_forked_engine_and_a_forked_server_have_their_grace_period_each() {
    let took = at_once(["stubborn@load", "stubborn@server"], |stubborn| interrupt_stuck(stubborn, 1, 1));
    assert!(took.iter().all(|took| *took >= GRACE), "{took:?}");
}

#[test]
fn processes_that_ignore_sigterm_are_killed_after_a_killed_driver() {
    let lab = Lab::new();
    let running = lab.start_run("stubborn@load stubborn@server");
    lab.wait_for_step("hang load");
    running.signal(Signal::KILL);
    running.wait();
    lab.wait_until_no_process_is_left(REAPING);
}

#[test]
fn a_process_that_an_engine_leaves_behind_ends_with_a_killed_driver() {
    let lab = Lab::new();
    let running = lab.start_run("orphan@load");
    lab.wait_for_step("hang load");
    running.signal(Signal::KILL);
    running.wait();
    lab.wait_until_no_process_is_left(REAPING);
}

#[test]
fn two_runs_at_once_on_one_cache_share_the_work() {
    let lab = Lab::new();
    let command = |out: &str| {
        let mut command = lab.driver(&format!("run --suite suite.toml --device cpu --out {out}"));
        command.env("FAKE_FAULTS", "");
        command
    };
    let first = lab.start(command("first"));
    let second = lab.start(command("out"));
    for ended in [first.wait(), second.wait()] {
        assert_eq!(ended.code, 0, "{}", ended.err);
    }
    assert_eq!(starts(lab.steps()), BASELINE);
    assert_eq!(lab.report(), Lab::finished().report());
}

#[test]
fn a_run_that_waits_for_another_names_it_and_gives_up_in_time() {
    let lab = Lab::new();
    let first = lab.start_run("hang@baseline");
    lab.wait_for_step("hang baseline");
    lab.edit("suite.toml", "other_run_seconds = 300", "other_run_seconds = 1");
    let second = lab.start_run("").wait();
    insta::assert_snapshot!(lab.error(&second), @r"
    error: failed to lock stage baseline ([SHORT]) within [TIME]: held by process [PID] (`[DRIVER] run --suite suite.toml --device cpu --out out`, for 0 min [TIME])

    hint: wait for process [PID] or end it, then run the same command again
    ");
    first.signal(Signal::INT);
    first.wait();
}

#[test]
fn a_run_that_waits_for_another_can_be_interrupted() {
    let lab = Lab::new();
    let first = lab.start_run("hang@baseline");
    lab.wait_for_step("hang baseline");
    let second = lab.start_run("");
    second.wait_for_words("waiting for");
    second.signal(Signal::INT);
    let ended = second.wait();
    assert_eq!(ended.code, 130, "{}", ended.err);
    first.signal(Signal::INT);
    first.wait();
}

#[test]
fn a_driver_that_makes_an_environment_can_be_interrupted() {
    let lab = Lab::new();
    lab.write_program("bin/python3.11", "#!/bin/sh\necho cpython 3 11 - $0\n");
    lab.write_program(
        "bin/uv",
        "#!/bin/sh\necho uv $1 >> $FAKE_LOG\nwhile [ $1 = venv ] && [ ! -e released ]; do sleep 0.05; done\n",
    );
    let mut command = lab.driver("run --device cpu");
    let path = format!("{}:{}", lab.path("bin"), std::env::var("PATH").unwrap());
    command.env_remove("KV_CORRECTNESS_ENV").env("PATH", path);
    let running = lab.start(command);
    lab.wait_for_step("uv venv");
    running.signal(Signal::TERM);
    let ended = running.wait();
    assert_eq!(ended.code, 143, "{}", ended.err);
    // The installer, which has the environment's lock, ends by itself.
    lab.write("cache/environments/released", "");
    lab.wait_until_no_process_is_left(REAPING);
}
