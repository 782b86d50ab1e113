//! Numbers that a seed decides, the same on every machine. Main type: [`Draws`].

use blake3::{Hasher, OutputReader};

/// What a seed says, number by number.
pub(super) struct Draws(OutputReader);

impl Draws {
    pub(super) fn of(seed: u32) -> Self {
        Self(Hasher::new().update(b"pressure").update(&seed.to_le_bytes()).finalize_xof())
    }

    /// One of the numbers below this; 0 where there is none.
    pub(super) fn below(&mut self, end: usize) -> usize {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        let end = u64::try_from(end).unwrap_or(u64::MAX);
        let drawn = u64::from_le_bytes(bytes).checked_rem(end).unwrap_or(0);
        usize::try_from(drawn).expect("it is below a size")
    }

    /// One of the numbers from `start` to `end`, which may be the lower.
    pub(super) fn between(&mut self, start: usize, end: usize) -> usize {
        start + self.below(end.saturating_sub(start) + 1)
    }

    /// One of these.
    pub(super) fn choose<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        of.get(self.below(of.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_says_the_same_each_time_and_another_one_something_else() {
        let first = |seed| {
            let mut draws = Draws::of(seed);
            std::array::from_fn::<usize, 8, _>(|_| draws.below(1000))
        };
        assert_eq!(first(1), first(1));
        assert_ne!(first(1), first(2));
        assert_eq!(Draws::of(1).below(0), 0);
        assert_eq!(Draws::of(1).between(7, 3), 7);
    }
}
