//! Every folder that is ever written below the cache folder, and what of it serves nobody any more. Main type: [`Bucket`].
//!
//! Artifacts are the store's to remove, environments, builds and tools `engine::environment`'s, under their locks. All else is
//! made anew where it is missing, and can go once no run has looked at it for a while.

use std::io;
use std::time::{Duration, SystemTime};

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;

use crate::lock::FileLock;

/// The file that tells backup programs and others that a folder is a cache, and the line that it begins with (the Cache
/// Directory Tagging Specification, version 0.5).
const TAG: &str = "CACHEDIR.TAG";
const TAG_TEXT: &str = "Signature: 8a477f597d28d172789f06886806bc55\n\
    # This folder is a cache of kv-correctness: what is in it can be made again.\n\
    # What the tag means: the Cache Directory Tagging Specification, by Bryan Ford.\n";
/// What the names of unfinished folders begin with, and those of temporary stores of earlier versions.
const DRAFT: &str = ".tmp";
/// Where memory that processes share lies, and what the names of ours begin with.
const SHARED_MEMORY: &str = "/dev/shm";
const SEGMENTS: [&str; 2] = ["lmcache_l1_pool_kv-correctness-", "kv-correctness-"];

/// A folder below the cache folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bucket {
    /// Artifacts.
    Store,
    /// Python environments.
    Environments,
    /// LMCache and vLLM of other versions.
    Builds,
    /// The installer, and packages beside an environment.
    Tools,
    /// The engine's worker.
    Worker,
    /// Embedded models, and changed copies for foreign KV.
    Models,
    /// What `fetch` got.
    Fetched,
    /// The key of a serde.
    Serde,
    /// vLLM's cache.
    Vllm,
    /// vLLM's settings.
    VllmConfig,
    /// The caches of all else that runs in an engine.
    Xdg,
    /// Links to the libraries of the NVIDIA driver, which the flake's wrapper makes.
    Libcuda,
    /// A store of `--no-cache`.
    TemporaryStore,
}

impl Bucket {
    /// All, in the order of their names.
    pub const ALL: [Self; 13] = [
        Self::Builds,
        Self::Environments,
        Self::Fetched,
        Self::Libcuda,
        Self::Models,
        Self::Serde,
        Self::Store,
        Self::TemporaryStore,
        Self::Tools,
        Self::Vllm,
        Self::VllmConfig,
        Self::Worker,
        Self::Xdg,
    ];

    /// Its name; of temporary stores, what their names begin with.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Store => "store-1",
            Self::Environments => "environments",
            Self::Builds => "builds",
            Self::Tools => "tools",
            Self::Worker => "worker",
            Self::Models => "models",
            Self::Fetched => "fetched",
            Self::Serde => "serde",
            Self::Vllm => "vllm",
            Self::VllmConfig => "vllm-config",
            Self::Xdg => "xdg",
            Self::Libcuda => "libcuda",
            Self::TemporaryStore => "no-cache-",
        }
    }

    /// What it holds, in words.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Store => "artifacts",
            Self::Environments => "Python environments",
            Self::Builds => "LMCache and vLLM of other versions",
            Self::Tools => "the installer, and packages beside an environment",
            Self::Worker => "the engine's worker",
            Self::Models => "embedded models",
            Self::Fetched => "what `fetch` got; `gc` leaves it",
            Self::Serde => "the key of a serde",
            Self::Vllm => "vLLM's cache",
            Self::VllmConfig => "vLLM's settings",
            Self::Xdg => "caches of what runs in an engine",
            Self::Libcuda => "links to the NVIDIA driver's libraries",
            Self::TemporaryStore => "the store of a run with `--no-cache`",
        }
    }

    /// Which one a folder of this name is.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        let named = |bucket: &Self| match bucket {
            Self::TemporaryStore => name.starts_with(bucket.name()) || name.starts_with(DRAFT),
            _ => name == bucket.name(),
        };
        Self::ALL.into_iter().find(named)
    }

    /// Where it is.
    #[must_use]
    pub fn folder(self, cache: &Utf8Path) -> Utf8PathBuf {
        cache.join(self.name())
    }
}

/// Marks a folder as a cache. One that cannot be written is none the worse.
pub fn tag(cache: &Utf8Path) {
    let path = cache.join(TAG);
    if path.exists() {
        return;
    }
    if let Err(error) = fs::create_dir_all(cache).and_then(|()| fs::write(&path, TAG_TEXT)) {
        tracing::debug!(%error, "the cache was not tagged");
    }
}

/// What was left behind, or would be made anew, and did not serve for `unused_for`: temporary stores, unfinished folders, workers,
/// embedded models, caches of engines, and shared memory of servers that were killed. Sorted. To be removed while no run goes on.
///
/// # Errors
/// When the cache folder cannot be read.
pub fn leftovers(cache: &Utf8Path, unused_for: Duration) -> io::Result<Vec<Utf8PathBuf>> {
    let mut found = Vec::new();
    for path in entries(cache)? {
        match path.file_name().and_then(Bucket::of_name) {
            Some(Bucket::TemporaryStore) => found.push(path),
            Some(Bucket::Worker | Bucket::Models | Bucket::Vllm | Bucket::VllmConfig | Bucket::Xdg) => {
                found.extend(entries(&path)?);
            }
            Some(Bucket::Fetched) if !is_locked(&path.join("fetch.lock")) => {
                for organisation in entries(&path.join("models"))? {
                    found.extend(entries(&organisation)?.into_iter().filter(|path| is_draft(path)));
                }
            }
            Some(
                Bucket::Store
                | Bucket::Environments
                | Bucket::Builds
                | Bucket::Tools
                | Bucket::Fetched
                | Bucket::Serde
                | Bucket::Libcuda,
            )
            | None => {}
        }
    }
    found.extend(unused_segments()?);
    // A time to come, of a clock that was set back, says nothing of an age.
    found.retain(|path| last_use(path).is_some_and(|used| used.elapsed().is_ok_and(|age| age >= unused_for)));
    found.sort();
    Ok(found)
}

/// Removes a folder or file that others may be removing, too.
///
/// # Errors
/// When it is there and cannot be removed.
pub fn remove(path: &Utf8Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    removed.or_else(unless_gone)
}

/// Bytes of all files under a folder, or of a file. What vanishes meanwhile, as during a run, has none.
///
/// # Errors
/// When something that is there cannot be read.
pub fn bytes_of(path: &Utf8Path) -> io::Result<u64> {
    let mut bytes = 0;
    let path = path.canonicalize().unwrap_or_else(|_| path.into()); // it may be a link to another disk
    visit(&path, &mut |metadata| bytes += if metadata.is_file() { metadata.len() } else { 0 })?;
    Ok(bytes)
}

fn is_locked(lock: &Utf8Path) -> bool {
    lock.exists() && matches!(FileLock::try_take(lock), Ok(Err(_)))
}

fn is_draft(path: &Utf8Path) -> bool {
    path.file_name().is_some_and(|name| name.starts_with(DRAFT))
}

/// When something was last written or read, by all that is in it; readers are noted once a day by most file systems.
fn last_use(path: &Utf8Path) -> Option<SystemTime> {
    let mut last = None;
    let mut look = |metadata: &std::fs::Metadata| {
        let read = metadata.accessed().ok().filter(|_| metadata.is_file());
        last = last.max(metadata.modified().ok()).max(read);
    };
    visit(path.as_std_path(), &mut look).ok()?;
    last
}

fn visit(path: &std::path::Path, look: &mut impl FnMut(&std::fs::Metadata)) -> io::Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) => return unless_gone(error),
    };
    look(&metadata);
    if !metadata.is_dir() {
        return Ok(());
    }
    let folder = match fs::read_dir(path) {
        Ok(folder) => folder,
        Err(error) => return unless_gone(error),
    };
    for entry in folder {
        match entry {
            Ok(entry) => visit(&entry.path(), look)?,
            Err(error) => unless_gone(error)?,
        }
    }
    Ok(())
}

/// No error where something is not there any more.
fn unless_gone(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// What lies in a folder; nothing where there is no such folder.
fn entries(folder: &Utf8Path) -> io::Result<Vec<Utf8PathBuf>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    folder.read_dir_utf8()?.map(|entry| Ok(entry?.into_path())).collect()
}

/// Shared memory under a name of ours that is this user's and that no process has: its server was killed. LMCache's own names tell
/// only a process number, so what bears one may be somebody else's.
fn unused_segments() -> io::Result<Vec<Utf8PathBuf>> {
    use std::os::unix::fs::MetadataExt;

    let own = rustix::process::getuid().as_raw();
    let mut segments = entries(Utf8Path::new(SHARED_MEMORY))?;
    segments.retain(|path| {
        let ours = path.file_name().is_some_and(|name| SEGMENTS.iter().any(|start| name.starts_with(start)));
        ours && fs::symlink_metadata(path).is_ok_and(|metadata| metadata.uid() == own)
    });
    if segments.is_empty() {
        return Ok(segments);
    }
    for process in std::fs::read_dir("/proc")?.flatten() {
        let maps = std::fs::read_to_string(process.path().join("maps")).unwrap_or_default();
        let files = std::fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        let open: Vec<_> = files.filter_map(|file| std::fs::read_link(file.path()).ok()).collect();
        segments.retain(|path| {
            !maps.contains(path.as_str()) && !open.iter().any(|file| file == path.as_std_path())
        });
    }
    Ok(segments)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_hours(24);

    fn cache() -> (tempfile::TempDir, Utf8PathBuf) {
        let keep = tempfile::tempdir().unwrap();
        let cache = Utf8PathBuf::from_path_buf(keep.path().to_owned()).unwrap();
        (keep, cache)
    }

    fn file(path: &Utf8Path, age: Duration) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "text").unwrap();
        let then = SystemTime::now() - age;
        let times = std::fs::FileTimes::new().set_modified(then).set_accessed(then);
        for path in path.ancestors().take(4) {
            std::fs::File::open(path).unwrap().set_times(times).ok();
        }
    }

    #[test]
    fn what_a_killed_run_left_behind_is_found_by_its_age_and_what_is_locked_elsewhere_is_left() {
        let (_keep, cache) = cache();
        for old in [
            ".tmpAbCdEf/store-1/entries",
            "no-cache-AbCdEf/store-1/entries",
            "models/.tmpAbCdEf/model.safetensors",
            "models/canary-dense-123/config.json",
            "fetched/models/org/.tmpAbCdEf/model",
            "worker/123456/kv_worker",
            "vllm/modelinfos/x",
            "vllm-config/x/y",
            "xdg/flashinfer/kernel",
        ] {
            file(&cache.join(old), 3 * DAY);
        }
        for kept in [
            "environments/123/bin",
            "store-1/entries/x",
            "tools/uv-123/bin",
            "builds/lmcache-1/x",
            "fetched/models/org/name",
            "serde/aesgcm.key",
            "notes/of/mine",
            "worker/new/kv_worker",
        ] {
            file(&cache.join(kept), Duration::ZERO);
        }
        let names = |unused_for| -> Vec<String> {
            let found = leftovers(&cache, unused_for).unwrap();
            found.iter().filter_map(|path| Some(path.strip_prefix(&cache).ok()?.to_string())).collect()
        };
        assert_eq!(
            names(2 * DAY),
            [
                ".tmpAbCdEf",
                "fetched/models/org/.tmpAbCdEf",
                "models/.tmpAbCdEf",
                "models/canary-dense-123",
                "no-cache-AbCdEf",
                "vllm/modelinfos",
                "vllm-config/x",
                "worker/123456",
                "xdg/flashinfer",
            ]
        );
        assert_eq!(names(4 * DAY), Vec::<String>::new());
        assert!(names(Duration::ZERO).contains(&"worker/new".to_owned()));
        remove(&cache.join(".tmpAbCdEf")).unwrap();
        remove(&cache.join(".tmpAbCdEf")).unwrap();
        assert!(!cache.join(".tmpAbCdEf").exists());
    }

    #[test]
    fn shared_memory_of_ours_is_left_over_once_no_process_has_it() {
        let name = format!("lmcache_l1_pool_kv-correctness-test-{}", std::process::id());
        let segment = Utf8Path::new(SHARED_MEMORY).join(name);
        let open = fs::File::create(&segment).unwrap();
        assert!(!unused_segments().unwrap().contains(&segment));
        drop(open);
        assert!(unused_segments().unwrap().contains(&segment));
        remove(&segment).unwrap();
    }

    #[test]
    fn the_tag_begins_with_the_line_of_its_specification() {
        let (_keep, cache) = cache();
        tag(&cache.join("new"));
        let text = fs::read_to_string(cache.join("new/CACHEDIR.TAG")).unwrap();
        assert!(text.starts_with("Signature: 8a477f597d28d172789f06886806bc55\n"));
        tag(Utf8Path::new("/proc/none"));
    }

    #[test]
    fn what_vanishes_has_no_bytes() {
        let (_keep, cache) = cache();
        assert_eq!(bytes_of(&cache.join("nothing")).unwrap(), 0);
        file(&cache.join("a/b"), Duration::ZERO);
        std::os::unix::fs::symlink("nowhere", cache.join("a/link")).unwrap();
        assert_eq!(bytes_of(&cache).unwrap(), 4);
        // As a run does all the time.
        let churned = cache.clone();
        let over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(std::sync::atomic::Ordering::Relaxed) {
                    fs::create_dir_all(churned.join("draft/output")).unwrap();
                    fs::write(churned.join("draft/output/file"), "").unwrap();
                    fs::remove_dir_all(churned.join("draft")).unwrap();
                }
            });
            let read: io::Result<Vec<u64>> = (0..300).map(|_| bytes_of(&cache)).collect();
            over.store(true, std::sync::atomic::Ordering::Relaxed);
            assert!(read.unwrap().iter().all(|bytes| *bytes == 4));
        });
    }
}
