//! From an archive to a dataset in one pass. Main function: [`extract`].
//!
//! Only `<folder>/{dev,val,test}/<subject>_<split>.csv` is read, whatever the folder's name and however deep it lies, and
//! only of one folder. What else lies among the tables and looks like one is refused; what lies elsewhere is told.
//! Nothing is written to disk, and memory is bounded by [`Limits`], not by the archive.

use std::collections::BTreeMap;
use std::io::Read;

use super::archive::{VisitError, read_members};
use super::extract_error::{Bound, ExtractError, Member, Near};
use super::limits::Limits;
use super::place::{LeftOut, Place, place};
use super::records::{COLUMNS, RecordError, Records};
use super::{Choice, Dataset, Question, QuestionId, RowProblem, Split, Subject};

/// Reads every question of a `.tar`, `.tar.xz` or `.tar.gz`, told apart by their content.
///
/// # Errors
/// When the archive cannot be read, holds a dangerous member, an ill-formed row, a table under another name or tables in
/// two folders, lacks a split, or exceeds `limits`. Nothing of a refused archive is returned.
pub fn extract(source: impl Read + Send, limits: &Limits) -> Result<Dataset, ExtractError> {
    extract_with_rest(source, limits).map(|(dataset, _)| dataset)
}

/// The same, and which files hold no question.
///
/// # Errors
/// As [`extract`].
pub fn extract_with_rest(
    source: impl Read + Send,
    limits: &Limits,
) -> Result<(Dataset, LeftOut), ExtractError> {
    let mut collector = Collector {
        records: Records::new(limits.row_bytes),
        budget: Budget { limits, questions: 0, text_bytes: 0 },
        folder: None,
        splits: BTreeMap::new(),
    };
    let mut left_out = LeftOut::default();
    read_members(source, limits, |path, content| {
        let member = Member::new(path);
        match place(path) {
            Place::Litter => Ok(()),
            Place::Elsewhere => {
                left_out.add(&member);
                Ok(())
            }
            Place::Table(folder, subject, split) => {
                collector.enter(&member, folder).map_err(VisitError::Refused)?;
                collector.read_split(&member, subject, split, content)
            }
            Place::BadSubject(source) => {
                Err(VisitError::Refused(ExtractError::BadSubject { member, source }))
            }
            Place::Misnamed { wanted } => Err(VisitError::Refused(ExtractError::Misnamed { member, wanted })),
        }
    })?;
    if collector.splits.is_empty() {
        return Err(ExtractError::NoSubjects);
    }
    let dataset = Dataset::from_splits(collector.splits).map_err(ExtractError::MissingSplit)?;
    Ok((dataset, left_out))
}

struct Collector<'a> {
    records: Records,
    budget: Budget<'a>,
    /// The one whose splits are read.
    folder: Option<String>,
    splits: BTreeMap<(Subject, Split), Vec<Question>>,
}

impl Collector<'_> {
    fn enter(&mut self, member: &Member, folder: String) -> Result<(), ExtractError> {
        match &self.folder {
            Some(first) if *first != folder => {
                let first = Member::new(first.as_bytes());
                Err(ExtractError::TwoFolders { first, member: member.clone() })
            }
            _ => {
                self.folder = Some(folder);
                Ok(())
            }
        }
    }

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
