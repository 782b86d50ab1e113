//! What a request may be served at most, and must be at least, by what was computed before. Main type: [`Bounds`].

use std::collections::HashMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::model::{Admission, PressedRequest};

/// Behind which step the KV of each token prefix, in whole pieces, was there first.
#[derive(Debug, Clone, Default)]
pub struct Bounds {
    complete: HashMap<Digest, u64>,
}

/// A request that was served more than anything computed before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Beyond {
    /// Its number in the schedule.
    pub request: u32,
    /// Tokens that it was served.
    pub served: u32,
    /// Tokens that any request had computed of its prefix when it was looked up.
    pub at_most: u32,
}

/// A request that was served less than it must be, though nothing contended with it and nothing was evicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Short {
    /// Its number in the schedule.
    pub request: u32,
    /// Tokens that it was served.
    pub served: u32,
    /// Tokens that had been stored of it.
    pub at_least: u32,
}

impl Bounds {
    /// Takes in what a request computed itself: what it was served another one had to. `prefixes` are digests of its tokens, those of its
    /// answer included, up to the end of each whole piece; a piece has `piece_tokens`.
    pub fn take_in(&mut self, request: &PressedRequest, prefixes: &[Digest], piece_tokens: u32) {
        let pieces = |tokens: u32| usize::try_from(tokens / piece_tokens.max(1)).unwrap_or(usize::MAX);
        for &(step, tokens) in &request.complete {
            let taken_up = request.admissions.iter().rev().find(|admission| admission.step <= step);
            let served = taken_up.map_or(0, |admission| pieces(admission.served));
            for prefix in prefixes.iter().take(pieces(tokens)).skip(served) {
                let first = self.complete.entry(*prefix).or_insert(step);
                *first = (*first).min(step);
            }
        }
    }

    /// The first time that a request was served more than it may be, in whole pieces. What a connector loads was stored, and so computed,
    /// in a step before the one that answered its lookup; vLLM's own prefix cache serves what the same step computes, too.
    #[must_use]
    pub fn beyond(&self, request: &PressedRequest, prefixes: &[Digest], piece_tokens: u32) -> Option<Beyond> {
        let piece = piece_tokens.max(1);
        let beyond = |admission: &Admission| {
            let by = match admission.external {
                0 => admission.step,
                _ => admission.looked_up.saturating_sub(1),
            };
            let at_most = self.longest(prefixes, by) * piece;
            let Admission { served, .. } = *admission;
            (served / piece * piece > at_most).then_some(Beyond {
                request: request.question,
                served,
                at_most,
            })
        };
        request.admissions.iter().find_map(beyond)
    }

    /// Pieces of a prefix, from its first, each of which some request had computed by this step.
    fn longest(&self, prefixes: &[Digest], by: u64) -> u32 {
        let there = |prefix: &&Digest| self.complete.get(*prefix).is_some_and(|&step| step <= by);
        u32::try_from(prefixes.iter().take_while(there).count()).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::digest_bytes;

    const PIECE: u32 = 32;

    /// Digests of a prompt whose pieces are named by these letters.
    fn prefixes(pieces: &str) -> Vec<Digest> {
        (1..=pieces.len()).map(|end| digest_bytes(&pieces.as_bytes()[..end])).collect()
    }

    /// One that was taken up in a step after a lookup in the one before, was served so much by so much of a connector, and had computed so
    /// much behind a step.
    fn request(step: u64, served: [u32; 2], complete: &[(u64, u32)]) -> PressedRequest {
        let [served, external] = served;
        PressedRequest {
            question: 7,
            admissions: vec![Admission { looked_up: step - 1, step, served, external }],
            complete: complete.to_vec(),
            preemptions: 0,
            aborted: None,
            answer: Vec::new(),
        }
    }

    fn bounds(of: &[(&str, PressedRequest)]) -> Bounds {
        let mut bounds = Bounds::default();
        for (pieces, request) in of {
            bounds.take_in(request, &prefixes(pieces), PIECE);
        }
        bounds
    }

    fn beyond(bounds: &Bounds, pieces: &str, request: &PressedRequest) -> Option<(u32, u32)> {
        let found = bounds.beyond(request, &prefixes(pieces), PIECE);
        found.map(|beyond| (beyond.served, beyond.at_most))
    }

    #[test]
    fn a_connector_serves_what_was_computed_before_its_lookup_was_answered_and_no_more() {
        let computed = bounds(&[("abc", request(1, [0, 0], &[(1, 0), (2, 64), (5, 100)]))]);
        for (step, served, expected) in [
            (4, 64, None),
            (4, 96, Some((96, 64))),
            (6, 96, Some((96, 64))), // its lookup was answered in step 5, which computed the third piece
            (7, 96, None),
        ] {
            let loaded = request(step, [served, served], &[]);
            assert_eq!(beyond(&computed, "abc", &loaded), expected, "step {step}, {served} tokens");
        }
        let other = request(9, [64, 64], &[]);
        assert_eq!(beyond(&computed, "abd", &other), None);
        assert_eq!(
            beyond(&computed, "adc", &other),
            Some((64, 32)),
            "what follows other tokens is another's"
        );
        assert_eq!(beyond(&computed, "xbc", &other), Some((64, 0)));
    }

    #[test]
    fn vllms_own_cache_serves_what_the_same_step_computes() {
        let computed = bounds(&[("abc", request(4, [0, 0], &[(4, 96)]))]);
        assert_eq!(beyond(&computed, "abc", &request(4, [96, 0], &[])), None);
        assert_eq!(beyond(&computed, "abc", &request(4, [96, 32], &[])), Some((96, 0)));
        assert_eq!(beyond(&computed, "abc", &request(3, [96, 0], &[])), Some((96, 0)));
    }

    #[test]
    fn the_sum_of_both_caches_is_bounded_not_each_alone() {
        let computed = bounds(&[("abc", request(1, [0, 0], &[(1, 64)]))]);
        assert_eq!(beyond(&computed, "abc", &request(5, [64, 32], &[])), None);
        assert_eq!(beyond(&computed, "abc", &request(5, [96, 32], &[])), Some((96, 64)));
    }

    #[test]
    fn what_a_request_was_served_is_no_evidence_that_anyone_computed_it() {
        // It was served two pieces from nowhere and computed the third.
        let stranger = request(2, [64, 64], &[(2, 64), (3, 96)]);
        let computed = bounds(&[("abc", stranger.clone())]);
        assert_eq!(beyond(&computed, "abc", &stranger), Some((64, 0)));
        assert_eq!(beyond(&computed, "abc", &request(9, [96, 96], &[])), Some((96, 0)));
    }

    #[test]
    fn a_request_that_lost_its_blocks_is_bounded_each_time_that_it_is_taken_up() {
        let mut twice = request(1, [0, 0], &[(1, 32), (2, 64), (8, 64), (9, 128)]);
        twice.admissions.push(Admission { looked_up: 7, step: 8, served: 64, external: 64 });
        assert_eq!(beyond(&bounds(&[("abcd", twice.clone())]), "abcd", &twice), None);
        twice.admissions[1].served = 96;
        assert_eq!(beyond(&bounds(&[("abcd", twice.clone())]), "abcd", &twice), Some((96, 64)));
    }

    #[test]
    fn the_rest_behind_a_whole_piece_is_left_out() {
        let computed = bounds(&[("abc", request(1, [0, 0], &[(1, 95)]))]);
        assert_eq!(beyond(&computed, "abc", &request(5, [95, 95], &[])), None);
        assert_eq!(beyond(&computed, "abc", &request(5, [96, 96], &[])), Some((96, 64)));
    }
}
