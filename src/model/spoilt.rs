//! What a model answers once part of the KV that it is served has been spoilt on purpose. Main type: [`SpoiltProbe`].

use serde::{Deserialize, Serialize};

use super::Observation;

/// Whether a request of the load pass was asked with spoilt KV, and what it showed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SpoiltProbe {
    /// It was.
    Asked(Box<SpoiltAnswers>),
    /// It could not be.
    NotAsked {
        /// Why: a whole sentence.
        reason: String,
    },
}

/// One prompt, asked three times by itself, each time served from the cache under test.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpoiltAnswers {
    /// The chunk of the prompt whose KV was set to zero the third time, from 0.
    pub chunk: u32,
    /// How many cells were: the chunk in a layer on a rank.
    pub cells: u32,
    /// As it was served.
    pub alone: Observation,
    /// Once more.
    pub again: Observation,
    /// With the chunk at zero when attention read it.
    pub spoilt: Observation,
}
