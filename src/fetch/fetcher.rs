//! Several files at once, into the cache folder. Main types: [`Fetcher`], [`FetchSettings`].

use std::io;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;

use super::client::{Client, Token};
use super::convert::convert;
use super::download::{Download, Outcome, Wanted};
use super::patience::Patience;
use super::pins::HUB;
use super::verified::fetched;
use super::{ArchivePin, FetchError, ModelPin, Origin, Verified};
use crate::cache;
use crate::engine::environment::EnvironmentRequest;
use crate::event::{Event, Events};
use crate::lock::FileLock;
use crate::machine::disk_space;

/// Files that are fetched at once.
const WORKERS: usize = 4;
/// How long another process may fetch into the same cache.
const OTHER_FETCH: Duration = Duration::from_hours(4);
/// What must be left on the disk besides the files themselves.
const SPARE_BYTES: u64 = 256 << 20;

/// Where files come from and go to.
#[derive(Debug, Clone)]
pub struct FetchSettings {
    /// The cache folder.
    pub cache: Utf8PathBuf,
    /// The hub, or a mirror of it: `HF_ENDPOINT`.
    pub endpoint: String,
    /// Who asks: `HF_TOKEN`. It is sent to the hub and to no other server.
    pub token: Option<Token>,
    /// The hub's own cache, whose files are used where they are: `HF_HUB_CACHE`, or `hub` in `HF_HOME`.
    pub hub_cache: Option<Utf8PathBuf>,
    /// Certificate authorities to trust instead of Mozilla's: `SSL_CERT_FILE`.
    pub certificates: Option<Utf8PathBuf>,
    /// How long to try.
    pub patience: Patience,
}

impl FetchSettings {
    /// The settings that the environment's variables say.
    #[must_use]
    pub fn from_variables(cache: Utf8PathBuf) -> Self {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let path = |name: &str| variable(name).map(Utf8PathBuf::from);
        let user_cache = || path("XDG_CACHE_HOME").or_else(|| Some(path("HOME")?.join(".cache")));
        let home = || path("HF_HOME").or_else(|| Some(user_cache()?.join("huggingface")));
        Self {
            cache,
            endpoint: variable("HF_ENDPOINT").unwrap_or_else(|| HUB.to_owned()),
            token: variable("HF_TOKEN").as_deref().and_then(Token::new),
            hub_cache: path("HF_HUB_CACHE").or_else(|| Some(home()?.join("hub"))),
            certificates: path("SSL_CERT_FILE"),
            patience: Patience::default(),
        }
    }
}

/// Gets pinned models and datasets.
#[derive(Debug)]
pub struct Fetcher {
    settings: FetchSettings,
    client: Client,
    events: Events,
}

impl Fetcher {
    /// A fetcher with these settings.
    ///
    /// # Errors
    /// When a setting cannot be used.
    pub fn new(settings: FetchSettings, events: Events) -> Result<Self, FetchError> {
        let client = Client::new(
            &settings.endpoint,
            settings.token.clone(),
            settings.certificates.as_deref(),
            settings.patience.stall,
        )?;
        Ok(Self { settings, client, events })
    }

    /// Fetches what is not there yet, and returns where each model and then each archive lies. An environment is made
    /// only for a model that must be converted.
    ///
    /// # Errors
    /// When one of them cannot be had. Files that are complete stay, and a part of a file is gone on with.
    pub fn fetch(
        &self,
        models: &[&ModelPin],
        archives: &[&ArchivePin],
        environment: &EnvironmentRequest,
    ) -> Result<Vec<Utf8PathBuf>, FetchError> {
        let cache = &self.settings.cache;
        let folder = fetched(cache);
        fs::create_dir_all(&folder).map_err(|source| FetchError::Io { path: folder.clone(), source })?;
        cache::tag(cache);
        let what = format!("the fetched files in {folder}");
        let _lock = FileLock::take(&folder.join("fetch.lock"), &what, OTHER_FETCH, &self.events)?;

        for pin in models {
            if let Origin::Packages(gguf) = &pin.origin {
                let mut verified = Verified::read(cache);
                if self.is_converted(pin, &mut verified)? {
                    continue;
                }
                self.check_disk_space(gguf.room() + pin.weight_bytes())?;
                let environment = environment.provide(&self.events)?;
                convert(pin, gguf, &environment, cache, &mut verified, &self.events)?;
            }
        }
        let hub_files = models.iter().flat_map(|pin| self.wanted_model_files(pin));
        let wanted: Vec<Wanted> =
            hub_files.chain(archives.iter().map(|pin| self.wanted_archive(pin))).collect();
        self.fetch_files(wanted)?;
        let folders = models.iter().map(|pin| pin.folder(cache));
        Ok(folders.chain(archives.iter().map(|pin| pin.path(cache))).collect())
    }

    /// Whether all files of a model that is converted are as pinned. They are read if that is not known, as after a copy of
    /// the cache folder.
    fn is_converted(&self, pin: &ModelPin, verified: &mut Verified) -> Result<bool, FetchError> {
        let folder = pin.folder(&self.settings.cache);
        for file in &pin.files {
            let path = folder.join(&file.name);
            if !path.is_file()
                || !verified.check(&path, file.sha256).map_err(|source| io_error(&path, source))?
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn wanted_model_files(&self, pin: &ModelPin) -> Vec<Wanted> {
        let Origin::Hub { revision, .. } = &pin.origin else { return Vec::new() };
        let folder = pin.folder(&self.settings.cache);
        let hub_folder = format!("models--{}/snapshots/{revision}", pin.name.replace('/', "--"));
        let wanted = |file: &super::FilePin| Wanted {
            addresses: vec![format!("{HUB}/{}/resolve/{revision}/{}", pin.name, file.name)],
            licence_page: pin.licence_page.clone(),
            sha256: file.sha256,
            size: file.size,
            path: folder.join(&file.name),
            cached: self.settings.hub_cache.as_ref().map(|hub| hub.join(&hub_folder).join(&file.name)),
        };
        pin.files.iter().map(wanted).collect()
    }

    fn wanted_archive(&self, pin: &ArchivePin) -> Wanted {
        Wanted {
            addresses: pin.addresses.clone(),
            licence_page: pin.licence_page.clone(),
            sha256: pin.sha256,
            size: Some(pin.size),
            path: pin.path(&self.settings.cache),
            cached: self.settings.hub_cache.as_ref().and_then(|hub| cached_dataset(hub, &pin.addresses)),
        }
    }

    /// Puts all of these files in their places.
    pub(super) fn fetch_files(&self, mut wanted: Vec<Wanted>) -> Result<(), FetchError> {
        let mut verified = Verified::read(&self.settings.cache);
        // Two models of a suite may have one source.
        wanted.sort_by(|one, other| one.path.cmp(&other.path));
        wanted.dedup_by(|one, other| one.path == other.path);
        let mut missing = Vec::new();
        for file in wanted {
            if !self.is_there(&file, &mut verified)? {
                missing.push(file);
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        self.check_disk_space(missing.iter().map(Wanted::missing_bytes).sum())?;
        let total = missing.iter().filter_map(|file| file.size).sum();
        let done = AtomicI64::new(0);
        let stop = AtomicBool::new(false);
        let next = AtomicUsize::new(0);
        let first_error = Mutex::new(None);
        let verified = Mutex::new(verified);
        let files = missing.len();
        self.events.emit(Event::FetchStarted { files, bytes: total });
        let started = Instant::now();
        let progress = |bytes| {
            let done = done.fetch_add(bytes, Ordering::Relaxed) + bytes;
            self.events.emit(Event::FetchProgress { done: u64::try_from(done).unwrap_or(0), total });
            !stop.load(Ordering::Relaxed)
        };
        let retry = |problem: &str| self.events.warn(problem);
        let download = Download {
            client: &self.client,
            patience: self.settings.patience,
            progress: &progress,
            retry: &retry,
        };
        let work = || {
            while let Some(file) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                let noted = download.fetch(file).and_then(|outcome| match outcome {
                    Outcome::Placed => lock(&verified)
                        .note(&file.path, file.sha256)
                        .map_err(|source| io_error(&file.path, source)),
                    Outcome::Stopped => Ok(()),
                });
                if let Err(error) = noted {
                    stop.store(true, Ordering::Relaxed);
                    lock(&first_error).get_or_insert(error);
                }
                if stop.load(Ordering::Relaxed) {
                    return;
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..WORKERS.min(files) {
                // Where the system refuses a thread, this one does the work.
                if std::thread::Builder::new().spawn_scoped(scope, work).is_err() {
                    return work();
                }
            }
        });
        if let Some(error) = first_error.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(error);
        }
        self.events.emit(Event::FetchFinished { files, bytes: total, elapsed: started.elapsed() });
        Ok(())
    }

    /// Whether a file is in its place, or in the hub's own cache, to which a link is then made.
    fn is_there(&self, wanted: &Wanted, verified: &mut Verified) -> Result<bool, FetchError> {
        let failed = |source| io_error(&wanted.path, source);
        if wanted.path.is_file() {
            if verified.check(&wanted.path, wanted.sha256).map_err(failed)? {
                return Ok(true);
            }
            self.events.warn(format!("{} is not what is pinned, and is fetched again", wanted.path));
        }
        if wanted.path.symlink_metadata().is_ok() {
            fs::remove_file(&wanted.path).map_err(failed)?;
        }
        let Some(cached) = wanted.cached.as_ref().and_then(|path| path.canonicalize_utf8().ok()) else {
            return Ok(false);
        };
        if !verified.check(&cached, wanted.sha256).map_err(|source| io_error(&cached, source))? {
            self.events.warn(format!("{cached} is not what is pinned, and is not used"));
            return Ok(false);
        }
        let folder = wanted.path.parent().expect("a wanted file has a folder");
        fs::create_dir_all(folder)
            .and_then(|()| symlink(&cached, &wanted.path))
            .and_then(|()| verified.note(&wanted.path, wanted.sha256))
            .map_err(failed)?;
        self.events.emit(Event::FileReused { file: wanted.path.clone(), from: cached });
        Ok(true)
    }

    fn check_disk_space(&self, needed: u64) -> Result<(), FetchError> {
        let folder = &self.settings.cache;
        let free = disk_space(folder).map_err(|source| io_error(folder, source))?.free;
        if needed.saturating_add(SPARE_BYTES) > free {
            return Err(FetchError::DiskSpace { folder: folder.clone(), needed, free });
        }
        Ok(())
    }
}

/// Where the hub's own cache keeps a file of a dataset: `{hub}/datasets/{organisation}/{name}/resolve/{revision}/{file}`.
fn cached_dataset(hub_cache: &Utf8Path, addresses: &[String]) -> Option<Utf8PathBuf> {
    addresses.iter().find_map(|address| {
        let path = address.strip_prefix(HUB)?.strip_prefix("/datasets/")?;
        let (name, rest) = path.split_once("/resolve/")?;
        let (revision, file) = rest.split_once('/')?;
        let folder = format!("datasets--{}", name.replace('/', "--"));
        Some(hub_cache.join(folder).join("snapshots").join(revision).join(file))
    })
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn io_error(path: &Utf8Path, source: io::Error) -> FetchError {
    FetchError::Io { path: path.to_owned(), source }
}
