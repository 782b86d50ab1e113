//! Every fault that is planted: what it does, which public bug it stands for, and what has to see it.
//! Main types: [`Fault`], [`Variant`].

use std::ops::Range;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::comparison::Rung;
use crate::engine::KvShape;

use super::operator::{Bit, Operator, Spread};

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
    /// The places among so many chunks, at least one.
    #[must_use]
    pub fn of(self, chunks: usize) -> Range<usize> {
        let one = |place| place..place + 1;
        match self {
            Self::First => one(0),
            Self::Middle => one(chunks / 2),
            Self::Last => one(chunks - 1),
            Self::Every => 0..chunks,
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
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Variant {
    /// The fault.
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

impl Fault {
    /// All variants for a model that has shards of this shape, so many a chunk: first those in memory, then those on disk.
    /// The identity is planted so many times.
    #[must_use]
    pub fn variants(shape: KvShape, shards: u32, identity: u32) -> Vec<Variant> {
        let applicable = || CATALOGUE.iter().filter(|fault| fault.applies_to(shape, shards));
        let memory =
            applicable().filter(|fault| fault.in_memory).filter_map(|fault| fault.on(Tier::Memory).next());
        let disk = applicable().flat_map(|fault| {
            let times = if fault.is_identity() { identity } else { 1 };
            (0..times).flat_map(|_| fault.on(Tier::Disk))
        });
        memory.chain(disk).collect()
    }

    /// The same for values of a Redis server. A value comes with its length, so one with bytes that no reader asks for is
    /// refused, and no padding; and one value of another length makes LMCache 0.5.6 read nothing more from Redis ever after,
    /// so these come last.
    #[must_use]
    pub fn variants_in_redis(shape: KvShape, shards: u32, identity: u32) -> Vec<Variant> {
        let (lengths, bytes): (Vec<Variant>, Vec<Variant>) = Self::variants(shape, shards, identity)
            .into_iter()
            .partition(|variant| variant.operator.changes_length());
        bytes
            .into_iter()
            .chain(lengths.into_iter().filter(|variant| variant.operator != Operator::Append))
            .collect()
    }

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

    fn is_identity(&self) -> bool {
        self.doses.iter().all(|(_, operator, _)| *operator == Operator::Rewrite)
    }

    fn on(&'static self, tier: Tier) -> impl Iterator<Item = Variant> {
        self.doses.iter().flat_map(move |&(dose, operator, spots)| {
            let variant =
                move |&(place, layers)| Variant { fault: self, dose, operator, place, layers, tier };
            spots.iter().map(variant)
        })
    }
}

const EVERY: Spots = &[(Place::Every, Layers::All)];
const MIDDLE: Spots = &[(Place::Middle, Layers::All)];
const MIDDLE_AND_ONE_LAYER: Spots = &[(Place::Middle, Layers::All), (Place::Middle, Layers::Middle)];
const MIDDLE_AND_EVERY: Spots = &[(Place::Middle, Layers::All), (Place::Every, Layers::All)];
const EACH_PLACE: Spots =
    &[(Place::First, Layers::All), (Place::Middle, Layers::All), (Place::Last, Layers::All)];
const ENDS: Spots = &[(Place::First, Layers::All), (Place::Last, Layers::All)];
const LAST: Spots = &[(Place::Last, Layers::All)];
const OUTER_LAYERS: Spots = &[(Place::Middle, Layers::First), (Place::Middle, Layers::Last)];
const ONE_LAYER_OF_EVERY: Spots = &[(Place::Every, Layers::Middle)];

const BITS: Must = Must::BeSeen(Rung::BitExact);
const HITS: Must = Must::BeSeen(Rung::Exercised);

/// A fault on all models, seen in bits, without donor, on disk alone.
const PLAIN: Fault = Fault {
    name: "",
    group: Group::Content,
    what: "",
    stands_for: "",
    must: BITS,
    applies: Applies::Both,
    donor: Donor::Nobody,
    ranks: Ranks::All,
    doses: &[],
    in_memory: false,
};

/// All faults.
pub const CATALOGUE: &[Fault] = &[
    Fault {
        name: "identity",
        group: Group::Control,
        what: "writes the same bytes again",
        stands_for: "a cache without fault: any other verdict is a false alarm",
        must: Must::ChangeNothing,
        doses: &[("", Operator::Rewrite, EVERY)],
        in_memory: true,
        ..PLAIN
    },
    Fault {
        name: "padding",
        group: Group::Control,
        what: "appends bytes that no reader asks for",
        stands_for: "a fault without effect: it must not be counted as one",
        must: Must::ChangeNothing,
        doses: &[("", Operator::Append, EVERY)],
        ..PLAIN
    },
    Fault {
        name: "no-op cache",
        group: Group::Control,
        what: "deletes everything that was stored",
        stands_for: "a vacuous pass: differing hash seeds, degraded mode (LMCache 2136, 2511)",
        must: Must::ServeNothing,
        doses: &[("", Operator::Delete, EVERY)],
        ..PLAIN
    },
    Fault {
        name: "zeros",
        what: "a chunk is zero",
        stands_for: "a read while it is being stored (LMCache 207)",
        doses: &[("", Operator::Zero, EACH_PLACE)],
        in_memory: true,
        ..PLAIN
    },
    Fault {
        name: "stale block",
        what: "the first half of a chunk is its neighbour's",
        stands_for: "a partial chunk over vLLM's own prefix hits (LMCache 2206)",
        donor: Donor::Neighbour,
        doses: &[("", Operator::TakeFirstHalf, MIDDLE_AND_ONE_LAYER)],
        ..PLAIN
    },
    Fault {
        name: "chunks swapped",
        what: "two chunks of a prompt change places",
        stands_for: "the right blocks in the wrong order; keys carry their positions, so no answer can change",
        must: Must::ReorderAlone,
        donor: Donor::Exchange,
        doses: &[("", Operator::TakeAll, MIDDLE)],
        in_memory: true,
        ..PLAIN
    },
    Fault {
        name: "another prompt",
        what: "a chunk is that of the next question",
        stands_for: "another request's KV from disk (LMCache 4385); KV of the wrong blocks (Dynamo 8419)",
        donor: Donor::NextQuestion,
        doses: &[("", Operator::TakeAll, ENDS)],
        in_memory: true,
        ..PLAIN
    },
    Fault {
        name: "rows shifted",
        what: "every row holds the one before it, and the last one is lost",
        stands_for: "off by one in a slot mapping (vLLM 52617)",
        doses: &[("", Operator::ShiftRows, MIDDLE_AND_EVERY)],
        ..PLAIN
    },
    Fault {
        name: "layer lost",
        group: Group::Structure,
        what: "one layer of a chunk is zero",
        stands_for: "a layer-wise transfer that misses a layer",
        doses: &[("", Operator::Zero, OUTER_LAYERS)],
        in_memory: true,
        ..PLAIN
    },
    Fault {
        name: "layers exchanged",
        group: Group::Structure,
        what: "layers change places in pairs, or one with the next",
        stands_for: "layers stored under the wrong index",
        doses: &[("", Operator::ExchangeLayers, MIDDLE_AND_ONE_LAYER)],
        ..PLAIN
    },
    Fault {
        name: "keys for values",
        group: Group::Structure,
        what: "keys and values change places",
        stands_for: "a wrong KV layout (LMCache 4463)",
        applies: Applies::Dense,
        doses: &[("", Operator::ExchangeParts, MIDDLE_AND_ONE_LAYER)],
        in_memory: true,
        ..PLAIN
    },
    Fault {
        name: "heads rotated",
        group: Group::Structure,
        what: "each head has the next one's KV",
        stands_for: "shards of another tensor-parallel size read as one's own (vLLM 55191)",
        applies: Applies::SeveralHeads,
        doses: &[("", Operator::RotateHeads, MIDDLE)],
        ..PLAIN
    },
    Fault {
        name: "shard missing",
        group: Group::Structure,
        what: "half of the heads are zero",
        stands_for: "a rank whose shard was not stored",
        applies: Applies::SeveralHeads,
        doses: &[("", Operator::ZeroHalfOfHeads, MIDDLE)],
        ..PLAIN
    },
    Fault {
        name: "shard repeated",
        group: Group::Structure,
        what: "the second half of the heads repeats the first",
        stands_for: "all ranks load rank 0's shard (LMCache 4219)",
        applies: Applies::SeveralHeads,
        doses: &[("", Operator::RepeatHalfOfHeads, MIDDLE)],
        ..PLAIN
    },
    Fault {
        name: "rank's shard zero",
        group: Group::Structure,
        what: "the last rank's shard of a chunk is zero",
        stands_for: "a rank whose store or load was lost, while the others' went through",
        applies: Applies::SeveralShards,
        ranks: Ranks::Last,
        doses: &[("", Operator::Zero, EACH_PLACE)],
        in_memory: true,
        ..PLAIN
    },
    Fault {
        name: "first rank's shard for all",
        group: Group::Structure,
        what: "every rank finds the first rank's shard of a chunk",
        stands_for: "all ranks load rank 0's shard (LMCache 4219)",
        applies: Applies::SeveralShards,
        donor: Donor::FirstRank,
        doses: &[("", Operator::TakeAll, MIDDLE_AND_EVERY)],
        in_memory: true,
        ..PLAIN
    },
    Fault {
        name: "shards exchanged",
        group: Group::Structure,
        what: "each rank finds the next rank's shard of a chunk",
        stands_for: "shards read by another rank than the one that stored them (vLLM 55191)",
        applies: Applies::SeveralShards,
        donor: Donor::NextRank,
        doses: &[("", Operator::TakeAll, MIDDLE_AND_EVERY)],
        in_memory: true,
        ..PLAIN
    },
    Fault {
        name: "rotary first",
        group: Group::Structure,
        what: "the rotary part stands before the latent vector",
        stands_for: "a wrong KV layout (LMCache 4463)",
        applies: Applies::Mla,
        doses: &[("", Operator::ExchangeParts, MIDDLE_AND_ONE_LAYER)],
        in_memory: true,
        ..PLAIN
    },
    Fault {
        name: "rotary lost",
        group: Group::Structure,
        what: "the rotary part is zero",
        stands_for: "a copy that takes the latent vector alone",
        applies: Applies::Mla,
        doses: &[("", Operator::ZeroRotary, MIDDLE_AND_ONE_LAYER)],
        ..PLAIN
    },
    Fault {
        name: "half rows lost",
        group: Group::Structure,
        what: "the second half of each row's content is zero, of each head's in a dense model",
        stands_for: "packed keys and values taken for keys alone: half of each row lost (LMCache 4463)",
        doses: &[("", Operator::ZeroHalfOfRows, MIDDLE_AND_ONE_LAYER)],
        ..PLAIN
    },
    Fault {
        name: "lowest bit",
        group: Group::Encoding,
        what: "flips the lowest bit of a chunk's largest element, or of each row's",
        stands_for: "the smallest fault that there is: a rounding too many",
        doses: &[
            ("one", Operator::Flip { bit: Bit::Lowest, spread: Spread::Once }, EVERY),
            ("one a row", Operator::Flip { bit: Bit::Lowest, spread: Spread::EachRow }, EACH_PLACE),
        ],
        in_memory: true,
        ..PLAIN
    },
    Fault {
        name: "exponent bit",
        group: Group::Encoding,
        what: "flips the lowest exponent bit of a chunk's largest element",
        stands_for: "a flipped bit in memory or on disk",
        doses: &[
            ("one", Operator::Flip { bit: Bit::Exponent, spread: Spread::Once }, EVERY),
            (
                "one in a layer",
                Operator::Flip { bit: Bit::Exponent, spread: Spread::Once },
                ONE_LAYER_OF_EVERY,
            ),
        ],
        ..PLAIN
    },
    Fault {
        name: "random bits",
        group: Group::Encoding,
        what: "flips bits at random, but never an exponent's highest",
        stands_for: "a transport without a checksum",
        doses: &[
            ("1 in a million", Operator::FlipAtRandom { per_million: 1 }, EVERY),
            ("100 in a million", Operator::FlipAtRandom { per_million: 100 }, MIDDLE),
        ],
        ..PLAIN
    },
    Fault {
        name: "wrong type",
        group: Group::Encoding,
        what: "bfloat16 is read as float16, or the other way round",
        stands_for: "keys that carry no data type: the same model in another type hits",
        doses: &[("", Operator::Reinterpret, MIDDLE_AND_ONE_LAYER)],
        ..PLAIN
    },
    Fault {
        name: "wrong scale",
        group: Group::Encoding,
        what: "multiplies by 1 + 1/128, by a half, by two",
        stands_for: "dropped scales of a quantised cache (SGLang 39942)",
        doses: &[
            ("1 + 1/128", Operator::Scale(1.0 + 1.0 / 128.0), MIDDLE),
            ("1/2", Operator::Scale(0.5), MIDDLE),
            ("2", Operator::Scale(2.0), MIDDLE),
        ],
        in_memory: true,
        ..PLAIN
    },
    Fault {
        name: "int8",
        group: Group::Encoding,
        what: "quantises to 8-bit integers, one scale a row",
        stands_for: "a lossy serde (LMCache 717, 754)",
        doses: &[("", Operator::QuantizeInt8, MIDDLE)],
        ..PLAIN
    },
    Fault {
        name: "fp8",
        group: Group::Encoding,
        what: "quantises to FP8 E4M3 without scale",
        stands_for: "a lossy serde (LMCache 717, 754)",
        doses: &[("", Operator::QuantizeE4m3, MIDDLE_AND_ONE_LAYER)],
        ..PLAIN
    },
    Fault {
        name: "tail lost",
        group: Group::Extent,
        what: "the last rows are zero: one, or a quarter",
        stands_for: "more tokens claimed than were stored (vLLM 52617); a short write",
        doses: &[
            ("one row", Operator::ZeroLastRow, LAST),
            ("a quarter", Operator::ZeroLastRows { parts: 4 }, LAST),
        ],
        ..PLAIN
    },
    Fault {
        name: "file cut",
        group: Group::Extent,
        what: "a quarter of the last chunk's file is missing",
        stands_for: "a write that a full disk or a crash cut short",
        must: HITS,
        doses: &[("", Operator::Truncate, LAST)],
        ..PLAIN
    },
    Fault {
        name: "file deleted",
        group: Group::Extent,
        what: "a chunk's file is gone, so fewer tokens are served than were stored",
        stands_for: "an eviction between store and load",
        must: HITS,
        doses: &[("", Operator::Delete, MIDDLE)],
        ..PLAIN
    },
    Fault {
        name: "failed store, empty",
        group: Group::State,
        what: "the file of the last chunk is there and has no byte",
        stands_for: "a failed store left visible; a failed load reported as loaded (LMCache 3388)",
        must: HITS,
        doses: &[("", Operator::Empty, LAST)],
        ..PLAIN
    },
    Fault {
        name: "failed store, garbage",
        group: Group::State,
        what: "a chunk holds its own numbers in a random order",
        stands_for: "a buffer that was given back before it was written (LMCache 207)",
        doses: &[("", Operator::Scramble, LAST)],
        ..PLAIN
    },
    Fault {
        name: "key collision",
        group: Group::State,
        what: "all questions find the first question's chunk under their key",
        stands_for: "keys that do not tell two prompts apart (LMCache 4385)",
        donor: Donor::FirstQuestion,
        doses: &[("", Operator::TakeAll, MIDDLE)],
        ..PLAIN
    },
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const DENSE: KvShape = KvShape::Dense { layers: 4, kv_heads: 2, head_size: 64 };
    const MLA: KvShape = KvShape::Mla { layers: 4, latent: 512, rotary: 64 };
    const ONE_HEAD: KvShape = KvShape::Dense { layers: 4, kv_heads: 1, head_size: 64 };

    #[test]
    fn each_architecture_has_at_least_sixteen_faults_besides_the_controls() {
        for (shape, shards) in [(DENSE, 1), (MLA, 1), (ONE_HEAD, 2)] {
            let faults = CATALOGUE.iter().filter(|fault| fault.applies_to(shape, shards));
            assert!(faults.filter(|fault| fault.group != Group::Control).count() >= 16);
        }
    }

    #[test]
    fn variants_differ_and_the_identity_is_planted_as_often_as_asked() {
        for (shape, shards) in [(DENSE, 1), (MLA, 1), (DENSE, 2)] {
            let variants = Fault::variants(shape, shards, 20);
            let identities =
                variants.iter().filter(|variant| variant.fault.is_identity() && variant.tier == Tier::Disk);
            assert_eq!(identities.count(), 20);
            let names: BTreeSet<String> = variants
                .iter()
                .map(|variant| {
                    let Variant { fault, dose, place, layers, tier, .. } = variant;
                    format!("{} {dose} {place:?} {layers:?} {tier:?}", fault.name)
                })
                .collect();
            assert_eq!(names.len(), variants.len() - 19);
        }
    }

    #[test]
    fn every_fault_changes_what_is_read_and_no_harmless_control_does() {
        use super::super::layout::tests::{DENSE, MLA};
        for layout in [DENSE, MLA] {
            // Numbers between 1 and 2, no two rows alike.
            let chunk = |salt: usize| -> Vec<u8> {
                (0..layout.bytes() / 2)
                    .flat_map(|at| [u8::try_from(at * salt % 127).unwrap(), 0x3f])
                    .collect()
            };
            let (pristine, donor) = (chunk(3), chunk(5));
            for variant in Fault::variants(layout.shape, 2, 1) {
                let layers = variant.layers.of(layout.layers());
                let planted = variant.operator.apply(&layout, layers, &pristine, &donor);
                let read = planted.as_deref().unwrap_or_default().get(..layout.bytes());
                let changes = read != Some(&pristine[..]);
                assert_eq!(changes, variant.fault.must != Must::ChangeNothing, "{variant:?}");
            }
        }
    }

    #[test]
    fn in_redis_nothing_is_padded_and_what_changes_a_length_comes_last() {
        let shape = KvShape::Mla { layers: 4, latent: 512, rotary: 64 };
        let variants = Fault::variants_in_redis(shape, 1, 2);
        let first = variants.iter().position(|variant| variant.operator.changes_length()).unwrap();
        assert!(variants[first..].iter().all(|variant| variant.operator.changes_length()));
        assert!(variants.iter().all(|variant| variant.operator != Operator::Append));
        assert_eq!(variants.len(), Fault::variants(shape, 1, 2).len() - 1);
    }

    #[test]
    fn faults_of_shards_need_shards_and_faults_of_heads_need_heads() {
        let names = |shape, shards| -> BTreeSet<&str> {
            let faults = CATALOGUE.iter().filter(|fault| fault.applies_to(shape, shards));
            faults.map(|fault| fault.name).collect()
        };
        let (whole, sharded) = (names(DENSE, 1), names(ONE_HEAD, 2));
        let of_heads = BTreeSet::from(["heads rotated", "shard missing", "shard repeated"]);
        let of_shards =
            BTreeSet::from(["rank's shard zero", "first rank's shard for all", "shards exchanged"]);
        assert_eq!(&whole - &sharded, of_heads);
        assert_eq!(&sharded - &whole, of_shards);
        assert!(of_shards.is_disjoint(&names(MLA, 1)));
        assert_eq!([Ranks::All, Ranks::Last].map(|ranks| ranks.of(3)), [0..3, 2..3]);
    }

    #[test]
    fn places_and_layers_are_where_their_names_say() {
        let places = [Place::First, Place::Middle, Place::Last, Place::Every].map(|place| place.of(5));
        assert_eq!(places, [0..1, 2..3, 4..5, 0..5]);
        assert_eq!([Place::First, Place::Middle, Place::Last].map(|place| place.of(1)), [0..1, 0..1, 0..1]);
        let layers = [Layers::All, Layers::First, Layers::Middle, Layers::Last].map(|layers| layers.of(6));
        assert_eq!(layers, [0..6, 0..1, 3..4, 5..6]);
    }
}
