//! Process groups and how they are ended.

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};

/// How long a process group gets between SIGTERM and SIGKILL.
pub(super) const GRACE: Duration = Duration::from_secs(5);

/// Sends a signal to a whole process group; one that is gone is fine.
pub(super) fn signal_group(group: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(group).ok().and_then(Pid::from_raw) {
        kill_process_group(pid, signal).ok();
    }
}
