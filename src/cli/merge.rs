//! Folds the parts of a run into one report.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::Context;
use camino::Utf8Path;
use fs_err as fs;

use super::arguments::PublishArguments;
use super::fleet_arguments::{MergeArguments, RunName};
use super::output::print;
use super::prepare::cache_folder;
use super::publish::Publishing;
use super::report::{parse_report, read_report};
use super::write_report::write_formats;
use crate::depot::{Depot, Found};
use crate::digest::Digest;
use crate::event::Events;
use crate::pipeline::{Part, merge};
use crate::progress::{Progress, Verbosity};
use crate::report::Report;
use crate::stage::read_evidence;
use crate::stage_name::StageName;
use crate::store::{Artifact, Claim, Durability, Reuse, Store};
use crate::thread::on_thread;

/// The folder in `--out` with the evidence of a shard.
pub(super) const EVIDENCE: &str = "evidence";
const PATIENCE: std::time::Duration = std::time::Duration::from_mins(5);

/// Where the evidence of parts is looked for.
struct Shelves {
    store: Store,
    depot: Option<Depot>,
}

pub(super) async fn merge_parts(
    arguments: &MergeArguments,
    publish: &PublishArguments,
) -> anyhow::Result<ExitCode> {
    let publishing = Publishing::prepare(publish)?;
    let events = Progress::events(Verbosity::Normal);
    let cache = cache_folder(arguments.cache.clone())?;
    let store = Store::open(&cache, Durability::Lasting, events.clone())?;
    let shelves = Shelves { store, depot: arguments.depot.open(&events)? };
    let mut parts = Vec::new();
    for folder in &arguments.folders {
        let report = read_report(folder)?;
        parts.push(shelves.part(folder.to_string(), report, Some(folder)).await?);
    }
    if let Some(run) = &arguments.run_name
        && arguments.folders.is_empty()
    {
        let depot = shelves
            .depot
            .clone()
            .context("find the depot: none is named\n\nhint: name one with `--depot URL`")?;
        let run = run.as_str().to_owned();
        let reports = on_thread(move || depot.reports(&run)).await??;
        for (name, json) in reports {
            let report = parse_report(name.as_ref(), &json)?;
            parts.push(shelves.part(name, report, None).await?);
        }
    }
    let report = merge(&parts)?;
    let (json, summary) = write_formats(&report, &arguments.out)?;
    print(if arguments.json { &json } else { &summary })?;
    publishing.publish(&report, &events);
    Ok(ExitCode::from(report.exit_code))
}

impl Shelves {
    /// A part with the evidence behind its comparisons, where it is a shard.
    async fn part(&self, name: String, report: Report, folder: Option<&Utf8Path>) -> anyhow::Result<Part> {
        let mut evidence = BTreeMap::new();
        let of_shard = report.findings.iter().filter(|_| report.shard.is_some());
        for &key in of_shard.filter_map(|finding| finding.keys.get(&StageName::Compare)) {
            if let Some(artifact) = self.comparison(key, folder).await? {
                evidence.insert(key, read_evidence(&artifact)?);
            }
        }
        Ok(Part { name, report, evidence })
    }

    /// The artifact of a comparison by its key's digest: beside the report, else in the depot.
    async fn comparison(&self, key: Digest, folder: Option<&Utf8Path>) -> anyhow::Result<Option<Artifact>> {
        let exported = folder.map(|folder| folder.join(EVIDENCE).join(key.to_string()));
        if let Some(exported) = exported.filter(|exported| exported.is_dir()) {
            let artifact = Artifact::open_exported(&exported, key);
            return Ok(Some(artifact.map_err(|damage| {
                anyhow::anyhow!("use {exported}: {damage}\n\nhint: copy it again, or run that part again")
            })?));
        }
        let Some(depot) = self.depot.clone() else { return Ok(None) };
        let store = self.store.clone();
        on_thread(move || bring(&store, &depot, key)).await?
    }
}

fn bring(store: &Store, depot: &Depot, key: Digest) -> anyhow::Result<Option<Artifact>> {
    let Some(seal) = depot.look_up(StageName::Compare, key) else { return Ok(None) };
    match store.claim(&seal.key, &seal.label, Reuse::Allowed, PATIENCE)? {
        Claim::Done(artifact) => Ok(Some(artifact)),
        Claim::Todo(draft) => match depot.bring(&seal.key, &draft) {
            Found::Brought => Ok(Some(draft.seal()?)),
            Found::Nothing => Ok(None),
        },
    }
}

/// Puts what `merge` needs of a part beside its report, and into the depot under the run's name.
pub(super) async fn hand_in(
    report: &Report,
    comparisons: &[Artifact],
    out: &Utf8Path,
    depot: Option<&Depot>,
    run_name: Option<&RunName>,
    events: &Events,
) -> anyhow::Result<()> {
    if report.shard.is_some() {
        let folder = out.join(EVIDENCE);
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        for artifact in comparisons {
            artifact.export(&folder)?;
        }
    }
    let (Some(depot), Some(run)) = (depot.cloned(), run_name) else { return Ok(()) };
    let cells: Vec<_> = report.findings.iter().map(|finding| (&finding.model, finding.route)).collect();
    let asked = crate::digest::digest_json(&cells);
    let shard = report
        .shard
        .map_or_else(|| "whole".to_owned(), |shard| format!("{}-of-{}", shard.number(), shard.of()));
    let (name, run) = (format!("{shard}-{}", asked.short()), run.as_str().to_owned());
    let json = super::report::to_json(report);
    let told = format!("kv-correctness merge --depot {} --run-name {run}", depot.name());
    let is_there = on_thread(move || depot.offer_report(&run, &name, &json)).await?;
    if is_there {
        tracing::info!("the report is in the depot; {told}");
    } else {
        events.warn("the report of this part is not in the depot: `merge` needs the folder that --out names");
    }
    Ok(())
}
