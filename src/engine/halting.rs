//! Processes that are made slow: stopped and let run in turn, in the rhythm of a seed. Main types: [`Halts`], [`Halting`].

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::ports::{Member, members_of};

/// After so many turns it is looked again which processes a group has.
const TURNS: u64 = 16;

/// How a process is made to answer late: it is stopped and let run in turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Halts {
    /// How long it is stopped each time.
    pub stopped: Duration,
    /// How long it runs in between.
    pub running: Duration,
    /// What both vary by, a quarter more or less; they do not where there is none.
    pub seed: Option<u64>,
}

impl Halts {
    /// How long it is stopped and runs in one turn.
    fn turn(self, number: u64) -> [Duration; 2] {
        let both = [self.stopped, self.running];
        let Some(seed) = self.seed else { return both };
        let drawn = mixed(seed.wrapping_add(number));
        let halves = [drawn & 0xff, (drawn >> 8) & 0xff].map(|byte| u32::try_from(byte).unwrap_or(0));
        [0, 1].map(|place| both[place] * (384 + halves[place]) / 512)
    }
}

/// splitmix64 (Steele, Lea and Flood 2014).
fn mixed(number: u64) -> u64 {
    let mut bits = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// A thread that stops the processes of a group and lets them run, until this value is dropped; then they run. The group's
/// leader is left alone: it is the guard, which ends the others, stopped or not, when this program dies.
#[derive(Debug)]
pub struct Halting {
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Halting {
    pub(super) fn begin(group: u32, halts: Halts) -> std::io::Result<Self> {
        let (end, ended) = channel();
        let waits = move |duration| ended.recv_timeout(duration) == Err(RecvTimeoutError::Timeout);
        let halt = move || {
            let mut members = Vec::new();
            for number in 0.. {
                if number % TURNS == 0 {
                    members = members_of(group);
                    members.retain(|member| member.process != group);
                }
                let [stopped, running] = halts.turn(number);
                signal(&members, Signal::STOP);
                let goes_on = waits(stopped);
                signal(&members, Signal::CONT);
                if !goes_on || !waits(running) {
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("halting".to_owned()).spawn(halt)?;
        Ok(Self { end: Some(end), thread: Some(thread) })
    }
}

/// Signals those that are still there: one that has ended may have left its number to a process that is none of ours. (A handle
/// of it, `pidfd_open(2)`, would rule that out to the last microsecond, but not every sandbox has such.)
fn signal(members: &[Member], signal: Signal) {
    let there = members.iter().filter(|member| member.is_there());
    for process in there.filter_map(|member| Pid::from_raw(i32::try_from(member.process).ok()?)) {
        // One that is gone since is fine.
        kill_process(process, signal).ok();
    }
}

impl Drop for Halting {
    fn drop(&mut self) {
        self.end.take();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::warn!("a process that was made to answer late may be stopped still");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command};

    use super::*;

    /// The state of a process as the kernel has it: `T` for stopped.
    fn state(child: &Child) -> char {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        stat.rsplit_once(')').unwrap().1.trim_start().chars().next().unwrap()
    }

    fn sleeper(group: i32) -> Child {
        Command::new("sleep").arg("60").process_group(group).spawn().unwrap()
    }

    fn is_seen(wanted: impl Fn() -> bool) -> bool {
        (0..500).any(|_| {
            thread::sleep(Duration::from_millis(10));
            wanted()
        })
    }

    #[test]
    fn all_but_the_leader_are_stopped_and_run_again_in_the_end() {
        let mut leader = sleeper(0);
        let mut member = sleeper(i32::try_from(leader.id()).unwrap());
        let (stopped, running) = (Duration::from_hours(1), Duration::from_millis(1));
        let halting = Halting::begin(leader.id(), Halts { stopped, running, seed: None }).unwrap();
        assert!(is_seen(|| state(&member) == 'T'));
        assert_ne!(state(&leader), 'T');
        drop(halting);
        assert!(is_seen(|| state(&member) != 'T'));
        for child in [&mut leader, &mut member] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    #[test]
    fn a_process_that_was_given_the_number_of_a_member_is_left_alone() {
        let mut child = sleeper(0);
        let [member] = members_of(child.id())[..] else { panic!("it leads a group of its own") };
        signal(&[member.begun_before()], Signal::STOP);
        thread::sleep(Duration::from_millis(50));
        assert_ne!(state(&child), 'T', "it has the number, and began later");
        signal(&[member], Signal::STOP);
        assert!(is_seen(|| state(&child) == 'T'));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!member.is_there());
    }

    #[test]
    fn a_rhythm_varies_by_a_quarter_and_is_that_of_its_seed() {
        let [stopped, running] = [64, 16].map(Duration::from_millis);
        let turns = |seed| -> Vec<[Duration; 2]> {
            (0..100).map(|number| Halts { stopped, running, seed }.turn(number)).collect()
        };
        assert!(turns(None).iter().all(|turn| *turn == [stopped, running]));
        assert_eq!(turns(Some(1)), turns(Some(1)));
        assert_ne!(turns(Some(1)), turns(Some(2)));
        for [one, other] in turns(Some(1)) {
            assert!((stopped * 3 / 4..stopped * 5 / 4).contains(&one), "{one:?}");
            assert!((running * 3 / 4..running * 5 / 4).contains(&other), "{other:?}");
        }
    }
}
