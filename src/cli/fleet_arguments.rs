//! What can be asked for where many machines share the work: a depot, and the merge of parts.

use std::time::Duration;

use anyhow::Context;
use camino::Utf8PathBuf;
use clap::{Args, Subcommand};

use crate::depot::{Access, Depot, DepotAddress, Patience};
use crate::event::Events;

/// A depot, and whether it may be written to.
#[derive(Debug, Clone, Args)]
pub(super) struct DepotArguments {
    /// Artifacts that many machines share: looked for there after the cache, and put there when made. `file:///FOLDER`,
    /// `s3://BUCKET/PREFIX`, `gs://…` or `az://…`; credentials from the usual variables and profiles of each. One that fails is
    /// a warning and costs no verdict
    #[arg(long, value_name = "URL", env = "KV_CORRECTNESS_DEPOT")]
    pub(super) depot: Option<String>,
    /// Put nothing into the depot
    #[arg(long, env = "KV_CORRECTNESS_DEPOT_READ_ONLY", value_parser = clap::builder::FalseyValueParser::new())]
    pub(super) depot_read_only: bool,
    /// Seconds that one request to the depot may take; it is tried again a few times
    #[arg(long, value_name = "SECONDS", env = "KV_CORRECTNESS_DEPOT_PATIENCE", default_value = "30")]
    pub(super) depot_patience: std::num::NonZeroU32,
}

impl DepotArguments {
    /// Where the depot is that was named; none where none was.
    pub(super) fn address(&self) -> anyhow::Result<Option<DepotAddress>> {
        Ok(self.depot.as_deref().filter(|url| !url.is_empty()).map(str::parse).transpose()?)
    }

    /// The depot that was named, open; none where none was.
    pub(super) fn open(&self, events: &Events) -> anyhow::Result<Option<Depot>> {
        let Some(address) = self.address()? else { return Ok(None) };
        let access = if self.depot_read_only { Access::ReadOnly } else { Access::ReadWrite };
        let request = Duration::from_secs(self.depot_patience.get().into());
        Ok(Some(Depot::open(&address, access, Patience::of(request), events.clone())?))
    }

    /// The depot that must have been named.
    pub(super) fn require(&self, events: &Events) -> anyhow::Result<Depot> {
        self.open(events)?.context(
            "find the depot: none is named\n\nhint: name one with `--depot URL` or KV_CORRECTNESS_DEPOT",
        )
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum DepotCommand {
    /// List what lies in a depot, with sizes and when it was put there
    Ls {
        #[command(flatten)]
        depot: DepotArguments,
    },
    /// Remove what was put into a depot long ago, unless what stays is made from it
    Gc {
        /// Remove what was put there so many days ago or earlier
        #[arg(long, value_name = "DAYS")]
        older_than: u32,
        /// Only say what would go
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        depot: DepotArguments,
    },
}

#[derive(Debug, Args)]
pub(super) struct MergeArguments {
    /// Folders that parts of a run wrote to
    #[arg(value_name = "DIR", required_unless_present = "run_name")]
    pub(super) folders: Vec<Utf8PathBuf>,
    /// The parts that runs with this name put into the depot
    #[arg(long, value_name = "NAME", env = "KV_CORRECTNESS_RUN", requires = "depot")]
    pub(super) run_name: Option<RunName>,
    #[command(flatten)]
    pub(super) depot: DepotArguments,
    /// Folder of everything that is kept between runs
    #[arg(long, env = "KV_CORRECTNESS_CACHE")]
    pub(super) cache: Option<Utf8PathBuf>,
    /// Folder for the report
    #[arg(long, default_value = "kv-correctness-out")]
    pub(super) out: Utf8PathBuf,
    /// Print the report as JSON instead of the summary
    #[arg(long)]
    pub(super) json: bool,
}

/// What a run is called in a depot: letters, digits, dots, dashes and underscores.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RunName(String);

impl std::str::FromStr for RunName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let plain = |letter: char| letter.is_ascii_alphanumeric() || "._-".contains(letter);
        let good = !text.is_empty() && text.chars().all(plain) && !text.starts_with('.');
        if good {
            Ok(Self(text.to_owned()))
        } else {
            Err("letters, digits, dots, dashes and underscores only".to_owned())
        }
    }
}

impl RunName {
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}
