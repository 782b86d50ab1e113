//! The text around a question. Main type: [`PromptTemplate`].
//!
//! A prompt is the header, the few-shot examples and the question, one after the other.

use std::fmt::Write;

use super::{Question, Subject};

/// The text around a question, by its name and version. It is a fixed contract, since prompts are compared across releases: whoever
/// changes the text changes the name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PromptTemplate {
    /// `single-letter/1`.
    SingleLetter,
}

impl PromptTemplate {
    /// The built-in template, `single-letter/1`.
    #[must_use]
    pub fn single_letter() -> Self {
        Self::SingleLetter
    }

    /// What the template is called.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::SingleLetter => "single-letter/1",
        }
    }

    pub(super) fn push_header(self, prompt: &mut String, subject: &Subject) {
        let subject = subject.as_str().replace('_', " ");
        let written = match self {
            Self::SingleLetter => {
                write!(
                    prompt,
                    "Each question below is about {subject}. Reply with one letter: A, B, C or D.\n\n"
                )
            }
        };
        written.expect("a string can be written to");
    }

    pub(super) fn push_example(self, prompt: &mut String, example: &Question) {
        self.push_question(prompt, example);
        write!(prompt, " {}\n\n", example.answer).expect("a string can be written to");
    }

    /// It does not end in white space, since the answer's token brings its own.
    pub(super) fn push_question(self, prompt: &mut String, question: &Question) {
        let (text, [a, b, c, d]) = (&question.text, &question.options);
        let written = match self {
            Self::SingleLetter => write!(prompt, "{text}\nA. {a}\nB. {b}\nC. {c}\nD. {d}\nAnswer:"),
        };
        written.expect("a string can be written to");
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::dataset;
    use super::*;

    #[test]
    fn the_built_in_template_reads_as_agreed() {
        let dataset = dataset(&["high_school_law"]);
        let (subject, questions) = dataset.subjects.first_key_value().unwrap();
        let template = PromptTemplate::single_letter();
        let mut prompt = String::new();
        template.push_header(&mut prompt, subject);
        template.push_example(&mut prompt, &questions.dev[1]);
        template.push_question(&mut prompt, &questions.test[0]);
        insta::assert_snapshot!(prompt, @r"
        Each question below is about high school law. Reply with one letter: A, B, C or D.

        high_school_law/dev/2 ?
        A. one
        B. two
        C. three
        D. four
        Answer: B

        high_school_law/test/1 ?
        A. one
        B. two
        C. three
        D. four
        Answer:
        ");
        assert_eq!(template.name(), "single-letter/1");
    }
}
