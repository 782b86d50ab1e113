//! What was seen of the KV itself: digests of whole chunks, layer by layer and rank by rank. Main type: [`KvRecord`].
//!
//! A file of records has one JSON object a line, beside the file of the same pass's observations. Nothing here is judged;
//! see `comparison`.

use std::fmt::Write;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::QuestionId;

/// Hexadecimal digits of one layer's digest.
const DIGITS: usize = 32;

/// What an engine digests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DigestedLayers {
    /// Each rank's layers by name, in the order in which their digests are reported.
    pub layers: Vec<Vec<String>>,
    /// Why nothing is digested, if that is so.
    pub problem: Option<String>,
    /// How many tokens each layer keeps, in the same order; none where it keeps all, and nothing where all do.
    #[serde(default)]
    pub windows: Vec<Vec<Option<u32>>>,
}

/// What one pass shows of the KV of one request, or why it shows nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum KvRecord {
    /// The whole chunks of one prompt. After a preemption a chunk can be there more than once.
    Request {
        /// The question that was asked.
        question: QuestionId,
        /// What was digested.
        chunks: Vec<ChunkDigests>,
    },
    /// Digests that should have been taken were not.
    NotObserved {
        /// Why.
        reason: String,
    },
}

/// One whole chunk of a prompt on one rank.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChunkDigests {
    /// The rank in whose memory it lay.
    pub rank: u32,
    /// Its place in the prompt, from 0.
    pub chunk: u32,
    /// Whether a cache served it; otherwise this engine computed it.
    pub served: bool,
    /// Where attention was about to read a served chunk, or a computed one was complete.
    pub first: LayerDigests,
    /// Before its blocks could be given to another request. `None`: as `first`.
    pub last: Option<LayerDigests>,
    /// Of what a lossy form of storage makes of a computed chunk, by its declared arithmetic; `None` elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored: Option<LayerDigests>,
}

/// The digest of one chunk in each layer of a rank, in the order of [`DigestedLayers::layers`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LayerDigests(Vec<u128>);

impl LayerDigests {
    /// The digests themselves.
    #[must_use]
    pub fn new(digests: Vec<u128>) -> Self {
        Self(digests)
    }

    /// One for each layer; `None` where none was taken.
    pub fn iter(&self) -> impl Iterator<Item = Option<u128>> {
        self.0.iter().map(|&digest| (digest != 0).then_some(digest))
    }

    /// That of one layer; `None` where none was taken.
    #[must_use]
    pub fn of_layer(&self, place: usize) -> Option<u128> {
        self.0.get(place).copied().filter(|digest| *digest != 0)
    }

    /// How many layers.
    #[must_use]
    pub fn layers(&self) -> usize {
        self.0.len()
    }
}

/// A text that should have been digests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("digests of layers are {DIGITS} hexadecimal digits each")]
pub struct NotLayerDigests;

impl TryFrom<String> for LayerDigests {
    type Error = NotLayerDigests;

    fn try_from(text: String) -> Result<Self, NotLayerDigests> {
        if !text.bytes().all(|digit| digit.is_ascii_hexdigit()) || !text.len().is_multiple_of(DIGITS) {
            return Err(NotLayerDigests);
        }
        let places = (0..text.len()).step_by(DIGITS);
        let read =
            |start| u128::from_str_radix(&text[start..start + DIGITS], 16).map_err(|_| NotLayerDigests);
        places.map(read).collect::<Result<_, _>>().map(Self)
    }
}

impl From<LayerDigests> for String {
    fn from(digests: LayerDigests) -> Self {
        let mut text = Self::with_capacity(DIGITS * digests.0.len());
        for digest in digests.0 {
            write!(text, "{digest:032x}").expect("a string can be written to");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn digests_survive_their_text(digests: Vec<u128>) {
            let digests = LayerDigests(digests);
            prop_assert_eq!(LayerDigests::try_from(String::from(digests.clone())), Ok(digests));
        }
    }

    #[test]
    fn what_is_no_digest_is_refused() {
        for text in ["0", "+0000000000000000000000000000000", "g0000000000000000000000000000000"] {
            assert_eq!(LayerDigests::try_from(text.to_owned()), Err(NotLayerDigests), "{text}");
        }
    }

    #[test]
    fn zero_marks_a_digest_that_was_not_taken() {
        let digests = LayerDigests::new(vec![0, 7]);
        assert_eq!(digests.iter().collect::<Vec<_>>(), [None, Some(7)]);
    }
}
