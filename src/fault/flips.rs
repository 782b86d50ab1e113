//! A sample of places in stored chunks, at each of which one bit is flipped. Main type: [`Flip`]. Pure.

use std::collections::BTreeSet;

use super::chunk_name::{ChunkName, Shard};
use super::element;
use super::layout::Layout;
use super::numbers::Numbers;
use crate::digest::digest_bytes;

/// One in so many flips is in the smallest element of its row that is not zero.
const SMALLEST_OF: usize = 4;

/// One bit of one element of one prompt's stored chunk.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flip {
    /// The prompt, by its place among all.
    pub prompt: usize,
    /// The shard that is changed of it.
    pub shard: Shard,
    layer: usize,
    row: usize,
    column: Column,
    bit: usize,
}

/// Which element of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Column {
    At(usize),
    Smallest,
}

impl Flip {
    /// Whether it is in the smallest element of a row.
    #[must_use]
    pub fn is_in_smallest(&self) -> bool {
        self.column == Column::Smallest
    }

    /// What is stored in place of a shard with this layout: one bit of it is another.
    #[must_use]
    pub fn apply(&self, layout: &Layout, pristine: &[u8]) -> Vec<u8> {
        let mut bytes = layout.by_layers(pristine).into_owned();
        let size = layout.element_bytes();
        let start = layout.layer(self.layer).start + self.row * layout.row_bytes();
        let row = &mut bytes[start..start + layout.row_bytes()];
        let column = match self.column {
            Column::At(column) => column,
            Column::Smallest => {
                let magnitude =
                    |column: usize| element::read(layout.dtype, &row[column * size..][..size]).abs();
                let columns = (0..layout.width()).filter(|column| magnitude(*column) > 0.0);
                columns.min_by(|one, other| magnitude(*one).total_cmp(&magnitude(*other))).unwrap_or(0)
            }
        };
        row[column * size + self.bit / 8] ^= 1 << (self.bit % 8);
        layout.as_stored(bytes)
    }
}

/// So many flips at different places, any element and any bit alike but an exponent's highest, which makes numbers that are
/// none; in turns that are planted and asked together, one flip in each prompt. `prompts` lists each one's whole chunks, at
/// least one. The sample is the same in every run over the same prompts.
#[must_use]
pub fn sample_flips(
    count: usize,
    layout: &Layout,
    prompts: &[Vec<ChunkName>],
    shards: u32,
) -> Vec<Vec<Flip>> {
    let mut numbers = Numbers::seeded(&digest_bytes(b"places of single bits"));
    let bits = 8 * layout.element_bytes();
    let mut known = BTreeSet::new();
    let mut turns = Vec::new();
    // A model has millions of places; one that had fewer than are asked for would get those.
    for _ in 0..4 * count {
        let mut turn: Vec<Flip> = Vec::new();
        for (prompt, chunks) in prompts.iter().enumerate() {
            let smallest = known.len().is_multiple_of(SMALLEST_OF);
            let chunk = chunks[numbers.below(chunks.len())].clone();
            let rank = u32::try_from(numbers.below(usize::try_from(shards).unwrap_or(1))).unwrap_or(0);
            let flip = Flip {
                prompt,
                shard: Shard { chunk, rank },
                layer: numbers.below(layout.layers()),
                row: numbers.below(layout.rows),
                column: match numbers.below(layout.width()) {
                    _ if smallest => Column::Smallest,
                    column => Column::At(column),
                },
                bit: match numbers.below(bits - 1) {
                    sign if sign == bits - 2 => bits - 1,
                    bit => bit,
                },
            };
            // A chunk that prompts share holds one flip at a time.
            let is_taken = turn.iter().any(|other| other.shard == flip.shard);
            if known.len() < count && !is_taken && known.insert(flip.clone()) {
                turn.push(flip);
            }
        }
        if !turn.is_empty() {
            turns.push(turn);
        }
    }
    turns
}

#[cfg(test)]
mod tests {
    use super::super::layout::tests::{DENSE, KEYS_FIRST, MLA};
    use super::*;

    fn prompts(count: u32) -> Vec<Vec<ChunkName>> {
        (0..count).map(|prompt| ChunkName::of_prompt(&[prompt, 1, 2, 3, 4, 5], 2)).collect()
    }

    #[test]
    fn each_prompt_has_one_flip_in_a_turn_and_no_place_comes_twice() {
        let turns = sample_flips(50, &MLA, &prompts(8), 2);
        assert_eq!(turns.iter().map(Vec::len).collect::<Vec<_>>(), [8, 8, 8, 8, 8, 8, 2]);
        let flips: BTreeSet<&Flip> = turns.iter().flatten().collect();
        assert_eq!(flips.len(), 50);
        assert_eq!(flips.iter().filter(|flip| flip.is_in_smallest()).count(), 13);
        let all = |of: &dyn Fn(&Flip) -> usize| flips.iter().map(|flip| of(flip)).collect::<BTreeSet<_>>();
        assert_eq!(all(&|flip| flip.layer), (0..3).collect());
        assert_eq!(all(&|flip| flip.row), (0..8).collect());
        assert_eq!(all(&|flip| flip.shard.rank as usize), (0..2).collect());
        let bits = all(&|flip| flip.bit);
        assert!(bits.contains(&0) && bits.contains(&15) && !bits.contains(&14), "{bits:?}");
        assert_eq!(turns, sample_flips(50, &MLA, &prompts(8), 2));
    }

    #[test]
    fn prompts_that_share_all_their_chunks_take_turns() {
        let shared = vec![ChunkName::of_prompt(&[1, 2], 2); 2];
        let turns = sample_flips(6, &MLA, &shared, 1);
        assert!(turns.iter().all(|turn| turn.len() == 1));
        assert_eq!(turns.len(), 6);
    }

    #[test]
    fn a_flip_changes_one_bit_in_its_layer_and_the_smallest_element_is_no_zero() {
        for layout in [DENSE, KEYS_FIRST, MLA] {
            let pristine: Vec<u8> =
                (0..layout.bytes() / 2).flat_map(|at| [u8::try_from(at % 7).unwrap(), 0]).collect();
            for flip in sample_flips(40, &layout, &prompts(8), 1).iter().flatten() {
                let planted = layout.by_layers(&flip.apply(&layout, &pristine)).into_owned();
                let ordered = layout.by_layers(&pristine);
                let differing: Vec<usize> =
                    (0..planted.len()).filter(|at| planted[*at] != ordered[*at]).collect();
                let [at] = differing[..] else { panic!("{differing:?}") };
                assert_eq!((planted[at] ^ ordered[at]).count_ones(), 1);
                assert!(layout.layer(flip.layer).contains(&at));
                if flip.is_in_smallest() {
                    assert_eq!(ordered[at / 2 * 2], 1, "{flip:?}");
                }
            }
        }
    }
}
