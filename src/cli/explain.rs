//! Says why a stage would run again.

use std::process::ExitCode;

use super::arguments::RunArguments;
use super::output::print;
use super::prepare::{cache_folder, prepare};
use crate::event::Events;
use crate::pipeline::wanted_keys;
use crate::stage_name::StageName;
use crate::store::{Durability, Store, explain};

/// Compares the last keys with those that a run would look for now, by looking for them without running anything.
pub(super) async fn explain_stages(
    stage: Option<StageName>,
    arguments: &RunArguments,
) -> anyhow::Result<ExitCode> {
    let cache = cache_folder(arguments.cache.clone())?;
    let store = Store::open(&cache, Durability::Lasting, Events::ignored())?;
    let stages = stage.map_or_else(|| StageName::ALL.to_vec(), |stage| vec![stage]);
    let mut before = Vec::new();
    for &stage in &stages {
        before.extend(store.last_keys(stage)?.into_iter().map(|(label, key)| (stage, label, key)));
    }
    let (bench, _store) = prepare(arguments).await?;
    let wanted = wanted_keys(bench).await?;
    for (label, key) in wanted {
        if !stages.contains(&key.stage()) {
            continue;
        }
        let previous = before.iter().find(|(stage, known, _)| *stage == key.stage() && *known == label);
        let name = format!("{} {label}", key.stage());
        let name = name.trim_end();
        match previous {
            None => print(&format!("{name}: has never run here\n"))?,
            Some((_, _, previous)) if previous.digest() == key.digest() => {
                let fate = match store.find(&key)? {
                    Some(_) => "unchanged, re-used",
                    None => "unchanged, but runs again, since its artifact is not kept any more",
                };
                print(&format!("{name}: {fate}\n"))?;
            }
            Some((_, _, previous)) => {
                print(&format!("{name}: runs again, since\n"))?;
                for change in explain(previous, &key) {
                    print(&format!("  {change}\n"))?;
                }
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
