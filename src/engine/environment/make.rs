//! From a request to an environment: found, given or made. Main types: [`EnvironmentRequest`], [`Environment`].

use std::ffi::OsString;
use std::io;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;
use serde::{Deserialize, Serialize};

use super::identity::platform;
use super::installer::{Installer, clear};
use super::layer::{Layer, LayerKind};
use super::python::Python;
use super::stack::pins;
use super::{EnvironmentError, EnvironmentIdentity, Stack};
use crate::cache::{self, Bucket};
use crate::digest::{digest_bytes, digest_json};
use crate::event::{Event, Events};
use crate::lock::FileLock;
use crate::machine::disk_space;

const SCHEMA: u32 = 1;
pub(super) const MARKER: &str = "environment.json";
/// How long another process may take to make the same environment; a slow network needs most of it.
pub(super) const PATIENCE: Duration = Duration::from_hours(1);

/// Which environment is wanted.
#[derive(Debug, Clone)]
pub struct EnvironmentRequest {
    /// The kind of packages.
    pub stack: Stack,
    /// A lock of other releases than the stack's own, as [`lock_releases`](super::lock_releases) makes them.
    pub lock: Option<String>,
    /// The cache folder.
    pub cache: Utf8PathBuf,
    /// An environment to use as it is: `KV_CORRECTNESS_ENV`.
    pub given: Option<Utf8PathBuf>,
    /// An environment without LMCache for the arms that need none: `KV_CORRECTNESS_ENV_BASELINE`.
    pub given_baseline: Option<Utf8PathBuf>,
    /// The Python to make an environment with: `KV_CORRECTNESS_PYTHON`.
    pub python: Option<Utf8PathBuf>,
    /// Where else to look for Python and uv: `PATH`.
    pub search_path: OsString,
    /// Disk space in bytes that must be free before an environment is made.
    pub free_bytes: u64,
}

/// An environment that is ready.
#[derive(Debug, Clone)]
pub struct Environment {
    folder: Utf8PathBuf,
    identity: EnvironmentIdentity,
    /// For the arms without LMCache, where it is another one.
    baseline: Option<Box<Environment>>,
    /// Folders of packages that take the place of its own, the topmost first.
    layers: Vec<Utf8PathBuf>,
}

impl Environment {
    pub(crate) fn new(folder: Utf8PathBuf, identity: EnvironmentIdentity) -> Self {
        Self { folder, identity, baseline: None, layers: Vec::new() }
    }

    /// The environment that the arms without LMCache run in.
    #[must_use]
    pub fn of_baseline(&self) -> &Self {
        self.baseline.as_deref().unwrap_or(self)
    }

    /// What the keys of the arms without LMCache hold.
    #[must_use]
    pub fn identity_of_baseline(&self) -> EnvironmentIdentity {
        match &self.baseline {
            Some(baseline) if baseline.identity.version("lmcache").is_none() => baseline.identity.clone(),
            Some(baseline) => baseline.identity.without_lmcache(),
            None if self.identity.version("lmcache").is_none() => self.identity.clone(),
            None => self.identity.without_lmcache(),
        }
    }

    /// The environment with another LMCache or vLLM on top. Another LMCache leaves the arms without LMCache as they are.
    #[must_use]
    pub fn with_layer(&self, layer: &Layer) -> Self {
        let baseline = match layer.kind {
            LayerKind::Lmcache => Some(Box::new(self.of_baseline().clone())),
            LayerKind::Vllm => self.baseline.as_ref().map(|baseline| Box::new(baseline.with_layer(layer))),
        };
        let mut layered = Self { baseline, ..self.clone() };
        layered.identity.packages.insert(layer.name.clone(), layer.package.clone());
        layered.identity.store_path = None; // it holds what the layer replaces
        layered.layers.insert(0, layer.folder.clone());
        layered
    }

    /// Folders that come before the environment's own packages, for `PYTHONPATH`, with some more of them.
    #[must_use]
    pub fn python_path(&self, more: Option<Utf8PathBuf>) -> Option<String> {
        let folders: Vec<String> = self.layers.iter().cloned().chain(more).map(Into::into).collect();
        (!folders.is_empty()).then(|| folders.join(":"))
    }

    /// Refuses an environment that cannot run the arm with LMCache.
    ///
    /// # Errors
    /// When LMCache is not installed in it.
    pub fn require_lmcache(&self) -> Result<(), EnvironmentError> {
        self.identity.require_lmcache(&self.folder)
    }

    /// Its Python.
    #[must_use]
    pub fn python(&self) -> Utf8PathBuf {
        self.executable("python")
    }

    /// A program of it: `lmcache`.
    #[must_use]
    pub fn executable(&self, name: &str) -> Utf8PathBuf {
        let in_layers =
            self.layers.iter().map(|layer| layer.join("bin").join(name)).find(|path| path.exists());
        in_layers.unwrap_or_else(|| self.folder.join("bin").join(name))
    }

    /// Its folder.
    #[must_use]
    pub fn folder(&self) -> &Utf8Path {
        &self.folder
    }

    /// What is installed in it.
    #[must_use]
    pub fn identity(&self) -> &EnvironmentIdentity {
        &self.identity
    }
}

/// `environment.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Marker {
    schema: u32,
    identity: EnvironmentIdentity,
}

impl EnvironmentRequest {
    /// A request with what the variables `KV_CORRECTNESS_ENV`, `KV_CORRECTNESS_ENV_BASELINE`, `KV_CORRECTNESS_PYTHON` and
    /// `PATH` say.
    #[must_use]
    pub fn from_variables(stack: Stack, cache: Utf8PathBuf) -> Self {
        let path =
            |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty()).map(Utf8PathBuf::from);
        Self {
            stack,
            lock: None,
            cache,
            given: path("KV_CORRECTNESS_ENV"),
            given_baseline: path("KV_CORRECTNESS_ENV_BASELINE"),
            python: path("KV_CORRECTNESS_PYTHON"),
            search_path: std::env::var_os("PATH").unwrap_or_default(),
            free_bytes: stack.disk_bytes(),
        }
    }

    /// The environment if it is given or was made before. Starts no process and changes nothing.
    ///
    /// # Errors
    /// When an environment that is given cannot be read, lacks a package, holds an editable one, or does not fit the other.
    pub fn find(&self) -> Result<Option<Environment>, EnvironmentError> {
        let baseline = match &self.given_baseline {
            Some(folder) => {
                let folder = absolute(folder);
                let identity = EnvironmentIdentity::read_baseline(&folder)?;
                Some(Environment::new(folder, identity))
            }
            None => None,
        };
        if let Some(folder) = &self.given {
            let folder = absolute(folder);
            // Whether LMCache is needed in it is for the carriers to say.
            let identity = EnvironmentIdentity::read_baseline(&folder)?;
            let mut environment = Environment::new(folder, identity);
            if let Some(baseline) = &baseline {
                check_agreement(&environment, baseline)?;
            }
            environment.baseline = baseline.map(Box::new);
            return Ok(Some(environment));
        }
        if baseline.is_some() {
            return Ok(baseline);
        }
        let folder = self.folder();
        let complete = fs::read(folder.join(MARKER)).ok().and_then(|text| serde_json::from_slice(&text).ok());
        let python_is_there = folder.join("bin/python").exists();
        Ok(match complete {
            Some(Marker { schema: SCHEMA, identity }) if python_is_there => {
                Some(Environment::new(folder, identity))
            }
            _ => None,
        })
    }

    /// The Python that an environment would be made with.
    ///
    /// # Errors
    /// When none is found that the locks serve.
    pub fn find_python(&self) -> Result<Utf8PathBuf, EnvironmentError> {
        Python::find(self.python.as_deref(), &self.search_path).map(|python| python.executable)
    }

    /// The environment; it is made if need be, which takes half a minute to several minutes and some GiB of disk.
    ///
    /// # Errors
    /// As [`find`](Self::find); and when the platform, Python, disk or network does not allow to make it, or another process
    /// has been making it for an hour.
    pub fn provide(&self, events: &Events) -> Result<Environment, EnvironmentError> {
        if let Some(environment) = self.find()? {
            return Ok(reused(environment, events));
        }
        let folder = self.folder();
        let failed = |source| EnvironmentError::Io { folder: folder.clone(), source };
        if platform() != "x86_64-linux" {
            return Err(EnvironmentError::Platform { stack: self.stack, platform: platform() });
        }
        let parent = environments(&self.cache);
        fs::create_dir_all(&parent).map_err(failed)?;
        cache::tag(&self.cache);
        let lock = FileLock::take(
            &folder.with_extension("lock"),
            &format!("the Python environment {folder}"),
            PATIENCE,
            events,
        )?;
        if let Some(environment) = self.find()? {
            return Ok(reused(environment, events));
        }
        let python = Python::find(self.python.as_deref(), &self.search_path)?;
        clear(&folder).map_err(failed)?;
        check_disk_space(&parent, self.free_bytes).map_err(failed)??;
        self.make(&folder, &python, &lock, events)
    }

    fn make(
        &self,
        folder: &Utf8Path,
        python: &Python,
        lock: &FileLock,
        events: &Events,
    ) -> Result<Environment, EnvironmentError> {
        let start = Instant::now();
        let failed = |source| EnvironmentError::Io { folder: folder.to_owned(), source };
        let log = folder.with_extension("log");
        fs::write(&log, "").map_err(failed)?;
        let packages = pins(self.lock()).count();
        events.emit(Event::EnvironmentStarted { folder: folder.to_owned(), packages, log: log.clone() });

        let installer = Installer { log: &log, lock, events };
        let uv = installer.find_uv(
            &self.search_path,
            &Bucket::Tools.folder(&absolute(&self.cache)),
            &python.executable,
            PATIENCE,
        )?;
        let run_uv = |arguments: &[&str]| {
            let mut command = Command::new(&uv);
            // The settings of a project that the user stands in are not meant for this.
            command.args(arguments).current_dir(environments(&self.cache));
            command.env("NO_COLOR", "1").env("UV_NO_PROGRESS", "1").env("UV_PYTHON_DOWNLOADS", "never");
            command
        };
        installer.step(
            "make a virtual environment",
            &mut run_uv(&["venv", "--no-project", "--python", python.executable.as_str(), folder.as_str()]),
        )?;
        let requirements = folder.join("requirements.txt");
        fs::write(&requirements, self.lock()).map_err(failed)?;
        let target = folder.join("bin/python");
        installer.step(
            "install vLLM and LMCache",
            &mut run_uv(&[
                "pip",
                "install",
                "--require-hashes",
                "--no-deps",
                "--python",
                target.as_str(),
                "--requirements",
                requirements.as_str(),
            ]),
        )?;

        let identity = EnvironmentIdentity::read(folder)?;
        let marker = Marker { schema: SCHEMA, identity };
        let text = serde_json::to_vec_pretty(&marker).expect("an identity has a JSON form");
        let draft = folder.join("environment.json.draft");
        fs::write(&draft, text).and_then(|()| fs::rename(&draft, folder.join(MARKER))).map_err(failed)?;
        events.emit(Event::EnvironmentFinished { folder: folder.to_owned(), elapsed: start.elapsed() });
        Ok(Environment::new(folder.to_owned(), marker.identity))
    }

    /// What is installed: a requirements file with hashes and without addresses.
    fn lock(&self) -> &str {
        self.lock.as_deref().unwrap_or_else(|| self.stack.lock())
    }

    /// Where the environment is or will be. It depends on the wanted Python's name, not on its version, because to learn
    /// that would mean to start it; the version is part of the identity.
    fn folder(&self) -> Utf8PathBuf {
        let id = digest_json(&serde_json::json!({
            "schema": SCHEMA,
            "lock": digest_bytes(self.lock().as_bytes()),
            "platform": platform(),
            "python": self.python,
        }));
        environments(&self.cache).join(id.short())
    }
}

pub(super) fn environments(cache: &Utf8Path) -> Utf8PathBuf {
    Bucket::Environments.folder(&absolute(cache))
}

/// A path that still holds in a child that runs in another folder.
pub(super) fn absolute(path: &Utf8Path) -> Utf8PathBuf {
    camino::absolute_utf8(path).unwrap_or_else(|_| path.to_owned())
}

/// Tells that an environment serves, and notes when; that it cannot be noted in a read-only cache is no error.
fn reused(environment: Environment, events: &Events) -> Environment {
    let marker = fs::OpenOptions::new().append(true).open(environment.folder.join(MARKER));
    if let Err(error) = marker.and_then(|file| file.into_file().set_modified(SystemTime::now())) {
        tracing::debug!(%error, "the use of an environment was not noted");
    }
    events.emit(Event::EnvironmentReused { folder: environment.folder.clone() });
    environment
}

/// Refuses a baseline that would differ from the arm with LMCache in more than LMCache.
fn check_agreement(environment: &Environment, baseline: &Environment) -> Result<(), EnvironmentError> {
    let (with, without) = (&environment.identity, &baseline.identity);
    for (package, with, without) in [
        ("vLLM", with.vllm_version(), without.vllm_version()),
        ("torch", with.version("torch"), without.version("torch")),
    ] {
        if with != without {
            let version = |version: Option<&str>| version.unwrap_or_default().to_owned();
            return Err(EnvironmentError::Disagreement {
                folder: environment.folder.clone(),
                baseline: baseline.folder.clone(),
                package,
                versions: (version(with), version(without)),
            });
        }
    }
    Ok(())
}

/// Whether a folder's disk has that much space left.
fn check_disk_space(folder: &Utf8Path, needed: u64) -> io::Result<Result<(), EnvironmentError>> {
    let free = disk_space(folder)?.free;
    #[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    Ok(if free < needed {
        Err(EnvironmentError::DiskSpace {
            folder: folder.to_owned(),
            needed_gib: gib(needed),
            free_gib: gib(free),
        })
    } else {
        Ok(())
    })
}
