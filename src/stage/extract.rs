//! Archive to questions. Output: `questions.jsonl`, one question a line, by id.

use std::io::{BufReader, BufWriter, Write};

use fs_err as fs;
use serde::Serialize;

use super::{Context, StageError};
use crate::dataset::{Dataset, Limits, extract_with_rest, read_questions, write_questions};
use crate::digest::Digest;
use crate::store::Artifact;

const QUESTIONS: &str = "questions.jsonl";
const WRITTEN_AT_ONCE: usize = 256 << 10;

/// Reads an archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Extract {
    /// The archive.
    pub archive: Digest,
}

impl Extract {
    pub(crate) const SCHEMA: u32 = 3;

    pub(crate) fn fill(&self, context: &Context<'_>) -> Result<(), StageError> {
        let sources = &context.desk.sources;
        let (archive, digest) = sources.archive();
        debug_assert_eq!(digest, self.archive, "a graph names the archive that it was made of");
        let name = sources.dataset();
        let (dataset, left_out) = extract_with_rest(archive.open()?, &Limits::default())
            .map_err(|error| StageError::Extract { archive: name.to_owned(), source: Box::new(error) })?;
        let left_out = archive.left_out().and(&left_out);
        if !left_out.is_empty() {
            let told = format!("not read of {name}, since no tables of dev, val or test: {left_out}");
            context.desk.events.warn(told);
        }
        let path = context.draft.path(QUESTIONS);
        let write = || {
            let mut file = BufWriter::with_capacity(WRITTEN_AT_ONCE, fs::File::create(&path)?);
            write_questions(&dataset, &mut file)?;
            file.flush()
        };
        write().map_err(|source| StageError::Write { path: path.clone(), source })
    }
}

/// Reads what the extract stage wrote.
///
/// # Errors
/// When the artifact cannot be read.
pub fn read_dataset(questions: &Artifact) -> Result<Dataset, StageError> {
    let path = questions.path(QUESTIONS);
    let file = fs::File::open(&path).map_err(|source| StageError::Read { path, source })?;
    Ok(read_questions(BufReader::new(file))?)
}
