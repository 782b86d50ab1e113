//! Questions to token ids, once for all arms of a model. Outputs: `prompts.jsonl`, one prompt a line, in the order of
//! asking, and `longest.json`, the subject and number of tokens of the longest.

use std::num::NonZeroUsize;

use serde::{Deserialize, Serialize};

use super::capacity::capacity;
use super::lines::{LineWriter, count_lines, read_json, read_lines, write_json};
use super::sources::TOKENIZER;
use super::{Context, StageError, read_dataset};
use crate::assets::ModelFiles;
use crate::dataset::{
    Dataset, Prompt, PromptLimits, PromptTemplate, Prompter, Question, QuestionId, Selection, Shard, Subject,
    SubjectQuestions, SubjectSelection, Tokenizer,
};
use crate::digest::Digest;
use crate::engine::Capacity;
use crate::stage_name::StageName;
use crate::store::{Artifact, Draft};
use crate::suite::{ModelSettings, Suite};

const PROMPTS: &str = "prompts.jsonl";
const LONGEST: &str = "longest.json";

/// Some questions of a suite, each once.
pub type Excerpt = Vec<ExcerptQuestion>;

/// A question of an excerpt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExcerptQuestion {
    /// Which.
    pub question: QuestionId,
    /// How many of its prompt's first tokens are asked, if not all.
    pub tokens: Option<u32>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Longest {
    subject: Subject,
    tokens: u32,
}

/// Makes the prompts of every selected question. Input: the questions.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Prompts {
    /// Which subjects are asked.
    pub subjects: SubjectSelection,
    /// How many questions of each, if not all.
    pub questions: Option<NonZeroUsize>,
    /// The template's name and version.
    pub template: String,
    /// How long examples and prompts may be.
    pub limits: PromptLimits,
    /// The model's tokenizer.
    pub tokenizer: Digest,
    /// The questions to ask, if not all of the selected ones.
    pub excerpt: Option<Excerpt>,
    /// The part of the subjects, if others ask the rest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shard: Option<Shard>,
}

impl Prompts {
    pub(crate) const SCHEMA: u32 = 5;

    pub(crate) fn fill(&self, context: &Context<'_>) -> Result<(), StageError> {
        let template = template(&self.template)?;
        let files = context.desk.sources.files_with_tokenizer(self.tokenizer);
        let tokenizer = load_tokenizer(files, context.model_name())?;
        let dataset = read_dataset(context.inputs.of(StageName::Extract))?;
        let prompter = Prompter { template: &template, tokenizer: &tokenizer, limits: self.limits };
        let prompts = prompter.prompts_of(self.chosen(&dataset)?.into_iter()).map(|prompt| Ok(prompt?));
        match &self.excerpt {
            Some(excerpt) => write_prompts(context.draft, select(prompts, excerpt)?.into_iter().map(Ok)),
            None => write_prompts(context.draft, prompts),
        }
    }
}

impl Prompts {
    /// The subjects that are asked, by name, each with those of its questions that are.
    fn chosen<'a>(&self, dataset: &'a Dataset) -> Result<Vec<Chosen<'a>>, StageError> {
        let selection = Selection { subjects: self.subjects, questions: self.questions };
        let mut chosen: Vec<Chosen<'a>> = dataset.select(selection).collect();
        if let Some(shard) = self.shard {
            let all = chosen.len();
            let part = shard.subjects(chosen.iter().map(|(subject, _, asked)| (*subject, asked.len())));
            chosen.retain(|(subject, _, _)| part.contains(subject));
            if chosen.is_empty() {
                return Err(StageError::EmptyShard { shard, subjects: all });
            }
        }
        Ok(chosen)
    }
}

/// A subject with all of its questions, and with those that are asked.
type Chosen<'a> = (&'a Subject, &'a SubjectQuestions, &'a [Question]);

/// How long a suite's examples and prompts may be, in tokens.
pub(crate) fn prompt_limits(suite: &Suite) -> PromptLimits {
    PromptLimits {
        example_tokens: suite.prompt.example_tokens,
        prompt_tokens: suite.engine.max_model_len.saturating_sub(suite.engine.max_tokens),
    }
}

/// The template of this name and version.
///
/// # Errors
/// When there is none.
pub fn template(name: &str) -> Result<PromptTemplate, StageError> {
    let template = PromptTemplate::single_letter();
    if name == template.name() { Ok(template) } else { Err(StageError::Template(name.to_owned())) }
}

/// Makes every prompt of a suite and keeps none, to see that each can be made and that the longest has room.
///
/// # Errors
/// When the tokenizer cannot be used, or a question does not fit the model or where its KV must go.
pub fn check_prompts(
    suite: &Suite,
    settings: &ModelSettings,
    files: &ModelFiles,
    dataset: &Dataset,
) -> Result<(), StageError> {
    let (template, tokenizer) = (template(&suite.prompt.template)?, load_tokenizer(files, &settings.name)?);
    let prompter = Prompter { template: &template, tokenizer: &tokenizer, limits: prompt_limits(suite) };
    let mut longest: Option<Longest> = None;
    for prompt in prompter.prompts(dataset, suite.selection()) {
        keep_longer(&mut longest, &prompt?);
    }
    admit_longest(&settings.name, longest, capacity(suite, settings, files)?)
}

/// Fails where an answer's letter is not one token; `model` names the model in messages.
///
/// # Errors
/// When the tokenizer cannot be read, or cuts a letter in pieces.
pub fn require_letters(files: &ModelFiles, model: &str) -> Result<(), StageError> {
    match load_tokenizer(files, model)?.letter_tokens() {
        Ok(_) => Ok(()),
        Err(source) => Err(StageError::Tokenizer { model: model.to_owned(), source }),
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
        keep_longer(&mut longest, &prompt);
        lines.write(&prompt)?;
    }
    lines.finish()?;
    write_json(draft.path(LONGEST), &longest)
}

fn keep_longer(longest: &mut Option<Longest>, prompt: &Prompt) {
    let tokens = u32::try_from(prompt.token_ids.len()).unwrap_or(u32::MAX);
    if longest.as_ref().is_none_or(|longest| longest.tokens < tokens) {
        *longest = Some(Longest { subject: prompt.question.subject.clone(), tokens });
    }
}

/// Refuses prompts of which one does not fit where its KV must go, so that it is said before any engine starts.
///
/// # Errors
/// When one does not fit.
pub fn admit_prompts(model: &str, prompts: &Artifact, capacity: Capacity) -> Result<(), StageError> {
    admit_longest(model, read_json(&prompts.path(LONGEST))?, capacity)
}

fn admit_longest(model: &str, longest: Option<Longest>, capacity: Capacity) -> Result<(), StageError> {
    let Some(Longest { subject, tokens }) = longest else { return Ok(()) };
    capacity
        .admit(&subject, tokens)
        .map_err(|source| StageError::TooLarge { model: model.to_owned(), source })
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

/// Reads what the prompts stage wrote, one prompt at a time.
///
/// # Errors
/// When the artifact cannot be read.
pub fn read_prompts(
    prompts: &Artifact,
) -> Result<impl Iterator<Item = Result<Prompt, StageError>> + use<>, StageError> {
    read_lines(prompts.path(PROMPTS))
}

/// How many prompts there are.
///
/// # Errors
/// When the artifact cannot be read.
pub fn count_prompts(prompts: &Artifact) -> Result<usize, StageError> {
    count_lines(&prompts.path(PROMPTS))
}

/// A model's tokenizer; `model` names it in messages.
pub(super) fn load_tokenizer(files: &ModelFiles, model: &str) -> Result<Tokenizer, StageError> {
    let json = files.read(TOKENIZER)?;
    Tokenizer::from_bytes(&json).map_err(|source| StageError::Tokenizer { model: model.to_owned(), source })
}

#[cfg(test)]
#[path = "prompts_tests.rs"]
mod tests;
