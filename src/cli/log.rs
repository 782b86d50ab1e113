//! The run's own log: one JSON object a line, beside the report. Lines of vLLM and LMCache stay in their own files.
//!
//! Only this program's lines get there: what a library says at `RUST_LOG=trace` may hold headers, and so secrets.

use std::io::{self, Write};
use std::sync::OnceLock;

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;
use tracing_subscriber::filter::{LevelFilter, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

const NAME: &str = "log.jsonl";

static LOG: OnceLock<(Utf8PathBuf, std::fs::File)> = OnceLock::new();

/// Hands what is traced to standard error, if `RUST_LOG` asks for it, and to the log of the run.
pub(super) fn listen() {
    // An empty variable asks for nothing: builders of nixpkgs have one.
    let asked = std::env::var(EnvFilter::DEFAULT_ENV).ok().filter(|asked| !asked.is_empty());
    let filter = |default| {
        let asked = asked.as_deref().and_then(|asked| EnvFilter::try_new(asked).ok());
        asked.unwrap_or_else(|| EnvFilter::new(default))
    };
    let to_people = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_filter(filter("off"));
    let wanted = filter("info");
    // Told of no level, `log` would hand over every line that a library traces: a third of the time that prompts take.
    let level = wanted.max_level_hint().unwrap_or(LevelFilter::TRACE);
    let own =
        filter_fn(|metadata| metadata.target().starts_with("kv_correctness")).with_max_level_hint(level);
    let to_file = tracing_subscriber::fmt::layer()
        .json()
        .flatten_event(true)
        .with_writer(|| Target)
        .with_filter(wanted)
        .with_filter(own);
    tracing_subscriber::registry().with(to_people).with(to_file).init();
}

/// Begins the log of a run in its folder. A folder that cannot be written is for the run to complain of.
pub(super) fn begin(folder: &Utf8Path) {
    let path = folder.join(NAME);
    let create = || {
        fs::create_dir_all(folder)?;
        fs::File::create(&path).map(fs::File::into_file)
    };
    if let Ok(file) = create() {
        LOG.set((path, file)).ok();
    }
}

/// Where the log is, if there is one.
pub(super) fn place() -> Option<&'static Utf8Path> {
    LOG.get().map(|(path, _)| path.as_path())
}

/// The log's file, or nowhere.
struct Target;

impl Write for Target {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some((_, file)) = LOG.get() else { return Ok(bytes.len()) };
        let mut file: &std::fs::File = file;
        file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
