//! Which revision to test next, and what the marks so far say. Main type: [`Search`].

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// What a test said of a revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mark {
    /// It has no fault.
    Good,
    /// It has the fault.
    Bad,
    /// It cannot be tested.
    Skipped,
}

/// A line of revisions by number, oldest first. The first is held to be good and the last to be bad, and both are tested
/// before any other: an end that is not as it is held to be makes a search void.
#[derive(Debug, Clone)]
pub struct Search {
    marks: Vec<Option<Mark>>,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Test this revision.
    Test(usize),
    /// The first bad one is among these: one, or several of which all but the last cannot be tested.
    Found(Range<usize>),
    /// An end is not as it was held to be.
    Void {
        /// Which.
        revision: usize,
        /// What it is.
        mark: Mark,
    },
    /// A good revision follows a bad one, so there is no first bad one.
    Contradiction {
        /// A bad revision.
        bad: usize,
        /// A later one that is good.
        good: usize,
    },
}

impl Search {
    /// A search over so many revisions, none tested.
    ///
    /// # Panics
    /// With less than two.
    #[must_use]
    pub fn over(revisions: usize) -> Self {
        assert!(revisions >= 2, "a search has a good and a bad end");
        Self { marks: vec![None; revisions] }
    }

    /// Notes what a test said.
    pub fn mark(&mut self, revision: usize, mark: Mark) {
        self.marks[revision] = Some(mark);
    }

    /// What was noted, by revision.
    #[must_use]
    pub fn marks(&self) -> &[Option<Mark>] {
        &self.marks
    }

    /// What to do next: the ends, then the revision in the middle of those that are left.
    #[must_use]
    pub fn next(&self) -> Next {
        let last = self.marks.len() - 1;
        for (revision, wanted) in [(last, Mark::Bad), (0, Mark::Good)] {
            match self.marks[revision] {
                None => return Next::Test(revision),
                Some(mark) if mark == wanted => {}
                Some(mark) => return Next::Void { revision, mark },
            }
        }
        let is = |wanted| move |mark: &Option<Mark>| *mark == Some(wanted);
        let bad = self.marks.iter().position(is(Mark::Bad)).unwrap_or(last);
        let good = self.marks.iter().rposition(is(Mark::Good)).unwrap_or(0);
        if good > bad {
            return Next::Contradiction { bad, good };
        }
        let left: Vec<usize> = (good + 1..bad).filter(|&revision| self.marks[revision].is_none()).collect();
        if left.is_empty() { Next::Found(good + 1..bad + 1) } else { Next::Test(left[left.len() / 2]) }
    }

    /// The most tests that may be left.
    #[must_use]
    pub fn tests_left(&self) -> usize {
        match self.next() {
            Next::Test(_) => {}
            _ => return 0,
        }
        let ends = [0, self.marks.len() - 1].into_iter().filter(|&end| self.marks[end].is_none()).count();
        let last = |wanted| self.marks.iter().rposition(|mark| *mark == Some(wanted));
        let first_bad = self.marks.iter().position(|mark| *mark == Some(Mark::Bad));
        let inner = last(Mark::Good).unwrap_or(0) + 1..first_bad.unwrap_or(self.marks.len() - 1);
        let untested = inner.filter(|&revision| self.marks[revision].is_none()).count();
        ends + (usize::BITS - untested.leading_zeros()) as usize
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Runs a search to its end; the end, and every revision that was tested.
    fn run(revisions: usize, test: impl Fn(usize) -> Mark) -> (Next, Vec<usize>) {
        let (mut search, mut tested) = (Search::over(revisions), Vec::new());
        loop {
            match search.next() {
                Next::Test(revision) => {
                    assert!(!tested.contains(&revision), "{revision} is tested twice");
                    tested.push(revision);
                    search.mark(revision, test(revision));
                }
                end => return (end, tested),
            }
        }
    }

    proptest! {
        #[test]
        fn the_first_bad_one_is_found_or_the_range_that_cannot_be_narrowed(
            (revisions, first_bad, skipped) in (2_usize..200).prop_flat_map(|revisions| {
                (Just(revisions), 1..revisions, proptest::collection::btree_set(1..revisions, 0..revisions))
            })
        ) {
            let skips = |revision: usize| revision != revisions - 1 && skipped.contains(&revision);
            let (end, tested) = run(revisions, |revision| match revision {
                _ if skips(revision) => Mark::Skipped,
                _ if revision < first_bad => Mark::Good,
                _ => Mark::Bad,
            });
            let good = (0..first_bad).rev().find(|&revision| !skips(revision)).unwrap();
            let bad = (first_bad..revisions).find(|&revision| !skips(revision)).unwrap();
            prop_assert_eq!(end, Next::Found(good + 1..bad + 1));
            let in_vain = tested.iter().filter(|&&revision| skips(revision)).count();
            let enough = 2 + (usize::BITS - revisions.leading_zeros()) as usize + in_vain;
            prop_assert!(tested.len() <= enough, "{} tests of {revisions} revisions", tested.len());
        }

        #[test]
        fn no_more_tests_are_needed_than_foretold(
            (revisions, first_bad) in (2_usize..200).prop_flat_map(|revisions| (Just(revisions), 1..revisions))
        ) {
            let foretold = Search::over(revisions).tests_left();
            let (_, tested) =
                run(revisions, |revision| if revision < first_bad { Mark::Good } else { Mark::Bad });
            prop_assert!(tested.len() <= foretold, "{} of {foretold}", tested.len());
        }
    }

    #[test]
    fn an_end_that_is_not_as_held_makes_the_search_void_at_once() {
        assert_eq!(run(9, |_| Mark::Good), (Next::Void { revision: 8, mark: Mark::Good }, vec![8]));
        assert_eq!(run(9, |_| Mark::Bad), (Next::Void { revision: 0, mark: Mark::Bad }, vec![8, 0]));
        assert_eq!(run(9, |_| Mark::Skipped), (Next::Void { revision: 8, mark: Mark::Skipped }, vec![8]));
    }

    #[test]
    fn marks_of_an_earlier_search_that_contradict_each_other_are_told() {
        let mut search = Search::over(5);
        for (revision, mark) in [(0, Mark::Good), (4, Mark::Bad), (1, Mark::Bad), (3, Mark::Good)] {
            search.mark(revision, mark);
        }
        assert_eq!(search.next(), Next::Contradiction { bad: 1, good: 3 });
    }
}
