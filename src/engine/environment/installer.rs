//! Runs uv and, where there is none, gets one. Main type: [`Installer`].

use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader, Write};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;

use super::EnvironmentError;
use crate::digest::digest_bytes;
use crate::event::{Event, Events};
use crate::lock::FileLock;
use crate::machine::files_on;

/// uv, pinned by hash, as a requirements file.
const UV_PIN: &str = include_str!("../../../nix/stacks/uv.txt");
const LAST_LINES: usize = 8;
/// First words of the lines of uv that are worth a user's attention.
const TOLD: [&str; 8] =
    ["Resolved", "Downloading", "Downloaded", "Building", "Built", "Prepared", "Installed", "warning:"];

/// What the steps of an installation share.
#[derive(Debug)]
pub(super) struct Installer<'a> {
    /// Where all output goes.
    pub(super) log: &'a Utf8Path,
    /// The environment's lock. Each child has it as its standard input, so the environment stays locked until the child ends
    /// even if this process is killed.
    pub(super) lock: &'a FileLock,
    /// Where progress is told.
    pub(super) events: &'a Events,
}

/// How a step ended.
struct Ending {
    status: ExitStatus,
    last_lines: Vec<String>,
}

impl Installer<'_> {
    /// The uv in the search path, else one of our own, which is installed under `tools` with `python`.
    pub(super) fn find_uv(
        &self,
        search_path: &OsStr,
        tools: &Utf8Path,
        python: &Utf8Path,
        patience: Duration,
    ) -> Result<Utf8PathBuf, EnvironmentError> {
        if let Some(uv) = files_on(search_path, "uv").find(|uv| runs(uv)) {
            return Ok(uv);
        }
        let failed = |source| EnvironmentError::Io { folder: tools.to_owned(), source };
        let name = format!("uv-{}", digest_bytes(UV_PIN.as_bytes()).short());
        let folder = tools.join(&name);
        let uv = folder.join("bin/uv");
        fs::create_dir_all(tools).map_err(failed)?;
        let _lock =
            FileLock::take(&tools.join(format!("{name}.lock")), folder.as_ref(), patience, self.events)?;
        if runs(&uv) {
            return Ok(uv);
        }
        self.events.emit(Event::EnvironmentStep { text: "Installing uv".to_owned() });
        let pin = tools.join(format!("{name}.txt"));
        fs::write(&pin, UV_PIN).map_err(failed)?;
        let pip = [
            "-m",
            "pip",
            "install",
            "--require-hashes",
            "--no-deps",
            "--only-binary=:all:",
            "-r",
            pin.as_str(),
        ];

        let in_environment = || -> io::Result<Ending> {
            clear(&folder)?;
            let made = self.run(Command::new(python).args(["-m", "venv", folder.as_str()]))?;
            if !made.status.success() {
                return Ok(made);
            }
            self.run(Command::new(folder.join("bin/python")).args(pip))
        };
        let in_folder = || -> io::Result<Ending> {
            clear(&folder)?;
            self.run(Command::new(python).args(pip).args(["--target", folder.as_str()]))
        };
        let mut ending = in_environment().map_err(failed)?;
        if !ending.status.success() {
            ending = in_folder().map_err(failed)?;
        }
        if ending.status.success() && runs(&uv) {
            return Ok(uv);
        }
        let (python, log) = (python.to_owned(), self.log.to_owned());
        Err(EnvironmentError::NoInstaller { python, log, last_lines: ending.last_lines.join("\n") })
    }

    /// Runs a step that must succeed.
    pub(super) fn step(&self, step: &'static str, command: &mut Command) -> Result<(), EnvironmentError> {
        let failed = |outcome, last_lines: &[String]| EnvironmentError::Step {
            step,
            outcome,
            log: self.log.to_owned(),
            last_lines: last_lines.join("\n"),
        };
        match self.run(command) {
            Ok(Ending { status, .. }) if status.success() => Ok(()),
            Ok(Ending { status, last_lines }) => Err(failed(status.to_string(), &last_lines)),
            Err(error) => Err(failed(error.to_string(), &[])),
        }
    }

    /// Runs a command, with both its outputs into the log and its notable lines told.
    fn run(&self, command: &mut Command) -> io::Result<Ending> {
        let mut log = fs::OpenOptions::new().create(true).append(true).open(self.log)?;
        writeln!(log, "$ {command:?}")?;
        let (reader, writer) = io::pipe()?;
        command.stdin(self.lock.share()?).stdout(writer.try_clone()?).stderr(writer);
        let mut child = command.spawn()?;
        // The command keeps its ends of the pipe open; the reader would wait for them for ever.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut last_lines = Vec::new();
        for line in BufReader::new(reader).split(b'\n') {
            let line = String::from_utf8_lossy(&line?).trim().to_owned();
            writeln!(log, "{line}")?;
            if TOLD.iter().any(|word| line.starts_with(word)) {
                self.events.emit(Event::EnvironmentStep { text: line.clone() });
            }
            if last_lines.len() == LAST_LINES {
                last_lines.remove(0);
            }
            last_lines.push(line);
        }
        Ok(Ending { status: child.wait()?, last_lines })
    }
}

fn runs(executable: &Utf8Path) -> bool {
    let mut command = Command::new(executable);
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Removes a folder if it is there.
pub(super) fn clear(folder: &Utf8Path) -> io::Result<()> {
    if folder.exists() { fs::remove_dir_all(folder) } else { Ok(()) }
}
