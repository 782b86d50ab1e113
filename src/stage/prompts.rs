//! Questions to token ids, once for all arms of a model. Outputs: `prompts.jsonl`, one prompt a line, in the order of
//! asking, and `longest.json`, the subject and number of tokens of the longest.

use serde::{Deserialize, Serialize};

use super::engine_run::{EngineRun, capacity_of};
use super::lines::{LineWriter, read_json, read_lines, write_json};
use super::{Bench, Excerpt, ExcerptQuestion, StageError, read_dataset};
use crate::assets::{Model, ModelFiles};
use crate::dataset::{
    Dataset, Prompt, PromptLimits, PromptTemplate, Prompter, Subject, SubjectSelection, Tokenizer,
};
use crate::digest::{Digest, digest_bytes};
use crate::stage_name::StageName;
use crate::store::{Artifact, Draft, StageKey};
use crate::suite::Suite;

const SCHEMA: u32 = 2;
const PROMPTS: &str = "prompts.jsonl";
const LONGEST: &str = "longest.json";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Longest {
    subject: Subject,
    tokens: u32,
}

#[derive(Serialize)]
struct Key<'a> {
    questions: Digest,
    subjects: SubjectSelection,
    template: &'a str,
    limits: PromptLimits,
    tokenizer: Digest,
    #[serde(skip_serializing_if = "Option::is_none")]
    excerpt: Option<&'a Excerpt>,
}

/// Makes the prompts of every selected question.
///
/// # Errors
/// When the tokenizer cannot be used, or a question does not fit the model.
pub async fn prompts(bench: &Bench, model: &Model, questions: &Artifact) -> Result<Artifact, StageError> {
    let suite = &bench.suite;
    let (limits, template) = (limits(suite), template(suite)?);
    let json = model.read("tokenizer.json")?;
    let key = Key {
        questions: questions.output_digest(),
        subjects: suite.subjects,
        template: template.name(),
        limits,
        tokenizer: digest_bytes(&json),
        excerpt: bench.excerpt.as_ref(),
    };
    let key = StageKey::new(SCHEMA, StageName::Prompts, &key);
    bench
        .make(&key, model.name(), async |draft| {
            let tokenizer = load_tokenizer(model)?;
            let dataset = read_dataset(questions)?;
            let prompter = Prompter { template: &template, tokenizer: &tokenizer, limits };
            let prompts = prompter.prompts(&dataset, suite.subjects).map(|prompt| Ok(prompt?));
            match &bench.excerpt {
                Some(excerpt) => write_prompts(draft, select(prompts, excerpt)?.into_iter().map(Ok)),
                None => write_prompts(draft, prompts),
            }
        })
        .await
}

fn limits(suite: &Suite) -> PromptLimits {
    PromptLimits {
        example_tokens: suite.prompt.example_tokens,
        prompt_tokens: suite.engine.max_model_len.saturating_sub(suite.engine.max_tokens),
    }
}

/// The suite's template.
///
/// # Errors
/// When there is none of that name.
pub fn template(suite: &Suite) -> Result<PromptTemplate, StageError> {
    let template = PromptTemplate::single_letter();
    if suite.prompt.template == template.name() {
        Ok(template)
    } else {
        Err(StageError::Template(suite.prompt.template.clone()))
    }
}

/// Makes every prompt of a suite and keeps none, to see that each can be made and that the longest has room.
///
/// # Errors
/// As [`prompts`] and [`admit_prompts`].
pub fn check_prompts(suite: &Suite, model: &ModelFiles, dataset: &Dataset) -> Result<(), StageError> {
    let (limits, template, tokenizer) = (limits(suite), template(suite)?, load_tokenizer(model)?);
    let prompter = Prompter { template: &template, tokenizer: &tokenizer, limits };
    let mut longest: Option<(Subject, u32)> = None;
    for prompt in prompter.prompts(dataset, suite.subjects) {
        let prompt = prompt?;
        let tokens = u32::try_from(prompt.token_ids.len()).unwrap_or(u32::MAX);
        if longest.as_ref().is_none_or(|(_, most)| *most < tokens) {
            longest = Some((prompt.question.subject, tokens));
        }
    }
    let Some((subject, tokens)) = longest else { return Ok(()) };
    capacity_of(suite, model)?
        .admit(&subject, tokens)
        .map_err(|source| StageError::TooLarge { model: model.name().to_owned(), source })
}

/// Fails where an answer's letter is not one token.
///
/// # Errors
/// When the tokenizer cannot be read, or cuts a letter in pieces.
pub fn require_letters(model: &ModelFiles) -> Result<(), StageError> {
    match load_tokenizer(model)?.letter_tokens() {
        Ok(_) => Ok(()),
        Err(source) => Err(StageError::Tokenizer { model: model.name().to_owned(), source }),
    }
}

/// Writes what the other stages read of prompts.
pub(super) fn write_prompts(
    draft: &Draft,
    prompts: impl IntoIterator<Item = Result<Prompt, StageError>>,
) -> Result<(), StageError> {
    let mut lines = LineWriter::create(draft.path(PROMPTS))?;
    let mut longest: Option<Longest> = None;
    for prompt in prompts {
        let prompt = prompt?;
        let tokens = u32::try_from(prompt.token_ids.len()).expect("a prompt fits the model");
        if longest.as_ref().is_none_or(|longest| longest.tokens < tokens) {
            longest = Some(Longest { subject: prompt.question.subject.clone(), tokens });
        }
        lines.write(&prompt)?;
    }
    lines.finish()?;
    write_json(draft.path(LONGEST), &longest)
}

/// Refuses prompts of which one does not fit where its KV must go, so that it is said before any engine starts.
///
/// # Errors
/// When one does not fit.
pub fn admit_prompts(bench: &Bench, model: &Model, prompts: &Artifact) -> Result<(), StageError> {
    let longest: Option<Longest> = read_json(&prompts.path(LONGEST))?;
    let Some(Longest { subject, tokens }) = longest else { return Ok(()) };
    let capacity = EngineRun { bench, model, prompts }.capacity()?;
    capacity
        .admit(&subject, tokens)
        .map_err(|source| StageError::TooLarge { model: model.name().to_owned(), source })
}

/// The prompts of an excerpt alone, each cut to its length.
fn select(
    prompts: impl Iterator<Item = Result<Prompt, StageError>>,
    excerpt: &Excerpt,
) -> Result<Vec<Prompt>, StageError> {
    let (mut left, mut selected): (Vec<&ExcerptQuestion>, _) = (excerpt.iter().collect(), Vec::new());
    for prompt in prompts {
        let mut prompt = prompt?;
        if let Some(place) = left.iter().position(|one| one.question == prompt.question) {
            let tokens = left.swap_remove(place).tokens.and_then(|tokens| usize::try_from(tokens).ok());
            prompt.token_ids.truncate(tokens.unwrap_or(usize::MAX));
            selected.push(prompt);
        }
    }
    match left.first() {
        Some(missing) => Err(StageError::NoSuchQuestion(missing.question.clone())),
        None => Ok(selected),
    }
}

/// Reads what [`prompts`] wrote, one prompt at a time.
///
/// # Errors
/// When the artifact cannot be read.
pub fn read_prompts(
    prompts: &Artifact,
) -> Result<impl Iterator<Item = Result<Prompt, StageError>> + use<>, StageError> {
    read_lines(prompts.path(PROMPTS))
}

/// The model's tokenizer.
pub(super) fn load_tokenizer(model: &ModelFiles) -> Result<Tokenizer, StageError> {
    let json = model.read("tokenizer.json")?;
    Tokenizer::from_bytes(&json)
        .map_err(|source| StageError::Tokenizer { model: model.name().to_owned(), source })
}
