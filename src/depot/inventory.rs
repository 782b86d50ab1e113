//! What a depot holds, and how it shrinks. Main types: [`Stored`], [`Kept`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use futures_util::{StreamExt, TryStreamExt};
use object_store::ObjectMeta;

use super::error::Trouble;
use super::seal::Seal;
use super::transfer::Shelf;
use super::{Depot, DepotError};
use crate::digest::Digest;
use crate::stage_name::StageName;

/// Seals that are read at a time.
const AT_A_TIME: usize = 16;
/// Parts that no seal names are left for so long: their seal may be under way.
const GRACE: Duration = Duration::from_hours(24);

/// An artifact in a depot.
#[derive(Debug, Clone)]
pub struct Stored {
    /// The stage that made it.
    pub stage: StageName,
    /// Digest of its key.
    pub key: Digest,
    /// When it was put there.
    pub put: SystemTime,
    /// What it is; none where its seal cannot be read.
    pub seal: Option<Seal>,
    location: object_store::path::Path,
}

/// What a cleaning leaves and takes.
#[derive(Debug, Default)]
pub struct Kept {
    /// Artifacts that go.
    pub removed: Vec<Stored>,
    /// Old ones that stay, since younger ones are made from them.
    pub referenced: usize,
    /// Artifacts that stay.
    pub kept: usize,
    /// Objects that hold parts which go, and their bytes.
    pub parts: (usize, u64),
}

impl Depot {
    /// All artifacts, by stage, then by key, with their seals.
    ///
    /// # Errors
    /// When the depot fails.
    pub fn stored(&self) -> Result<Vec<Stored>, DepotError> {
        self.strictly(async |shelf: &Shelf| stored(shelf, None, usize::MAX).await)
    }

    /// The newest artifacts of one stage, at most so many.
    ///
    /// # Errors
    /// When the depot fails.
    pub fn newest(&self, stage: StageName, most: usize) -> Result<Vec<Stored>, DepotError> {
        self.strictly(async |shelf: &Shelf| stored(shelf, Some(stage), most).await)
    }

    /// Removes what was put there longer ago than this, unless what stays is made from it; and parts that nothing names any more.
    /// `is_trial` only finds out what would go.
    ///
    /// # Errors
    /// When the depot fails.
    pub fn clean(&self, older_than: Duration, is_trial: bool) -> Result<Kept, DepotError> {
        self.strictly(async |shelf: &Shelf| clean(shelf, older_than, is_trial).await)
    }
}

async fn stored(shelf: &Shelf, stage: Option<StageName>, most: usize) -> Result<Vec<Stored>, Trouble> {
    let below = ["artifacts"].into_iter().chain(stage.map(StageName::as_str)).collect::<Vec<_>>();
    let mut named: Vec<(StageName, Digest, ObjectMeta)> =
        shelf.list(&below).await?.into_iter().filter_map(name_of).collect();
    named.sort_by_key(|(_, _, object)| std::cmp::Reverse(object.last_modified));
    named.truncate(most);
    let read = named.into_iter().map(async |(stage, key, object)| {
        let seal = match shelf.read_seal(stage, key).await {
            Ok(seal) => seal,
            Err(Trouble::Damaged(_)) => None,
            Err(trouble) => return Err(trouble),
        };
        Ok(Stored { stage, key, put: object.last_modified.into(), seal, location: object.location })
    });
    let mut stored: Vec<Stored> =
        futures_util::stream::iter(read).buffer_unordered(AT_A_TIME).try_collect().await?;
    stored.sort_by_key(|stored| (stored.stage, stored.key));
    Ok(stored)
}

/// `artifacts/<stage>/<key digest>.json`.
fn name_of(object: ObjectMeta) -> Option<(StageName, Digest, ObjectMeta)> {
    let parts: Vec<String> = object.location.parts().map(|part| part.as_ref().to_owned()).collect();
    let [.., stage, name] = parts.as_slice() else { return None };
    Some((stage.parse().ok()?, name.strip_suffix(".json")?.parse().ok()?, object))
}

async fn clean(shelf: &Shelf, older_than: Duration, is_trial: bool) -> Result<Kept, Trouble> {
    let is_old = |then: SystemTime, limit: Duration| then.elapsed().is_ok_and(|age| age >= limit);
    // Parts first: what is sealed after they were listed has its parts among those that are young or named.
    let parts = shelf.list(&["parts"]).await?;
    let all = stored(shelf, None, usize::MAX).await?;
    let by_output: BTreeMap<Digest, Vec<usize>> =
        all.iter().enumerate().fold(BTreeMap::new(), |mut map, (at, one)| {
            if let Some(seal) = &one.seal {
                map.entry(seal.output_digest()).or_insert_with(Vec::new).push(at);
            }
            map
        });
    let young: Vec<usize> = (0..all.len()).filter(|&at| !is_old(all[at].put, older_than)).collect();
    let mut stays: BTreeSet<usize> = young.iter().copied().collect();
    let mut open = young.clone();
    while let Some(at) = open.pop() {
        let inputs = all[at].seal.iter().flat_map(Seal::inputs);
        let made_from: Vec<usize> =
            inputs.filter_map(|input| by_output.get(&input)).flatten().copied().collect();
        open.extend(made_from.into_iter().filter(|&input| stays.insert(input)));
    }
    let named: BTreeSet<String> = stays
        .iter()
        .filter_map(|&at| all[at].seal.as_ref())
        .flat_map(Seal::parts)
        .map(|part| part.to_string())
        .collect();
    let going: BTreeSet<String> = (0..all.len())
        .filter(|at| !stays.contains(at))
        .filter_map(|at| all[at].seal.as_ref())
        .flat_map(Seal::parts)
        .map(|part| part.to_string())
        .collect();
    // What only artifacts that go name, goes; what nobody names may be under way.
    let gone: Vec<&ObjectMeta> = parts
        .iter()
        .filter(|part| {
            let name = part.location.filename().unwrap_or_default();
            !named.contains(name) && (going.contains(name) || is_old(part.last_modified.into(), GRACE))
        })
        .collect();
    let mut kept = Kept {
        removed: Vec::new(),
        referenced: stays.len() - young.len(),
        kept: stays.len(),
        parts: (gone.len(), gone.iter().map(|part| part.size).sum()),
    };
    let gone: Vec<_> = gone.into_iter().map(|part| part.location.clone()).collect();
    kept.removed =
        all.into_iter().enumerate().filter(|(at, _)| !stays.contains(at)).map(|(_, one)| one).collect();
    if !is_trial {
        // Seals go first, so that nobody finds one without its parts.
        shelf.remove(kept.removed.iter().map(|one| one.location.clone()).collect()).await?;
        shelf.remove(gone).await?;
    }
    Ok(kept)
}
