//! Questions: where they come from and what they are.
//!
//! Owns the archive format and the questions file; leaves engines, outcomes and verdicts to others. Data moves from an
//! archive through [`extract()`] to a [`Dataset`].

mod answer;
mod archive;
mod collection;
mod extract;
mod extract_error;
#[cfg(test)]
mod extract_tests;
mod question;
mod questions_file;
mod read_ahead;
mod records;
#[cfg(test)]
mod refusal_tests;
#[cfg(test)]
mod testing;

pub use answer::parse_answer;
pub use collection::{Dataset, MissingSplit, NotASelection, SubjectQuestions, SubjectSelection};
pub use extract::{Limits, extract};
pub use extract_error::{Bound, ExtractError, Member, Near, RowProblem};
pub use question::{Choice, NotAChoice, NotASubject, Question, QuestionId, Split, Subject};
pub use questions_file::{LineProblem, ReadQuestionsError, read_questions, write_questions};
