//! What lies between the two sides of a described connector during a run. Main type: [`Open`].

use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use camino::Utf8Path;
use serde_json::Value;

use super::description::{Description, SideText, ports_in};
use super::file::{Described, place_code};
use super::places::Places;
use crate::carrier::lmcache::{ServerPort, launch_side};
use crate::carrier::surroundings::{install_packages, require_memory, utf8};
use crate::carrier::{CarrierError, Doing, Port, Side, Surroundings, Transport, make_folder};
use crate::engine::{Companion, CompanionSettings, Connector, SecondTier, ServerCounters, distinct_ports};

const GIB: u64 = 1 << 30;

/// A described connector that is ready for engines.
pub(super) struct Open<'s> {
    described: &'s Described,
    surroundings: &'s Surroundings<'s>,
    places: Places,
    /// Folders that Python looks into for the connector.
    python_path: Vec<String>,
    module: Option<String>,
    companions: Vec<Companion>,
    folder: Option<tempfile::TempDir>,
}

impl<'s> Open<'s> {
    pub(super) async fn begin(
        described: &'s Described,
        surroundings: &'s Surroundings<'s>,
        bytes: u64,
    ) -> Result<Self, CarrierError> {
        let description = &described.description;
        let wanted = description.places();
        let mut places = Places::default();
        let folder =
            if wanted.contains("folder") { Some(make_folder(&surroundings.notes, bytes)?) } else { None };
        if let Some(folder) = &folder {
            places = places.with("folder", utf8(folder).into_string());
        }
        if wanted.iter().any(|place| place.starts_with("memory_")) {
            // A third more than all KV, so that nothing is evicted.
            let gib = (bytes / 3 * 4).div_ceil(GIB).max(u64::from(surroundings.lmcache.memory_gib));
            require_memory("the memory of the connector", gib * GIB)?;
            places = places.with("memory_gib", gib).with("memory_bytes", gib * GIB);
        }
        let ports: Vec<&String> = wanted.iter().filter(|place| place.starts_with("port")).collect();
        for (place, port) in ports.iter().zip(distinct_ports(ports.len())?) {
            places = places.with(place, port);
        }
        let mut code = place_code(described, &surroundings.notes)
            .map_err(|source| CarrierError::Write { path: surroundings.notes.clone(), source })?;
        let mut python_path: Vec<String> = code.remove("folder").into_iter().collect();
        if let Some(lock) =
            described.lock.as_ref().filter(|_| described.lacks_packages(surroundings.environment.identity()))
        {
            python_path.push(install_packages(surroundings, &description.name, lock).await?.into_string());
        }
        let module = code.remove("module").or_else(|| description.connector.as_ref()?.module.clone());
        let companions = start_companions(description, &places, &python_path, surroundings).await?;
        Ok(Self { described, surroundings, places, python_path, module, companions, folder })
    }
}

impl<'s> Open<'s> {
    /// Starts the LMCache server of one side, with the described tier behind its memory.
    async fn open_server(&self, side: Side, places: &Places) -> Result<ServerPort<'s>, CarrierError> {
        let tier = self.described.description.tier.as_ref().zip(self.described.tier);
        let (tier, name) = tier.expect("what has no connector has a tier");
        let adapter = places.fill_all(&tier.adapter).into_iter().collect();
        if let (Side::Load, Some(each), Some(folder)) = (side, tier.unreadable_each, &self.folder) {
            make_unreadable(folder.path(), each)
                .map_err(|source| CarrierError::Write { path: utf8(folder), source })?;
        }
        let model_by_name = tier.model_by_name;
        let tier = SecondTier::Described { name, adapter };
        let port = launch_side(self.surroundings, side, tier, None, |settings| {
            if !self.python_path.is_empty() {
                settings.variables.push(("PYTHONPATH".to_owned(), self.python_path.join(":")));
            }
        });
        Ok(ServerPort { model_by_name, ..port.await? })
    }
}

/// Puts a folder in the place of each so many-th file below a folder, in the order of their paths: it is there, and nobody can
/// read it, whoever asks.
fn make_unreadable(folder: &Path, each: NonZeroUsize) -> io::Result<()> {
    let mut files = Vec::new();
    collect_files(folder, &mut files)?;
    files.sort();
    for file in files.into_iter().step_by(each.get()) {
        fs_err::remove_file(&file)?;
        fs_err::create_dir(&file)?;
    }
    Ok(())
}

fn collect_files(folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs_err::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect_files(&entry.path(), files)?;
        } else {
            files.push(entry.path());
        }
    }
    Ok(())
}

/// Puts what one side says in the place of what both do, in tables setting by setting.
fn override_with(value: &mut Value, own: Value) {
    match (value, own) {
        (Value::Object(fields), Value::Object(own)) => {
            for (name, field) in own {
                override_with(fields.entry(name).or_insert(Value::Null), field);
            }
        }
        (value, own) => *value = own,
    }
}

async fn start_companions(
    description: &Description,
    places: &Places,
    packages: &[String],
    surroundings: &Surroundings<'_>,
) -> Result<Vec<Companion>, CarrierError> {
    let mut companions = Vec::new();
    for process in &description.processes {
        let mut command: Vec<String> = process.command.iter().map(|word| places.fill(word)).collect();
        let of_packages = packages.iter().map(|folder| Utf8Path::new(folder).join("bin").join(&command[0]));
        let mut programs = of_packages.chain([surroundings.environment.executable(&command[0])]);
        if let Some(program) = programs.find(|program| program.exists()) {
            command[0] = program.into_string();
        }
        let ports = ports_in(process).into_iter().filter_map(|place| places.0.get(place)?.as_u64());
        let own = process.variables.iter().map(|(name, value)| (name.clone(), places.fill(value)));
        let settings = CompanionSettings {
            name: process.name.clone(),
            command,
            variables: surroundings.variables.iter().cloned().chain(own).collect(),
            guard: surroundings.executable.to_owned(),
            log: surroundings.notes.join(format!("{}.log", process.name)),
            ports: ports.filter_map(|port| u16::try_from(port).ok()).collect(),
            ready: process.ready.as_deref().map(|address| places.fill(address)),
            patience: surroundings.patience,
        };
        companions.push(Companion::start(&settings).await?);
    }
    Ok(companions)
}

impl Transport for Open<'_> {
    fn open<'a>(&'a self, side: Side, _: Option<usize>) -> Doing<'a, Box<dyn Port + 'a>> {
        Box::pin(async move {
            let description = &self.described.description;
            let none = SideText::default();
            let own = match side {
                Side::Both => &none,
                Side::Store => &description.store,
                Side::Load => &description.load,
            };
            if side == Side::Load {
                for (process, companion) in description.processes.iter().zip(&self.companions) {
                    if let Some(late) = process.late {
                        companion.halt(late.halts())?;
                    }
                }
            }
            let places = self.places.with("side", side.name());
            let Some(common) = &description.connector else {
                return Ok(Box::new(self.open_server(side, &places).await?) as Box<dyn Port>);
            };
            let filled = |one: &_, other: &_| {
                let mut values = places.fill_all(one);
                for (name, value) in places.fill_all(other) {
                    override_with(values.entry(name).or_default(), value);
                }
                values
            };
            let variables = common.variables.iter().chain(&own.variables);
            Ok(Box::new(DescribedPort {
                connector: Connector {
                    name: common.class.clone(),
                    module_path: self.module.clone(),
                    role: own.role,
                    extra: filled(&common.extra, &own.extra),
                    settings: filled(&common.settings, &own.settings),
                    python_path: self.python_path.clone(),
                    prefix_caching: common.prefix_caching,
                    ..Connector::default()
                },
                variables: variables.map(|(name, value)| (name.clone(), places.fill(value))).collect(),
                settling: Duration::from_secs(description.settle_seconds.into()),
            }) as Box<dyn Port>)
        })
    }

    fn require_alive(&self) -> Doing<'_, ()> {
        Box::pin(async {
            for companion in &self.companions {
                companion.require_alive().await?;
            }
            Ok(())
        })
    }
}

/// An engine's side of it.
struct DescribedPort {
    connector: Connector,
    variables: Vec<(String, String)>,
    settling: Duration,
}

impl Port for DescribedPort {
    fn connector(&self) -> Connector {
        self.connector.clone()
    }

    fn variables(&self) -> Vec<(String, String)> {
        self.variables.clone()
    }

    fn settle(&self, before: ServerCounters, _: u64) -> Doing<'_, ServerCounters> {
        Box::pin(async move {
            tokio::time::sleep(self.settling).await;
            Ok(before)
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_side_says_what_differs_in_tables_too() {
        let mut both = json!({"nested": {"root": "/here", "a": 1}, "plain": 1});
        override_with(&mut both, json!({"nested": {"a": 2, "b": {"c": 3}}, "plain": {"now": "a table"}}));
        let expected =
            json!({"nested": {"root": "/here", "a": 2, "b": {"c": 3}}, "plain": {"now": "a table"}});
        assert_eq!(both, expected);
    }

    #[test]
    fn each_so_many_th_file_cannot_be_read_wherever_it_lies() {
        let folder = tempfile::tempdir().unwrap();
        for number in 0..20 {
            let own = folder.path().join(format!("{number:02}"));
            fs_err::create_dir(&own).unwrap();
            fs_err::write(own.join("chunk"), "").unwrap();
        }
        make_unreadable(folder.path(), NonZeroUsize::new(10).unwrap()).unwrap();
        let gone = (0..20).filter(|number| folder.path().join(format!("{number:02}/chunk")).is_dir());
        assert_eq!(gone.collect::<Vec<_>>(), [0, 10]);
    }
}
