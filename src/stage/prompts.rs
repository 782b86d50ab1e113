//! Questions to token ids, once for all arms of a model. Outputs: `prompts.jsonl`, one prompt a line, in the order of
//! asking, and `longest.json`, the subject and number of tokens of the longest.

use serde::{Deserialize, Serialize};

use super::lines::{LineWriter, read_json, read_lines, write_json};
use super::sources::TOKENIZER;
use super::{Context, StageError, read_dataset};
use crate::assets::ModelFiles;
use crate::dataset::{
    Prompt, PromptLimits, PromptTemplate, Prompter, QuestionId, Subject, SubjectSelection, Tokenizer,
};
use crate::digest::Digest;
use crate::engine::Capacity;
use crate::stage_name::StageName;
use crate::store::{Artifact, Draft};

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
    /// The template's name and version.
    pub template: String,
    /// How long examples and prompts may be.
    pub limits: PromptLimits,
    /// The model's tokenizer.
    pub tokenizer: Digest,
    /// The questions to ask, if not all of the selected ones.
    pub excerpt: Option<Excerpt>,
}

impl Prompts {
    pub(crate) const SCHEMA: u32 = 3;

    pub(crate) fn fill(&self, context: &Context<'_>) -> Result<(), StageError> {
        let template = PromptTemplate::single_letter();
        if self.template != template.name() {
            return Err(StageError::Template(self.template.clone()));
        }
        let files = context.desk.sources.files_with_tokenizer(self.tokenizer);
        let tokenizer = load_tokenizer(files, context.model_name())?;
        let dataset = read_dataset(context.inputs.of(StageName::Extract))?;
        let prompter = Prompter { template: &template, tokenizer: &tokenizer, limits: self.limits };
        let prompts = prompter.prompts(&dataset, self.subjects).map(|prompt| Ok(prompt?));
        match &self.excerpt {
            Some(excerpt) => write_prompts(context.draft, select(prompts, excerpt)?.into_iter().map(Ok)),
            None => write_prompts(context.draft, prompts),
        }
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
pub fn admit_prompts(model: &str, prompts: &Artifact, capacity: Capacity) -> Result<(), StageError> {
    let longest: Option<Longest> = read_json(&prompts.path(LONGEST))?;
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

/// A model's tokenizer; `model` names it in messages.
pub(super) fn load_tokenizer(files: &ModelFiles, model: &str) -> Result<Tokenizer, StageError> {
    let json = files.read(TOKENIZER)?;
    Tokenizer::from_bytes(&json).map_err(|source| StageError::Tokenizer { model: model.to_owned(), source })
}
