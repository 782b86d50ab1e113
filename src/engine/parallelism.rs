//! How a model and its KV are spread over an engine's ranks, and what LMCache makes of that. Main type: [`Parallelism`].
//!
//! The rules are those of vLLM 0.32.0 and LMCache 0.5.6 in MP mode. LMCache stores a chunk in one shard for each rank, under
//! a key that holds the number of shards and the rank. Where all attention is MLA, the ranks of a pipeline stage hold the
//! same KV: then there is one shard for each stage, the first rank stores it, and every rank reads it.

use serde::{Deserialize, Serialize};

use crate::machine::Device;
use crate::model::KvShape;
use crate::suite::{ExecutorBackend, ModelSettings};

/// The ranks of one engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Parallelism {
    /// Ranks that share each layer.
    pub tensor: u32,
    /// Stages that the layers are divided over.
    pub pipeline: u32,
}

/// Why a model cannot be spread as its suite wants it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParallelismError {
    /// Several copies of the engine.
    #[error(
        "place {model}: `data_parallel_size` is {copies}, and vLLM's offline engine has one copy a process"
    )]
    Copies {
        /// The model.
        model: String,
        /// `data_parallel_size`.
        copies: u32,
    },
    /// Heads or layers do not divide.
    #[error("place {model}: its {count} {what} cannot be divided by `{setting}` {size}")]
    Indivisible {
        /// The model.
        model: String,
        /// Heads, KV heads or layers.
        what: &'static str,
        /// How many of them.
        count: u64,
        /// The suite's name for the divisor.
        setting: &'static str,
        /// The divisor.
        size: u32,
    },
    /// More processes than can compute at the same time.
    #[error(
        "place {model} on {ranks} ranks: this machine has {threads} hardware threads, and each rank needs one"
    )]
    TooFewThreads {
        /// The model.
        model: String,
        /// Wanted.
        ranks: u32,
        /// Of this machine.
        threads: usize,
    },
    /// Ray is not installed.
    #[error("place {model}: `distributed_executor_backend` is ray, which the Python environment lacks")]
    NoRay {
        /// The model.
        model: String,
    },
}

impl ParallelismError {
    /// What to do next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Copies { .. } => {
                "copies share no KV: leave it at 1, and spread a model with `tensor_parallel_size`".to_owned()
            }
            Self::Indivisible { setting, .. } => format!("choose a `{setting}` that divides them"),
            Self::TooFewThreads { .. } => {
                "take a machine with more processors, or a suite of your own with a smaller `tensor_parallel_size`"
                    .to_owned()
            }
            Self::NoRay { .. } => {
                "name an environment that has ray with KV_CORRECTNESS_ENV, or use `mp` for ranks on one host".to_owned()
            }
        })
    }
}

/// The fields of a Hugging Face `config.json` that are divided; there are many others.
#[derive(Debug, Deserialize)]
struct Divided {
    num_attention_heads: u64,
    num_hidden_layers: u64,
}

impl Parallelism {
    /// What a suite says of a model.
    #[must_use]
    pub fn of(settings: &ModelSettings) -> Self {
        Self { tensor: settings.tensor_parallel_size, pipeline: settings.pipeline_parallel_size }
    }

    /// Number of ranks.
    #[must_use]
    pub fn ranks(self) -> u32 {
        self.tensor.saturating_mul(self.pipeline)
    }

    /// The KV that one rank has, of the stage with most layers. vLLM gives each rank at least one KV head, so that some are
    /// there more than once.
    #[must_use]
    pub fn shard(self, shape: KvShape) -> KvShape {
        let tensor = u64::from(self.tensor);
        let of_stage = |layers: u64| layers.div_ceil(u64::from(self.pipeline));
        match shape {
            KvShape::Dense { layers, kv_heads, head_size } => {
                KvShape::Dense { layers: of_stage(layers), kv_heads: (kv_heads / tensor).max(1), head_size }
            }
            KvShape::Mla { layers, latent, rotary } => {
                KvShape::Mla { layers: of_stage(layers), latent, rotary }
            }
        }
    }

    /// The KV that all shards of a chunk hold together.
    #[must_use]
    pub fn stored_shape(self, shape: KvShape) -> KvShape {
        match shape {
            KvShape::Dense { layers, kv_heads, head_size } => {
                KvShape::Dense { layers, kv_heads: kv_heads.max(u64::from(self.tensor)), head_size }
            }
            KvShape::Mla { .. } => shape,
        }
    }

    /// Shards that LMCache writes a chunk in.
    #[must_use]
    pub fn written_shards(self, shape: KvShape) -> u32 {
        match shape {
            KvShape::Dense { .. } => self.ranks(),
            KvShape::Mla { .. } => self.pipeline,
        }
    }

    /// Shards that are read to serve a chunk: one for each rank, whether the rank has a shard of its own or shares it.
    #[must_use]
    pub fn read_shards(self) -> u32 {
        self.ranks()
    }

    /// Fails where vLLM could not place the model as its suite wants it. `config` is the text of its `config.json`. GPUs are
    /// counted elsewhere.
    ///
    /// # Errors
    /// When heads, layers, processors or packages do not suffice.
    pub fn check(
        settings: &ModelSettings,
        config: &str,
        shape: KvShape,
        device: &Device,
        has_ray: bool,
    ) -> Result<(), ParallelismError> {
        let (ranks, model) = (Self::of(settings), settings.name.clone());
        let indivisible = |what, count, setting, size| {
            Err(ParallelismError::Indivisible { model: model.clone(), what, count, setting, size })
        };
        if settings.data_parallel_size > 1 {
            return Err(ParallelismError::Copies { model, copies: settings.data_parallel_size });
        }
        if settings.distributed_executor_backend == Some(ExecutorBackend::Ray) && !has_ray {
            return Err(ParallelismError::NoRay { model });
        }
        // Whoever reads the shape from the same text has said what is wrong with it.
        if let Ok(Divided { num_attention_heads: heads, num_hidden_layers: layers }) =
            serde_json::from_str(config)
        {
            let tensor = u64::from(ranks.tensor);
            if !heads.is_multiple_of(tensor) {
                return indivisible("attention heads", heads, "tensor_parallel_size", ranks.tensor);
            }
            if let KvShape::Dense { kv_heads, .. } = shape
                && !kv_heads.is_multiple_of(tensor)
                && !tensor.is_multiple_of(kv_heads)
            {
                return indivisible("KV heads", kv_heads, "tensor_parallel_size", ranks.tensor);
            }
            if layers < u64::from(ranks.pipeline) {
                return indivisible("layers", layers, "pipeline_parallel_size", ranks.pipeline);
            }
        }
        match *device {
            Device::Cpu { threads, .. }
                if settings.distributed_executor_backend != Some(ExecutorBackend::Ray)
                    && usize::try_from(ranks.ranks()).is_ok_and(|ranks| ranks > threads) =>
            {
                Err(ParallelismError::TooFewThreads { model, ranks: ranks.ranks(), threads })
            }
            Device::Cpu { .. } | Device::Cuda { .. } => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suite::Suite;

    const DENSE: KvShape = KvShape::Dense { layers: 6, kv_heads: 2, head_size: 64 };
    const MLA: KvShape = KvShape::Mla { layers: 4, latent: 512, rotary: 64 };

    // LMCache 0.5.6, `ParallelStrategy.kv_world_size` and `num_kv_readers` for the same sizes on one server.
    #[test]
    fn a_dense_chunk_has_a_shard_a_rank_and_an_mla_chunk_one_a_stage_that_all_its_ranks_read() {
        let counts = |shape, tensor, pipeline| {
            let ranks = Parallelism { tensor, pipeline };
            (ranks.written_shards(shape), ranks.read_shards())
        };
        assert_eq!([counts(DENSE, 1, 1), counts(DENSE, 2, 1), counts(DENSE, 2, 3)], [(1, 1), (2, 2), (6, 6)]);
        assert_eq!([counts(MLA, 1, 1), counts(MLA, 2, 1), counts(MLA, 2, 3)], [(1, 1), (1, 2), (3, 6)]);
    }

    #[test]
    fn shards_hold_all_heads_and_some_twice_where_there_are_more_ranks_than_heads() {
        let bytes = |tensor| {
            let ranks = Parallelism { tensor, pipeline: 1 };
            (ranks.shard(DENSE).bytes_per_token(2), ranks.stored_shape(DENSE).bytes_per_token(2))
        };
        assert_eq!([bytes(1), bytes(2), bytes(4)], [(3072, 3072), (1536, 3072), (1536, 6144)]);
        let two = Parallelism { tensor: 2, pipeline: 1 };
        assert_eq!((two.shard(MLA), two.stored_shape(MLA)), (MLA, MLA));
        let stages = Parallelism { tensor: 1, pipeline: 4 };
        assert_eq!(stages.shard(DENSE), KvShape::Dense { layers: 2, kv_heads: 2, head_size: 64 });
    }

    /// What the check says of canary-dense with other settings on a machine of two threads.
    fn refused(change: impl FnOnce(&mut ModelSettings)) -> Option<String> {
        let mut settings = Suite::load("canary").unwrap().models.remove(0);
        change(&mut settings);
        let config = include_str!("../../data/models/canary-dense/config.json");
        let device =
            Device::Cpu { name: String::new(), features: std::collections::BTreeSet::new(), threads: 2 };
        let shape = KvShape::from_config(config).unwrap();
        let error = Parallelism::check(&settings, config, shape, &device, false).err()?;
        Some(format!("{error}\n{}", error.hint().unwrap()))
    }

    #[test]
    fn what_cannot_be_placed_is_refused_with_what_to_change() {
        assert_eq!(refused(|settings| settings.tensor_parallel_size = 2), None);
        assert_eq!(refused(|settings| settings.pipeline_parallel_size = 2), None);
        let ray =
            |settings: &mut ModelSettings| settings.distributed_executor_backend = Some(ExecutorBackend::Ray);
        insta::assert_snapshot!(refused(|settings| settings.tensor_parallel_size = 3).unwrap(), @r"
        place canary-dense: its 4 attention heads cannot be divided by `tensor_parallel_size` 3
        choose a `tensor_parallel_size` that divides them
        ");
        insta::assert_snapshot!(refused(|settings| settings.tensor_parallel_size = 4).unwrap(), @r"
        place canary-dense on 4 ranks: this machine has 2 hardware threads, and each rank needs one
        take a machine with more processors, or a suite of your own with a smaller `tensor_parallel_size`
        ");
        insta::assert_snapshot!(refused(|settings| settings.pipeline_parallel_size = 7).unwrap(), @r"
        place canary-dense: its 6 layers cannot be divided by `pipeline_parallel_size` 7
        choose a `pipeline_parallel_size` that divides them
        ");
        insta::assert_snapshot!(refused(|settings| settings.data_parallel_size = 2).unwrap(), @r"
        place canary-dense: `data_parallel_size` is 2, and vLLM's offline engine has one copy a process
        copies share no KV: leave it at 1, and spread a model with `tensor_parallel_size`
        ");
        insta::assert_snapshot!(refused(ray).unwrap(), @r"
        place canary-dense: `distributed_executor_backend` is ray, which the Python environment lacks
        name an environment that has ray with KV_CORRECTNESS_ENV, or use `mp` for ranks on one host
        ");
    }
}
