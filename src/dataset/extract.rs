//! From an archive to a dataset in one pass. Main function: [`extract`].
//!
//! Only `<folder>/{dev,val,test}/<subject>_<split>.csv` is read, whatever the folder's name. Nothing is written to disk,
//! and memory is bounded by [`Limits`], not by the archive.

use std::collections::BTreeMap;
use std::io::Read;

use super::archive::{VisitError, read_members};
use super::extract_error::{Bound, ExtractError, Member, Near};
use super::limits::Limits;
use super::records::{COLUMNS, RecordError, Records};
use super::{Choice, Dataset, NotASubject, Question, QuestionId, RowProblem, Split, Subject};

/// Reads every question of a `.tar`, `.tar.xz` or `.tar.gz`, told apart by their content.
///
/// # Errors
/// When the archive cannot be read, holds a dangerous member or an ill-formed row, lacks a split, or exceeds `limits`.
/// Nothing of a refused archive is returned.
pub fn extract(source: impl Read + Send, limits: &Limits) -> Result<Dataset, ExtractError> {
    let mut collector = Collector {
        records: Records::new(limits.row_bytes),
        budget: Budget { limits, questions: 0, text_bytes: 0 },
        splits: BTreeMap::new(),
    };
    read_members(source, limits, |path, content| {
        let member = Member::new(path);
        match place(path) {
            None => Ok(()),
            Some(Ok((subject, split))) => collector.read_split(&member, subject, split, content),
            Some(Err(source)) => Err(VisitError::Refused(ExtractError::BadSubject { member, source })),
        }
    })?;
    if collector.splits.is_empty() {
        return Err(ExtractError::NoSubjects);
    }
    Dataset::from_splits(collector.splits).map_err(ExtractError::MissingSplit)
}

struct Collector<'a> {
    records: Records,
    budget: Budget<'a>,
    splits: BTreeMap<(Subject, Split), Vec<Question>>,
}

impl Collector<'_> {
    fn read_split(
        &mut self,
        member: &Member,
        subject: Subject,
        split: Split,
        content: &mut dyn Read,
    ) -> Result<(), VisitError> {
        let explain = |error| match error {
            RecordError::Read(error) => VisitError::Read(error),
            RecordError::Row { row, problem } => {
                VisitError::Refused(ExtractError::Row { member: member.clone(), row, problem })
            }
        };
        if self.splits.contains_key(&(subject.clone(), split)) {
            let member = member.clone();
            return Err(VisitError::Refused(ExtractError::Duplicate { member, subject, split }));
        }
        let mut questions = Vec::new();
        self.records.begin_file();
        while let Some((row, fields)) = self.records.next(content).map_err(explain)? {
            self.budget.spend(member, &fields).map_err(VisitError::Refused)?;
            let id = QuestionId { subject: subject.clone(), split, row };
            let question =
                question(id, fields).map_err(|problem| explain(RecordError::Row { row, problem }))?;
            questions.push(question);
        }
        self.splits.insert((subject, split), questions);
        Ok(())
    }
}

/// What has been kept so far.
struct Budget<'a> {
    limits: &'a Limits,
    questions: u64,
    text_bytes: u64,
}

impl Budget<'_> {
    fn spend(&mut self, member: &Member, fields: &[&str; COLUMNS]) -> Result<(), ExtractError> {
        self.questions += 1;
        self.text_bytes += fields.iter().map(|field| field.len() as u64).sum::<u64>();
        let exceeded = |bound| Err(self.limits.exceeded(bound, Near(Some(member.clone()))));
        if self.questions > self.limits.questions {
            exceeded(Bound::Questions)
        } else if self.text_bytes > self.limits.text_bytes {
            exceeded(Bound::TextBytes)
        } else {
            Ok(())
        }
    }
}

fn question(id: QuestionId, fields: [&str; COLUMNS]) -> Result<Question, RowProblem> {
    let [text, a, b, c, d, answer] = fields;
    let answer: Choice = answer.parse().map_err(RowProblem::Answer)?;
    Ok(Question { id, text: text.to_owned(), options: [a, b, c, d].map(str::to_owned), answer })
}

/// Which questions a member holds, if any.
fn place(path: &[u8]) -> Option<Result<(Subject, Split), NotASubject>> {
    let path = str::from_utf8(path).ok()?;
    let mut components = path.split('/').filter(|component| !matches!(*component, "" | "."));
    let (_folder, split, file) = (components.next()?, components.next()?, components.next()?);
    if components.next().is_some() {
        return None;
    }
    let split = Split::ALL.into_iter().find(|known| known.name() == split)?;
    let name = file.strip_suffix(".csv")?.strip_suffix(split.name())?.strip_suffix('_')?;
    // macOS packs `._<file>` beside each file that has extended attributes.
    if name.starts_with('.') {
        return None;
    }
    Some(name.parse().map(|subject| (subject, split)))
}
