//! The command line of `atlas`. Main type: [`AtlasCommand`].

use std::num::NonZeroU64;

use camino::Utf8PathBuf;
use clap::{Args, Subcommand};

pub(super) const ATLAS_EXAMPLES: &str = "\
Examples:
  kv-correctness atlas plan cpu                      which cells there are, in their order, with keys
  kv-correctness atlas run cpu --hours 8             runs them; the same command goes on from there
  kv-correctness atlas add gpu.json report.json      a chart of what was run elsewhere
  kv-correctness atlas page cpu/atlas.json gpu.json  one page of both";

const RUN_EXIT_CODES: &str = "\
Exit codes: 0 every cell that was asked for came to something, whatever it is, 2 error, 3 cells still wait (--hours)";

#[derive(Debug, Subcommand)]
pub(super) enum AtlasCommand {
    /// Print the cells of an atlas as JSON, in the order in which they are run
    Plan {
        /// An embedded atlas's name, or the path of a TOML file
        #[arg(value_name = "NAME|FILE", default_value = "cpu")]
        atlas: String,
    },
    /// Run the cells of an atlas that have no verdict yet: environments are made, used and removed
    #[command(after_help = RUN_EXIT_CODES)]
    Run(AtlasRunArguments),
    /// Add what reports of other runs found, and other machines' charts of an atlas, to a chart, which is made if need be
    Add {
        /// The chart
        #[arg(value_name = "ATLAS.JSON")]
        chart: Utf8PathBuf,
        /// Reports, which the chart links to from where it is; .xz is read, too. Charts are told from them by what they hold
        #[arg(required = true, value_name = "REPORT.JSON|ATLAS.JSON")]
        reports: Vec<Utf8PathBuf>,
    },
    /// Make one page of one chart or several
    Page {
        /// The charts
        #[arg(required = true, value_name = "ATLAS.JSON")]
        charts: Vec<Utf8PathBuf>,
        /// The page
        #[arg(long, default_value = "atlas.html")]
        out: Utf8PathBuf,
    },
}

#[derive(Debug, Args)]
pub(super) struct AtlasRunArguments {
    /// An embedded atlas's name, or the path of a TOML file
    #[arg(value_name = "NAME|FILE", default_value = "cpu")]
    pub(super) atlas: String,
    /// Folder of atlas.json, of the page and of each pair's report and packages
    #[arg(long, default_value = "kv-correctness-atlas")]
    pub(super) out: Utf8PathBuf,
    /// Run pairs of these releases of vLLM alone; `atlas add` puts charts together that several machines have made
    #[arg(long, value_name = "X[,X]", value_delimiter = ',')]
    pub(super) vllm: Vec<String>,
    /// Begin no pair of releases after so many hours
    #[arg(long, value_name = "H", value_parser = hours)]
    pub(super) hours: Option<f64>,
    /// Folder of environments that are there already, vllm-X-lmcache-Y each: none is made, and no package index is asked
    #[arg(long, value_name = "DIR", conflicts_with = "disk_gib")]
    pub(super) environments: Option<Utf8PathBuf>,
    /// GiB of disk that environments may take at a time; the one that has not served for longest goes first
    #[arg(long, value_name = "N", default_value = "20")]
    pub(super) disk_gib: NonZeroU64,
    /// Try again what came to no verdict; what has one is never run again
    #[arg(long)]
    pub(super) again: bool,
    /// Folder of everything that is kept between runs
    #[arg(long, env = "KV_CORRECTNESS_CACHE")]
    pub(super) cache: Option<Utf8PathBuf>,
    /// Show warnings only
    #[arg(short, long)]
    pub(super) quiet: bool,
}

fn hours(text: &str) -> Result<f64, String> {
    let hours: f64 = text.parse().map_err(|_| "a number of hours, as in 8 or 0.5".to_owned())?;
    if (0.0..=10_000.0).contains(&hours) { Ok(hours) } else { Err("0 to 10000 hours".to_owned()) }
}
