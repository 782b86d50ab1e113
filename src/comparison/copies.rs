//! The cells that engines computed, which served ones are held against. Main type: [`Copies`].

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};

use crate::dataset::QuestionId;
use crate::digest::Digest;
use crate::model::{ChunkDigests, KvRecord, LayerDigests};

use super::Pass;
use super::evidence::Fidelity;
use super::kv_evidence::KvEvidence;

/// A cell by what it must be: token prefix, layer, and rank where ranks differ.
type Identity = (Digest, u32, u32);

/// What a served cell must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Demand {
    /// A copy of a computed one.
    Copy,
    /// What the declared arithmetic of a lossy form of storage makes of a computed one, bit for bit.
    AsStored,
    /// With a loss that nobody declared: the same as long as it is held.
    Unchanged,
}

impl Demand {
    pub(super) fn of(evidence: &KvEvidence, fidelity: Fidelity) -> Self {
        let mut computed = evidence.passes().into_iter().flat_map(|(_, records)| chunks(records));
        match fidelity {
            Fidelity::Exact => Self::Copy,
            Fidelity::Lossy if computed.any(|(_, chunk)| chunk.stored.is_some()) => Self::AsStored,
            Fidelity::Lossy => Self::Unchanged,
        }
    }
}

/// What engines computed.
pub(super) struct Copies<'a> {
    pub(super) evidence: &'a KvEvidence,
    /// A number for each layer's name.
    pub(super) layers: BTreeMap<&'a str, u32>,
    pub(super) by_identity: HashMap<Identity, Vec<u128>>,
    /// Whose cell has these bytes: question, chunk, layer, rank.
    owners: HashMap<u128, (&'a QuestionId, u32, &'a str, u32)>,
    /// How many wrong cells are named.
    pub(super) most_named: usize,
    /// Layers that see a window, by rank and number, of which a served cell was held.
    pub(super) held: RefCell<HashSet<(u32, u32)>>,
}

impl<'a> Copies<'a> {
    pub(super) fn of(evidence: &'a KvEvidence, (demand, most_named): (Demand, usize)) -> Self {
        let in_any_order: HashSet<&str> = evidence.layers.iter().flatten().map(String::as_str).collect();
        let mut names: Vec<&str> = in_any_order.into_iter().collect();
        names.sort_unstable();
        let mut copies = Self {
            evidence,
            layers: names.into_iter().zip(0..).collect(),
            by_identity: HashMap::new(),
            owners: HashMap::new(),
            most_named,
            held: RefCell::default(),
        };
        for (question, chunk) in evidence.passes().into_iter().flat_map(|(_, records)| chunks(records)) {
            if chunk.served {
                continue;
            }
            let Some(digests) = (match demand {
                Demand::AsStored => chunk.stored.as_ref(),
                Demand::Copy | Demand::Unchanged => Some(&chunk.first),
            }) else {
                continue;
            };
            for (layer, digest) in copies.named(chunk, digests) {
                let Some(digest) = digest else { continue };
                copies.owners.entry(digest).or_insert((question, chunk.chunk, layer, chunk.rank));
                if let Some(identity) = copies.identity(question, chunk, layer) {
                    let known = copies.by_identity.entry(identity).or_default();
                    if !known.contains(&digest) {
                        known.push(digest);
                    }
                }
            }
        }
        copies
    }

    /// The digests of a chunk with the names of its rank's layers; a layer that none came for has none.
    pub(super) fn named(&self, chunk: &ChunkDigests, digests: &LayerDigests) -> Vec<(&'a str, Option<u128>)> {
        let rank = usize::try_from(chunk.rank).ok();
        let names = rank.and_then(|rank| self.evidence.layers.get(rank)).into_iter().flatten();
        names.map(String::as_str).zip(digests.iter().chain(std::iter::repeat(None))).collect()
    }

    /// How many layers that see a window had no served cell that was held.
    pub(super) fn unheld_layers(&self) -> u32 {
        let held = self.held.borrow();
        let of_rank = |(rank, names): (u32, &'a Vec<String>)| {
            let sees_window = |name: &&String| self.evidence.window(rank, name).is_some();
            let is_held = |name: &&String| {
                self.layers.get(name.as_str()).is_some_and(|layer| held.contains(&(rank, *layer)))
            };
            names.iter().filter(sees_window).filter(|name| !is_held(name)).count()
        };
        let unheld: usize = (0..).zip(&self.evidence.layers).map(of_rank).sum();
        u32::try_from(unheld).unwrap_or(u32::MAX)
    }

    pub(super) fn identity(
        &self,
        question: &QuestionId,
        chunk: &ChunkDigests,
        layer: &str,
    ) -> Option<Identity> {
        let prefix = self.evidence.prefixes.get(question)?.get(usize::try_from(chunk.chunk).ok()?)?;
        let rank = if self.evidence.shared_by_ranks { 0 } else { chunk.rank };
        Some((*prefix, *self.layers.get(layer)?, rank))
    }

    /// What bytes are, if they are known; said of a cell that should be another.
    pub(super) fn recognise(
        &self,
        digest: u128,
        question: &QuestionId,
        chunk: &ChunkDigests,
        layer: &str,
    ) -> Option<String> {
        if digest == ZEROS {
            return Some("zeros".to_owned());
        }
        let &(owner, place, name, rank) = self.owners.get(&digest)?;
        let mut differs = Vec::new();
        if place != chunk.chunk {
            differs.push(format!("chunk {}", place + 1));
        }
        if name != layer {
            differs.push(format!("layer {name}"));
        }
        if rank != chunk.rank && !self.evidence.shared_by_ranks {
            differs.push(format!("rank {rank}"));
        }
        if owner != question {
            differs.push(format!("the prompt of {owner}"));
        }
        (!differs.is_empty()).then(|| format!("the KV of {}", differs.join(", ")))
    }
}

/// The digest of a chunk of zeros: what the worker adds to its sums.
const ZEROS: u128 = {
    let (first, second) = (0x243F_6A88_85A3_08D3_u64.swap_bytes(), 0x1319_8A2E_0370_7344_u64.swap_bytes());
    ((first as u128) << 64) | second as u128
};

impl KvEvidence {
    /// The passes with a cache, in the order of asking.
    pub(super) fn passes(&self) -> [(Pass, &Vec<KvRecord>); 3] {
        [(Pass::Store, &self.store), (Pass::Load, &self.load), (Pass::Cut, &self.cut)]
    }
}

/// The chunks of these records, each with whose prompt it is of.
pub(super) fn chunks(records: &[KvRecord]) -> impl Iterator<Item = (&QuestionId, &ChunkDigests)> {
    records.iter().flat_map(|record| match record {
        KvRecord::Request { question, chunks } => chunks.iter().map(|chunk| (question, chunk)).collect(),
        KvRecord::NotObserved { .. } => Vec::new(),
    })
}
