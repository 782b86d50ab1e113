//! Questions: where they come from, what they are, and the prompts made of them.
//!
//! Owns the archive format and the prompt template; leaves engines, answers and verdicts to others.

mod question;

pub use question::{Choice, NotAChoice, NotASubject, Question, QuestionId, Split, Subject};
