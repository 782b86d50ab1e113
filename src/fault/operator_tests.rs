use proptest::prelude::*;

use super::super::layout::tests::{DENSE, KEYS_FIRST, MLA};
use super::*;
use crate::digest::digest_bytes;

const CHANGES_OF_LAYERS: [Operator; 21] = [
    Operator::Zero,
    Operator::TakeFirstHalf,
    Operator::TakeAll,
    Operator::ShiftRows,
    Operator::ExchangeParts,
    Operator::ZeroRotary,
    Operator::RotateHeads,
    Operator::ZeroHalfOfHeads,
    Operator::RepeatHalfOfHeads,
    Operator::ZeroHalfOfRows,
    Operator::Flip { bit: Bit::Lowest, spread: Spread::Once },
    Operator::Flip { bit: Bit::Exponent, spread: Spread::EachRow },
    Operator::FlipAtRandom { per_million: 1000 },
    Operator::Reinterpret,
    Operator::Scale(2.0),
    Operator::QuantizeInt8,
    Operator::QuantizeE4m3,
    Operator::ZeroLastRows { parts: 4 },
    Operator::ZeroLastRow,
    Operator::ZeroLastTwoTokens,
    Operator::Scramble,
];

/// A chunk of numbers between −4 and 4.
fn chunk(layout: Layout) -> impl Strategy<Value = Vec<u8>> {
    let elements = layout.bytes() / layout.element_bytes();
    proptest::collection::vec(-4.0_f32..4.0, elements).prop_map(move |values| {
        let mut bytes = vec![0; layout.bytes()];
        for (value, element) in values.iter().zip(bytes.chunks_exact_mut(layout.element_bytes())) {
            element::write(layout.dtype, *value, element);
        }
        bytes
    })
}

fn case() -> impl Strategy<Value = (Layout, Vec<u8>, Vec<u8>)> {
    let layouts = prop_oneof![Just(DENSE), Just(KEYS_FIRST), Just(MLA)];
    layouts.prop_flat_map(|layout| (Just(layout), chunk(layout), chunk(layout)))
}

fn apply(operator: Operator, layout: &Layout, pristine: &[u8], donor: &[u8]) -> Vec<u8> {
    operator.apply(layout, 0..layout.layers(), pristine, donor).unwrap()
}

fn flipped_bits(one: &[u8], other: &[u8]) -> u32 {
    one.iter().zip(other).map(|(one, other)| (one ^ other).count_ones()).sum()
}

/// A row's bytes, of a dense or MLA test layout.
fn row(layout: &Layout, bytes: &[u8], layer: usize, row: usize) -> Vec<u8> {
    layout.by_layers(bytes)[layout.layer(layer)][row * layout.row_bytes()..][..layout.row_bytes()].to_vec()
}

proptest! {
    #[test]
    fn only_layers_in_scope_change((layout, pristine, donor) in case(), layer in 0..3_usize) {
        for operator in CHANGES_OF_LAYERS {
            let planted = operator.apply(&layout, layer..layer + 1, &pristine, &donor).unwrap();
            prop_assert_eq!(planted.len(), pristine.len());
            let [planted, pristine] = [&planted, &pristine].map(|bytes| layout.by_layers(bytes));
            for other in (0..3).filter(|other| *other != layer) {
                prop_assert_eq!(&planted[layout.layer(other)], &pristine[layout.layer(other)]);
            }
        }
    }

    #[test]
    fn rewriting_changes_nothing((layout, pristine, donor) in case()) {
        prop_assert_eq!(apply(Operator::Rewrite, &layout, &pristine, &donor), pristine);
    }

    #[test]
    fn an_exchange_done_twice_is_undone((layout, pristine, donor) in case()) {
        let mut operators = vec![Operator::ExchangeLayers, Operator::FlipAtRandom { per_million: 500 }];
        if layout != MLA {
            operators.extend([Operator::ExchangeParts, Operator::RotateHeads]);
        }
        for operator in operators {
            let once = apply(operator, &layout, &pristine, &donor);
            prop_assert_ne!(&once, &pristine);
            prop_assert_eq!(&apply(operator, &layout, &once, &donor), &pristine);
        }
    }

    #[test]
    fn a_dose_is_as_many_bits_as_it_says((layout, pristine, donor) in case()) {
        let doses = [
            (Operator::Flip { bit: Bit::Lowest, spread: Spread::Once }, 1),
            (Operator::Flip { bit: Bit::Exponent, spread: Spread::EachRow }, 24),
            (Operator::FlipAtRandom { per_million: 1 }, 1),
            (Operator::FlipAtRandom { per_million: 10_000 }, u32::try_from(layout.bytes() * 8 / 100).unwrap()),
        ];
        for (operator, bits) in doses {
            prop_assert_eq!(flipped_bits(&apply(operator, &layout, &pristine, &donor), &pristine), bits);
        }
    }

    #[test]
    fn random_flips_leave_finite_numbers((layout, pristine, donor) in case()) {
        let planted = apply(Operator::FlipAtRandom { per_million: 200_000 }, &layout, &pristine, &donor);
        for bytes in planted.chunks_exact(2) {
            prop_assert!(element::read(layout.dtype, bytes).is_finite());
        }
    }

    #[test]
    fn a_scale_by_two_is_undone_by_a_half((layout, pristine, donor) in case()) {
        let doubled = apply(Operator::Scale(2.0), &layout, &pristine, &donor);
        prop_assert_eq!(apply(Operator::Scale(0.5), &layout, &doubled, &donor), pristine);
    }

    #[test]
    fn quantisation_moves_no_element_by_more_than_a_step((layout, pristine, donor) in case()) {
        let int8 = apply(Operator::QuantizeInt8, &layout, &pristine, &donor);
        let e4m3 = apply(Operator::QuantizeE4m3, &layout, &pristine, &donor);
        for (before, after) in pristine.chunks_exact(2).zip(int8.chunks_exact(2)) {
            let (before, after) = (element::read(layout.dtype, before), element::read(layout.dtype, after));
            prop_assert!((before - after).abs() <= 4.0 / 127.0, "{before} {after}");
        }
        for (before, after) in pristine.chunks_exact(2).zip(e4m3.chunks_exact(2)) {
            let (before, after) = (element::read(layout.dtype, before), element::read(layout.dtype, after));
            prop_assert!((before - after).abs() <= before.abs() / 15.0 + 0.001, "{before} {after}");
        }
    }

    #[test]
    fn scrambling_keeps_the_multiset_of_elements((layout, pristine, donor) in case()) {
        let sorted = |bytes: &[u8]| {
            let mut elements: Vec<[u8; 2]> =
                bytes.chunks_exact(2).map(|element| element.try_into().unwrap()).collect();
            elements.sort_unstable();
            elements
        };
        let planted = apply(Operator::Scramble, &layout, &pristine, &donor);
        let of_layer = |bytes: &[u8]| sorted(&layout.by_layers(bytes)[layout.layer(1)]);
        prop_assert_eq!(of_layer(&planted), of_layer(&pristine));
    }

    #[test]
    fn rows_and_parts_go_where_they_are_said_to_go((layout, pristine, donor) in case()) {
        let shifted = apply(Operator::ShiftRows, &layout, &pristine, &donor);
        prop_assert_eq!(row(&layout, &shifted, 1, 3), row(&layout, &pristine, 1, 2));
        prop_assert_eq!(row(&layout, &shifted, 1, 0), row(&layout, &pristine, 1, 0));

        let layers = apply(Operator::ExchangeLayers, &layout, &pristine, &donor);
        prop_assert_eq!(row(&layout, &layers, 0, 5), row(&layout, &pristine, 1, 5));
        prop_assert_eq!(row(&layout, &layers, 2, 5), row(&layout, &pristine, 2, 5));

        let half = apply(Operator::TakeFirstHalf, &layout, &pristine, &donor);
        prop_assert_eq!(row(&layout, &half, 2, 3), row(&layout, &donor, 2, 3));
        prop_assert_eq!(row(&layout, &half, 2, 4), row(&layout, &pristine, 2, 4));

        let last = apply(Operator::ZeroLastRows { parts: 4 }, &layout, &pristine, &donor);
        prop_assert_eq!(row(&layout, &last, 2, 5), row(&layout, &pristine, 2, 5));
        prop_assert!(row(&layout, &last, 2, 6).iter().all(|byte| *byte == 0));

        let parts = apply(Operator::ExchangeParts, &layout, &pristine, &donor);
        if layout == DENSE {
            // Blocks of four rows: keys in rows 0 and 1, values in rows 2 and 3.
            prop_assert_eq!(row(&layout, &parts, 0, 4), row(&layout, &pristine, 0, 6));
            prop_assert_eq!(row(&layout, &parts, 0, 7), row(&layout, &pristine, 0, 5));
        } else if layout == KEYS_FIRST {
            // Of the second head, bytes 16 to 31, the keys come first.
            prop_assert_eq!(&row(&layout, &parts, 0, 4)[16..24], &row(&layout, &pristine, 0, 4)[24..]);
        } else {
            prop_assert_eq!(&row(&layout, &parts, 0, 4)[..4], &row(&layout, &pristine, 0, 4)[12..]);
        }
    }
}

#[test]
fn faults_about_the_file_change_its_extent() {
    let pristine: Vec<u8> = (0..MLA.bytes()).map(|index| u8::try_from(index % 199).unwrap()).collect();
    let length =
        |operator: Operator| operator.apply(&MLA, 0..3, &pristine, &pristine).map(|planted| planted.len());
    assert_eq!(length(Operator::Truncate), Some(MLA.bytes() / 4 * 3));
    assert_eq!(length(Operator::Empty), Some(0));
    assert_eq!(length(Operator::Append), Some(MLA.bytes() + 1000));
    assert_eq!(length(Operator::Delete), None);
}

#[test]
fn a_fault_is_the_same_on_every_machine() {
    let pristine = vec![0x3f; DENSE.bytes()];
    let random = apply(Operator::FlipAtRandom { per_million: 3000 }, &DENSE, &pristine, &pristine);
    let scrambled: Vec<u8> = (0..DENSE.bytes()).map(|index| u8::try_from(index % 199).unwrap()).collect();
    let scrambled = apply(Operator::Scramble, &DENSE, &scrambled, &scrambled);
    assert_eq!(
        [random, scrambled].map(|bytes| digest_bytes(&bytes).short()),
        ["c2af36625b6b", "849e44926f8b"]
    );
}

#[test]
fn the_last_two_tokens_are_rows_where_rows_are_tokens_and_one_row_of_values_where_they_are_not() {
    for (layout, rows) in [(DENSE, 1), (KEYS_FIRST, 2), (MLA, 2)] {
        let pristine = vec![7; layout.bytes()];
        let changed = apply(Operator::ZeroLastTwoTokens, &layout, &pristine, &pristine);
        for layer in 0..layout.layers() {
            let zero = (0..layout.rows)
                .filter(|at| row(&layout, &changed, layer, *at).iter().all(|byte| *byte == 0));
            let last: Vec<usize> = (layout.rows - rows..layout.rows).collect();
            assert_eq!(zero.collect::<Vec<_>>(), last, "{layout:?}");
        }
    }
}
