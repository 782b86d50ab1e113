//! The process that stands between the driver and an engine or server, and ends it when the driver is gone.
//!
//! A driver that is killed with SIGKILL can clean up nothing. So each long-lived process is started through the
//! hidden subcommand `internal-guard`: the kernel sends the guard a SIGTERM when the driver dies, and the guard ends
//! the whole process group. The guard passes standard streams and the exit status through.

use std::process::{Command, ExitCode, ExitStatus};
use std::time::Duration;

use anyhow::Context;
use rustix::process::{Pid, Signal, getpgrp, getppid, kill_process_group, set_parent_process_death_signal};
use tokio::signal::unix::{SignalKind, signal};

/// How long a process group gets between SIGTERM and SIGKILL.
pub(super) const GRACE: Duration = Duration::from_secs(5);

/// Runs `command` as a guarded child of the process `driver`, in the guard's own process group.
///
/// # Errors
/// When the signals cannot be set up or the command cannot be started.
pub fn guard(driver: u32, command: &[String]) -> anyhow::Result<ExitCode> {
    let (program, arguments) =
        command.split_first().ok_or_else(|| anyhow::anyhow!("there is no command to guard"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        set_parent_process_death_signal(Some(Signal::TERM))?;
        let driver_is_gone = || getppid().is_none_or(|parent| parent.as_raw_pid().cast_unsigned() != driver);
        if driver_is_gone() {
            return Ok(ExitCode::FAILURE); // it died before the kernel was asked to tell
        }
        let mut command = tokio::process::Command::from(Command::new(program));
        let mut child = command.args(arguments).spawn().with_context(|| format!("start {program}"))?;
        let ended = tokio::select! {
            status = child.wait() => Some(status?),
            _ = terminate.recv() => None,
        };
        // A child that ends because its driver died can be noticed before the signal, and may leave others behind.
        if let Some(status) = ended
            && !driver_is_gone()
        {
            return Ok(exit_code(status));
        }
        let group = getpgrp();
        kill_process_group(group, Signal::TERM).ok();
        // The group's own SIGTERM reaches the guard again, which is why it is still listened to.
        let _ = tokio::time::timeout(GRACE, child.wait()).await;
        kill_process_group(group, Signal::KILL).ok();
        Ok(ExitCode::FAILURE)
    })
}

fn exit_code(status: ExitStatus) -> ExitCode {
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

/// Sends a signal to a whole process group; one that is gone is fine.
pub(super) fn signal_group(group: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(group).ok().and_then(Pid::from_raw) {
        kill_process_group(pid, signal).ok();
    }
}
