//! Who asks for foreign KV. Main function: [`readers`].

use std::collections::BTreeSet;

use serde::Serialize;

use super::difference::Difference;
use super::stored::{Stored, Storer, Way};
use crate::model::{Dtype, KvDtype};

/// One that asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Reader {
    /// What it asks for.
    pub stored: Stored,
    /// In what it differs from who stored it.
    pub differs_in: Difference,
}

/// Readers that are asked for together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ReaderGroup {
    /// Of what the suite's engine stored: other salts, chunks, data types, weights, paths, configurations.
    Basic,
    /// Of what the suite's engine stored, by an engine of another number of ranks.
    Ranks,
    /// Of what an engine with a LoRA adapter stored.
    Lora,
    /// Of KV that is stored, or read, in eight bits.
    Fp8,
    /// Out of the memory of the server that stored, in both of LMCache's transfer modes.
    Memory,
    /// Of prompts that were embeddings.
    Embeddings,
}

/// What keeps the KV that is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Keeper {
    /// LMCache's server.
    Server,
    /// An LMCache in an engine's process. What is in its memory ends with that engine, which can ask for it itself as somebody else; a
    /// remote store outlives it.
    Engine,
}

/// What the suite's engine is.
#[derive(Debug, Clone, Copy)]
pub struct Own {
    /// Tokens of its server's chunks.
    pub chunk_tokens: u32,
    /// What it computes in.
    pub dtype: Dtype,
    /// What it keeps KV in, where that is something else.
    pub kv_dtype: Option<KvDtype>,
    /// Ranks that share each of its layers.
    pub ranks: u32,
}

impl ReaderGroup {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Basic, Self::Ranks, Self::Lora, Self::Fp8, Self::Memory, Self::Embeddings];

    /// Its name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Basic => "basic",
            Self::Ranks => "ranks",
            Self::Lora => "lora",
            Self::Fp8 => "fp8",
            Self::Memory => "memory",
            Self::Embeddings => "embeddings",
        }
    }
}

/// The readers of these groups, of what is kept so. Those of what one writer stored stand together, the one that differs in nothing first;
/// those that ask in the engine that stored stand before all others.
#[must_use]
pub fn readers(groups: &BTreeSet<ReaderGroup>, own: Own, keeper: Keeper) -> Vec<Reader> {
    match keeper {
        Keeper::Server => of_server(groups, own),
        Keeper::Engine => {
            // The engine that stored is one engine: all that its requests can differ in is who asks.
            let per_request = [ReaderGroup::Basic, ReaderGroup::Lora, ReaderGroup::Embeddings];
            let within = per_request.into_iter().filter(|group| groups.contains(group)).flat_map(of_engine);
            let of_tier = of_server(groups, own).into_iter().filter(|reader| reader.stored.over == Way::Tier);
            let over_files = of_tier.map(|reader| Reader {
                stored: Stored { over: Way::ProcessFiles, ..reader.stored },
                ..reader
            });
            within.chain(over_files).collect()
        }
    }
}

fn of_engine(group: ReaderGroup) -> Vec<Reader> {
    let (by, differences): (_, &[Difference]) = match group {
        ReaderGroup::Basic => (Storer::Suite, &[Difference::Salt]),
        ReaderGroup::Lora => (Storer::Adapter, &ADAPTERS),
        ReaderGroup::Embeddings => (Storer::Embeddings, &[Difference::Embeddings]),
        ReaderGroup::Ranks | ReaderGroup::Fp8 | ReaderGroup::Memory => return Vec::new(),
    };
    of_writer(Stored { by, over: Way::Process }, differences)
}

const ADAPTERS: [Difference; 3] =
    [Difference::OtherAdapter, Difference::NoAdapter, Difference::AdapterRevision];

fn of_server(groups: &BTreeSet<ReaderGroup>, own: Own) -> Vec<Reader> {
    let [e4m3, e5m2] = [KvDtype::Fp8E4m3, KvDtype::Fp8E5m2].map(|dtype| Difference::KvDataType { dtype });
    // The type of the same size: what has another is told apart by the length of what is found.
    let sibling = Difference::DataType {
        dtype: if own.dtype == Dtype::Float16 { Dtype::Bfloat16 } else { Dtype::Float16 },
    };
    let of_suite =
        |over, differences: &[Difference]| of_writer(Stored { by: Storer::Suite, over }, differences);
    let of = |by, over, difference| of_writer(Stored { by, over }, &[difference]);
    let stored_fp8 = Storer::KvDataType { dtype: KvDtype::Fp8E4m3 };
    let group = |group: &ReaderGroup| match group {
        ReaderGroup::Basic => {
            let dtypes = [Dtype::Bfloat16, Dtype::Float16, Dtype::Float32].into_iter();
            let dtypes =
                dtypes.filter(|dtype| *dtype != own.dtype).map(|dtype| Difference::DataType { dtype });
            let chunk_size = Difference::ChunkSize { chunk_tokens: own.chunk_tokens.saturating_mul(2) };
            let differences: Vec<Difference> = [Difference::Salt, chunk_size]
                .into_iter()
                .chain(dtypes)
                .chain([
                    Difference::Quantization,
                    Difference::RopeScaling,
                    Difference::CollidingPath,
                    Difference::Weights,
                ])
                .collect();
            of_suite(Way::Tier, &differences)
        }
        ReaderGroup::Ranks => {
            let ranks = if own.ranks == 1 { 2 } else { 1 };
            of_suite(Way::Tier, &[Difference::Ranks { ranks }])
        }
        ReaderGroup::Lora => of_writer(Stored { by: Storer::Adapter, over: Way::Tier }, &ADAPTERS),
        ReaderGroup::Fp8 => {
            let of_own = if own.kv_dtype == Some(KvDtype::Fp8E4m3) { e5m2 } else { e4m3 };
            let of_fp8 = [Way::Tier, Way::DrivenMemory].map(|over| of(stored_fp8, over, e5m2));
            [of_suite(Way::Tier, &[of_own])].into_iter().chain(of_fp8).flatten().collect()
        }
        ReaderGroup::Memory => {
            [Way::Memory, Way::DrivenMemory].map(|over| of_suite(over, &[sibling])).concat()
        }
        ReaderGroup::Embeddings => of(Storer::Embeddings, Way::Tier, Difference::Embeddings),
    };
    let mut readers: Vec<Reader> = Vec::new();
    for reader in groups.iter().flat_map(group) {
        // Two groups that ask for the same share what stored it, and the reader that differs in nothing.
        if !readers.contains(&reader) {
            let last = readers.iter().rposition(|known| known.stored == reader.stored);
            readers.insert(last.map_or(readers.len(), |last| last + 1), reader);
        }
    }
    readers
}

fn of_writer(stored: Stored, differences: &[Difference]) -> Vec<Reader> {
    let all = [Difference::Nothing].into_iter().chain(differences.iter().copied());
    all.map(|differs_in| Reader { stored, differs_in }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(groups: &BTreeSet<ReaderGroup>, own: Own) -> Vec<String> {
        let words = |reader: Reader| format!("{}{}", reader.differs_in.words(), reader.stored.words());
        readers(groups, own, Keeper::Server).into_iter().map(words).collect()
    }

    const OWN: Own = Own { chunk_tokens: 256, dtype: Dtype::Bfloat16, kv_dtype: None, ranks: 1 };

    #[test]
    fn every_reader_differs_in_one_thing_and_the_first_of_each_writer_in_none() {
        insta::assert_snapshot!(words(&BTreeSet::from(ReaderGroup::ALL), OWN).join("\n"), @"
        nothing
        salt
        chunk size (512)
        data type (float16)
        data type (float32)
        quantisation (fp8_per_channel)
        rope scaling, under the same path
        weights, under a colliding path
        weights, under the same path
        number of ranks (2)
        data type of KV (fp8_e4m3)
        nothing, stored with a LoRA adapter
        LoRA adapter (another), stored with a LoRA adapter
        LoRA adapter (none), stored with a LoRA adapter
        LoRA adapter (another revision), stored with a LoRA adapter
        nothing, stored as fp8_e4m3
        data type of KV (fp8_e5m2), stored as fp8_e4m3
        nothing, stored as fp8_e4m3, over mp, lmcache_driven
        data type of KV (fp8_e5m2), stored as fp8_e4m3, over mp, lmcache_driven
        nothing, over mp
        data type (float16), over mp
        nothing, over mp, lmcache_driven
        data type (float16), over mp, lmcache_driven
        nothing, stored of embeddings
        prompt embeddings, stored of embeddings
        ");
    }

    #[test]
    fn in_process_the_engine_that_stored_asks_as_others_and_other_engines_ask_over_files() {
        let words = |groups: &BTreeSet<ReaderGroup>| {
            let readers = readers(groups, OWN, Keeper::Engine).into_iter();
            readers.map(|one| format!("{}{}", one.differs_in.words(), one.stored.words())).collect::<Vec<_>>()
        };
        insta::assert_snapshot!(words(&BTreeSet::from(ReaderGroup::ALL)).join("\n"), @"
        nothing, in process
        salt, in process
        nothing, stored with a LoRA adapter, in process
        LoRA adapter (another), stored with a LoRA adapter, in process
        LoRA adapter (none), stored with a LoRA adapter, in process
        LoRA adapter (another revision), stored with a LoRA adapter, in process
        nothing, stored of embeddings, in process
        prompt embeddings, stored of embeddings, in process
        nothing, in process, over files
        salt, in process, over files
        chunk size (512), in process, over files
        data type (float16), in process, over files
        data type (float32), in process, over files
        quantisation (fp8_per_channel), in process, over files
        rope scaling, under the same path, in process, over files
        weights, under a colliding path, in process, over files
        weights, under the same path, in process, over files
        number of ranks (2), in process, over files
        data type of KV (fp8_e4m3), in process, over files
        nothing, stored with a LoRA adapter, in process, over files
        LoRA adapter (another), stored with a LoRA adapter, in process, over files
        LoRA adapter (none), stored with a LoRA adapter, in process, over files
        LoRA adapter (another revision), stored with a LoRA adapter, in process, over files
        nothing, stored as fp8_e4m3, in process, over files
        data type of KV (fp8_e5m2), stored as fp8_e4m3, in process, over files
        nothing, stored of embeddings, in process, over files
        prompt embeddings, stored of embeddings, in process, over files
        ");
        assert!(words(&BTreeSet::from([ReaderGroup::Memory])).is_empty());
    }

    #[test]
    fn readers_differ_from_what_the_suite_has() {
        let own = Own { dtype: Dtype::Float16, kv_dtype: Some(KvDtype::Fp8E4m3), ranks: 2, ..OWN };
        let groups = [ReaderGroup::Basic, ReaderGroup::Fp8, ReaderGroup::Memory, ReaderGroup::Ranks];
        let words = words(&BTreeSet::from(groups), own);
        assert!(words.contains(&"data type of KV (fp8_e5m2)".to_owned()), "{words:?}");
        assert!(words.contains(&"data type (bfloat16), over mp".to_owned()), "{words:?}");
        assert!(words.contains(&"number of ranks (1)".to_owned()), "{words:?}");
        assert!(
            !words.iter().any(|words| words.contains("float16") && !words.contains("bfloat16")),
            "{words:?}"
        );
    }
}
