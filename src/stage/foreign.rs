//! Asks a real LMCache for KV of another identity, and notes what it serves. Output: `foreign.json`.
//!
//! For each way of storing, one engine stores a few prompts; then readers, an engine each, ask for the same: one that differs in
//! nothing, and one for each difference. Most stand behind another server over a copy of the writer's disk tier (route
//! `mp+fs`), others ask the writer's server. Where LMCache is in an engine's process, a reader is the writer itself, asked as somebody else,
//! or another engine over a copy of a folder. A reader that is served what is not its own asks again with a salt, or a tag.

mod adapter;
mod group;
mod identity;
mod keeping;
mod places;

use std::collections::BTreeSet;

use serde::Serialize;

use self::group::Group;
use self::identity::Identities;
use self::places::ModelPlaces;
use super::engine_run::{EngineRun, EngineSpec};
use super::lines::{read_json, write_json};
use super::planting_ground::choose_questions;
use super::{Context, StageError};
use crate::dataset::Prompt;
use crate::engine::Capacity;
use crate::event::Effort;
use crate::fault::FaultError;
use crate::foreign::{ForeignFindings, Reader, Reading, Way};
use crate::store::Artifact;
use crate::suite::LmcacheSettings;

const FOREIGN: &str = "foreign.json";
/// Prompts that are stored and read.
pub const FOREIGN_PROMPTS: usize = 4;

/// LMCache, asked for what another identity stored. Input: the prompts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Foreign {
    /// The engine that stores; readers differ from it in one thing each.
    pub engine: EngineSpec,
    /// LMCache's settings.
    pub lmcache: LmcacheSettings,
    /// Size of a chunk.
    pub capacity: Capacity,
    /// How many prompts.
    pub prompts: usize,
    /// Who asks for what. Those that ask for the same stand together.
    pub readers: Vec<Reader>,
    /// With how many salts each asks again that was served what is not its own; at least one.
    #[serde(skip_serializing_if = "is_one")]
    pub salts: u32,
}

/// What a key leaves out, since there was no such field.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
fn is_one(number: &u32) -> bool {
    *number == 1
}

/// Reads what the foreign stage wrote.
///
/// # Errors
/// When the artifact cannot be read.
pub fn read_foreign(foreign: &Artifact) -> Result<ForeignFindings, StageError> {
    read_json(&foreign.path(FOREIGN))
}

impl Foreign {
    /// Also numbers how prompts are made, and models and adapters changed.
    pub(crate) const SCHEMA: u32 = 6;

    /// The readers of each writer.
    fn groups(&self) -> impl Iterator<Item = &[Reader]> {
        self.readers.chunk_by(|one, other| one.stored == other.stored)
    }

    /// What it takes time for, if nothing is served that must not be.
    pub(crate) fn effort(&self) -> Effort {
        let readers = self.readers.len();
        let (mut writers, mut servers) = (0, 0);
        for group in self.groups() {
            let over = group[0].stored.over;
            writers += usize::from(over != Way::Process);
            servers += usize::from(!over.is_in_process());
        }
        servers += self.readers.iter().filter(|reader| reader.stored.over == Way::Tier).count();
        // One that asks itself has stored before, once for each reader.
        let stores = self.readers.iter().filter(|reader| reader.stored.over == Way::Process).count();
        Effort {
            engines: writers + readers,
            servers,
            computed: self.prompts * (writers + stores + readers),
            served: self.prompts * readers,
            ..Effort::default()
        }
    }

    pub(crate) async fn fill(&self, context: &Context<'_>) -> Result<(), StageError> {
        let found = EngineRun::of(&self.engine, context);
        let surroundings = found.surroundings(self.lmcache)?;
        let prompts = disjoint_prompts(found.prompts(), self.lmcache.chunk_tokens, self.prompts)?;
        let places = ModelPlaces::of(found.files.folder(&context.desk.cache)?, &context.desk.cache)?;
        let files = found.files.moved_to(places.own());
        let run = EngineRun { files: &files, ..found };
        let mut readings = Vec::new();
        for readers in self.groups() {
            let before = readings.len();
            let who = Identities { stored: readers[0].stored, places: &places };
            let group = Group { run, surroundings: &surroundings, who, before, salts: self.salts };
            let read = if who.stored.over.is_in_process() && readings.iter().any(Reading::is_unserved_control)
            {
                group.not_asked(&prompts, readers)
            } else {
                group.read(&prompts, readers, self.capacity).await?
            };
            readings.extend(read);
        }
        let prompts = u32::try_from(prompts.len()).expect("a few prompts");
        write_json(context.draft.path(FOREIGN), &ForeignFindings { prompts, readings })
    }
}

/// A few of the suite's prompts, each without some of its first tokens, so that none begins as another does and no reader is
/// served what it has just stored itself. Each has a chunk of twice the size.
pub(super) fn disjoint_prompts(
    prompts: &Artifact,
    chunk_tokens: u32,
    wanted: usize,
) -> Result<Vec<Prompt>, StageError> {
    let chunk = usize::try_from(chunk_tokens).expect("a chunk fits into memory");
    let mut beginnings = BTreeSet::new();
    let mut chosen = Vec::new();
    for (place, mut prompt) in choose_questions(prompts, chunk_tokens, 2 * wanted)?.into_iter().enumerate() {
        prompt.token_ids.drain(..place.min(prompt.token_ids.len()));
        let length = prompt.token_ids.len();
        let suits = length >= chunk.saturating_mul(2) && !length.is_multiple_of(chunk);
        if suits && beginnings.insert(prompt.token_ids[..chunk].to_vec()) {
            chosen.push(prompt);
        }
    }
    chosen.truncate(wanted);
    if chosen.len() < 2 { Err(FaultError::TooShort { chunk_tokens }.into()) } else { Ok(chosen) }
}
