//! Lists and cleans what is kept between runs.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use camino::Utf8PathBuf;
use indicatif::HumanBytes;

use super::output::print;
use super::prepare::cache_folder;
use crate::cache::{Bucket, bytes_of, leftovers, remove};
use crate::digest::Digest;
use crate::engine::environment::{remove_unused, unused};
use crate::event::Events;
use crate::progress::{Progress, Verbosity};
use crate::stage_name::StageName;
use crate::store::{Durability, Entry, Store, StoreError};

const DAY: Duration = Duration::from_hours(24);

pub(super) fn list_store(cache: Option<Utf8PathBuf>) -> anyhow::Result<ExitCode> {
    let cache = cache_folder(cache)?;
    if !cache.exists() {
        print(&format!("{cache} is not there: nothing is kept\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let store = Store::open(&cache, Durability::Lasting, Events::ignored())?;
    let labels = labels(&store)?;
    let mut text = String::new();
    for entry in store.entries()? {
        writeln!(text, "{}", describe(&entry, &labels))?;
    }
    if !text.is_empty() {
        text.push('\n');
    }
    let mut total = 0;
    let mut folders: Vec<Utf8PathBuf> =
        cache.read_dir_utf8()?.map(|entry| Ok(entry?.into_path())).collect::<std::io::Result<_>>()?;
    folders.sort();
    for folder in folders.iter().filter(|folder| folder.is_dir()) {
        let bytes = bytes_of(folder)?;
        total += bytes;
        let bucket = folder.file_name().and_then(Bucket::of_name);
        let words = bucket.map_or("not of this program; `gc` leaves it", Bucket::words);
        writeln!(text, "{:>12}  {folder}  ({words})", HumanBytes(bytes).to_string())?;
    }
    writeln!(text, "{:>12}  {cache} in all", HumanBytes(total).to_string())?;
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn clean_store(
    unused_days: u64,
    dry_run: bool,
    cache: Option<Utf8PathBuf>,
) -> anyhow::Result<ExitCode> {
    let cache = cache_folder(cache)?;
    let unused_for = DAY.saturating_mul(u32::try_from(unused_days).unwrap_or(u32::MAX));
    let store = Store::open(&cache, Durability::Lasting, Progress::events(Verbosity::Normal))?;
    let labels = labels(&store)?;
    let alone = if dry_run { None } else { Some(store.alone()?) };
    let (unused_folders, left) = (unused(&cache, unused_for)?, leftovers(&cache, unused_for)?);
    let sizes = unused_folders.iter().chain(&left).map(|folder| Ok((folder, bytes_of(folder)?)));
    let sizes: BTreeMap<_, _> = sizes.collect::<std::io::Result<_>>()?;
    let (entries, folders) = match &alone {
        None => (store.unused(unused_for)?, unused_folders.clone()),
        Some(alone) => {
            for path in &left {
                remove(path)?;
            }
            (alone.remove_unused(unused_for)?, remove_unused(&cache, unused_for)?)
        }
    };
    let bytes = folders.iter().chain(&left).filter_map(|folder| sizes.get(folder)).sum::<u64>()
        + entries.iter().map(|entry| entry.bytes).sum::<u64>();
    let mut text = String::new();
    for entry in &entries {
        writeln!(text, "{}", describe(entry, &labels))?;
    }
    for folder in folders.iter().chain(&left) {
        writeln!(text, "{folder}")?;
    }
    let (what, days) = (if dry_run { "would go" } else { "removed" }, unused_days);
    writeln!(
        text,
        "{what}: {} artifacts, {} environments, builds or tools, and {} leftovers that did not serve for {days} days, {}",
        entries.len(),
        folders.len(),
        left.len(),
        HumanBytes(bytes)
    )?;
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// What the last key of each label was found or sealed as.
fn labels(store: &Store) -> Result<BTreeMap<Digest, String>, StoreError> {
    let mut labels = BTreeMap::new();
    for stage in StageName::ALL {
        labels.extend(store.last_keys(stage)?.into_iter().map(|(label, key)| (key.digest(), label)));
    }
    Ok(labels)
}

fn describe(entry: &Entry, labels: &BTreeMap<Digest, String>) -> String {
    let label = labels.get(&entry.key).map_or("", String::as_str);
    let line = format!(
        "{:<9} {}  {:>11}  {:<16} {label}",
        entry.stage,
        entry.key.short(),
        HumanBytes(entry.bytes).to_string(),
        age(entry.last_used)
    );
    line.trim_end().to_owned()
}

/// How long ago, in the largest unit that fits.
pub(super) fn age(then: SystemTime) -> String {
    let seconds = then.elapsed().unwrap_or_default().as_secs();
    let (number, unit) = match seconds {
        0..60 => return "just now".to_owned(),
        60..3600 => (seconds / 60, "minute"),
        3600..86_400 => (seconds / 3600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{number} {unit}{} ago", if number == 1 { "" } else { "s" })
}
