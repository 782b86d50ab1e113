//! Who readers of foreign KV are: as whom they ask, which engine they have, where their model lies. Main type: [`Identities`].

use camino::Utf8PathBuf;
use serde_json::Value;

use super::adapter::{RANK, write_adapter};
use super::places::ModelPlaces;
use crate::assets::weight_shapes;
use crate::engine::{Adapter, Asker};
use crate::foreign::{Difference, Stored, Storer, Way};
use crate::stage::StageError;

/// Of a reader whose requests carry one.
const SALT: &str = "another";
/// What vLLM knows the writer's adapter by, and another one.
const ADAPTERS: [&str; 2] = ["own", "other"];
/// Seeds of the writer's adapter, of another, and of another revision of the writer's.
const ADAPTER_SEEDS: [u32; 3] = [1, 2, 3];
/// Seeds of embeddings: the writer's and others.
const EMBEDDINGS: [u64; 2] = [1, 2];

/// The writer, which differs in nothing, and its readers.
#[derive(Clone, Copy)]
pub(super) struct Identities<'a> {
    /// How it was stored.
    pub(super) stored: Stored,
    /// Where models and adapters lie.
    pub(super) places: &'a ModelPlaces,
}

impl Identities<'_> {
    /// Writes the adapters. False if the model has no layer for which one can be made.
    pub(super) fn write_adapters(&self) -> Result<bool, StageError> {
        let shapes = weight_shapes(&self.places.own())?;
        for seed in ADAPTER_SEEDS {
            let folder = self.adapter_folder(seed.into());
            let written = write_adapter(&folder, &shapes, seed.into());
            if !written.map_err(|source| StageError::Write { path: folder, source })? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn adapter_folder(&self, seed: u64) -> Utf8PathBuf {
        self.places.inside(&format!("adapter-{seed}"))
    }

    /// As whom a reader asks; the writer asks as the one that differs in nothing.
    pub(super) fn asker(&self, differs_in: Difference) -> Asker {
        let [own, other] = ADAPTERS;
        let [first, another, revision] = ADAPTER_SEEDS;
        let adapter = match (self.stored.by, differs_in) {
            (Storer::Suite | Storer::KvDataType { .. } | Storer::Embeddings, _)
            | (Storer::Adapter, Difference::NoAdapter) => None,
            (Storer::Adapter, Difference::OtherAdapter) => Some((other, another)),
            (Storer::Adapter, Difference::AdapterRevision) => Some((own, revision)),
            (Storer::Adapter, _) => Some((own, first)),
        };
        let of_embeddings = usize::from(differs_in == Difference::Embeddings);
        Asker {
            tag: None,
            cache_salt: (differs_in == Difference::Salt).then(|| SALT.to_owned()),
            adapter: adapter.map(|(name, seed)| Adapter {
                name: name.to_owned(),
                // vLLM keeps what it has loaded under a number. Of another engine all have the same, which must not tell them apart.
                number: if self.stored.over == Way::Process { seed } else { 1 },
                folder: self.adapter_folder(seed.into()).into_string(),
            }),
            embeddings: (self.stored.by == Storer::Embeddings).then_some(EMBEDDINGS[of_embeddings]),
        }
    }

    /// Keyword arguments of `vllm.LLM` that take the place of the suite's.
    pub(super) fn arguments(&self, differs_in: Difference) -> Vec<(String, Value)> {
        let of_writer = match self.stored.by {
            Storer::Suite => Vec::new(),
            Storer::Adapter => vec![("enable_lora", Value::from(true)), ("max_lora_rank", RANK.into())],
            Storer::KvDataType { dtype } => vec![("kv_cache_dtype", dtype.name().into())],
            Storer::Embeddings => vec![("enable_prompt_embeds", true.into())],
        };
        let of_reader = match differs_in {
            Difference::DataType { dtype } => Some(("dtype", dtype.name().into())),
            Difference::KvDataType { dtype } => Some(("kv_cache_dtype", dtype.name().into())),
            Difference::Quantization => Some(("quantization", Difference::QUANTIZATION.into())),
            Difference::Ranks { ranks } => Some(("tensor_parallel_size", ranks.into())),
            _ => None,
        };
        // The reader's stand behind the writer's, and win.
        of_writer.into_iter().chain(of_reader).map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// Where a reader's model lies, which is what it differs in, for some; why it cannot be another one, where that is so.
    pub(super) fn place_model(
        &self,
        differs_in: Difference,
    ) -> Result<Result<Utf8PathBuf, &'static str>, StageError> {
        const NO_WEIGHTS: &str = "its model has no *.safetensors file to change";
        const NO_ROPE: &str = "its model's config.json has no max_position_embeddings";
        let own = self.places.own();
        Ok(match differs_in {
            Difference::Weights => self.places.change_weights()?.then_some(own).ok_or(NO_WEIGHTS),
            Difference::CollidingPath => self.places.make_colliding()?.ok_or(NO_WEIGHTS),
            Difference::RopeScaling => self.places.stretch_rope()?.then_some(own).ok_or(NO_ROPE),
            _ => Ok(own),
        })
    }
}
