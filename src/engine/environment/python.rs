//! Finds a Python that the lock serves. Main type: [`Python`].

use std::ffi::OsStr;
use std::process::{Command, Stdio};

use camino::{Utf8Path, Utf8PathBuf};

use super::EnvironmentError;
use crate::machine::files_on;

/// Prints implementation, version, ABI flags and executable. The last may hold spaces.
const PROBE: &str = "import sys; v = sys.version_info; \
    print(sys.implementation.name, v[0], v[1], sys.abiflags or '-', sys.executable)";

/// Minor versions of Python 3 that the locks serve, the one that they are compiled for first.
const MINORS: [u32; 3] = [11, 12, 13];

/// A Python that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Python {
    /// The executable itself, not a shim.
    pub(super) executable: Utf8PathBuf,
    minor: u32,
}

impl Python {
    /// Finds the Python that is named, else the first that serves among `python3.N` and `python3` in the search path.
    pub(super) fn find(named: Option<&Utf8Path>, search_path: &OsStr) -> Result<Self, EnvironmentError> {
        let mut found = Vec::new();
        let mut probe = |candidate: &Utf8Path| match Self::probe(candidate) {
            Ok(python) if MINORS.contains(&python.minor) => Some(python),
            Ok(python) => {
                found.push(format!("{candidate} is 3.{}", python.minor));
                None
            }
            Err(why) => {
                found.push(format!("{candidate} {why}"));
                None
            }
        };
        let python = match named {
            Some(named) => probe(named),
            None => candidates(search_path).find_map(|candidate| probe(&candidate)),
        };
        python.ok_or_else(|| EnvironmentError::NoPython {
            wanted: MINORS.map(|minor| format!("3.{minor}")).join(" or "),
            found,
        })
    }

    /// Its version without the last part, as in `3.11`.
    pub(super) fn version(&self) -> String {
        format!("3.{}", self.minor)
    }

    /// Runs an executable and reads what it is; the error completes "`python3` …".
    fn probe(executable: &Utf8Path) -> Result<Self, String> {
        let output = Command::new(executable)
            .args(["-I", "-S", "-c", PROBE])
            .stdin(Stdio::null())
            .output()
            .map_err(|error| format!("does not run ({error})"))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let mut words = text.trim_end().splitn(5, ' ');
        let mut word = || words.next().unwrap_or_default();
        match [word(), word(), word(), word(), word()] {
            ["cpython", "3", _, flags, _] if flags.contains('t') => Err("is free-threaded".to_owned()),
            ["cpython", "3", minor, _, executable] if output.status.success() => {
                let minor = minor.parse().map_err(|_| "does not tell its version".to_owned())?;
                Ok(Self { executable: executable.into(), minor })
            }
            [implementation, "3", ..] => Err(format!("is {implementation} and not CPython")),
            _ => Err(format!("does not run ({})", output.status)),
        }
    }
}

/// Every file that may be a fitting Python, best first: a search path can hold a shim that fails before one that works.
fn candidates(search_path: &OsStr) -> impl Iterator<Item = Utf8PathBuf> {
    let names = MINORS.into_iter().map(|minor| format!("python3.{minor}")).chain(["python3".to_owned()]);
    names.flat_map(move |name| files_on(search_path, &name).collect::<Vec<_>>())
}
