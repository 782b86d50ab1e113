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
    use super::super::layout::tests::{DENSE, MLA, TOKENS_FIRST};
    for layout in [DENSE, TOKENS_FIRST, MLA] {
        // Numbers between 1 and 2, no two rows alike.
        let chunk = |salt: usize| -> Vec<u8> {
            (0..layout.bytes() / 2).flat_map(|at| [u8::try_from(at * salt % 127).unwrap(), 0x3f]).collect()
        };
        let (pristine, donor) = (chunk(3), chunk(5));
        let variants = Fault::variants(layout.shape, 2, 1);
        for variant in variants.iter().filter(|variant| variant.operator.is_of_bytes()) {
            let layers = variant.layers.of(layout.layers());
            let planted = variant.operator.apply(&layout, layers, &pristine, &donor);
            let read = planted.as_deref().unwrap_or_default().get(..layout.bytes());
            let changes = read != Some(&pristine[..]) || variant.operator.misreading().is_some();
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
    let of_shards = BTreeSet::from(["rank's shard zero", "first rank's shard for all", "shards exchanged"]);
    assert_eq!(&whole - &sharded, of_heads);
    assert_eq!(&sharded - &whole, of_shards);
    assert!(of_shards.is_disjoint(&names(MLA, 1)));
    assert_eq!([Ranks::All, Ranks::Last].map(|ranks| ranks.of(3)), [0..3, 2..3]);
}

#[test]
fn places_and_layers_are_where_their_names_say() {
    let places =
        [Place::First, Place::Middle, Place::Last, Place::LastOfWhole, Place::Every, Place::OneInAHundred];
    assert_eq!(places.map(|place| place.of(5)), [0..1, 2..3, 4..5, 4..5, 0..5, 0..5]);
    assert_eq!([Place::First, Place::Middle, Place::Last].map(|place| place.of(1)), [0..1, 0..1, 0..1]);
    let layers = [Layers::All, Layers::First, Layers::Middle, Layers::Last].map(|layers| layers.of(6));
    assert_eq!(layers, [0..6, 0..1, 3..4, 5..6]);
}
