//! Prompts as token ids, one question at a time. Main type: [`Prompter`].
//!
//! Each prompt is tokenized exactly once and whole, so every arm of a run is given the same ids.

use std::num::NonZeroUsize;
use std::thread;

use serde::{Deserialize, Serialize};

use super::{Dataset, PromptTemplate, Question, QuestionId, Selection, Subject, SubjectQuestions, Tokenizer};

/// What an engine is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prompt {
    /// The question.
    pub question: QuestionId,
    /// How many few-shot examples stand before it.
    pub examples: u32,
    /// The whole prompt, special tokens included.
    pub token_ids: Vec<u32>,
}

impl Prompt {
    /// Whether it is whole chunks of so many tokens and nothing else.
    #[must_use]
    pub fn is_whole_chunks(&self, chunk_tokens: u32) -> bool {
        !self.token_ids.is_empty()
            && usize::try_from(chunk_tokens).is_ok_and(|chunk| self.token_ids.len().is_multiple_of(chunk))
    }
}

/// How long prompts may be, in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromptLimits {
    /// Examples are added in row order until header and examples have more tokens than this; the one that passes the
    /// limit stays.
    pub example_tokens: u32,
    /// The most that a whole prompt may have: the model's length less what is generated. Examples are dropped from the
    /// end, question by question, until the prompt fits.
    pub prompt_tokens: u32,
}

/// Why a question has no prompt.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PromptError {
    /// Not even the question alone fits.
    #[error(
        "fit question {question} into a prompt: without examples it has {tokens} tokens, {allowed} are allowed"
    )]
    TooLong {
        /// The question.
        question: QuestionId,
        /// Tokens of the prompt without examples.
        tokens: usize,
        /// The limit.
        allowed: u32,
    },
    /// The tokenizer failed.
    #[error("tokenize question {question}: {reason}")]
    Encode {
        /// The question, or the example.
        question: QuestionId,
        /// What the tokenizer says.
        reason: String,
    },
}

impl PromptError {
    /// What to do next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::TooLong { .. } => {
                "raise the model's length in the suite, or choose subjects with shorter questions"
            }
            Self::Encode { .. } => "check that `tokenizer.json` belongs to the model; fetch it again",
        };
        Some(hint.to_owned())
    }
}

/// Questions whose prompts are held at once: enough for all threads, and a few megabytes of tokens at most.
const BATCH: usize = 256;

/// Each thread's allocations stay with the process; so many keep it small, and are fast enough.
const MOST_THREADS: usize = 8;

/// Makes prompts out of questions.
#[derive(Debug, Clone, Copy)]
pub struct Prompter<'a> {
    /// The text around questions.
    pub template: &'a PromptTemplate,
    /// The model's tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// How long prompts may be.
    pub limits: PromptLimits,
}

/// The start that all prompts of a subject share: the header, then examples.
struct Shared {
    text: String,
    /// Numbers of examples, from 0, and where the text with so many ends.
    ends: Vec<(u32, usize)>,
}

impl<'a> Prompter<'a> {
    /// One prompt for each question that is selected, in the order of their ids, made as it is asked for.
    pub fn prompts(
        self,
        dataset: &'a Dataset,
        selection: Selection,
    ) -> impl Iterator<Item = Result<Prompt, PromptError>> + 'a {
        self.prompts_of(dataset.select(selection))
    }

    /// The same for these subjects.
    pub fn prompts_of(
        self,
        subjects: impl Iterator<Item = (&'a Subject, &'a SubjectQuestions, &'a [Question])> + 'a,
    ) -> impl Iterator<Item = Result<Prompt, PromptError>> + 'a {
        subjects.flat_map(move |(subject, questions, asked)| {
            let shared = self.shared_start(subject, questions);
            asked.chunks(BATCH).flat_map(move |batch| self.batch(shared.as_ref(), batch))
        })
    }

    /// The prompts of a few questions, made on all cores, in order.
    fn batch(
        &self,
        shared: Result<&Shared, &PromptError>,
        batch: &[Question],
    ) -> Vec<Result<Prompt, PromptError>> {
        let shared = match shared {
            Ok(shared) => shared,
            Err(error) => return vec![Err(error.clone())],
        };
        let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get).min(MOST_THREADS);
        let prompts = |part: &[Question]| part.iter().map(|q| self.prompt(shared, q)).collect::<Vec<_>>();
        thread::scope(|scope| {
            let threads: Vec<_> = batch
                .chunks(batch.len().div_ceil(cores))
                .map(|part| {
                    let thread = thread::Builder::new().spawn_scoped(scope, move || prompts(part));
                    // Where the system refuses a thread, this one does the work.
                    thread.map_err(|_| prompts(part))
                })
                .collect();
            let join = |thread| match thread {
                Ok(thread) => thread::ScopedJoinHandle::join(thread).expect("a prompt or an error is made"),
                Err(done) => done,
            };
            threads.into_iter().flat_map(join).collect()
        })
    }

    fn shared_start(&self, subject: &Subject, questions: &SubjectQuestions) -> Result<Shared, PromptError> {
        let mut text = String::new();
        self.template.push_header(&mut text, subject);
        let mut ends = vec![(0, text.len())];
        for (examples, example) in (1..).zip(&questions.dev) {
            self.template.push_example(&mut text, example);
            ends.push((examples, text.len()));
            if self.encode(&text, example)?.len() > self.limits.example_tokens as usize {
                break;
            }
        }
        Ok(Shared { text, ends })
    }

    fn prompt(&self, shared: &Shared, question: &Question) -> Result<Prompt, PromptError> {
        let mut tokens = 0;
        for &(examples, end) in shared.ends.iter().rev() {
            let mut text = shared.text[..end].to_owned();
            self.template.push_question(&mut text, question);
            let token_ids = self.encode(&text, question)?;
            if token_ids.len() <= self.limits.prompt_tokens as usize {
                return Ok(Prompt { question: question.id.clone(), examples, token_ids });
            }
            tokens = token_ids.len();
        }
        Err(PromptError::TooLong {
            question: question.id.clone(),
            tokens,
            allowed: self.limits.prompt_tokens,
        })
    }

    fn encode(&self, text: &str, question: &Question) -> Result<Vec<u32>, PromptError> {
        self.tokenizer
            .encode(text)
            .map_err(|error| PromptError::Encode { question: question.id.clone(), reason: error.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{byte_tokenizer, dataset};
    use super::*;

    const AMPLE: PromptLimits = PromptLimits { example_tokens: 4000, prompt_tokens: 8000 };

    fn prompts(limits: PromptLimits) -> Vec<Result<Prompt, PromptError>> {
        let (template, tokenizer) = (PromptTemplate::single_letter(), byte_tokenizer());
        let prompter = Prompter { template: &template, tokenizer: &tokenizer, limits };
        prompter.prompts(&dataset(&["anatomy", "law"]), Selection::ALL).collect()
    }

    fn examples(limits: PromptLimits) -> Vec<u32> {
        prompts(limits).into_iter().map(|prompt| prompt.unwrap().examples).collect()
    }

    #[test]
    fn every_test_question_is_asked_once_in_order_after_its_own_subjects_examples() {
        let prompts: Vec<Prompt> = prompts(AMPLE).into_iter().map(Result::unwrap).collect();
        let questions: Vec<String> = prompts.iter().map(|prompt| prompt.question.to_string()).collect();
        assert_eq!(questions, ["anatomy/test/1", "anatomy/test/2", "law/test/1", "law/test/2"]);
        let text = byte_tokenizer().decode(&prompts[3].token_ids).unwrap();
        insta::assert_snapshot!(text, @r"
        Each question below is about law. Reply with one letter: A, B, C or D.

        law/dev/1 ?
        A. one
        B. two
        C. three
        D. four
        Answer: A

        law/dev/2 ?
        A. one
        B. two
        C. three
        D. four
        Answer: B

        law/test/2 ?
        A. one
        B. two
        C. three
        D. four
        Answer:
        ");
        assert_eq!(byte_tokenizer().encode(&text).unwrap(), prompts[3].token_ids);
    }

    #[test]
    fn examples_stop_with_the_one_that_passes_the_limit() {
        let header = "Each question below is about anatomy. Reply with one letter: A, B, C or D.\n\n";
        let example = "anatomy/dev/1 ?\nA. one\nB. two\nC. three\nD. four\nAnswer: A\n\n";
        let tokens = byte_tokenizer().encode(&format!("{header}{example}")).unwrap().len();
        let limits =
            |example_tokens| PromptLimits { example_tokens: u32::try_from(example_tokens).unwrap(), ..AMPLE };
        assert_eq!(examples(limits(0))[..2], [1, 1]);
        assert_eq!(examples(limits(tokens - 1))[..2], [1, 1]);
        assert_eq!(examples(limits(tokens))[..2], [2, 2]);
    }

    #[test]
    fn examples_are_dropped_from_the_end_until_a_prompt_fits() {
        let full: Vec<usize> =
            prompts(AMPLE).into_iter().map(|prompt| prompt.unwrap().token_ids.len()).collect();
        let longest = u32::try_from(full[0]).unwrap();
        assert_eq!(examples(PromptLimits { prompt_tokens: longest, ..AMPLE })[0], 2);
        assert_eq!(examples(PromptLimits { prompt_tokens: longest - 1, ..AMPLE })[0], 1);
    }

    #[test]
    fn a_question_that_does_not_fit_alone_is_an_error() {
        let error = prompts(PromptLimits { prompt_tokens: 20, ..AMPLE })[0].clone().unwrap_err();
        insta::assert_snapshot!(format!("{error}\nhint: {}", error.hint().unwrap()), @r"
        fit question anatomy/test/1 into a prompt: without examples it has 128 tokens, 20 are allowed
        hint: raise the model's length in the suite, or choose subjects with shorter questions
        ");
    }

    #[test]
    fn a_prompt_is_one_json_object() {
        let prompt = Prompt {
            question: dataset(&["law"]).subjects.values().next().unwrap().test[0].id.clone(),
            examples: 2,
            token_ids: vec![1, 70000],
        };
        let json = serde_json::to_string(&prompt).unwrap();
        insta::assert_snapshot!(json, @r#"{"question":{"subject":"law","split":"test","row":1},"examples":2,"token_ids":[1,70000]}"#);
        assert_eq!(serde_json::from_str::<Prompt>(&json).unwrap(), prompt);
    }
}
