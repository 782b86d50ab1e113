//! What hangs or never comes is waited for as long as the suite says, and no longer.
//!
//! These runs do little but wait, so they wait at the same time, once for all tests here. Main type: [`Wait`].

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use fs_err as fs;
use kv_correctness::comparison::Service;

use crate::foreign::section;
use crate::lab::{Ended, Lab, at_once};

/// As long as a loaded machine needs for all that does not hang.
const LIMIT: Duration = Duration::from_secs(10);

/// A run that comes to a time limit.
struct Wait {
    /// In words of the fakes.
    faults: &'static str,
    /// The setting below `[patience]` that is [`LIMIT`].
    limit: &'static str,
    arguments: &'static str,
    show: fn(&Waited) -> String,
}

struct Waited {
    lab: Lab,
    ended: Ended,
    took: Duration,
}

impl Wait {
    const fn new(faults: &'static str, limit: &'static str) -> Self {
        Self { faults, limit, arguments: "", show: |waited| waited.lab.error(&waited.ended) }
    }

    fn run(&self) -> String {
        let lab = Lab::new();
        let seconds = LIMIT.as_secs();
        lab.edit("suite.toml", &format!("{} = 300", self.limit), &format!("{} = {seconds}", self.limit));
        let started = Instant::now();
        let ended = lab.run(self.faults, self.arguments);
        (self.show)(&Waited { took: started.elapsed(), lab, ended })
    }
}

const WAITS: &[Wait] = &[
    Wait::new("hang@import", "start_seconds"),
    Wait::new("hang@start-baseline", "start_seconds"),
    Wait::new("hang@load", "answer_seconds"),
    Wait::new("freeze@server", "answer_seconds"),
    Wait::new("unhealthy@server", "change_seconds"),
    Wait { show: Waited::quiet, arguments: "-q", ..Wait::new("linger@finish-cached", "change_seconds") },
    Wait { show: Waited::quiet, arguments: "-q", ..Wait::new("hang@finish-cached", "change_seconds") },
    Wait { show: |waited| waited.code(4), ..Wait::new("drop@server", "change_seconds") },
    Wait { show: Waited::foreign, arguments: "--foreign=lora", ..Wait::new("full@server", "change_seconds") },
    Wait {
        show: Waited::under_served,
        arguments: "--route mp+fs",
        ..Wait::new("shared@store full@server", "change_seconds")
    },
    Wait {
        show: |waited| {
            assert!(waited.took >= LIMIT, "it was no slower than the patience: {:?}", waited.took);
            waited.code(0)
        },
        arguments: "--route mp+fs",
        ..Wait::new("slow@server", "change_seconds")
    },
    Wait { arguments: "--route mp+fs", ..Wait::new("stuck@server", "change_seconds") },
];

impl Waited {
    /// The text of a run that must have ended with this code.
    fn code(&self, code: i32) -> String {
        assert_eq!(self.ended.code, code, "{}{}", self.ended.err, self.ended.out);
        String::new()
    }

    fn quiet(&self) -> String {
        assert_eq!(self.ended.err, "");
        self.code(0)
    }

    fn under_served(&self) -> String {
        assert_eq!(self.lab.report().findings[0].comparison.exercised.service, Service::UnderServed);
        self.code(4)
    }

    fn foreign(&self) -> String {
        let junit = fs::read_to_string(self.lab.path("out/junit.xml")).unwrap();
        assert!(junit.contains(r#"errors="1""#), "{junit}");
        self.code(2) + &section(&self.lab, &self.ended)
    }
}

/// What the run with these faults showed.
fn shown(faults: &str) -> &'static str {
    static SHOWN: LazyLock<Vec<Result<String, String>>> = LazyLock::new(|| {
        at_once(WAITS, |wait| {
            let words = |panic: Box<dyn std::any::Any + Send>| match panic.downcast::<String>() {
                Ok(words) => *words,
                Err(_) => "it panicked".to_owned(),
            };
            catch_unwind(AssertUnwindSafe(|| wait.run())).map_err(words)
        })
    });
    let place = WAITS.iter().position(|wait| wait.faults == faults).unwrap();
    SHOWN[place].as_deref().unwrap_or_else(|words| panic!("{words}"))
}

#[test]
fn an_import_that_hangs_is_an_error_in_time_that_names_the_log() {
    insta::assert_snapshot!(shown("hang@import"), @r"
    error: failed to get an answer from the baseline engine of tiny within [TIME]

    hint: its log is [LAB]/cache/store-1/drafts/[DIGEST]/notes/engine.log; a slow machine may need larger values under `[patience]` in the suite
    ");
}

#[test]
fn an_engine_that_goes_silent_is_ended() {
    insta::assert_snapshot!(shown("hang@start-baseline"), @r"
    error: failed to get an answer from the baseline engine of tiny within [TIME]

    hint: its log is [LAB]/cache/store-1/drafts/[DIGEST]/notes/engine.log; a slow machine may need larger values under `[patience]` in the suite
    ");
    insta::assert_snapshot!(shown("hang@load"), @r"
    error: failed to get an answer from the mp cached engine of tiny within [TIME]

    hint: its log is [LAB]/cache/store-1/drafts/[DIGEST]/notes/engine.log, that of the LMCache server it asks lies beside it; a slow machine may need larger values under `[patience]` in the suite
    ");
}

#[test]
fn a_server_that_hangs_is_no_verdict_and_ends_with_the_run() {
    insta::assert_snapshot!(shown("freeze@server"), @r"
    error: failed to get an answer from the mp cached engine of tiny within [TIME]

    hint: its log is [LAB]/cache/store-1/drafts/[DIGEST]/notes/engine.log, that of the LMCache server it asks lies beside it; a slow machine may need larger values under `[patience]` in the suite
    ");
}

#[test]
fn a_server_that_never_becomes_healthy_is_ended() {
    insta::assert_snapshot!(shown("unhealthy@server"), @r"
    error: failed to get an answer from the LMCache server within [TIME]

    hint: its log is [LAB]/cache/store-1/drafts/[DIGEST]/notes/lmcache-server.log; a slow machine may need larger values under `[patience]` in the suite
    ");
}

#[test]
fn an_engine_that_lingers_after_its_last_word_does_not_hold_the_run_up() {
    shown("linger@finish-cached");
}

#[test]
fn an_engine_that_never_says_its_last_word_does_not_hold_the_run_up() {
    shown("hang@finish-cached");
}

#[test]
fn chunks_that_never_arrive_are_not_waited_for_for_ever() {
    shown("drop@server");
}

#[test]
fn without_a_control_that_is_served_misses_prove_nothing_and_the_run_is_no_pass() {
    insta::assert_snapshot!(shown("full@server"), @r"

    tiny, KV of another identity: PROVES NOTHING, since its control was not served
      differs in   nothing, stored with a LoRA adapter                          0 of 1360 tokens: NOT SERVED: the other rows prove nothing
                   LoRA adapter (another), stored with a LoRA adapter           0 of 1360 tokens: not served, which proves nothing
                   LoRA adapter (none), stored with a LoRA adapter              0 of 1360 tokens: not served, which proves nothing
                   LoRA adapter (another revision), stored with a LoRA adapter  0 of 1360 tokens: not served, which proves nothing

    verdict: equivalent; what was read of foreign KV proves nothing (exit code 2)
    log: out/log.jsonl
    ");
}

#[test]
fn a_tier_that_takes_nothing_is_not_exercised() {
    shown("shared@store full@server");
}

#[test]
fn a_slow_tier_is_waited_for_while_it_takes_more() {
    shown("slow@server");
}

#[test]
fn a_tier_that_stops_taking_is_an_error_that_says_so() {
    insta::assert_snapshot!(shown("stuck@server"), @r"
    error: failed to wait until LMCache's second tier (fs) has all that was stored: 10 of 61 objects arrived, and no more within [TIME]

    hint: is there room in it? a slow one may need a larger `patience.change_seconds` in the suite; its log is [LAB]/cache/store-1/drafts/[DIGEST]/notes/lmcache-server-store.log
    ");
}
