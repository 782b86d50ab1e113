//! Which depot a command uses, and what lies in one.

use std::fmt::Write;
use std::process::ExitCode;
use std::time::Duration;

use indicatif::HumanBytes;

use super::fleet_arguments::DepotCommand;
use super::output::print;
use super::store::age;
use crate::depot::{Depot, Stored};
use crate::progress::{Progress, Verbosity};
use crate::store::{StageKey, explain};
use crate::thread::on_thread;

const DAY: Duration = Duration::from_hours(24);
/// Artifacts of others that a key is held against: the newest.
const MOST_CANDIDATES: usize = 200;
/// Of these, so many are told.
const TOLD: usize = 3;

pub(super) async fn tend_depot(command: DepotCommand) -> anyhow::Result<ExitCode> {
    let events = Progress::events(Verbosity::Normal);
    match command {
        DepotCommand::Ls { depot } => {
            let depot = depot.require(&events)?;
            let name = depot.name().to_owned();
            list(&name, &on_thread(move || depot.stored()).await??)
        }
        DepotCommand::Gc { older_than, dry_run, depot } => {
            let depot = depot.require(&events)?;
            let kept = on_thread(move || depot.clean(DAY.saturating_mul(older_than), dry_run)).await??;
            let mut text = String::new();
            for stored in &kept.removed {
                writeln!(text, "{}", describe(stored))?;
            }
            let what = if dry_run { "would go" } else { "removed" };
            writeln!(
                text,
                "{what}: {} artifacts, {} parts, {}; {} artifacts stay, {} of them since younger ones are made from them",
                kept.removed.len(),
                kept.parts.0,
                HumanBytes(kept.parts.1),
                kept.kept,
                kept.referenced
            )?;
            print(&text)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn list(name: &str, stored: &[Stored]) -> anyhow::Result<ExitCode> {
    let mut text = String::new();
    for one in stored {
        writeln!(text, "{}", describe(one))?;
    }
    let bytes: u64 = stored.iter().filter_map(|one| one.seal.as_ref()).map(crate::depot::Seal::bytes).sum();
    writeln!(text, "{} artifacts, {} in all, in {name}", stored.len(), HumanBytes(bytes))?;
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn describe(stored: &Stored) -> String {
    let (bytes, label) = match &stored.seal {
        Some(seal) => (HumanBytes(seal.bytes()).to_string(), seal.label.as_str()),
        None => ("damaged".to_owned(), ""),
    };
    let line =
        format!("{:<9} {}  {bytes:>11}  {:<16} {label}", stored.stage, stored.key.short(), age(stored.put));
    line.trim_end().to_owned()
}

/// Which artifacts of other machines come nearest to a key, and what keeps each from serving.
pub(super) async fn explain_by_others(depot: &Depot, key: &StageKey) -> anyhow::Result<String> {
    let (depot, stage) = (depot.clone(), key.stage());
    let mut others = on_thread(move || depot.newest(stage, MOST_CANDIDATES)).await??;
    others.sort_by_key(|other| std::cmp::Reverse(other.put));
    let mut nearest: Vec<_> = others
        .iter()
        .filter_map(|other| {
            let seal = other.seal.as_ref()?;
            Some((explain(&seal.key, key), other, seal))
        })
        .collect();
    nearest.sort_by_key(|(changes, _, _)| changes.len());
    let mut text = String::new();
    for (changes, other, seal) in nearest.iter().take(TOLD) {
        writeln!(
            text,
            "  in the depot: {} {} of {}, {}, does not serve, since",
            stage,
            other.key.short(),
            maker(&seal.key),
            age(other.put)
        )?;
        for change in changes {
            writeln!(text, "    {change}")?;
        }
    }
    Ok(text)
}

/// The device that an artifact was made on, in words; what no device made is anybody's.
fn maker(key: &StageKey) -> String {
    let device = key.fields().pointer("/parameters/engine/device");
    let named =
        device.and_then(|device| serde_json::from_value::<crate::machine::Device>(device.clone()).ok());
    named.map_or_else(|| "any machine".to_owned(), |device| device.to_string())
}
