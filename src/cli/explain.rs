//! Says why a stage would run again.

use std::process::ExitCode;

use super::depot::explain_by_others;
use super::output::print;
use super::prepare::{bring_environment, cache_folder, find_environment, prepare};
use super::run_arguments::RunArguments;
use crate::event::Events;
use crate::job::Whereabouts;
use crate::pipeline::{Wanted, look_up};
use crate::stage_name::StageName;
use crate::store::{Durability, Store, explain};

/// Compares the last keys with those that a run would look for now, by looking for them without running anything. An
/// environment that is not made yet is not made for that.
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
    let (mut bench, _store) = prepare(arguments)?;
    let is_made = find_environment(&bench)?;
    if is_made {
        bring_environment(&mut bench, arguments.stack.replacements()).await?;
    }
    for Wanted { label, key, whereabouts } in look_up(&bench).await? {
        if !stages.contains(&key.stage()) {
            continue;
        }
        let previous = before.iter().find(|(stage, known, _)| *stage == key.stage() && *known == label);
        let name = format!("{} {label}", key.stage());
        let name = name.trim_end();
        match previous {
            None => {
                let fate = match whereabouts {
                    Whereabouts::Store => "re-used",
                    Whereabouts::Depot => "has never run here, re-used from the depot",
                    Whereabouts::Nowhere => "has never run here",
                };
                print(&format!("{name}: {fate}\n"))?;
            }
            Some((_, _, previous)) if previous.digest() == key.digest() => {
                let fate = match whereabouts {
                    Whereabouts::Store => "unchanged, re-used",
                    Whereabouts::Depot => "unchanged, re-used from the depot",
                    Whereabouts::Nowhere => {
                        "unchanged, but runs again, since its artifact is not kept any more"
                    }
                };
                print(&format!("{name}: {fate}\n"))?;
            }
            Some((_, _, previous)) => {
                let fate = match whereabouts {
                    Whereabouts::Nowhere => "runs again",
                    Whereabouts::Store => "is another one than last, and re-used",
                    Whereabouts::Depot => "is another one than last, and re-used from the depot",
                };
                print(&format!("{name}: {fate}, since\n"))?;
                for change in explain(previous, &key) {
                    print(&format!("  {change}\n"))?;
                }
            }
        }
        if let Some(depot) = bench.depot.as_ref().filter(|_| whereabouts == Whereabouts::Nowhere) {
            print(&explain_by_others(depot, &key).await?)?;
        }
    }
    if !is_made {
        print("what needs the Python environment: runs, since that is not made yet\n")?;
    }
    Ok(ExitCode::SUCCESS)
}
