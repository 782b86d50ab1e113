//! Archive to questions. Output: `questions.jsonl`, one question a line, by id.

use std::io::{BufReader, BufWriter, Write};

use fs_err as fs;
use serde::Serialize;

use super::{Bench, StageError};
use crate::assets::Archive;
use crate::dataset::{Dataset, Limits, extract_with_rest, read_questions, write_questions};
use crate::digest::Digest;
use crate::stage_name::StageName;
use crate::store::{Artifact, StageKey};

const SCHEMA: u32 = 2;
const QUESTIONS: &str = "questions.jsonl";
const WRITTEN_AT_ONCE: usize = 256 << 10;

#[derive(Serialize)]
struct Key {
    archive: Digest,
}

/// Reads the suite's archive.
///
/// # Errors
/// When the archive cannot be read or is refused.
pub async fn extract(bench: &Bench) -> Result<Artifact, StageError> {
    let name = &bench.suite.dataset;
    let archive = Archive::find(name, &bench.cache)?;
    let key = StageKey::new(SCHEMA, StageName::Extract, &Key { archive: archive.digest()? });
    bench
        .make(&key, "", async |draft| {
            let source = archive.open()?;
            let (dataset, left_out) = extract_with_rest(source, &Limits::default())
                .map_err(|error| StageError::Extract { archive: name.clone(), source: Box::new(error) })?;
            let left_out = archive.left_out().and(&left_out);
            if !left_out.is_empty() {
                bench
                    .events
                    .warn(format!("not read of {name}, since no tables of dev, val or test: {left_out}"));
            }
            let path = draft.path(QUESTIONS);
            let write = || {
                let mut file = BufWriter::with_capacity(WRITTEN_AT_ONCE, fs::File::create(&path)?);
                write_questions(&dataset, &mut file)?;
                file.flush()
            };
            write().map_err(|source| StageError::Write { path: path.clone(), source })
        })
        .await
}

/// Reads what [`extract`] wrote.
///
/// # Errors
/// When the artifact cannot be read.
pub fn read_dataset(questions: &Artifact) -> Result<Dataset, StageError> {
    let path = questions.path(QUESTIONS);
    let file = fs::File::open(&path).map_err(|source| StageError::Read { path, source })?;
    Ok(read_questions(BufReader::new(file))?)
}
