//! Reads a report and writes it in another format.

use std::io::{self, Read};
use std::process::ExitCode;

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;
use xz2::bufread::XzDecoder;
use xz2::stream::{CONCATENATED, Stream};

use super::arguments::{ReportArguments, ReportFormat};
use super::output::{print, write_whole};
use crate::files::read_text;
use crate::report::{
    OLDEST_SCHEMA, PAGE_LIMIT, Report, SCHEMA, summarise, to_html, to_junit, to_lmcache_jsonl, to_markdown,
};

/// Bytes of a report of more cells and questions than anybody asks.
const MOST_REPORT: u64 = 1 << 30;
/// Bytes of memory that `xz -9` takes to read what it wrote, and as much again.
const MOST_XZ_MEMORY: u64 = 128 << 20;

/// Why a report cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadReportError {
    #[error("read the report")]
    Read(#[from] std::io::Error),
    #[error("understand {path}: it is no report ({why})")]
    Malformed { path: Utf8PathBuf, why: String },
    #[error("understand {path}: it has schema {found}, and this program reads {OLDEST_SCHEMA} to {SCHEMA}")]
    OtherSchema { path: Utf8PathBuf, found: u64 },
}

impl ReadReportError {
    pub(super) fn hint(&self) -> String {
        match self {
            Self::Read(_) => "name the folder that `run --out` wrote to, or a report.json in it".to_owned(),
            Self::Malformed { .. } => "make it again: `run` writes it".to_owned(),
            Self::OtherSchema { .. } => {
                "make it again with this version, whose `run` re-uses stages, or use the version that wrote it".to_owned()
            }
        }
    }
}

pub(super) fn write_report(arguments: &ReportArguments) -> anyhow::Result<ExitCode> {
    let report = read_report(&arguments.path)?;
    let text = match arguments.format {
        ReportFormat::Json => to_json(&report),
        ReportFormat::Text => summarise(&report),
        ReportFormat::Junit => to_junit(&report),
        ReportFormat::Markdown => to_markdown(&report, PAGE_LIMIT),
        ReportFormat::Html => to_html(&report),
        ReportFormat::LmcacheJsonl => {
            let folder = arguments.out.clone().unwrap_or_else(|| ".".into());
            let files = to_lmcache_jsonl(&report, arguments.route)?;
            for (name, text) in files {
                write_whole(&folder.join(&name), &text)?;
                print(&format!("{}\n", folder.join(name)))?;
            }
            return Ok(ExitCode::SUCCESS);
        }
    };
    match &arguments.out {
        Some(path) => write_whole(path, &text)?,
        None => print(&text)?,
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn to_json(report: &Report) -> String {
    serde_json::to_string_pretty(report).expect("a report has a JSON form") + "\n"
}

pub(super) fn read_report(path: &Utf8Path) -> Result<Report, ReadReportError> {
    let path = if path.is_dir() { path.join("report.json") } else { path.to_owned() };
    let text = if path.extension() == Some("xz") { read_xz(&path)? } else { read_text(&path, MOST_REPORT)? };
    parse_report(&path, &text)
}

/// A compressed report, as evidence is kept.
fn read_xz(path: &Utf8Path) -> io::Result<String> {
    let mut text = String::new();
    let stream = Stream::new_stream_decoder(MOST_XZ_MEMORY, CONCATENATED).map_err(io::Error::other)?;
    let decoder = XzDecoder::new_stream(io::BufReader::new(fs::File::open(path)?), stream);
    let read = decoder.take(MOST_REPORT + 1).read_to_string(&mut text)?;
    if read as u64 > MOST_REPORT {
        return Err(io::Error::other(format!("{path} is larger than any report")));
    }
    Ok(text)
}

/// Understands a report that comes from `path`.
pub(super) fn parse_report(path: &Utf8Path, text: &str) -> Result<Report, ReadReportError> {
    let path = path.to_owned();
    let malformed =
        |error: serde_json::Error| ReadReportError::Malformed { path: path.clone(), why: error.to_string() };
    let value: serde_json::Value = serde_json::from_str(text).map_err(malformed)?;
    match value.get("schema").and_then(serde_json::Value::as_u64) {
        Some(found) if !(u64::from(OLDEST_SCHEMA)..=u64::from(SCHEMA)).contains(&found) => {
            Err(ReadReportError::OtherSchema { path, found })
        }
        _ => serde_json::from_str(text).map_err(malformed),
    }
}
