//! `bisect.jsonl`: what a search asked and was told, so that it can be read, and gone on with.
//!
//! The first line is a [`Header`], every other line an [`Entry`], written and synced as soon as it is known. Main type: [`Log`].

use std::io::{self, Write};

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;
use serde::{Deserialize, Serialize};

use super::Mark;
use crate::comparison::{Rung, Verdict};

/// Number of the format.
const SCHEMA: u32 = 1;

/// What is searched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    schema: u32,
    /// What changes from one revision to the next: `LMCache` or `vLLM`.
    pub what: String,
    /// The revisions, oldest first: full commits, or versions.
    pub revisions: Vec<String>,
    /// Digest of all else that a verdict depends on: the suite, the device, the base environment, what counts as bad.
    pub settings: String,
}

impl Header {
    /// A header of this version's format.
    #[must_use]
    pub fn new(what: &str, revisions: Vec<String>, settings: String) -> Self {
        Self { schema: SCHEMA, what: what.to_owned(), revisions, settings }
    }
}

/// What a step came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum StepResult {
    /// It ran, and there is a verdict.
    Judged {
        /// The worst.
        verdict: Verdict,
        /// The rung that decided it.
        rung: Rung,
    },
    /// It cannot be built or installed: the first relevant line.
    Unbuildable(String),
    /// It was built and does not run: the error's message.
    Failed(String),
    /// A merge, which is not tested.
    Merge,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Which revision.
    pub revision: String,
    /// What it came to.
    pub result: StepResult,
    /// What that means for the search.
    pub mark: Mark,
    /// How long it took.
    pub seconds: u64,
}

impl Entry {
    /// The step in words, without its revision: `bad: degraded, by bits`.
    #[must_use]
    pub fn describe(&self) -> String {
        let mark = match self.mark {
            Mark::Good => "good",
            Mark::Bad => "bad",
            Mark::Skipped => "skipped",
        };
        match &self.result {
            StepResult::Judged { verdict, rung } => {
                format!("{mark}: {verdict}, decided by {}", rung.short_name())
            }
            StepResult::Unbuildable(line) => format!("{mark}: cannot be built or installed: {line}"),
            StepResult::Failed(message) => format!("{mark}: does not run: {message}"),
            StepResult::Merge => format!("{mark}: a merge"),
        }
    }
}

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The file cannot be read or written.
    #[error("keep the log {path}")]
    Io {
        /// The file.
        path: Utf8PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is of another search.
    #[error("go on with {path}: it is of another search")]
    Other {
        /// The file.
        path: Utf8PathBuf,
    },
}

impl LogError {
    /// What to do next.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Io { .. } => "name a folder that can be written with `--out DIR`".to_owned(),
            Self::Other { path } => format!("remove {path}, or name another folder with `--out DIR`"),
        }
    }
}

/// A log on disk.
#[derive(Debug)]
pub struct Log {
    path: Utf8PathBuf,
    entries: Vec<Entry>,
}

impl Log {
    /// Opens the log of a search, or begins it. A last line that was only half written is cut off.
    ///
    /// # Errors
    /// When the file is of another search, or cannot be read or written.
    pub fn open(path: &Utf8Path, header: &Header) -> Result<Self, LogError> {
        let failed = |source| LogError::Io { path: path.to_owned(), source };
        let other = || LogError::Other { path: path.to_owned() };
        let mut log = Self { path: path.to_owned(), entries: Vec::new() };
        if !path.exists() {
            let mut line = serde_json::to_vec(header).expect("a header has a JSON form");
            line.push(b'\n');
            fs::write(path, line).map_err(failed)?;
            return Ok(log);
        }
        let text = fs::read_to_string(path).map_err(failed)?;
        let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
        let mut lines = whole.lines();
        let known: Header =
            lines.next().and_then(|line| serde_json::from_str(line).ok()).ok_or_else(other)?;
        if known != *header {
            return Err(other());
        }
        log.entries = lines.map(serde_json::from_str).collect::<Result<_, _>>().map_err(|_| other())?;
        if log.entries.iter().any(|entry| !header.revisions.contains(&entry.revision)) {
            return Err(other());
        }
        fs::write(path, whole).map_err(failed)?;
        Ok(log)
    }

    /// The steps so far.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Notes a step.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn add(&mut self, entry: Entry) -> Result<(), LogError> {
        let mut line = serde_json::to_vec(&entry).expect("a step has a JSON form");
        line.push(b'\n');
        let write = || -> io::Result<()> {
            let mut file = fs::OpenOptions::new().append(true).open(&self.path)?;
            file.write_all(&line)?;
            file.sync_data()
        };
        write().map_err(|source| LogError::Io { path: self.path.clone(), source })?;
        self.entries.push(entry);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(revision: &str) -> Entry {
        let result = StepResult::Judged { verdict: Verdict::Degraded, rung: Rung::BitExact };
        Entry { revision: revision.to_owned(), result, mark: Mark::Bad, seconds: 5 }
    }

    #[test]
    fn a_log_is_gone_on_with_even_if_its_last_line_is_half_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(folder.path().join("bisect.jsonl")).unwrap();
        let header = Header::new("LMCache", vec!["a".into(), "b".into()], "x".into());
        let mut log = Log::open(&path, &header).unwrap();
        log.add(entry("b")).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{text}{{\"revision\":\"a")).unwrap();
        let mut log = Log::open(&path, &header).unwrap();
        assert_eq!(log.entries(), [entry("b")]);
        log.add(entry("a")).unwrap();
        assert_eq!(Log::open(&path, &header).unwrap().entries().len(), 2);
        assert_eq!(entry("b").describe(), "bad: degraded, decided by bits");
    }

    #[test]
    fn a_log_of_another_search_is_refused_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(folder.path().join("bisect.jsonl")).unwrap();
        let header = Header::new("LMCache", vec!["a".into(), "b".into()], "x".into());
        Log::open(&path, &header).unwrap();
        let before = fs::read_to_string(&path).unwrap();
        let other = Header { settings: "y".into(), ..header };
        assert!(matches!(Log::open(&path, &other), Err(LogError::Other { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), before);
    }
}
