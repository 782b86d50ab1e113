//! Numbers that look random and are the same on every machine and in every release. Main type: [`Numbers`].

use crate::digest::{Digest, digest_bytes};

/// SHA-256 of a counter.
#[derive(Default)]
pub(super) struct Numbers {
    counter: u64,
    ready: Vec<u64>,
}

impl Numbers {
    /// Others than those of the default.
    pub(super) fn seeded(seed: &Digest) -> Self {
        let start = seed.as_bytes().first_chunk().expect("a digest has more than eight bytes");
        Self { counter: u64::from_le_bytes(*start), ready: Vec::new() }
    }

    /// A number below `limit`; the bias of the remainder is far below what matters here.
    pub(super) fn below(&mut self, limit: usize) -> usize {
        if self.ready.is_empty() {
            let digest = digest_bytes(&self.counter.to_le_bytes());
            let words = digest.as_bytes().chunks_exact(8);
            self.ready = words
                .map(|word| u64::from_le_bytes(word.try_into().expect("a word has eight bytes")))
                .collect();
            self.counter = self.counter.wrapping_add(1);
        }
        let number = self.ready.pop().expect("a digest holds four words");
        usize::try_from(number % limit as u64).expect("it is below a usize")
    }
}
