//! JSON lines in an artifact's files: one value a line, written and read as a stream.

use std::io::{self, BufRead, BufReader, BufWriter, Write};

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;
use serde::{Serialize, de::DeserializeOwned};

use super::StageError;

/// Writes values to a file, one a line.
pub(super) struct LineWriter {
    path: Utf8PathBuf,
    file: BufWriter<fs::File>,
}

impl LineWriter {
    pub(super) fn create(path: Utf8PathBuf) -> Result<Self, StageError> {
        let file = fs::File::create(&path).map_err(|source| write_error(&path, source))?;
        Ok(Self { path, file: BufWriter::new(file) })
    }

    pub(super) fn write(&mut self, value: &impl Serialize) -> Result<(), StageError> {
        let written = serde_json::to_writer(&mut self.file, value).map_err(io::Error::from);
        written.and_then(|()| self.file.write_all(b"\n")).map_err(|source| write_error(&self.path, source))
    }

    pub(super) fn finish(mut self) -> Result<(), StageError> {
        self.file.flush().map_err(|source| write_error(&self.path, source))
    }
}

/// Writes one value to a file.
pub(super) fn write_json(path: Utf8PathBuf, value: &impl Serialize) -> Result<(), StageError> {
    let mut file = LineWriter::create(path)?;
    file.write(value)?;
    file.finish()
}

/// Reads the values of a file, one a line.
pub(super) fn read_lines<T: DeserializeOwned>(
    path: Utf8PathBuf,
) -> Result<impl Iterator<Item = Result<T, StageError>>, StageError> {
    let file = fs::File::open(&path).map_err(|source| read_error(&path, source))?;
    Ok((1..).zip(BufReader::new(file).lines()).map(move |(number, line)| {
        let line = line.map_err(|source| read_error(&path, source))?;
        serde_json::from_str(&line).map_err(|error| StageError::Line {
            path: path.clone(),
            number,
            problem: error.to_string(),
        })
    }))
}

/// How many values a file holds, one a line.
pub(super) fn count_lines(path: &Utf8Path) -> Result<usize, StageError> {
    let file = fs::File::open(path).map_err(|source| read_error(path, source))?;
    let lines = BufReader::new(file).split(b'\n').try_fold(0, |count, line| line.map(|_| count + 1));
    lines.map_err(|source| read_error(path, source))
}

/// Reads the only value of a file.
pub(super) fn read_json<T: DeserializeOwned>(path: &Utf8Path) -> Result<T, StageError> {
    let text = fs::read(path).map_err(|source| read_error(path, source))?;
    serde_json::from_slice(&text).map_err(|error| StageError::Line {
        path: path.to_owned(),
        number: error.line(),
        problem: error.to_string(),
    })
}

fn write_error(path: &Utf8Path, source: io::Error) -> StageError {
    StageError::Write { path: path.to_owned(), source }
}

fn read_error(path: &Utf8Path, source: io::Error) -> StageError {
    StageError::Read { path: path.to_owned(), source }
}
