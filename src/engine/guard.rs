//! The process that stands between the driver and an engine or server, and ends it when the driver is gone.
//!
//! A driver that is killed with SIGKILL can clean up nothing. So each long-lived process is started through the
//! hidden subcommand `internal-guard`: the kernel sends the guard a SIGTERM when the driver dies, and the guard ends
//! the whole process group. The guard passes standard streams and the exit status through.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode};

use anyhow::Context;
use camino::Utf8Path;
use rustix::process::{Signal, getpgrp, getppid, kill_process_group, set_parent_process_death_signal};
use tokio::process::Child;
use tokio::signal::unix::{SignalKind, signal};

use super::fork_server::Forked;
use super::group::GRACE;

/// Runs `command` as a guarded child of the process `driver`, in the guard's own process group; or has the fork server at
/// this socket fork what it would start, if it can.
///
/// # Errors
/// When the signals cannot be set up or the command cannot be started.
pub fn guard(driver: u32, fork_server: Option<&Utf8Path>, command: &[String]) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        set_parent_process_death_signal(Some(Signal::TERM))?;
        let driver_is_gone = || getppid().is_none_or(|parent| parent.as_raw_pid().cast_unsigned() != driver);
        if driver_is_gone() {
            return Ok(ExitCode::FAILURE); // it died before the kernel was asked to tell
        }
        let mut guarded = tokio::select! {
            guarded = Guarded::start(fork_server, command) => Some(guarded?),
            _ = terminate.recv() => None,
        };
        let ended = match &mut guarded {
            Some(guarded) => tokio::select! {
                code = guarded.wait() => code.ok(),
                _ = terminate.recv() => None,
            },
            None => None,
        };
        let group = getpgrp();
        kill_process_group(group, Signal::TERM).ok();
        // A child that ends because its driver is dying can be noticed before the driver is gone, and leave others behind:
        // hence the signal first. The rest is up to a driver that lives.
        if let Some(code) = ended
            && !driver_is_gone()
        {
            return Ok(ExitCode::from(code));
        }
        // The group's own SIGTERM reaches the guard again, which is why it is still listened to.
        if let Some(guarded) = &mut guarded {
            let _ = tokio::time::timeout(GRACE, guarded.wait()).await;
        }
        kill_process_group(group, Signal::KILL).ok();
        Ok(ExitCode::FAILURE)
    })
}

/// The process that is guarded.
enum Guarded {
    Started(Child),
    Forked(Forked),
}

impl Guarded {
    async fn start(fork_server: Option<&Utf8Path>, command: &[String]) -> anyhow::Result<Self> {
        if let Some(socket) = fork_server
            && let Ok(forked) = Forked::ask(socket, command).await
        {
            return Ok(Self::Forked(forked));
        }
        let (program, arguments) =
            command.split_first().ok_or_else(|| anyhow::anyhow!("there is no command to guard"))?;
        let mut command = tokio::process::Command::from(Command::new(program));
        Ok(Self::Started(command.args(arguments).spawn().with_context(|| format!("start {program}"))?))
    }

    /// Waits for its end and returns its exit code, as a shell would: 128 and the number for a signal.
    async fn wait(&mut self) -> std::io::Result<u8> {
        let (code, signal) = match self {
            Self::Started(child) => {
                let status = child.wait().await?;
                (status.code(), status.signal())
            }
            Self::Forked(forked) => {
                let status = forked.wait().await?;
                ((status >= 0).then_some(status), Some(-status))
            }
        };
        let code = code.or_else(|| signal.map(|signal| 128 + signal)).unwrap_or(1);
        Ok(u8::try_from(code).unwrap_or(1))
    }
}
