//! What a fault is: its doses, places and layers, what it stands for and what has to see it. Main types: [`Fault`], [`Variant`].

use std::ops::Range;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};

use crate::comparison::Rung;
use crate::model::KvShape;

use super::operator::Operator;

/// The chunk of each prompt and the layers in it that a dose is planted in, one spot at a time.
pub type Spots = &'static [(Place, Layers)];

/// Name (empty for an only dose), operator and spots.
pub type Dose = (&'static str, Operator, Spots);

/// A kind of damage, in one or more doses and places.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fault {
    /// Its name in reports.
    pub name: &'static str,
    /// What kind of damage.
    pub group: Group,
    /// What it does.
    pub what: &'static str,
    /// The public bug, or the way of failing, that it stands for.
    pub stands_for: &'static str,
    /// What must come of it.
    pub must: Must,
    /// The models that have what it damages.
    pub applies: Applies,
    /// Where foreign bytes come from.
    pub donor: Donor,
    /// The ranks whose shards are damaged.
    pub ranks: Ranks,
    /// The doses, from the smallest.
    pub doses: &'static [Dose],
    /// Whether its first variant is planted in LMCache's memory as well.
    pub in_memory: bool,
}

/// Kinds of damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Group {
    /// No damage, or all of it.
    Control,
    /// The wrong KV.
    Content,
    /// The right KV in the wrong places.
    Structure,
    /// The right KV, wrongly written.
    Encoding,
    /// Too little KV, or too much.
    Extent,
    /// KV that was never there.
    State,
    /// The right KV at the wrong time.
    Timing,
}

/// What must come of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Must {
    /// The ladder sees it; the named rung is expected to be the first.
    BeSeen(Rung),
    /// It may be seen, by bits alone: keys change places together with their values, which attention does not tell apart but
    /// for the order in which it sums.
    ReorderAlone,
    /// The engine reads what it would have read: the verdict stays *equivalent*.
    ChangeNothing,
    /// Nothing is served: *not exercised*.
    ServeNothing,
}

/// The models that a fault can be planted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applies {
    /// All.
    Both,
    /// Those with keys and values for heads.
    Dense,
    /// Those with a latent vector.
    Mla,
    /// Those with several KV heads in one shard.
    SeveralHeads,
    /// Those whose chunks are stored in several shards.
    SeveralShards,
}

/// Shards of a chunk, by the ranks that stored them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ranks {
    /// All.
    All,
    /// That of the last rank.
    Last,
}

impl Ranks {
    /// The ranks among those of so many shards, at least one.
    #[must_use]
    pub fn of(self, shards: u32) -> Range<u32> {
        match self {
            Self::All => 0..shards,
            Self::Last => shards.saturating_sub(1)..shards,
        }
    }
}

/// The chunk that foreign bytes come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Donor {
    /// None.
    Nobody,
    /// The chunk after it in the same prompt, or before it where it is the last.
    Neighbour,
    /// The same, and the neighbour gets this one's bytes.
    Exchange,
    /// The chunk at the same place of the next question.
    NextQuestion,
    /// The chunk at the same place of the first question, for all of them.
    FirstQuestion,
    /// The first rank's shard of the same chunk.
    FirstRank,
    /// The next rank's shard of the same chunk, and the first one's for the last.
    NextRank,
}

/// A whole chunk of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// The first.
    First,
    /// The one in the middle.
    Middle,
    /// The last whole one.
    Last,
    /// All of them.
    Every,
    /// The last one of a prompt that is a whole number of chunks; of others none.
    #[serde(rename = "last of whole prompts")]
    LastOfWhole,
    /// One in a hundred of all prompts' distinct chunks, at least one.
    #[serde(rename = "one in a hundred")]
    OneInAHundred,
}

/// Layers of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Layers {
    /// All.
    All,
    /// The first.
    First,
    /// The one in the middle.
    Middle,
    /// The last.
    Last,
}

impl Place {
    /// The places among so many chunks of a prompt, at least one; of one in a hundred those that it may be.
    #[must_use]
    pub fn of(self, chunks: usize) -> Range<usize> {
        let one = |place| place..place + 1;
        match self {
            Self::First => one(0),
            Self::Middle => one(chunks / 2),
            Self::Last | Self::LastOfWhole => one(chunks - 1),
            Self::Every | Self::OneInAHundred => 0..chunks,
        }
    }
}

impl Layers {
    /// The layers among so many, at least one.
    #[must_use]
    pub fn of(self, layers: usize) -> Range<usize> {
        let one = |layer| layer..layer + 1;
        match self {
            Self::All => 0..layers,
            Self::First => one(0),
            Self::Middle => one(layers / 2),
            Self::Last => one(layers - 1),
        }
    }
}

/// Where LMCache keeps what is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// The shared memory that the engine reads from.
    Memory,
    /// The second tier: the files of a folder, or on `mp+redis` the values of a Redis server.
    Disk,
}

/// One fault in one dose at one spot.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Variant {
    /// The fault, by its name.
    #[serde(serialize_with = "name_of")]
    pub fault: &'static Fault,
    /// The dose's name; empty where there is one dose.
    pub dose: &'static str,
    /// The dose.
    pub operator: Operator,
    /// The chunk of each prompt.
    pub place: Place,
    /// The layers of that chunk.
    pub layers: Layers,
    /// The tier.
    pub tier: Tier,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference to the field")]
fn name_of<S: Serializer>(fault: &&'static Fault, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(fault.name)
}

impl Fault {
    /// Whether the fault can be planted in a model that has shards of this shape, so many a chunk.
    #[must_use]
    pub fn applies_to(&self, shape: KvShape, shards: u32) -> bool {
        match (self.applies, shape) {
            (Applies::SeveralShards, _) => shards > 1,
            (Applies::SeveralHeads, KvShape::Dense { kv_heads, .. }) => kv_heads > 1,
            (Applies::Both, _)
            | (Applies::Dense, KvShape::Dense { .. })
            | (Applies::Mla, KvShape::Mla { .. }) => true,
            (Applies::Dense | Applies::SeveralHeads, KvShape::Mla { .. })
            | (Applies::Mla, KvShape::Dense { .. }) => false,
        }
    }

    /// Whether nothing is changed.
    pub(super) fn is_identity(&self) -> bool {
        self.doses.iter().all(|(_, operator, _)| *operator == Operator::Rewrite)
    }

    /// Its variants in a tier.
    pub(super) fn on(&'static self, tier: Tier) -> impl Iterator<Item = Variant> {
        self.doses.iter().flat_map(move |&(dose, operator, spots)| {
            let variant =
                move |&(place, layers)| Variant { fault: self, dose, operator, place, layers, tier };
            spots.iter().map(variant)
        })
    }
}
