//! A dataset as JSON lines: one [`Question`] a line, in the order of its id, each line ended by `\n`.
//!
//! ```text
//! {"id":{"subject":"anatomy","split":"dev","row":1},"text":"…","options":["…","…","…","…"],"answer":"A"}
//! ```

use std::collections::BTreeMap;
use std::io::{self, BufRead, Write};
use std::thread;

use super::{Dataset, MissingSplit, Question, QuestionId};

/// Writes every question of a dataset; [`read_questions`] gives the same dataset back.
///
/// # Errors
/// When `sink` fails.
pub fn write_questions(dataset: &Dataset, mut sink: impl Write) -> io::Result<()> {
    let questions: Vec<&Question> = dataset.questions().collect();
    let (first, second) = questions.split_at(questions.len() / 2);
    thread::scope(|scope| {
        // Writing lines takes as long as a quarter of decompressing them.
        let lines = thread::Builder::new().spawn_scoped(scope, || {
            let mut lines = Vec::new();
            write_lines(second, &mut lines).map(|()| lines)
        });
        write_lines(first, &mut sink)?;
        match lines {
            Ok(lines) => sink.write_all(&lines.join().expect("writing to memory does not panic")?),
            // Where the system refuses a thread, this one writes all.
            Err(_) => write_lines(second, &mut sink),
        }
    })?;
    sink.flush()
}

fn write_lines(questions: &[&Question], mut sink: impl Write) -> io::Result<()> {
    for question in questions {
        serde_json::to_writer(&mut sink, question)?;
        sink.write_all(b"\n")?;
    }
    Ok(())
}

/// Why a questions file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ReadQuestionsError {
    /// A line that is not the next question.
    #[error("read line {line} of the questions: {problem}")]
    Line {
        /// Line number, from 1.
        line: usize,
        /// What is wrong with it.
        problem: LineProblem,
    },
    /// The lines are sound, but some are missing.
    #[error("read the questions: {0}")]
    MissingSplit(#[from] MissingSplit),
}

/// What is wrong with one line.
#[derive(Debug, thiserror::Error)]
pub enum LineProblem {
    /// It could not be read, or is not UTF-8.
    #[error("{0}")]
    Read(io::Error),
    /// It is not a question.
    #[error("{reason} (column {column})")]
    NotAQuestion {
        /// What the JSON lacks.
        reason: String,
        /// Bytes from the line's start.
        column: usize,
    },
    /// It is out of order, repeated, or follows a gap.
    #[error("question {0} is out of order")]
    OutOfOrder(QuestionId),
}

impl LineProblem {
    /// Drops the parser's own line number: it counts within the line.
    fn from_json(error: &serde_json::Error) -> Self {
        let (line, column) = (error.line(), error.column());
        let message = error.to_string();
        let reason = message.strip_suffix(&format!(" at line {line} column {column}")).unwrap_or(&message);
        Self::NotAQuestion { reason: reason.to_owned(), column }
    }
}

impl ReadQuestionsError {
    /// What to do next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(
            "run the extract stage again with `--force extract`; its artifact is not edited by hand"
                .to_owned(),
        )
    }
}

/// Reads what [`write_questions`] wrote.
///
/// # Errors
/// At the first line that is not the question expected there, and when a subject lacks a split.
pub fn read_questions(source: impl BufRead) -> Result<Dataset, ReadQuestionsError> {
    let mut splits = BTreeMap::new();
    let mut last: Option<QuestionId> = None;
    for (index, line) in source.lines().enumerate() {
        let refuse = |problem| ReadQuestionsError::Line { line: index + 1, problem };
        let line = line.map_err(|error| refuse(LineProblem::Read(error)))?;
        let question: Question =
            serde_json::from_str(&line).map_err(|error| refuse(LineProblem::from_json(&error)))?;
        let id = question.id.clone();
        if !follows(last.as_ref(), &id) {
            return Err(refuse(LineProblem::OutOfOrder(id)));
        }
        splits.entry((id.subject.clone(), id.split)).or_insert_with(Vec::new).push(question);
        last = Some(id);
    }
    Ok(Dataset::from_splits(splits)?)
}

fn follows(last: Option<&QuestionId>, next: &QuestionId) -> bool {
    match last {
        Some(last) if (&last.subject, last.split) == (&next.subject, next.split) => {
            last.row.checked_add(1) == Some(next.row)
        }
        Some(last) => next.row == 1 && last < next,
        None => next.row == 1,
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{dataset, write_to_string};
    use super::*;

    #[test]
    fn a_dataset_comes_back_as_it_was_written() {
        let dataset = dataset(&["anatomy", "law"]);
        let lines = write_to_string(&dataset);
        assert_eq!(
            lines.lines().next().unwrap(),
            r#"{"id":{"subject":"anatomy","split":"dev","row":1},"text":"anatomy/dev/1 ?","options":["one","two","three","four"],"answer":"A"}"#
        );
        assert_eq!(read_questions(lines.as_bytes()).unwrap(), dataset);
    }

    /// Lines of a sound file, after `edit`, as the message that refuses them.
    fn refusal(edit: impl FnOnce(&mut Vec<String>)) -> String {
        let lines = write_to_string(&dataset(&["anatomy"]));
        let mut lines: Vec<String> = lines.lines().map(str::to_owned).collect();
        edit(&mut lines);
        read_questions(lines.join("\n").as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn unsound_lines_are_refused_by_number() {
        insta::assert_snapshot!(refusal(|lines| lines.swap(0, 1)), @"read line 1 of the questions: question anatomy/dev/2 is out of order");
        insta::assert_snapshot!(refusal(|lines| { lines.remove(0); }), @"read line 1 of the questions: question anatomy/dev/2 is out of order");
        insta::assert_snapshot!(refusal(|lines| { let line = lines[2].clone(); lines.insert(2, line); }), @"read line 4 of the questions: question anatomy/val/1 is out of order");
        insta::assert_snapshot!(refusal(|lines| lines.insert(1, String::new())), @"read line 2 of the questions: EOF while parsing a value (column 0)");
        insta::assert_snapshot!(refusal(|lines| lines[1] = lines[1].replace("\"text\"", "\"note\"")), @"read line 2 of the questions: unknown field `note`, expected one of `id`, `text`, `options`, `answer` (column 56)");
        insta::assert_snapshot!(refusal(|lines| lines[0] = lines[0].replace("\"A\"", "\"E\"")), @"read line 1 of the questions: unknown variant `E`, expected one of `A`, `B`, `C`, `D` (column 126)");
        insta::assert_snapshot!(refusal(|lines| lines.retain(|line| !line.contains("\"val\""))), @"read the questions: subject anatomy has no val questions");
    }
}
