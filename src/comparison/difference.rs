//! Where two observations of one question part: in the bits of a log-probability, or in the chosen token.
//! Main type: [`Difference`].

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::dataset::QuestionId;
use crate::model::{Observation, Step, TokenLogprob};

/// The first place at which two answers to one question are not the same, bit for bit. Nothing behind it is compared,
/// since from there on the two engines may continue different texts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Difference {
    /// Which question.
    pub question: QuestionId,
    /// What kind of difference.
    pub kind: DifferenceKind,
    /// Which generated token, from 0.
    pub token: u32,
    /// Which of the most likely tokens, from 0, is the first to differ; `None` when all are equal and the difference
    /// is in a letter's log-probability or in the length.
    pub rank: Option<u32>,
    /// Largest difference of a log-probability at that token, nats, over the letters and the tokens that both list;
    /// `None` when they list no token in common or one of them has no such token.
    pub largest: Option<f64>,
}

/// Kinds of first differences, from the mildest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DifferenceKind {
    /// The same tokens with other log-probabilities, or in another order below the chosen one.
    Logprobs,
    /// Another token was chosen.
    Token,
    /// One answer ends where the other goes on.
    Length,
    /// The most likely tokens have not one in common.
    Disjoint,
}

/// The first difference between two observations of one question; `None` when all bits agree.
pub(super) fn first_difference(reference: &Observation, other: &Observation) -> Option<Difference> {
    let difference = |kind, token: usize, rank: Option<usize>, largest| {
        Some(Difference {
            question: reference.question.clone(),
            kind,
            token: count(token),
            rank: rank.map(count),
            largest,
        })
    };
    let letters = letter_difference(reference, other);
    let letters_differ =
        reference.letters.iter().zip(&other.letters).any(|(one, two)| one.to_bits() != two.to_bits());
    for (index, (left, right)) in reference.steps.iter().zip(&other.steps).enumerate() {
        let rank = first_rank(left, right);
        if rank.is_none() && !letters_differ && same_bits(left.chosen, right.chosen) {
            continue;
        }
        let Some(largest) = largest_shared_difference(left, right) else {
            return difference(DifferenceKind::Disjoint, index, rank, None);
        };
        let kind = if left.chosen.token == right.chosen.token {
            DifferenceKind::Logprobs
        } else {
            DifferenceKind::Token
        };
        let largest = if index == 0 { largest.max(letters) } else { largest };
        return difference(kind, index, rank, Some(largest));
    }
    let (left, right) = (reference.steps.len(), other.steps.len());
    if left == right { None } else { difference(DifferenceKind::Length, left.min(right), None, None) }
}

/// Largest change of a letter's log-probability, nats.
pub(super) fn letter_difference(reference: &Observation, other: &Observation) -> f64 {
    reference.letters.iter().zip(&other.letters).map(|(one, two)| (one - two).abs()).fold(0.0, f64::max)
}

/// Nats with two or three digits, exact zero said as such: `0`, `2.4e-7`, `0.038`, `4.50`.
pub(crate) fn nats(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size < 0.001 => format!("{value:.1e}"),
        size if size < 1.0 => format!("{value:.3}"),
        _ => format!("{value:.2}"),
    }
}

/// How two answers to one question part in their chosen tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Parting {
    /// They do not.
    Nowhere,
    /// At the first token that differs the reference was nearly undecided between the two.
    NearTie,
    /// The reference clearly preferred its own token, by so many nats if it lists the other at all.
    BeyondGap { token: u32, gap: Option<f64> },
}

/// Judges the first differing token: benign only if, in the reference, the other's choice was the runner-up and at most
/// `near_tie_gap` nats behind. An answer that ends early was never a near tie.
pub(super) fn part(reference: &Observation, other: &Observation, near_tie_gap: f64) -> Parting {
    let steps = reference.steps.iter().zip(&other.steps);
    let parted = steps.enumerate().find(|(_, (left, right))| left.chosen.token != right.chosen.token);
    let Some((index, (left, right))) = parted else {
        return if reference.steps.len() == other.steps.len() {
            Parting::Nowhere
        } else {
            let shorter = reference.steps.len().min(other.steps.len());
            Parting::BeyondGap { token: count(shorter), gap: None }
        };
    };
    let others = || left.top.iter().filter(|listed| listed.token != left.chosen.token);
    let runner_up = others().map(|listed| listed.nats()).fold(f64::NEG_INFINITY, f64::max);
    let chosen_instead = others().find(|listed| listed.token == right.chosen.token);
    let gap = chosen_instead.map(|listed| left.chosen.nats() - listed.nats());
    match (chosen_instead, gap) {
        (Some(listed), Some(gap)) if listed.nats() >= runner_up && gap <= near_tie_gap => Parting::NearTie,
        _ => Parting::BeyondGap { token: count(index), gap },
    }
}

fn same_bits(one: TokenLogprob, other: TokenLogprob) -> bool {
    one.token == other.token && one.logprob.to_bits() == other.logprob.to_bits()
}

/// The first place at which the lists of most likely tokens differ, in a token, in a bit, or in length.
fn first_rank(left: &Step, right: &Step) -> Option<usize> {
    let differs = left.top.iter().zip(&right.top).position(|(one, other)| !same_bits(*one, *other));
    let shorter = left.top.len().min(right.top.len());
    differs.or_else(|| (left.top.len() != right.top.len()).then_some(shorter))
}

/// Largest difference over the tokens that both steps list or chose; `None` when there is none in common.
fn largest_shared_difference(left: &Step, right: &Step) -> Option<f64> {
    let listed = |step: &Step, token: u32| {
        step.top.iter().chain([&step.chosen]).find(|listed| listed.token == token).map(|listed| listed.nats())
    };
    left.top
        .iter()
        .chain([&left.chosen])
        .filter_map(|one| Some((one.nats() - listed(right, one.token)?).abs()))
        .reduce(f64::max)
}

/// A position or number of questions, far below 2³².
pub(super) fn count(number: usize) -> u32 {
    u32::try_from(number).expect("fewer than 2³² tokens and questions")
}

#[cfg(test)]
mod tests {
    use super::super::ArmName;
    use super::super::scene::Scene;
    use super::*;

    /// An answer of one token: the first listed is chosen.
    fn answer(top: &[(u32, f32)]) -> Observation {
        let mut observation = Scene::new(1, 1, 1.0).arms[ArmName::Load as usize].remove(0);
        let top: Vec<TokenLogprob> =
            top.iter().map(|&(token, logprob)| TokenLogprob { token, logprob }).collect();
        observation.steps = vec![Step { chosen: top[0], top }];
        observation
    }

    #[test]
    fn only_the_runner_up_within_the_gap_is_a_near_tie() {
        let reference = answer(&[(1, -0.7), (2, -0.8), (3, -0.9), (4, -0.9)]);
        let part_at = |token, gap| part(&reference, &answer(&[(token, -0.7)]), gap);
        assert_eq!(part_at(1, 0.25), Parting::Nowhere);
        assert_eq!(part_at(2, 0.25), Parting::NearTie);
        assert!(
            matches!(part_at(2, 0.05), Parting::BeyondGap { token: 0, gap: Some(gap) } if (gap - 0.1).abs() < 1e-6)
        );
        // Close behind, but not the runner-up.
        assert!(matches!(part_at(3, 0.25), Parting::BeyondGap { gap: Some(_), .. }));
        assert_eq!(part_at(9, 0.25), Parting::BeyondGap { token: 0, gap: None });
    }

    #[test]
    fn tokens_that_share_second_place_are_both_runner_up() {
        let reference = answer(&[(1, -0.7), (2, -0.8), (3, -0.8)]);
        assert_eq!(part(&reference, &answer(&[(3, -0.7)]), 0.25), Parting::NearTie);
    }

    #[test]
    fn the_largest_difference_is_over_shared_tokens_wherever_they_stand() {
        let reference = answer(&[(1, -0.5), (2, -1.0), (3, -4.0)]);
        let other = answer(&[(2, -0.75), (1, -0.875), (7, -2.0)]);
        let difference = first_difference(&reference, &other).unwrap();
        assert_eq!(
            (difference.kind, difference.rank, difference.largest),
            (DifferenceKind::Token, Some(0), Some(0.375))
        );
    }

    #[test]
    fn a_letter_alone_makes_a_difference() {
        let reference = answer(&[(1, -0.5)]);
        let mut other = reference.clone();
        other.letters[2] -= 0.5;
        let difference = first_difference(&reference, &other).unwrap();
        assert_eq!((difference.kind, difference.rank), (DifferenceKind::Logprobs, None));
        assert!(difference.largest.is_some_and(|largest| (largest - 0.5).abs() < 1e-12), "{difference:?}");
        assert_eq!(first_difference(&reference, &reference), None);
    }
}
