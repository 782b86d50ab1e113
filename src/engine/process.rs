//! Starting and ending the processes that the driver owns. Main type: [`OwnedProcess`].
//!
//! Each one leads a process group of its own (through [`guard`](super::guard)), which is gone when the value is
//! dropped, whatever happened in between.

use std::fs::File;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use rustix::process::Signal;
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::ending::{forget_group, note_group};
use super::error::{EngineError, ProcessEnd};
use super::group::{GRACE, signal_group};
use super::ports::{Listener, listener_on, processes_of};
use super::variables::{own_variables, passed_on};

/// Between two looks at whether a process is ready.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// What to start.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The driver's own executable, which has the guard.
    pub guard: Utf8PathBuf,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Variables on top of the few that every process gets.
    pub variables: Vec<(String, String)>,
    /// Where standard error goes (and standard output, if it is not asked for), appended.
    pub log: Utf8PathBuf,
    /// The socket of a fork server that has the program, if one may serve. See [`ForkServers`](super::ForkServers).
    pub fork_server: Option<Utf8PathBuf>,
}

/// A process group that ends with this value.
#[derive(Debug)]
pub struct OwnedProcess {
    child: Child,
    group: u32,
    log: Utf8PathBuf,
    /// How often the kernel had ended a process for lack of memory when this one was started.
    memory_kills: u64,
}

/// Which standard streams the driver keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Streams {
    /// Input and output are pipes to the driver.
    Piped,
    /// No input; output goes to the log.
    Logged,
}

impl OwnedProcess {
    /// Starts a process. Must be called within a tokio runtime, on a thread that lives as long as the process.
    ///
    /// # Errors
    /// When the log cannot be written or the guard cannot be started.
    pub fn start(launch: &Launch, streams: Streams) -> Result<Self, EngineError> {
        let failed = |source| EngineError::Spawn { command: launch.command.join(" "), source };
        let log = File::options().create(true).append(true).open(&launch.log).map_err(failed)?;
        let mut command = Command::new(&launch.guard);
        command
            .args(["internal-guard", "--driver", &std::process::id().to_string()])
            .args(launch.fork_server.iter().flat_map(|socket| ["--fork-server", socket.as_str()]))
            .arg("--")
            .args(&launch.command);
        command.env_clear().envs(passed_on(own_variables()));
        // Indexes of GPUs then mean what the key's device says; CUDA's own order is by speed.
        command.env("CUDA_DEVICE_ORDER", "PCI_BUS_ID");
        command.envs(launch.variables.iter().cloned()).process_group(0);
        match streams {
            Streams::Piped => command.stdin(Stdio::piped()).stdout(Stdio::piped()),
            Streams::Logged => {
                command.stdin(Stdio::null()).stdout(Stdio::from(log.try_clone().map_err(failed)?))
            }
        };
        let child = command.stderr(Stdio::from(log)).spawn().map_err(failed)?;
        let group = child.id().expect("a process that was just started has an id");
        note_group(group);
        Ok(Self { child, group, log: launch.log.clone(), memory_kills: count_memory_kills() })
    }

    /// The pipes of a process started with [`Streams::Piped`]; they can be taken once.
    pub(super) fn take_pipes(&mut self) -> Option<(ChildStdin, ChildStdout)> {
        Some((self.child.stdin.take()?, self.child.stdout.take()?))
    }

    /// Where its output goes.
    #[must_use]
    pub fn log(&self) -> &Utf8Path {
        &self.log
    }

    /// The number of its group.
    pub(super) fn group(&self) -> u32 {
        self.group
    }

    /// The numbers of the processes of its group.
    pub(super) fn members(&self) -> Vec<u32> {
        processes_of(self.group)
    }

    /// Its exit status, if it has ended.
    pub(super) fn try_wait(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits until it is ready, as `is_ready` finds, and nobody else listens on its ports: another process that has won one
    /// answers in its place until this one finds its port taken. `what` names it in messages: `the LMCache server`.
    ///
    /// # Errors
    /// When it ends before, or is not ready in time.
    pub(super) async fn until_ready(
        &mut self,
        what: &str,
        patience: Duration,
        ports: &[u16],
        is_ready: impl AsyncFn() -> bool,
    ) -> Result<(), EngineError> {
        let deadline = Instant::now() + patience;
        loop {
            let (what, log) = (what.to_owned(), self.log.clone());
            let foreign = |port: &u16| listener_on(*port, self.group) == Listener::Foreign;
            let ready = is_ready().await && !ports.iter().any(foreign);
            // Looked at last: what has answered may have ended since, or never have been this process.
            if let Some(status) = self.try_wait() {
                return Err(self.died(what, status));
            }
            if ready {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(EngineError::Silent {
                    what,
                    patience,
                    said: telling_line(&log),
                    log,
                    asks_server: false,
                });
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// The error for its end.
    pub(super) fn died(&self, what: String, status: ExitStatus) -> EngineError {
        let end = ProcessEnd::new(status, count_memory_kills() > self.memory_kills);
        EngineError::Died { what, end, said: telling_line(&self.log), log: self.log.clone() }
    }

    /// Waits until it ends by itself, at most so long.
    pub async fn wait(&mut self, patience: Duration) -> Option<ExitStatus> {
        tokio::time::timeout(patience, self.child.wait()).await.ok()?.ok()
    }
}

impl Drop for OwnedProcess {
    fn drop(&mut self) {
        if self.try_wait().is_none() {
            signal_group(self.group, Signal::TERM);
            let deadline = Instant::now() + GRACE;
            while self.try_wait().is_none() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        // Whoever is left of the group, the guard included.
        signal_group(self.group, Signal::KILL);
        forget_group(self.group);
    }
}

/// How often the kernel has ended a process for lack of memory since this machine started.
fn count_memory_kills() -> u64 {
    let counters = fs_err::read_to_string("/proc/vmstat").unwrap_or_default();
    let count = counters.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok());
    count.unwrap_or(0)
}

/// The line of a log that best says what went wrong: the last one that names an error and does not only point to
/// another, as vLLM's processes do for one of theirs; else the last one. What is only warned of is no error.
#[must_use]
pub(super) fn telling_line(log: &Utf8Path) -> Option<String> {
    let tail = tail_of(log, 0)?;
    last_error(&tail).or_else(|| lines(&tail).next_back()).map(shortened)
}

/// The last line behind so many bytes of a log that names an error, if one does.
pub(super) fn named_error(log: &Utf8Path, behind: u64) -> Option<String> {
    last_error(&tail_of(log, usize::try_from(behind).ok()?)?).map(shortened)
}

/// The end of a log, as far as it lies behind so many bytes.
fn tail_of(log: &Utf8Path, behind: usize) -> Option<String> {
    let text = fs_err::read(log).ok()?;
    let tail = text.get(text.len().saturating_sub(64 * 1024).max(behind)..)?;
    Some(console::strip_ansi_codes(&String::from_utf8_lossy(tail)).into_owned())
}

fn lines(text: &str) -> impl DoubleEndedIterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty())
}

fn shortened(line: &str) -> String {
    line.chars().take(400).collect()
}

fn last_error(text: &str) -> Option<&str> {
    let names_error = |line: &&str| {
        let head = line.split(':').next().unwrap_or_default();
        let named = ["Error", "Exception"].iter().any(|end| head.ends_with(end)) || line.contains("Error: ");
        let named = named || head == "error"; // as programs say it, whose hint stands behind it
        named && !line.contains(" WARNING ") && !points_elsewhere(line)
    };
    lines(text).rfind(names_error)
}

/// The last line of a log that holds one of these words.
pub(super) fn line_with(log: &Utf8Path, words: &[&str]) -> Option<String> {
    let text = fs_err::read(log).ok()?;
    let tail = String::from_utf8_lossy(&text[text.len().saturating_sub(64 * 1024)..]).into_owned();
    let tail = console::strip_ansi_codes(&tail);
    let line = tail.lines().rfind(|line| words.iter().any(|words| line.contains(words)))?;
    Some(line.trim().chars().take(400).collect())
}

/// Whether an error's words leave the cause to another line of the log.
pub(super) fn points_elsewhere(words: &str) -> bool {
    words.contains("root cause")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_is_quoted_rather_than_what_points_to_it() {
        let log = tempfile::NamedTempFile::new().unwrap();
        let text = "INFO loading\n\
            (Worker_TP1 pid=7) ERROR [executor.py:1] Traceback (most recent call last):\n\
            (Worker_TP1 pid=7) ERROR [executor.py:1] torch.OutOfMemoryError: CUDA out of memory.\n\
            RuntimeError: Engine core initialization failed. See root cause above.\n\
            \x1b[33;20m(MainProcess pid=5)\x1b[0m WARNING [base.py:380] ValueError: Tokenizer not available\n\
            WARNING leaked semaphores\n";
        fs_err::write(log.path(), text).unwrap();
        let line = telling_line(Utf8Path::from_path(log.path()).unwrap()).unwrap();
        assert!(line.ends_with("torch.OutOfMemoryError: CUDA out of memory."), "{line}");
        fs_err::write(log.path(), "INFO loading\n\x1b[33;20m[17:00] LMCache WARNING:\x1b[0m degraded mode\n")
            .unwrap();
        let line = telling_line(Utf8Path::from_path(log.path()).unwrap()).unwrap();
        assert_eq!(line, "[17:00] LMCache WARNING: degraded mode");
        let path = Utf8Path::from_path(log.path()).unwrap();
        fs_err::write(path, "KeyError: before\nINFO\n").unwrap();
        assert_eq!(named_error(path, 0).unwrap(), "KeyError: before");
        assert_eq!((named_error(path, 17), named_error(path, 99)), (None, None));
        fs_err::write(log.path(), "error: failed to start python\n\nhint: see to it\n").unwrap();
        let line = telling_line(Utf8Path::from_path(log.path()).unwrap()).unwrap();
        assert_eq!(line, "error: failed to start python");
    }
}
