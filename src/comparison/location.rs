//! Which chunk of a prompt is the first that is served wrong. Main type: [`Location`].

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::difference::first_difference;
use crate::dataset::QuestionId;
use crate::model::Observation;

/// Where the KV of a question that differs goes wrong: found by asking the prompt again, cut behind each whole chunk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Location {
    /// The question.
    pub question: QuestionId,
    /// Its whole chunks.
    pub chunks: u32,
    /// Tokens of a chunk.
    pub chunk_tokens: u32,
    /// What was found.
    pub place: Place,
}

/// What cutting a prompt behind each of its chunks shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "found", rename_all = "snake_case")]
#[schemars(rename = "ChunkPlace")]
pub enum Place {
    /// The prompts with fewer chunks are answered as their controls are, bit for bit; with this chunk they are not.
    Chunk {
        /// Number of the chunk, from 0.
        chunk: u32,
    },
    /// Asked alone, no cut prompt differs from its control: what went wrong depends on what else is asked.
    Nowhere,
    /// So many cut prompts were not served alike by LMCache and by the control, so they cannot be compared.
    Unequal {
        /// How many.
        prompts: u32,
    },
}

impl Location {
    /// Compares the load pass over the cut prompts, the shortest first, with their controls.
    #[must_use]
    pub fn find(
        question: QuestionId,
        chunk_tokens: u32,
        control: &[Observation],
        load: &[Observation],
    ) -> Self {
        let chunks = u32::try_from(control.len()).unwrap_or(u32::MAX);
        let unequal =
            control.iter().zip(load).filter(|(one, other)| one.cached_tokens != other.cached_tokens);
        let place = match unequal.count() + control.len().abs_diff(load.len()) {
            0 => {
                let mut pairs = control.iter().zip(load);
                match pairs.position(|(control, load)| first_difference(control, load).is_some()) {
                    Some(chunk) => Place::Chunk { chunk: u32::try_from(chunk).unwrap_or(u32::MAX) },
                    None => Place::Nowhere,
                }
            }
            prompts => Place::Unequal { prompts: u32::try_from(prompts).unwrap_or(u32::MAX) },
        };
        Self { question, chunks, chunk_tokens, place }
    }

    /// In one sentence.
    #[must_use]
    pub fn words(&self) -> String {
        let Self { question, chunks, chunk_tokens, place } = self;
        match place {
            Place::Chunk { chunk } => {
                let (first, last) = (chunk * chunk_tokens, (chunk + 1) * chunk_tokens - 1);
                format!(
                    "Of the {chunks} chunks of {question}, number {} is the first that is served wrong (tokens {first} to {last}).",
                    chunk + 1
                )
            }
            Place::Nowhere => format!(
                "{question}, asked alone and cut behind each of its {chunks} chunks, equals its control: what goes wrong \
                 depends on the other questions or on chance."
            ),
            Place::Unequal { prompts } => format!(
                "{question}, cut behind each of its {chunks} chunks, was not served alike over the route and by the control \
                 in {prompts} cases, so its chunks cannot be told apart."
            ),
        }
    }
}
