//! What a multiple-choice question is and how it is named. Main type: [`Question`].

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One of the four options of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Choice {
    /// The first option.
    A,
    /// The second option.
    B,
    /// The third option.
    C,
    /// The fourth option.
    D,
}

impl Choice {
    /// All four, in the order in which they are shown.
    pub const ALL: [Self; 4] = [Self::A, Self::B, Self::C, Self::D];

    /// The letter that names this option in a prompt.
    #[must_use]
    pub fn letter(self) -> char {
        match self {
            Self::A => 'A',
            Self::B => 'B',
            Self::C => 'C',
            Self::D => 'D',
        }
    }

    /// Position among the four, from 0.
    #[must_use]
    pub fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.letter())
    }
}

/// A text that should have been `A`, `B`, `C` or `D`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not one of A, B, C and D")]
pub struct NotAChoice(pub String);

impl FromStr for Choice {
    type Err = NotAChoice;

    fn from_str(text: &str) -> Result<Self, NotAChoice> {
        Self::ALL
            .into_iter()
            .find(|choice| text.len() == 1 && text.starts_with(choice.letter()))
            .ok_or_else(|| NotAChoice(text.to_owned()))
    }
}

/// Which part of the dataset a question belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// The few-shot examples.
    Dev,
    /// Held out for tuning; counted, never asked.
    Val,
    /// The questions that are asked.
    Test,
}

impl Split {
    /// All splits, in the order in which a dataset lists them.
    pub const ALL: [Self; 3] = [Self::Dev, Self::Val, Self::Test];

    /// The folder and file suffix that name the split in an archive.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Dev => "dev",
            Self::Val => "val",
            Self::Test => "test",
        }
    }
}

impl fmt::Display for Split {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// A subject's name as its files spell it: lower-case letters, digits and underscores.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub struct Subject(String);

/// A text that cannot name a subject.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a subject name (1 to 100 lower-case letters, digits and underscores)")]
pub struct NotASubject(pub String);

impl Subject {
    /// The name as spelled in files.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl TryFrom<String> for Subject {
    type Error = NotASubject;

    fn try_from(name: String) -> Result<Self, NotASubject> {
        let spelled = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        if (1..=100).contains(&name.len()) && name.bytes().all(spelled) {
            Ok(Self(name))
        } else {
            Err(NotASubject(name))
        }
    }
}

impl FromStr for Subject {
    type Err = NotASubject;

    fn from_str(name: &str) -> Result<Self, NotASubject> {
        Self::try_from(name.to_owned())
    }
}

impl From<Subject> for String {
    fn from(subject: Subject) -> Self {
        subject.0
    }
}

/// A question's identity: texts repeat in MMLU, places do not. Ordered by subject, split and row.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct QuestionId {
    /// The subject whose file holds the question.
    pub subject: Subject,
    /// The split whose file holds the question.
    pub split: Split,
    /// Record number in that file, from 1.
    pub row: u32,
}

impl fmt::Display for QuestionId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}/{}", self.subject, self.split, self.row)
    }
}

/// A multiple-choice question and its published answer, exactly as the dataset spells them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// Where it stands.
    pub id: QuestionId,
    /// The question's text; white space, quotes and line feeds as published.
    pub text: String,
    /// The four options, in order.
    pub options: [String; 4],
    /// The published answer.
    pub answer: Choice,
}
