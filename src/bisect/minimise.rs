//! Delta debugging: the least of something that still shows a fault. What shows it is asked of the caller, since each
//! answer takes an engine.
//!
//! [`minimise`] is `ddmin` of Zeller and Hildebrandt, "Simplifying and isolating failure-inducing input", IEEE Transactions
//! on Software Engineering 28(2), 2002, tried on each single item first: most faults show on any one question.

/// A least part of `items` that still shows the fault: without any one of its items the fault is gone. All of `items`
/// are held to show it.
///
/// # Errors
/// When a test fails.
pub async fn minimise<T: Clone, E>(
    items: Vec<T>,
    mut shows: impl AsyncFnMut(&[T]) -> Result<bool, E>,
) -> Result<Vec<T>, E> {
    if items.len() > 1 && shows(&items[..1]).await? {
        return Ok(items[..1].to_vec());
    }
    let (mut items, mut parts) = (items, 2);
    'smaller: while items.len() >= 2 {
        let size = items.len().div_ceil(parts);
        let chunks: Vec<Vec<T>> = items.chunks(size).map(<[T]>::to_vec).collect();
        for chunk in &chunks {
            if shows(chunk).await? {
                (items, parts) = (chunk.clone(), 2);
                continue 'smaller;
            }
        }
        for without in (0..chunks.len()).filter(|_| chunks.len() > 2) {
            let rest = chunks.iter().enumerate().filter(|(place, _)| *place != without);
            let rest: Vec<T> = rest.flat_map(|(_, chunk)| chunk.clone()).collect();
            if shows(&rest).await? {
                (items, parts) = (rest, (parts - 1).max(2));
                continue 'smaller;
            }
        }
        if parts >= items.len() {
            break;
        }
        parts = (2 * parts).min(items.len());
    }
    Ok(items)
}

/// A short length out of `1..=longest` that still shows the fault; `longest` is held to show it. The least of all, if each
/// length above one that shows it shows it, too.
///
/// # Errors
/// When a test fails.
pub async fn shortest<E>(longest: u32, mut shows: impl AsyncFnMut(u32) -> Result<bool, E>) -> Result<u32, E> {
    let (mut clean, mut length) = (0, 1);
    while length < longest && !shows(length).await? {
        (clean, length) = (length, length.saturating_mul(2));
    }
    let mut showing = length.min(longest);
    while showing - clean > 1 {
        let middle = clean + (showing - clean) / 2;
        if shows(middle).await? {
            showing = middle;
        } else {
            clean = middle;
        }
    }
    Ok(showing)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    fn wait<T>(work: impl Future<Output = Result<T, Infallible>>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(work).unwrap()
    }

    proptest! {
        #[test]
        fn what_is_left_shows_the_fault_and_no_single_item_of_it_can_go(
            (count, culprits) in (1_usize..40).prop_flat_map(|count| {
                (Just(count), proptest::collection::btree_set(0..count, 1..=count.min(4)))
            })
        ) {
            let shows = |items: &[usize]| culprits.iter().all(|culprit| items.contains(culprit));
            let least = wait(minimise((0..count).collect(), async |items: &[usize]| Ok(shows(items))));
            prop_assert_eq!(BTreeSet::from_iter(least), culprits);
        }

        #[test]
        fn any_one_of_several_culprits_is_enough(
            (count, culprits) in (1_usize..40).prop_flat_map(|count| {
                (Just(count), proptest::collection::btree_set(0..count, 1..=count))
            })
        ) {
            let shows = async |items: &[usize]| Ok(items.iter().any(|item| culprits.contains(item)));
            let least = wait(minimise((0..count).collect(), shows));
            prop_assert!(least.len() == 1 && culprits.contains(&least[0]), "{:?}", least);
        }

        #[test]
        fn the_shortest_length_is_found_in_few_tests(
            (longest, wanted) in (1_u32..5000).prop_flat_map(|longest| (Just(longest), 1..=longest))
        ) {
            let mut tests = 0;
            let found = wait(shortest(longest, async |length| {
                tests += 1;
                Ok(length >= wanted)
            }));
            prop_assert_eq!(found, wanted);
            prop_assert!(tests <= 2 + 2 * (u32::BITS - wanted.leading_zeros()), "{tests} tests for {wanted}");
        }
    }

    #[test]
    fn a_fault_of_a_single_item_takes_a_single_test() {
        let mut tests = 0;
        let least = wait(minimise((0..100).collect(), async |_: &[i32]| {
            tests += 1;
            Ok(true)
        }));
        assert_eq!((least, tests), (vec![0], 1));
    }
}
