//! All questions of a dataset, by subject and split. Main type: [`Dataset`].

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroUsize;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de};

use super::{Question, Split, Subject};

/// Every question of a dataset. Each subject has all three splits, each with at least one question, in row order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dataset {
    /// The subjects, by name.
    pub subjects: BTreeMap<Subject, SubjectQuestions>,
}

/// The questions of one subject, each split in row order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubjectQuestions {
    /// The few-shot examples.
    pub dev: Vec<Question>,
    /// Never asked; kept so that what was extracted can be compared row by row.
    pub val: Vec<Question>,
    /// The questions that are asked.
    pub test: Vec<Question>,
}

/// A subject without the questions of one split.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("subject {subject} has no {split} questions")]
pub struct MissingSplit {
    /// The subject.
    pub subject: Subject,
    /// What it lacks.
    pub split: Split,
}

impl SubjectQuestions {
    /// The questions of one split.
    #[must_use]
    pub fn split(&self, split: Split) -> &[Question] {
        match split {
            Split::Dev => &self.dev,
            Split::Val => &self.val,
            Split::Test => &self.test,
        }
    }
}

impl Dataset {
    /// Groups splits into subjects.
    ///
    /// # Errors
    /// When a subject lacks a split, or has one without a question.
    pub(super) fn from_splits(
        mut splits: BTreeMap<(Subject, Split), Vec<Question>>,
    ) -> Result<Self, MissingSplit> {
        let mut subjects = BTreeMap::new();
        while let Some(((subject, _), _)) = splits.first_key_value() {
            let subject = subject.clone();
            let mut take = |split| {
                splits
                    .remove(&(subject.clone(), split))
                    .filter(|questions| !questions.is_empty())
                    .ok_or_else(|| MissingSplit { subject: subject.clone(), split })
            };
            let questions =
                SubjectQuestions { dev: take(Split::Dev)?, val: take(Split::Val)?, test: take(Split::Test)? };
            subjects.insert(subject, questions);
        }
        Ok(Self { subjects })
    }

    /// Every question, in the order of its id.
    pub fn questions(&self) -> impl Iterator<Item = &Question> {
        self.subjects
            .values()
            .flat_map(|questions| Split::ALL.into_iter().flat_map(|split| questions.split(split)))
    }

    /// How many questions a split has in all subjects.
    #[must_use]
    pub fn count(&self, split: Split) -> usize {
        self.subjects.values().map(|questions| questions.split(split).len()).sum()
    }

    /// The selected subjects, by name, each with those of its questions that are asked.
    pub fn select(
        &self,
        selection: Selection,
    ) -> impl Iterator<Item = (&Subject, &SubjectQuestions, &[Question])> {
        let subjects = match selection.subjects {
            SubjectSelection::All => usize::MAX,
            SubjectSelection::First(count) => count.get(),
        };
        let most = selection.questions.map_or(usize::MAX, NonZeroUsize::get);
        let asked = move |questions: &SubjectQuestions| questions.test.len().min(most);
        self.subjects
            .iter()
            .take(subjects)
            .map(move |(subject, questions)| (subject, questions, &questions.test[..asked(questions)]))
    }
}

/// Which questions of a dataset are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Selection {
    /// Of which subjects.
    pub subjects: SubjectSelection,
    /// At most so many of each, the first by row; all where none is named.
    pub questions: Option<NonZeroUsize>,
}

impl Selection {
    /// Every question.
    pub const ALL: Self = Self { subjects: SubjectSelection::All, questions: None };
}

/// Which subjects of a dataset take part. Written as `all` or as a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub enum SubjectSelection {
    /// Every subject.
    All,
    /// The first so many by name, or every subject if there are fewer.
    First(NonZeroUsize),
}

/// A text that selects no subjects.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither `all` nor a number of subjects from 1")]
pub struct NotASelection(pub String);

impl FromStr for SubjectSelection {
    type Err = NotASelection;

    fn from_str(text: &str) -> Result<Self, NotASelection> {
        match text {
            "all" => Ok(Self::All),
            number => number.parse().map(Self::First).map_err(|_| NotASelection(text.to_owned())),
        }
    }
}

/// Takes `2` as well as `"2"`; what is written is the latter.
impl<'de> Deserialize<'de> for SubjectSelection {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Selection;

        impl de::Visitor<'_> for Selection {
            type Value = SubjectSelection;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("`\"all\"` or a number of subjects from 1")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<SubjectSelection, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<SubjectSelection, E> {
                self.visit_str(&number.to_string())
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<SubjectSelection, E> {
                self.visit_str(&number.to_string())
            }
        }

        deserializer.deserialize_any(Selection)
    }
}

impl From<SubjectSelection> for String {
    fn from(selection: SubjectSelection) -> Self {
        selection.to_string()
    }
}

impl fmt::Display for SubjectSelection {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => formatter.write_str("all"),
            Self::First(count) => write!(formatter, "{count}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::dataset;
    use super::*;

    #[test]
    fn the_first_subjects_are_chosen_by_name() {
        let dataset = dataset(&["virology", "anatomy", "law"]);
        let names = |selection: &str| -> Vec<&str> {
            let selection = Selection { subjects: selection.parse().unwrap(), ..Selection::ALL };
            dataset.select(selection).map(|(subject, ..)| subject.as_str()).collect()
        };
        assert_eq!(names("2"), ["anatomy", "law"]);
        assert_eq!(names("9"), ["anatomy", "law", "virology"]);
        assert_eq!(names("all"), ["anatomy", "law", "virology"]);
    }

    #[test]
    fn of_each_subject_the_first_questions_by_row_are_chosen() {
        let dataset = dataset(&["anatomy", "law"]);
        let chosen = |questions| -> Vec<String> {
            let selection = Selection { questions: NonZeroUsize::new(questions), ..Selection::ALL };
            let asked = dataset.select(selection).flat_map(|(_, _, asked)| asked);
            asked.map(|question| question.id.to_string()).collect()
        };
        assert_eq!(chosen(1), ["anatomy/test/1", "law/test/1"]);
        let all = ["anatomy/test/1", "anatomy/test/2", "law/test/1", "law/test/2"];
        assert_eq!(
            (chosen(2), chosen(9), chosen(0)),
            (
                all.map(str::to_owned).to_vec(),
                all.map(str::to_owned).to_vec(),
                all.map(str::to_owned).to_vec()
            )
        );
    }

    #[test]
    fn a_selection_in_a_file_is_a_text_or_a_number_and_is_written_as_a_text() {
        let read =
            |json: &str| serde_json::from_str::<SubjectSelection>(json).map_err(|error| error.to_string());
        for json in ["2", "\"2\""] {
            assert_eq!(serde_json::to_string(&read(json).unwrap()).unwrap(), "\"2\"");
        }
        assert_eq!(read("\"all\""), Ok(SubjectSelection::All));
        assert!(read("0").unwrap_err().contains("\"0\" is neither `all` nor a number of subjects from 1"));
        assert!(read("-1").is_err() && read("1.5").is_err() && read("true").is_err());
        let toml: BTreeMap<String, SubjectSelection> = toml::from_str("subjects = 2").unwrap();
        assert_eq!(toml["subjects"].to_string(), "2");
    }

    #[test]
    fn a_selection_is_all_or_a_number_from_one() {
        for text in ["all", "1", "57"] {
            assert_eq!(text.parse::<SubjectSelection>().unwrap().to_string(), text);
        }
        for text in ["", "0", "-1", "1.5", "ALL", "anatomy"] {
            assert_eq!(text.parse::<SubjectSelection>(), Err(NotASelection(text.to_owned())));
        }
    }
}
