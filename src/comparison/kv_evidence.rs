//! What the rung `kv` is given. Main type: [`KvEvidence`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::dataset::QuestionId;
use crate::digest::Digest;
use crate::model::KvRecord;

use super::second_look::SecondLook;

/// What was seen of the KV itself in the passes with a cache.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KvEvidence {
    /// Tokens of one chunk.
    pub chunk_tokens: u32,
    /// Each rank's layers by name, in the order in which their digests come.
    pub layers: Vec<Vec<String>>,
    /// How many tokens each of them keeps, in the same order; none where it keeps all, and nothing where all do.
    pub windows: Vec<Vec<Option<u32>>>,
    /// Tokens of a block, which a window gives away as a whole.
    pub block_tokens: u32,
    /// Whether ranks hold the same KV and read one shard, as those of a model with latent attention do.
    pub shared_by_ranks: bool,
    /// Whether whole chunks are loaded, also where a prompt's last token is computed again.
    pub loads_whole_chunks: bool,
    /// For each whole chunk of each prompt a digest of its tokens and all before them.
    #[serde(with = "pairs")]
    pub prefixes: BTreeMap<QuestionId, Vec<Digest>>,
    /// Of the store pass.
    pub store: Vec<KvRecord>,
    /// Of the load pass.
    pub load: Vec<KvRecord>,
    /// Of the cut pass, each under the question whose prompt a prefix is of.
    pub cut: Vec<KvRecord>,
    /// Of the baseline, whose layers are the same; none where its KV was not seen.
    pub baseline: Vec<KvRecord>,
    /// Of its repeat.
    pub repeat: Vec<KvRecord>,
    /// What was looked at again.
    pub looks: Vec<SecondLook>,
}

/// What stands for a window in a layer that keeps one state of the sequence: that behind the last token.
pub(super) const STATE: u32 = 1;

impl KvEvidence {
    /// How many tokens a layer keeps, if not all.
    pub(super) fn window(&self, rank: u32, layer: &str) -> Option<u32> {
        let rank = usize::try_from(rank).ok()?;
        let windows = self.windows.get(rank)?;
        let place = self.layers.get(rank)?.iter().position(|name| name == layer)?;
        *windows.get(place)?
    }

    /// Whether a layer that keeps a window holds a chunk as a whole when a request goes on behind so many tokens: the first
    /// of these sees itself and the window's others before it, and blocks behind that are given away. Of states a request goes on
    /// from the last one alone.
    pub(super) fn keeps(&self, window: u32, chunk: u32, served_tokens: u32) -> bool {
        if window == STATE {
            return chunk + 1 == served_tokens / self.chunk_tokens;
        }
        let block = self.block_tokens.max(1);
        let given_away = (served_tokens + 1).saturating_sub(window) / block * block;
        chunk * self.chunk_tokens >= given_away
    }
}

/// A map as a list of pairs, since keys of JSON are texts.
mod pairs {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::dataset::QuestionId;
    use crate::digest::Digest;

    pub(super) fn serialize<S: Serializer>(
        map: &BTreeMap<QuestionId, Vec<Digest>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        map.iter().collect::<Vec<_>>().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<QuestionId, Vec<Digest>>, D::Error> {
        Ok(Vec::<(QuestionId, Vec<Digest>)>::deserialize(deserializer)?.into_iter().collect())
    }
}
