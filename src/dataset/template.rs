//! The text around a question: a named template with placeholders, checked when it is parsed. Main type:
//! [`PromptTemplate`].
//!
//! A prompt is the header, the few-shot examples and the question, one after the other. `{{` and `}}` stand for braces.

use serde::{Deserialize, Serialize};

use super::{Question, Subject};

/// A template as a suite spells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TemplateText {
    /// What it is called, with its version: `single-letter/1`. Whoever changes the text changes the name.
    pub name: String,
    /// The start of every prompt of a subject; holds `{subject}`.
    pub header: String,
    /// One few-shot example; holds `{question}`, `{a}`, `{b}`, `{c}`, `{d}` and `{letter}`.
    pub example: String,
    /// The question that is asked; holds `{question}`, `{a}`, `{b}`, `{c}` and `{d}`, and does not end in white space.
    pub question: String,
}

/// A template whose placeholders are known and complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "TemplateText", into = "TemplateText")]
pub struct PromptTemplate {
    text: TemplateText,
    header: Pattern<1>,
    example: Pattern<6>,
    question: Pattern<5>,
}

/// A template that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("parse the prompt template {name:?}: {problem}")]
pub struct TemplateError {
    /// The template's name.
    pub name: String,
    /// What is wrong with it.
    pub problem: TemplateProblem,
}

/// What is wrong with a template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateProblem {
    /// The name has no version, or characters that it must not have.
    #[error("its name is not lower-case words and a version")]
    Name,
    /// A placeholder that does not exist, or not in this part.
    #[error("the {part} holds {{{placeholder}}}, which it cannot fill")]
    Unknown {
        /// Header, example or question.
        part: &'static str,
        /// The name between the braces.
        placeholder: String,
    },
    /// A placeholder that this part needs.
    #[error("the {part} lacks {{{placeholder}}}")]
    Missing {
        /// Header, example or question.
        part: &'static str,
        /// The name between the braces.
        placeholder: &'static str,
    },
    /// A brace without its partner.
    #[error("the {0} has a brace that opens or closes nothing")]
    Brace(&'static str),
    /// White space after the question would stand where the letter's own begins.
    #[error("the question ends in white space")]
    TrailingSpace,
}

impl TemplateError {
    /// What to do next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let hint = match &self.problem {
            TemplateProblem::Name => "name it like `single-letter/1`",
            TemplateProblem::Unknown { part: "header", .. }
            | TemplateProblem::Missing { part: "header", .. } => "a header is filled with {subject}",
            TemplateProblem::Unknown { .. } | TemplateProblem::Missing { .. } => {
                "an example is filled with {question}, {a}, {b}, {c}, {d} and {letter}, a question with all but {letter}"
            }
            TemplateProblem::Brace(_) => "write {{ and }} for braces that are part of the text",
            TemplateProblem::TrailingSpace => {
                "end it with `Answer:`; the answer's token brings its own space"
            }
        };
        Some(hint.to_owned())
    }
}

impl PromptTemplate {
    /// The built-in template, `single-letter/1`. Its text is a fixed contract: prompts are compared across releases.
    #[must_use]
    #[expect(clippy::missing_panics_doc, reason = "a test parses this very text")]
    pub fn single_letter() -> Self {
        let question = "{question}\nA. {a}\nB. {b}\nC. {c}\nD. {d}\nAnswer:";
        let text = TemplateText {
            name: "single-letter/1".to_owned(),
            header: "Each question below is about {subject}. Reply with one letter: A, B, C or D.\n\n"
                .to_owned(),
            example: format!("{question} {{letter}}\n\n"),
            question: question.to_owned(),
        };
        Self::try_from(text).expect("the built-in template is sound")
    }

    /// What the template is called.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.text.name
    }

    pub(super) fn push_header(&self, prompt: &mut String, subject: &Subject) {
        self.header.push(prompt, [&subject.as_str().replace('_', " ")]);
    }

    pub(super) fn push_example(&self, prompt: &mut String, example: &Question) {
        let [a, b, c, d] = &example.options;
        self.example.push(prompt, [&example.text, a, b, c, d, &example.answer.to_string()]);
    }

    pub(super) fn push_question(&self, prompt: &mut String, question: &Question) {
        let [a, b, c, d] = &question.options;
        self.question.push(prompt, [&question.text, a, b, c, d]);
    }
}

impl TryFrom<TemplateText> for PromptTemplate {
    type Error = TemplateError;

    fn try_from(text: TemplateText) -> Result<Self, TemplateError> {
        let refuse = |problem| TemplateError { name: text.name.clone(), problem };
        if !is_versioned_name(&text.name) {
            return Err(refuse(TemplateProblem::Name));
        }
        if text.question.ends_with(char::is_whitespace) {
            return Err(refuse(TemplateProblem::TrailingSpace));
        }
        let header = Pattern::parse("header", &text.header, ["subject"]).map_err(refuse)?;
        let example = Pattern::parse("example", &text.example, ["question", "a", "b", "c", "d", "letter"]);
        let question = Pattern::parse("question", &text.question, ["question", "a", "b", "c", "d"]);
        Ok(Self { header, example: example.map_err(refuse)?, question: question.map_err(refuse)?, text })
    }
}

impl From<PromptTemplate> for TemplateText {
    fn from(template: PromptTemplate) -> Self {
        template.text
    }
}

fn is_versioned_name(name: &str) -> bool {
    name.split_once('/').is_some_and(|(words, version)| {
        !words.is_empty()
            && words.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
            && version.parse::<u32>().is_ok()
    })
}

/// A text with `N` placeholders, each used at least once.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern<const N: usize>(Vec<Piece>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Literal(String),
    /// The position of the value to put here.
    Value(usize),
}

impl<const N: usize> Pattern<N> {
    fn parse(part: &'static str, text: &str, names: [&'static str; N]) -> Result<Self, TemplateProblem> {
        let mut pieces = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(brace) = rest.find(['{', '}']) {
            literal.push_str(&rest[..brace]);
            rest = &rest[brace..];
            if rest.starts_with("{{") || rest.starts_with("}}") {
                literal.push_str(&rest[..1]);
                rest = &rest[2..];
                continue;
            }
            let (name, after) = rest
                .strip_prefix('{')
                .and_then(|inside| inside.split_once('}'))
                .ok_or(TemplateProblem::Brace(part))?;
            let value = names
                .iter()
                .position(|known| *known == name)
                .ok_or_else(|| TemplateProblem::Unknown { part, placeholder: name.to_owned() })?;
            pieces.push(Piece::Literal(std::mem::take(&mut literal)));
            pieces.push(Piece::Value(value));
            rest = after;
        }
        literal.push_str(rest);
        pieces.push(Piece::Literal(literal));
        for (value, placeholder) in names.into_iter().enumerate() {
            if !pieces.contains(&Piece::Value(value)) {
                return Err(TemplateProblem::Missing { part, placeholder });
            }
        }
        Ok(Self(pieces))
    }

    fn push(&self, prompt: &mut String, values: [&str; N]) {
        for piece in &self.0 {
            prompt.push_str(match piece {
                Piece::Literal(text) => text,
                Piece::Value(value) => values[*value],
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::dataset;
    use super::*;

    fn edited(edit: impl FnOnce(&mut TemplateText)) -> Result<PromptTemplate, TemplateError> {
        let mut text = TemplateText::from(PromptTemplate::single_letter());
        edit(&mut text);
        text.try_into()
    }

    fn refusal(edit: impl FnOnce(&mut TemplateText)) -> String {
        let error = edited(edit).unwrap_err();
        format!("{error}\nhint: {}", error.hint().unwrap())
    }

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

    #[test]
    fn values_are_not_parsed_and_braces_can_be_written() {
        let template = edited(|text| text.header = "{{{subject}}} {subject}".to_owned()).unwrap();
        let mut prompt = String::new();
        template.push_header(&mut prompt, &"law".parse().unwrap());
        assert_eq!(prompt, "{law} law");
        let pattern = Pattern::parse("header", "{subject}", ["subject"]).unwrap();
        pattern.push(&mut prompt, ["{subject}"]);
        assert_eq!(prompt, "{law} law{subject}");
    }

    #[test]
    fn a_template_survives_serialisation_and_an_unknown_field_does_not() {
        let template = PromptTemplate::single_letter();
        let json = serde_json::to_string(&template).unwrap();
        assert_eq!(serde_json::from_str::<PromptTemplate>(&json).unwrap(), template);
        let unknown = json.replacen('{', r#"{"footer":"","#, 1);
        assert!(serde_json::from_str::<PromptTemplate>(&unknown).unwrap_err().to_string().contains("footer"));
    }

    #[test]
    fn unsound_templates_are_refused() {
        insta::assert_snapshot!(refusal(|text| text.header.push_str("{topic}")), @r#"
        parse the prompt template "single-letter/1": the header holds {topic}, which it cannot fill
        hint: a header is filled with {subject}
        "#);
        insta::assert_snapshot!(refusal(|text| text.header.clear()), @r#"
        parse the prompt template "single-letter/1": the header lacks {subject}
        hint: a header is filled with {subject}
        "#);
        insta::assert_snapshot!(refusal(|text| text.question = text.question.replace("{c}", "")), @r#"
        parse the prompt template "single-letter/1": the question lacks {c}
        hint: an example is filled with {question}, {a}, {b}, {c}, {d} and {letter}, a question with all but {letter}
        "#);
        insta::assert_snapshot!(refusal(|text| text.question.insert_str(0, "{letter}")), @r#"
        parse the prompt template "single-letter/1": the question holds {letter}, which it cannot fill
        hint: an example is filled with {question}, {a}, {b}, {c}, {d} and {letter}, a question with all but {letter}
        "#);
        insta::assert_snapshot!(refusal(|text| text.example.push('{')), @r#"
        parse the prompt template "single-letter/1": the example has a brace that opens or closes nothing
        hint: write {{ and }} for braces that are part of the text
        "#);
        insta::assert_snapshot!(refusal(|text| text.example.push('}')), @r#"
        parse the prompt template "single-letter/1": the example has a brace that opens or closes nothing
        hint: write {{ and }} for braces that are part of the text
        "#);
        insta::assert_snapshot!(refusal(|text| text.question.push(' ')), @r#"
        parse the prompt template "single-letter/1": the question ends in white space
        hint: end it with `Answer:`; the answer's token brings its own space
        "#);
        insta::assert_snapshot!(refusal(|text| text.name = "Mine".to_owned()), @r#"
        parse the prompt template "Mine": its name is not lower-case words and a version
        hint: name it like `single-letter/1`
        "#);
    }
}
