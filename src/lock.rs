//! Locks between processes: one file each, with a time limit and a message that names the holder.
//!
//! The operating system keeps the lock (`flock`), so it ends with its holder, however that ends. The file's content, a JSON
//! [`Holder`], is only for messages. Lock files stay: removing one while another process opens it would split the
//! lock in two. Main type: [`FileLock`].

use std::fmt;
use std::io::{self, Read, Seek, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;
use serde::{Deserialize, Serialize};

use crate::event::{Event, Events};

const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Who holds a lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Holder {
    /// Process id.
    pub pid: u32,
    /// When it took the lock, in seconds since 1970.
    pub since_unix_seconds: u64,
    /// Its command line.
    pub command: String,
}

impl Holder {
    fn this_process() -> Self {
        Self {
            pid: std::process::id(),
            since_unix_seconds: unix_seconds(),
            command: std::env::args().collect::<Vec<_>>().join(" "),
        }
    }
}

impl Holder {
    /// Whether the process runs. When it was killed, a child of it that still runs may hold the lock.
    fn runs(&self) -> bool {
        let pid = i32::try_from(self.pid).ok().and_then(rustix::process::Pid::from_raw);
        pid.is_some_and(|pid| rustix::process::test_kill_process(pid) != Err(rustix::io::Errno::SRCH))
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let held = unix_seconds().saturating_sub(self.since_unix_seconds);
        let (minutes, seconds) = (held / 60, held % 60);
        if !self.runs() {
            formatter.write_str("a child that outlived ")?;
        }
        write!(formatter, "process {} (`{}`, for {minutes} min {seconds} s)", self.pid, self.command)
    }
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Why a lock was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process held it for the whole time.
    #[error("lock {what} within {} s: held by {}", patience.as_secs(), describe(holder.as_ref()))]
    Held {
        /// What the lock is for.
        what: String,
        /// How long was waited.
        patience: Duration,
        /// Who holds it, when that could be read.
        holder: Option<Holder>,
        /// The lock file.
        path: Utf8PathBuf,
    },
    /// The lock file cannot be made, or its file system has no locks.
    #[error("lock {what} by means of {path}")]
    Unusable {
        /// What the lock is for.
        what: String,
        /// The lock file.
        path: Utf8PathBuf,
        /// What went wrong.
        source: io::Error,
    },
}

impl LockError {
    /// What to do next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Held { holder: Some(holder), .. } => {
                Some(format!("wait for process {} or end it, then run the same command again", holder.pid))
            }
            Self::Held { holder: None, .. } => {
                Some("wait for it, then run the same command again".to_owned())
            }
            Self::Unusable { .. } => {
                Some("name a cache folder on a local, writable file system with --cache DIR".to_owned())
            }
        }
    }
}

fn describe(holder: Option<&Holder>) -> String {
    holder.map_or_else(|| "a process that has not yet said its name".to_owned(), Holder::to_string)
}

/// A lock that is held until this is dropped or the process ends.
#[derive(Debug)]
pub struct FileLock {
    file: std::fs::File,
    is_shared: AtomicBool,
}

impl Drop for FileLock {
    /// Closing the file would not do: each process that is forked at the same time has it open until it executes a program.
    fn drop(&mut self) {
        if !*self.is_shared.get_mut()
            && let Err(error) = self.file.unlock()
        {
            tracing::debug!(%error, "the lock ends with its file");
        }
    }
}

impl FileLock {
    /// Takes the lock if it is free; tells who holds it if not.
    ///
    /// # Errors
    /// When the lock file cannot be made or locked.
    pub fn try_take(path: &Utf8Path) -> io::Result<Result<Self, Option<Holder>>> {
        let mut options = fs::OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(path)?.into_file();
        match file.try_lock() {
            Ok(()) => {
                let mut lock = Self { file, is_shared: AtomicBool::new(false) };
                lock.write_holder()?;
                Ok(Ok(lock))
            }
            Err(std::fs::TryLockError::WouldBlock) => Ok(Err(read_holder(file))),
            Err(std::fs::TryLockError::Error(error)) => Err(error),
        }
    }

    /// Takes the lock, waiting for at most `patience`; tells `events` for whom it waits. `what` completes "lock …".
    ///
    /// # Errors
    /// When another process holds it for the whole time, or the lock file cannot be made or locked.
    pub fn take(path: &Utf8Path, what: &str, patience: Duration, events: &Events) -> Result<Self, LockError> {
        let start = Instant::now();
        let mut told: Option<Option<Holder>> = None;
        loop {
            let unusable =
                |source| LockError::Unusable { what: what.to_owned(), path: path.to_owned(), source };
            let holder = match Self::try_take(path).map_err(unusable)? {
                Ok(lock) => return Ok(lock),
                Err(holder) => holder,
            };
            let left = patience.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Err(LockError::Held {
                    what: what.to_owned(),
                    patience,
                    holder,
                    path: path.to_owned(),
                });
            }
            if told.as_ref() != Some(&holder) {
                told = Some(holder.clone());
                events.emit(Event::WaitingForLock {
                    what: what.to_owned(),
                    holder: holder.as_ref().map(Holder::to_string),
                });
            }
            std::thread::sleep(POLL_INTERVAL.min(left));
        }
    }

    /// A second handle on the lock, which stays taken until both are gone. As a child's standard input it keeps the lock
    /// for as long as the child lives, whatever happens to this process.
    ///
    /// # Errors
    /// When the process has too many open files.
    pub fn share(&self) -> io::Result<std::fs::File> {
        let shared = self.file.try_clone()?;
        self.is_shared.store(true, Ordering::Relaxed);
        Ok(shared)
    }

    fn write_holder(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.rewind()?;
        self.file.write_all(&serde_json::to_vec(&Holder::this_process())?)
    }
}

fn read_holder(mut file: std::fs::File) -> Option<Holder> {
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn lock_path() -> (tempfile::TempDir, Utf8PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(folder.path().join("x.lock")).unwrap();
        (folder, path)
    }

    #[test]
    fn a_timed_out_wait_names_the_holder_and_told_it_once() {
        let (_keep, path) = lock_path();
        let _held = FileLock::try_take(&path).unwrap().unwrap();
        let (sender, receiver) = mpsc::channel();
        let events = Events::new(move |event| sender.send(event).unwrap());

        let error = FileLock::take(&path, "the store", Duration::from_millis(350), &events).unwrap_err();

        let pid = std::process::id();
        assert!(error.to_string().starts_with("lock the store within 0 s: held by process "), "{error}");
        assert!(error.to_string().contains(&format!("process {pid} (`")), "{error}");
        assert!(error.hint().unwrap().contains(&pid.to_string()));
        let told: Vec<Event> = receiver.try_iter().collect();
        assert!(
            matches!(&told[..], [Event::WaitingForLock { holder: Some(holder), .. }] if holder.contains(&format!("process {pid} (`")))
        );
    }

    #[test]
    fn a_lock_is_free_again_when_its_holder_is_killed() {
        let (_keep, path) = lock_path();
        let lock = FileLock::try_take(&path).unwrap().unwrap();
        let mut child =
            std::process::Command::new("sleep").arg("60").stdin(lock.share().unwrap()).spawn().unwrap();
        drop(lock);
        let holder = FileLock::try_take(&path).unwrap().unwrap_err().unwrap();
        assert!(!holder.to_string().starts_with("a child"), "this process runs");
        let gone = Holder { pid: i32::MAX.cast_unsigned(), ..holder };
        assert!(gone.to_string().starts_with("a child that outlived process "));

        child.kill().unwrap();
        child.wait().unwrap();
        let taken = FileLock::take(&path, "it", Duration::from_secs(10), &Events::ignored());
        assert!(taken.is_ok());
    }

    #[test]
    fn a_lock_is_free_as_soon_as_it_is_dropped_though_a_forked_process_has_its_file_open() {
        let (_keep, path) = lock_path();
        let lock = FileLock::try_take(&path).unwrap().unwrap();
        let open_elsewhere = lock.file.try_clone().unwrap();
        drop(lock);
        assert!(FileLock::try_take(&path).unwrap().is_ok());
        drop(open_elsewhere);
    }

    #[test]
    fn a_lock_in_a_missing_folder_is_an_error_and_not_a_wait() {
        let error =
            FileLock::take("/nonexistent/x.lock".into(), "it", Duration::from_mins(1), &Events::ignored());
        assert!(matches!(error, Err(LockError::Unusable { .. })));
    }
}
