//! A part of a dataset's subjects, for a run that is one of several. Main type: [`Shard`].

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Subject;

/// One of several parts, written `3/8`. Subjects stay whole, since their prompts begin with the same examples, whose KV is stored once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Shard {
    number: NonZeroU32,
    of: NonZeroU32,
}

/// A text that names no part.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no part of several, as 3/8 is")]
pub struct NotAShard(pub String);

impl Shard {
    /// Which part, from 1.
    #[must_use]
    pub fn number(self) -> u32 {
        self.number.get()
    }

    /// Of how many.
    #[must_use]
    pub fn of(self) -> u32 {
        self.of.get()
    }

    /// Its subjects, of these with so many questions each: the largest subjects are dealt first, each to the part that has the fewest
    /// questions by then. So parts are about as large as one another, each has large and small subjects, and everybody
    /// deals alike.
    pub fn subjects<'a>(
        self,
        sizes: impl IntoIterator<Item = (&'a Subject, usize)>,
    ) -> BTreeSet<&'a Subject> {
        let mut sizes: Vec<(&Subject, usize)> = sizes.into_iter().collect();
        sizes.sort_by(|(one, few), (other, many)| many.cmp(few).then(one.cmp(other)));
        let parts = usize::try_from(self.of()).unwrap_or(usize::MAX).min(sizes.len().max(1));
        let (mut loads, mut chosen) = (vec![0_usize; parts], BTreeSet::new());
        for (subject, size) in sizes {
            let lightest = (0..parts).min_by_key(|&part| loads[part]).unwrap_or_default();
            loads[lightest] += size;
            if lightest + 1 == usize::try_from(self.number()).unwrap_or(usize::MAX) {
                chosen.insert(subject);
            }
        }
        chosen
    }
}

impl FromStr for Shard {
    type Err = NotAShard;

    fn from_str(text: &str) -> Result<Self, NotAShard> {
        let parse = || {
            let (number, of) = text.split_once('/')?;
            let (number, of) = (number.parse::<NonZeroU32>().ok()?, of.parse::<NonZeroU32>().ok()?);
            (number <= of).then_some(Self { number, of })
        };
        parse().ok_or_else(|| NotAShard(text.to_owned()))
    }
}

impl TryFrom<String> for Shard {
    type Error = NotAShard;

    fn try_from(text: String) -> Result<Self, NotAShard> {
        text.parse()
    }
}

impl From<Shard> for String {
    fn from(shard: Shard) -> Self {
        shard.to_string()
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.number, self.of)
    }
}

impl JsonSchema for Shard {
    fn schema_name() -> Cow<'static, str> {
        "Shard".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "string", "pattern": "^[1-9][0-9]*/[1-9][0-9]*$"})
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn parts_are_read_and_what_is_none_is_refused() {
        assert_eq!("3/8".parse::<Shard>().unwrap().to_string(), "3/8");
        for bad in ["0/8", "9/8", "3", "3/0", "/8", "-1/8", "3/8/1", ""] {
            assert_eq!(bad.parse::<Shard>(), Err(NotAShard(bad.to_owned())));
        }
    }

    proptest! {
        #[test]
        fn each_subject_is_in_one_part_and_parts_are_about_as_large(
            sizes in proptest::collection::vec(1_usize..1600, 1..60), of in 1_u32..12,
        ) {
            let subjects: Vec<Subject> = (0..sizes.len()).map(|at| format!("subject_{at:02}").parse().unwrap()).collect();
            let all: Vec<(&Subject, usize)> = subjects.iter().zip(sizes.iter().copied()).collect();
            let mut reversed = all.clone();
            reversed.reverse();
            let (mut seen, mut loads) = (Vec::new(), Vec::new());
            for number in 1..=of {
                let shard: Shard = format!("{number}/{of}").parse().unwrap();
                let part = shard.subjects(all.iter().copied());
                prop_assert_eq!(&part, &shard.subjects(reversed.iter().copied()));
                loads.push(all.iter().filter(|(subject, _)| part.contains(subject)).map(|(_, size)| size).sum::<usize>());
                seen.extend(part.into_iter().cloned());
            }
            seen.sort();
            prop_assert_eq!(seen, subjects);
            // No part could give a subject away and still be the larger one.
            let largest = sizes.iter().max().unwrap();
            prop_assert!(loads.iter().max().unwrap() - loads.iter().min().unwrap() <= *largest);
        }
    }
}
