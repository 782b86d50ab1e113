//! Which shards a variant changes, and where foreign bytes come from. Main type: [`Planting`].

use std::collections::{BTreeMap, BTreeSet};

use super::chunk_name::{ChunkName, Shard};
use super::kind::{Donor, Place, Ranks};

/// Of so many distinct chunks one is changed where one in a hundred is meant.
const HUNDRED: usize = 100;

/// A shard to change, and the shard that foreign bytes come from: itself where there is no donor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planting {
    /// The shard that is changed.
    pub shard: Shard,
    /// The donor.
    pub donor: Shard,
}

/// The plantings at one place of every prompt, in each shard that is meant; `prompts` lists each one's whole chunks, at least
/// one. A chunk that prompts share is changed once. Where a donor would be the chunk itself, the next question that has
/// another one gives it.
#[must_use]
pub fn plantings(
    place: Place,
    ranks: Ranks,
    donor: Donor,
    prompts: &[Vec<ChunkName>],
    shards: u32,
) -> Vec<Planting> {
    let mut planted = Vec::new();
    for (chunk, from) in pair_chunks(place, donor, prompts) {
        for rank in ranks.of(shards) {
            let donor_rank = match donor {
                Donor::FirstRank => 0,
                Donor::NextRank => (rank + 1) % shards.max(1),
                Donor::Nobody
                | Donor::Neighbour
                | Donor::Exchange
                | Donor::NextQuestion
                | Donor::FirstQuestion => rank,
            };
            let donor = Shard { chunk: from.clone(), rank: donor_rank };
            planted.push(Planting { shard: Shard { chunk: chunk.clone(), rank }, donor });
        }
    }
    planted
}

/// Each chunk that is changed, and the one that foreign bytes come from.
fn pair_chunks(place: Place, donor: Donor, prompts: &[Vec<ChunkName>]) -> BTreeMap<ChunkName, ChunkName> {
    let mut planted = BTreeMap::new();
    let rare = (place == Place::OneInAHundred).then(|| one_in_a_hundred(prompts));
    for (question, chunks) in prompts.iter().enumerate() {
        for at in place.of(chunks.len()) {
            let chunk = &chunks[at];
            if rare.as_ref().is_some_and(|rare| !rare.contains(chunk)) {
                continue;
            }
            let neighbour = if at + 1 < chunks.len() { at + 1 } else { at.saturating_sub(1) };
            let from = match donor {
                Donor::Nobody | Donor::FirstRank | Donor::NextRank => Some(chunk),
                Donor::Neighbour => Some(&chunks[neighbour]),
                Donor::Exchange => {
                    planted.entry(chunks[neighbour].clone()).or_insert_with(|| chunk.clone());
                    Some(&chunks[neighbour])
                }
                Donor::NextQuestion => {
                    let others = prompts[question + 1..].iter().chain(&prompts[..question]);
                    others.map(|other| at_place(other, place, at)).find(|other| *other != chunk)
                }
                Donor::FirstQuestion => {
                    prompts.first().map(|first| at_place(first, place, at)).filter(|first| *first != chunk)
                }
            };
            if let Some(from) = from {
                planted.entry(chunk.clone()).or_insert_with(|| from.clone());
            }
        }
    }
    planted
}

/// The middle one of each hundred distinct chunks, in the order of the prompts that are first to have them; of fewer the middle one
/// of all.
fn one_in_a_hundred(prompts: &[Vec<ChunkName>]) -> BTreeSet<&ChunkName> {
    let mut seen = BTreeSet::new();
    let distinct: Vec<&ChunkName> = prompts.iter().flatten().filter(|chunk| seen.insert(*chunk)).collect();
    let hundreds = distinct.chunks(HUNDRED).filter(|hundred| hundred.len() == HUNDRED.min(distinct.len()));
    hundreds.map(|hundred| hundred[hundred.len() / 2]).collect()
}

/// The chunk of another prompt at the same place: the same number where every chunk is meant.
fn at_place(chunks: &[ChunkName], place: Place, at: usize) -> &ChunkName {
    let places = place.of(chunks.len());
    &chunks[if places.contains(&at) { at } else { places.end - 1 }]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two questions of two and three chunks; their first chunks are equal where they are `shared`.
    fn prompts(shared: bool) -> Vec<Vec<ChunkName>> {
        let first: Vec<u32> = (0..8).collect();
        let mut second: Vec<u32> = (0..12).collect();
        second[if shared { 5 } else { 0 }] = 100;
        [first, second].map(|tokens| ChunkName::of_prompt(&tokens, 4)).to_vec()
    }

    fn pairs(place: Place, donor: Donor, prompts: &[Vec<ChunkName>]) -> Vec<(String, String)> {
        let label = |name: &ChunkName| {
            let found = prompts.iter().enumerate().find_map(|(question, chunks)| {
                let at = chunks.iter().position(|chunk| chunk == name)?;
                Some(format!("{question}.{at}"))
            });
            found.unwrap()
        };
        let mut pairs: Vec<(String, String)> = plantings(place, Ranks::All, donor, prompts, 1)
            .iter()
            .map(|planting| (label(&planting.shard.chunk), label(&planting.donor.chunk)))
            .collect();
        pairs.sort();
        pairs
    }

    fn owned(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(chunk, donor)| ((*chunk).to_owned(), (*donor).to_owned())).collect()
    }

    #[test]
    fn each_donor_is_the_one_that_it_says() {
        let prompts = prompts(false);
        let of = |place, donor| pairs(place, donor, &prompts);
        assert_eq!(of(Place::Last, Donor::Nobody), owned(&[("0.1", "0.1"), ("1.2", "1.2")]));
        assert_eq!(of(Place::Last, Donor::Neighbour), owned(&[("0.1", "0.0"), ("1.2", "1.1")]));
        assert_eq!(
            of(Place::First, Donor::Exchange),
            owned(&[("0.0", "0.1"), ("0.1", "0.0"), ("1.0", "1.1"), ("1.1", "1.0")])
        );
        assert_eq!(of(Place::Last, Donor::NextQuestion), owned(&[("0.1", "1.2"), ("1.2", "0.1")]));
        assert_eq!(of(Place::First, Donor::FirstQuestion), owned(&[("1.0", "0.0")]));
        assert_eq!(of(Place::Every, Donor::Nobody).len(), 5);
    }

    #[test]
    fn one_chunk_in_a_hundred_is_one_of_each_full_hundred_and_at_least_one() {
        let few = prompts(false);
        assert_eq!(pairs(Place::OneInAHundred, Donor::NextQuestion, &few), owned(&[("1.0", "0.0")]));
        let prompt = |number: u32| ChunkName::of_prompt(&[number, 1, 2, 3, 4, 5, 6, 7, 8], 2);
        let many: Vec<Vec<ChunkName>> = (0..80).map(prompt).collect();
        let planted = pairs(Place::OneInAHundred, Donor::NextQuestion, &many);
        assert_eq!(planted, owned(&[("12.2", "13.2"), ("37.2", "38.2"), ("62.2", "63.2")]), "of 320 chunks");
    }

    #[test]
    fn shards_are_planted_in_by_rank() {
        let ranks = |ranks, donor, shards| -> Vec<(u32, u32)> {
            let planted = plantings(Place::First, ranks, donor, &prompts(true), shards);
            assert!(planted.iter().all(|planting| planting.shard.chunk == planting.donor.chunk));
            planted.iter().map(|planting| (planting.shard.rank, planting.donor.rank)).collect()
        };
        assert_eq!(ranks(Ranks::All, Donor::Nobody, 2), [(0, 0), (1, 1)]);
        assert_eq!(ranks(Ranks::Last, Donor::Nobody, 2), [(1, 1)]);
        assert_eq!(ranks(Ranks::All, Donor::FirstRank, 3), [(0, 0), (1, 0), (2, 0)]);
        assert_eq!(ranks(Ranks::All, Donor::NextRank, 2), [(0, 1), (1, 0)]);
        assert_eq!(ranks(Ranks::All, Donor::NextRank, 1), [(0, 0)]);
    }

    #[test]
    fn a_shared_chunk_is_changed_once_and_is_never_its_own_donor() {
        let prompts = prompts(true);
        assert_eq!(pairs(Place::First, Donor::Nobody, &prompts), owned(&[("0.0", "0.0")]));
        assert_eq!(pairs(Place::First, Donor::NextQuestion, &prompts), []);
    }
}
