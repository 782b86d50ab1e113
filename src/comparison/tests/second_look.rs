//! What a second look tells of wrong KV.

use proptest::prelude::*;

use crate::comparison::{ComputedKv, KnownCell, KvDifference, Pass, SecondLook, Sight, look_closely};
use crate::dataset::{QuestionId, Split};
use crate::model::{CellBytes, CellPart, Element};

const ROWS: u32 = 8;
const HEADS: u32 = 2;
const ELEMENTS: u32 = 4;

fn question(row: u32) -> QuestionId {
    QuestionId { subject: "law".parse().unwrap(), split: Split::Test, row }
}

/// Keys and values that look random, fixed by a seed; values of about 1.
fn random(seed: u64) -> Vec<u8> {
    let words = 2 * ROWS * HEADS * ELEMENTS;
    let word = |place: u32| {
        let mixed = (seed << 32 | u64::from(place)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        let bits = mixed.wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 57;
        0x3f80 + u16::try_from(bits).unwrap()
    };
    (0..words).flat_map(|place| word(place).to_le_bytes()).collect()
}

fn cell(bytes: Vec<u8>) -> CellBytes {
    let part = |name: &str| CellPart { name: name.to_owned(), heads: HEADS, elements: ELEMENTS };
    CellBytes::of_tokens(ROWS, vec![part("key"), part("value")], Element::Bfloat16, bytes).unwrap()
}

/// The place of an element's first byte: part, token, head, element.
fn byte(part: u32, token: u32, head: u32, element: u32) -> usize {
    (2 * (((part * ROWS + token) * HEADS + head) * ELEMENTS + element)) as usize
}

/// The bytes of one part of one token.
fn row(part: u32, token: u32) -> std::ops::Range<usize> {
    byte(part, token, 0, 0)..byte(part, token, HEADS - 1, ELEMENTS - 1) + 2
}

/// Three chunks of two prompts in two layers, all computed: the seed of a cell is in its place.
const PLACES: [(u32, u32, &str, u64); 5] =
    [(1, 1, "b", 1), (1, 0, "b", 2), (1, 2, "b", 3), (1, 1, "a", 4), (2, 1, "b", 5)];

/// Looks at bytes that should be those of the second chunk of the first prompt in layer b.
fn look(served: Vec<u8>) -> KvDifference {
    look_against(served, ComputedKv::Copy)
}

fn look_against(served: Vec<u8>, against: ComputedKv) -> KvDifference {
    let cells = PLACES.map(|(row, chunk, layer, seed)| (question(row), chunk, layer, cell(random(seed))));
    let known = cells.each_ref().map(|(question, chunk, layer, bytes)| KnownCell {
        question,
        chunk: *chunk,
        layer,
        rank: 0,
        bytes,
    });
    look_closely(&cell(served), known[0], against, &known).unwrap()
}

fn instead(difference: &KvDifference) -> Vec<(u64, &str)> {
    difference.instead.iter().map(|one| (one.rows, one.what.as_str())).collect()
}

proptest! {
    #[test]
    fn any_flipped_bit_is_named(part in 0..2_u32, token in 0..ROWS, head in 0..HEADS, element in 0..ELEMENTS, bit in 0..16_u32) {
        let mut served = random(1);
        served[byte(part, token, head, element) + (bit / 8) as usize] ^= 1 << (bit % 8);
        let seen = look(served);
        prop_assert_eq!((seen.differing_elements, seen.differing_bits, seen.tokens), (1, 1, Some((token, token, 1))));
        let first = seen.first.unwrap();
        let name = ["key", "value"][part as usize];
        prop_assert_eq!((first.token, first.part.as_str(), first.head, first.element), (ROWS + token, name, head, element));
    }

    #[test]
    fn what_was_computed_does_not_differ_from_itself(seed in 1..5_u64) {
        let mut same = look(random(1));
        prop_assert_eq!((same.differing_elements, same.first.take(), same.instead.len()), (0, None, 0));
        prop_assert!(look(random(seed + 1)).differing_elements > 0);
    }
}

#[test]
fn bytes_of_elsewhere_are_recognised_row_by_row() {
    let rows = u64::from(2 * ROWS);
    assert_eq!(instead(&look(vec![0; random(1).len()])), [(rows, "zeros")]);
    assert_eq!(instead(&look(random(2))), [(rows, "the KV of chunk 1")]);
    assert_eq!(instead(&look(random(4))), [(rows, "the KV of layer a")]);
    assert_eq!(instead(&look(random(5))), [(rows, "the KV of the prompt of law/test/2")]);
    // Of nothing that is known.
    assert_eq!(instead(&look(random(77))), []);
}

#[test]
fn keys_and_values_in_each_others_place_are_recognised() {
    let bytes = random(1);
    let (keys, values) = bytes.split_at(bytes.len() / 2);
    let seen = look([values, keys].concat());
    assert_eq!(instead(&seen), [(u64::from(2 * ROWS), "the other of keys and values")]);
}

#[test]
fn shifted_rows_are_recognised_across_the_border_of_a_chunk() {
    let mut served = random(1);
    for part in 0..2 {
        served.copy_within(row(part, 0).start..row(part, ROWS - 2).end, row(part, 1).start);
        served[row(part, 0)].copy_from_slice(&random(2)[row(part, ROWS - 1)]);
    }
    assert_eq!(instead(&look(served)), [(u64::from(2 * ROWS), "shifted: each is the row 1 before its own")]);
}

#[test]
fn a_part_of_a_chunk_that_is_anothers_is_recognised_beside_what_is_not() {
    let mut served = random(1);
    for token in 4..ROWS {
        for part in 0..2 {
            served[row(part, token)].copy_from_slice(&random(5)[row(part, token)]);
        }
    }
    served[byte(0, 1, 0, 0)] ^= 1;
    let seen = look(served);
    assert_eq!(instead(&seen), [(8, "the KV of the prompt of law/test/2")]);
    assert_eq!((seen.instead[0].of_rows, seen.tokens), (9, Some((1, 7, 5))));
}

#[test]
fn heads_in_another_order_are_recognised() {
    let mut served = random(1);
    for token in 0..ROWS {
        served[row(1, token)].rotate_left(8);
    }
    let seen = look(served);
    assert_eq!(instead(&seen), [(u64::from(ROWS), "those of the same token with heads in another order")]);
    assert_eq!((seen.parts[0].part.as_str(), seen.parts[0].heads.as_slice()), ("value", [0, 1].as_slice()));
}

#[test]
fn rows_of_one_repeated_byte_are_taken_for_nobodys() {
    assert_eq!(instead(&look(vec![7; random(1).len()])), []);
}

#[test]
fn rounding_is_left_out_against_what_is_no_copy() {
    let mut served = random(1);
    served[byte(0, 2, 1, 3)] ^= 1;
    assert_eq!(look_against(served.clone(), ComputedKv::Repetition).differing_elements, 0);
    // An exponent.
    served[byte(1, 6, 0, 1) + 1] ^= 0x40;
    let seen = look_against(served, ComputedKv::Repetition);
    let first = seen.first.unwrap();
    assert_eq!((seen.differing_elements, first.token, first.head, first.element), (1, ROWS + 6, 0, 1));
}

#[test]
fn a_layout_that_is_not_understood_names_blocks_and_bytes_and_nothing_more() {
    let computed = CellBytes::of_blocks(2, 128, (0..200).collect()).unwrap();
    let mut bytes: Vec<u8> = (0..200).collect();
    bytes[107] ^= 1;
    let served = CellBytes::of_blocks(2, 128, bytes).unwrap();
    let asked = question(1);
    let place = KnownCell { question: &asked, chunk: 3, layer: "b", rank: 1, bytes: &computed };
    let mut difference = look_closely(&served, place, ComputedKv::Copy, &[]).unwrap();
    difference.unknown_layout = Some("its elements are float8".to_owned());
    let look = SecondLook {
        question: asked.clone(),
        pass: Pass::Load,
        chunk: 3,
        layer: "b".to_owned(),
        rank: 1,
        sight: Sight::Held(difference),
    };
    insta::assert_snapshot!(look.words(), @"law/test/1, load pass, chunk 4, b, rank 1: 1 of 200 bytes differs, in 1 bit, in blocks of tokens 128 to 255 of the chunk. Tokens, heads and elements within a block cannot be told: its elements are float8. First: byte 7 of the block that begins with token 896 of the prompt, 0x6a where 0x6b was computed. Held against the prompt computed once more, which gave a copy of what had to be served, bit for bit.");
}

#[test]
fn a_second_look_reads_well() {
    let mut served = random(1);
    served[byte(1, 6, 1, 3)] ^= 1;
    let look = SecondLook {
        question: question(1),
        pass: Pass::Load,
        chunk: 1,
        layer: "b".to_owned(),
        rank: 0,
        sight: Sight::Held(look(served)),
    };
    insta::assert_snapshot!(look.words(), @"law/test/1, load pass, chunk 2, b, rank 0: 1 of 128 elements differs, in 1 bit, in token 6 of the chunk. First: token 14 of the prompt, value, head 1, element 3, 0x3fd7 where 0x3fd6 was computed. In all: value 1, in 1 of 2 heads. Largest error: 3.95e-3 of the largest value of its head. Held against the prompt computed once more, which gave a copy of what had to be served, bit for bit.");
}
