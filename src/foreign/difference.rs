//! In what a reader differs from the engine that stored. Main type: [`Difference`].

use std::borrow::Cow;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::stored::Way;
use crate::model::{Dtype, KvDtype};

/// What a reader differs in from the engine that stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum Difference {
    /// Nothing: the control, which must be served everything.
    Nothing,
    /// Its requests carry a salt.
    Salt,
    /// Its server has chunks of another size.
    ChunkSize {
        /// Tokens of one of them.
        chunk_tokens: u32,
    },
    /// It computes in another data type.
    DataType {
        /// Which.
        dtype: Dtype,
    },
    /// It keeps its KV in another data type.
    KvDataType {
        /// Which.
        dtype: KvDtype,
    },
    /// Its model has other weights under the same path, as another revision in place has.
    Weights,
    /// Its model has other weights under another path, which a file's name writes alike: `/` becomes `-SEP-`.
    CollidingPath,
    /// Its `config.json` scales the rotary embeddings, of the same weights under the same path.
    RopeScaling,
    /// It quantises the same weights.
    Quantization,
    /// Its requests are of another LoRA adapter.
    OtherAdapter,
    /// Its requests are of no LoRA adapter.
    NoAdapter,
    /// Its requests are of another revision of the LoRA adapter, under the same name.
    AdapterRevision,
    /// As many ranks share each layer of its model.
    Ranks {
        /// How many.
        ranks: u32,
    },
    /// Its prompts are embeddings, as many as the tokens that were stored, and other ones.
    Embeddings,
}

impl Difference {
    /// vLLM's name of how weights are quantised where a reader does so: an online method, which its processors have, too.
    pub const QUANTIZATION: &'static str = "fp8_per_channel";

    /// For tables: `chunk size (512)`.
    #[must_use]
    pub fn words(self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Self::Nothing => "nothing",
            Self::Salt => "salt",
            Self::ChunkSize { chunk_tokens } => return format!("chunk size ({chunk_tokens})").into(),
            Self::DataType { dtype } => return format!("data type ({})", dtype.name()).into(),
            Self::KvDataType { dtype } => return format!("data type of KV ({})", dtype.name()).into(),
            Self::Weights => "weights, under the same path",
            Self::CollidingPath => "weights, under a colliding path",
            Self::RopeScaling => "rope scaling, under the same path",
            Self::Quantization => return format!("quantisation ({})", Self::QUANTIZATION).into(),
            Self::OtherAdapter => "LoRA adapter (another)",
            Self::NoAdapter => "LoRA adapter (none)",
            Self::AdapterRevision => "LoRA adapter (another revision)",
            Self::Ranks { ranks } => return format!("number of ranks ({ranks})").into(),
            Self::Embeddings => "prompt embeddings",
        })
    }

    /// What follows for who runs LMCache, where it does not tell this apart.
    pub(super) fn advice(self, over: Way) -> &'static str {
        match self {
            Self::Nothing => "",
            Self::Salt => "salts do not keep users apart",
            Self::ChunkSize { .. } => "clear the cache before the size of chunks is changed",
            Self::DataType { .. } => "never let engines of two data types share a cache",
            Self::KvDataType { .. } => "never let engines that keep KV in two data types share a cache",
            Self::Weights => "whoever replaces a model in place must clear the cache",
            Self::CollidingPath => {
                "let no two models share a folder of KV whose paths differ in / and -SEP- alone"
            }
            Self::RopeScaling => "whoever changes a model's config.json must clear the cache",
            Self::Quantization => "never let engines that quantise a model in two ways share a cache",
            Self::OtherAdapter | Self::NoAdapter if over.is_in_process() => {
                "requests of each LoRA adapter, and those of none, need a cache or an `lmcache.tag` of their own"
            }
            Self::OtherAdapter | Self::NoAdapter => {
                "requests of each LoRA adapter, and those of none, need a cache or a cache_salt of their own"
            }
            Self::AdapterRevision => "whoever replaces a LoRA adapter in place must clear the cache",
            Self::Ranks { .. } if over.is_in_process() => {
                "engines of each number of ranks need a cache of their own, or requests with an `lmcache.tag` that names the number"
            }
            Self::Ranks { .. } => {
                "engines of each number of ranks need a server of their own, or requests with a cache_salt that names the number"
            }
            Self::Embeddings => "never let prompts that are embeddings be stored",
        }
    }

    /// Whether a salt that names what differs is a mend, or a tag where LMCache is in process; how well that works is then shown.
    #[must_use]
    pub fn has_a_mend(self, over: Way) -> bool {
        match self {
            Self::Nothing | Self::ChunkSize { .. } => false,
            Self::Salt => over.is_in_process(),
            _ => true,
        }
    }
}
