//! Every fault that is planted. Main value: [`CATALOGUE`].

use super::kind::{Applies, Donor, Fault, Group, Layers, Must, Place, Ranks, Spots, Tier, Variant};
use super::operator::{Bit, Operator, Spread};
use crate::comparison::Rung;
use crate::engine::Misreading;
use crate::model::KvShape;

const EVERY: Spots = &[(Place::Every, Layers::All)];
const MIDDLE: Spots = &[(Place::Middle, Layers::All)];
const MIDDLE_AND_ONE_LAYER: Spots = &[(Place::Middle, Layers::All), (Place::Middle, Layers::Middle)];
const MIDDLE_AND_EVERY: Spots = &[(Place::Middle, Layers::All), (Place::Every, Layers::All)];
const EACH_PLACE: Spots =
    &[(Place::First, Layers::All), (Place::Middle, Layers::All), (Place::Last, Layers::All)];
const ENDS_AND_RARE: Spots =
    &[(Place::First, Layers::All), (Place::Last, Layers::All), (Place::OneInAHundred, Layers::All)];
const LAST: Spots = &[(Place::Last, Layers::All)];
const WHOLE: Spots = &[(Place::LastOfWhole, Layers::All)];
const OUTER_LAYERS: Spots = &[(Place::Middle, Layers::First), (Place::Middle, Layers::Last)];
const ONE_LAYER_OF_EVERY: Spots = &[(Place::Every, Layers::Middle)];
const LATE: Spots =
    &[(Place::Every, Layers::All), (Place::Middle, Layers::All), (Place::Middle, Layers::Last)];

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
        doses: &[("", Operator::TakeAll, ENDS_AND_RARE)],
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
        name: "single bits",
        group: Group::Encoding,
        what: "flips one bit of one element at sampled places: any chunk, layer, row, element and bit but an exponent's highest; a \
               quarter of them in the smallest element of a row",
        stands_for: "the smallest fault that there is, in an element that no answer depends on",
        must: Must::BeSeen(Rung::Kv),
        doses: &[("", Operator::FlipPlaces, EVERY)],
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
        name: "last row lost",
        group: Group::Extent,
        what: "of a prompt of whole chunks the last two tokens are zero: the last one is computed again, the one before it is read",
        stands_for: "a load that ends a row too early where a prompt is served whole (LMCache 4614, vLLM 52617)",
        doses: &[("", Operator::ZeroLastTwoTokens, WHOLE)],
        ..PLAIN
    },
    Fault {
        name: "whole prompt counted",
        group: Group::Extent,
        what: "the engine takes all n tokens of a prompt of whole chunks as served instead of n − 1, and computes what lies behind",
        stands_for: "a hit that is off by one where a prompt is served whole (LMCache 4614, vLLM 52617)",
        doses: &[("", Operator::Misread(Misreading::AllServed), WHOLE)],
        ..PLAIN
    },
    Fault {
        name: "position off by one",
        group: Group::Extent,
        what: "the engine computes the last token of a prompt of whole chunks at the position behind its own",
        stands_for: "a position that is counted from the hit instead of from the token (vLLM 52617)",
        doses: &[("", Operator::Misread(Misreading::OnePositionOff), WHOLE)],
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
    Fault {
        name: "late chunk",
        group: Group::Timing,
        what: "a chunk reaches the engine's blocks behind the first forward pass that reads it, which finds what lay there before",
        stands_for: "a load that is called done before its copy is, as under an extension of LMCache that does not load",
        must: Must::BeSeen(Rung::Kv),
        doses: &[("", Operator::ComeLate, LATE)],
        ..PLAIN
    },
    Fault {
        name: "reused block",
        group: Group::Timing,
        what: "blocks are given away at a request's end and stored once another request has written into them",
        stands_for: "a store that nobody waits for: what is stored holds another prompt's KV in part",
        must: Must::BeSeen(Rung::Kv),
        doses: &[
            ("once", Operator::ReuseBlocks { others: 1 }, EVERY),
            ("many times", Operator::ReuseBlocks { others: 64 }, EVERY),
        ],
        ..PLAIN
    },
];

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
}

#[cfg(test)]
#[path = "catalogue_tests.rs"]
mod tests;
