//! What can be wrong with an archive, and what to do about it. Main type: [`ExtractError`].

use std::fmt;
use std::io;

use super::formats::Format;
use super::{MissingSplit, NotAChoice, NotASubject, Split, Subject};
use crate::thread::NoThread;

/// A member's path as the archive spells it; control characters are escaped when it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member(String);

impl Member {
    pub(crate) fn new(path: &[u8]) -> Self {
        Self(String::from_utf8_lossy(path).into_owned())
    }
}

impl fmt::Display for Member {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "`{}`", self.0.escape_debug())
    }
}

/// How far reading had come: the last member whose header was read, if any. A decoder fails some kilobytes early.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Near(pub Option<Member>);

impl fmt::Display for Near {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(member) => write!(formatter, "in or after member {member}"),
            None => formatter.write_str("near its start"),
        }
    }
}

/// What a field of [`Limits`](super::Limits) bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// Members of the archive.
    Members,
    /// Bytes of one member.
    MemberBytes,
    /// Decompressed bytes of the whole archive, read or ignored.
    ArchiveBytes,
    /// Bytes between two members: headers, long names and extended attributes.
    HeaderBytes,
    /// Questions in all splits.
    Questions,
    /// Bytes of text in all questions.
    TextBytes,
    /// Memory that decompressing takes.
    XzMemoryBytes,
}

impl fmt::Display for Bound {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Members => "members",
            Self::MemberBytes => "bytes in one member",
            Self::ArchiveBytes => "bytes once decompressed",
            Self::HeaderBytes => "bytes of headers before one member",
            Self::Questions => "questions",
            Self::TextBytes => "bytes of question text",
            Self::XzMemoryBytes => "bytes of memory to decompress",
        })
    }
}

/// What is wrong with one row of a CSV file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RowProblem {
    /// Not six columns; of a longer row, only the first seven are counted.
    #[error("{}{found} columns instead of 6", if *found > 6 { "at least " } else { "" })]
    Columns {
        /// How many there are.
        found: usize,
    },
    /// A field of no characters.
    #[error("column {column} is empty")]
    EmptyField {
        /// Which, from 1.
        column: usize,
    },
    /// A field that is not text.
    #[error("column {column} is not valid UTF-8")]
    NotUtf8 {
        /// Which, from 1.
        column: usize,
    },
    /// The whole file is no text in UTF-8, as its first bytes tell.
    #[error("the file is {}", .0.name)]
    NotText(Format),
    /// The fields are longer than allowed.
    #[error("more than {allowed} bytes")]
    TooLong {
        /// The limit for all fields together.
        allowed: usize,
    },
    /// The last column names no option.
    #[error("column 6: {0}")]
    Answer(NotAChoice),
}

/// Why an archive yields no dataset.
#[derive(Debug, thiserror::Error)]
pub enum ExtractError {
    /// The file could not be read.
    #[error("read the archive, {near}")]
    Read {
        /// Where.
        near: Near,
        /// The operating system's reason.
        source: io::Error,
    },
    /// The system refuses what decoding runs on.
    #[error("read the archive")]
    NoThread(#[source] NoThread),
    /// The file is of another kind.
    #[error(
        "read the archive: {what} is {}neither tar, tar.xz nor tar.gz (it starts with \"{start}\")",
        format.map(|format| format!("{}, and ", format.name)).unwrap_or_default()
    )]
    NotAnArchive {
        /// The file, or what it decompresses to.
        what: &'static str,
        /// Its first bytes, escaped.
        start: String,
        /// What it is, if that is known.
        format: Option<Format>,
    },
    /// The archive ends too early.
    #[error("read the archive to its end: it is cut off {near}")]
    Truncated {
        /// Where.
        near: Near,
    },
    /// The archive's bytes contradict themselves.
    #[error("read the archive: it is damaged {near}")]
    Damaged {
        /// Where.
        near: Near,
        /// What the decoder says.
        source: io::Error,
    },
    /// The compressed stream does not end where the archive in it does.
    #[error("read the archive to its end: past its last member, it is cut off or followed by something else")]
    BadEnd,
    /// Something follows the archive's end mark.
    #[error("read the archive: data follows its end mark, {near}")]
    TrailingData {
        /// Where.
        near: Near,
    },
    /// More than is allowed.
    #[error("read the archive within its limits: more than {allowed} {bound}, {near}")]
    LimitExceeded {
        /// What there is too much of.
        bound: Bound,
        /// How much is allowed.
        allowed: u64,
        /// Where.
        near: Near,
    },
    /// A path that leaves the archive's folder.
    #[error("accept archive member {member}: its path is absolute or holds `..`")]
    UnsafePath {
        /// The member.
        member: Member,
    },
    /// A member that is neither file nor folder.
    #[error("accept archive member {member}: it is {kind}")]
    SpecialMember {
        /// The member.
        member: Member,
        /// What it is, with its article.
        kind: &'static str,
        /// What to do about it.
        mend: &'static str,
    },
    /// A file among the tables that only its name keeps from being one.
    #[error("accept archive member {member}: it lies among the tables, and is not named like one")]
    Misnamed {
        /// The member.
        member: Member,
        /// What it would have to be called.
        wanted: String,
    },
    /// Tables in two folders.
    #[error("choose between the tables below {first} and {member}: they lie in two folders")]
    TwoFolders {
        /// The folder of the tables before.
        first: Member,
        /// A table of another.
        member: Member,
    },
    /// A file name that no subject can have.
    #[error("accept archive member {member}")]
    BadSubject {
        /// The member.
        member: Member,
        /// The name.
        source: NotASubject,
    },
    /// A second file for one subject and split.
    #[error("accept archive member {member}: the {split} questions of {subject} came before")]
    Duplicate {
        /// The second member.
        member: Member,
        /// Its subject.
        subject: Subject,
        /// Its split.
        split: Split,
    },
    /// An ill-formed row.
    #[error("read {member}, row {row}: {problem}")]
    Row {
        /// The CSV file.
        member: Member,
        /// Record number, from 1; blank lines do not count.
        row: u32,
        /// What is wrong with it.
        problem: RowProblem,
    },
    /// A subject lacks a split, or has it without a row.
    #[error("complete the dataset: {0}")]
    MissingSplit(MissingSplit),
    /// Nothing to read.
    #[error("find a question: no member is named like `data/test/anatomy_test.csv`")]
    NoSubjects,
}

impl ExtractError {
    /// What to do next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Read { .. } => "check that the path is a file which this user may read, then run again",
            Self::NoThread(refused) => return Some(refused.hint()),
            Self::NotAnArchive { format: Some(format), .. } => {
                return Some(format!(
                    "{}, and give the archive itself: `data.tar`, `.tar.xz` or `.tar.gz`",
                    format.mend
                ));
            }
            Self::NotAnArchive { format: None, .. } => {
                "give the archive itself (`data.tar`, `.tar.xz` or `.tar.gz`), not a zip or a saved web page; or the folder that it was made of"
            }
            Self::Truncated { .. } | Self::Damaged { .. } => {
                "download the archive again and compare its SHA-256 with the published one"
            }
            Self::BadEnd => {
                "download the archive again and compare its SHA-256 with the published one; nothing may be appended to it"
            }
            Self::TrailingData { .. } => {
                "give one archive, not several joined into one file; `tar -tf FILE` shows what tar reads of it"
            }
            Self::LimitExceeded { bound: Bound::XzMemoryBytes, .. } => {
                "compress it again with a smaller dictionary, for instance with `xz -6`"
            }
            Self::LimitExceeded { bound: Bound::HeaderBytes, .. } => {
                "pack it again without extended attributes: `tar --no-xattrs --no-acls --no-selinux -cf data.tar data`"
            }
            Self::LimitExceeded { .. } => {
                "if you trust the archive, repack it with only the folders `dev`, `val` and `test`"
            }
            Self::UnsafePath { .. } => {
                "do not trust this archive; if it is yours, pack it again from the folder above `data`: `tar -cf data.tar data`"
            }
            Self::SpecialMember { mend, .. } => mend,
            Self::Misnamed { wanted, .. } => {
                return Some(format!(
                    "rename it to `{wanted}`, decompressed and with commas between its columns, or move it out of that folder"
                ));
            }
            Self::TwoFolders { .. } => "pack only the folder that is meant: `tar -cf data.tar data`",
            Self::BadSubject { .. } => {
                "rename the file to `<subject>_<split>.csv`, or move it out of the split's folder"
            }
            Self::Duplicate { .. } => {
                "keep one of the two files; `tar --append` leaves both, so pack the archive anew"
            }
            Self::Row { problem, .. } => match problem {
                RowProblem::Columns { .. } => {
                    "a row is `question,A,B,C,D,answer`; a field with a comma, quote or line end stands in double quotes"
                }
                RowProblem::EmptyField { column: 6 } => {
                    "the last column holds the letter of the right option: A, B, C or D"
                }
                RowProblem::EmptyField { .. } => {
                    "a question and its options need text; write `None` for none"
                }
                RowProblem::NotUtf8 { .. } => {
                    "convert the file to UTF-8: `iconv -f latin1 -t utf-8 FILE > NEW`, if it is of Western Europe; `file -i FILE` guesses"
                }
                RowProblem::NotText(format) => format.mend,
                RowProblem::TooLong { .. } => {
                    "look for a double quote that is never closed on or before this row"
                }
                RowProblem::Answer(_) => {
                    "the last column holds the letter of the right option; a header line is not expected"
                }
            },
            Self::MissingSplit(MissingSplit { subject, split }) => {
                return Some(format!(
                    "add `data/{split}/{subject}_{split}.csv` with at least one row, or remove the subject"
                ));
            }
            Self::NoSubjects => {
                "the archive must hold `<folder>/{dev,val,test}/<subject>_<split>.csv`; `tar -tf FILE` shows what it holds"
            }
        };
        Some(hint.to_owned())
    }
}
