//! Questions: where they come from, what they are, the prompts made of them, and how an answer is read.
//!
//! Owns the archive format, the questions file, the prompt template and the tokenizer; leaves engines, outcomes and
//! verdicts to others. Data moves from an archive through [`extract()`] to a [`Dataset`], and from there through a
//! [`Prompter`] to one [`Prompt`] a question.

mod answer;
mod archive;
mod collection;
mod extract;
mod extract_error;
#[cfg(test)]
mod extract_tests;
mod formats;
mod limits;
mod place;
mod prompt;
mod questions_file;
#[cfg(test)]
mod quirk_tests;
mod read_ahead;
mod records;
#[cfg(test)]
mod refusal_tests;
mod shard;
mod template;
#[cfg(test)]
mod testing;
mod tokenizer;

pub use crate::model::{Choice, NotAChoice, NotASubject, Question, QuestionId, Split, Subject};
pub use answer::parse_answer;
pub use collection::{Dataset, MissingSplit, NotASelection, Selection, SubjectQuestions, SubjectSelection};
pub use extract::{extract, extract_with_rest};
pub use extract_error::{Bound, ExtractError, Member, Near, RowProblem};
pub use formats::Format;
pub use limits::Limits;
pub use place::LeftOut;
pub(crate) use place::is_like_table;
pub use prompt::{Prompt, PromptError, PromptLimits, Prompter};
pub use questions_file::{LineProblem, ReadQuestionsError, read_questions, write_questions};
pub use shard::{NotAShard, Shard};
pub use template::PromptTemplate;
pub use tokenizer::{Tokenizer, TokenizerError};
