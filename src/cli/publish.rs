//! Shows the summary where a CI system looks for it: GitHub's step summary, a Buildkite annotation.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::Context;
use camino::Utf8PathBuf;
use fs_err as fs;

use super::arguments::{PublishArguments, Switch};
use crate::comparison::Verdict;
use crate::event::Events;
use crate::report::{PAGE_LIMIT, Report, to_markdown};

/// Where to publish.
#[derive(Debug)]
pub(super) struct Publishing {
    github: Option<Utf8PathBuf>,
    buildkite: bool,
}

impl Publishing {
    /// Finds out from arguments and environment, before a run, where its summary will go.
    pub(super) fn prepare(arguments: &PublishArguments) -> anyhow::Result<Self> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let github = match arguments.github {
            Switch::Off => None,
            Switch::Auto => variable("GITHUB_STEP_SUMMARY"),
            Switch::On => Some(variable("GITHUB_STEP_SUMMARY").context(
                "find GitHub's step summary: GITHUB_STEP_SUMMARY is not set\n\nhint: leave --github out: it is found in a job of GitHub Actions",
            )?),
        };
        let buildkite = match arguments.buildkite {
            Switch::Off => false,
            Switch::Auto => variable("BUILDKITE").is_some_and(|value| value == "true"),
            Switch::On => true,
        };
        Ok(Self { github: github.map(Utf8PathBuf::from), buildkite })
    }

    /// Publishes. Where that fails a warning says so: the verdict stands without it.
    pub(super) fn publish(&self, report: &Report, events: &Events) {
        if let Some(path) = &self.github
            && let Err(error) = add_to_step_summary(path, report)
        {
            events.warn(format!("the summary was not added to GitHub's step summary: {error}"));
        }
        if self.buildkite
            && let Err(error) = annotate(report)
        {
            events.warn(format!("the build was not annotated: {error:#}"));
        }
    }
}

/// A step's summary is one file, to which earlier commands of the step may have written.
fn add_to_step_summary(path: &Utf8PathBuf, report: &Report) -> std::io::Result<()> {
    let mut file = fs::OpenOptions::new().create(true).append(true).open(path)?;
    let used = usize::try_from(file.metadata()?.len()).unwrap_or(PAGE_LIMIT);
    file.write_all(to_markdown(report, PAGE_LIMIT.saturating_sub(used)).as_bytes())
}

fn annotate(report: &Report) -> anyhow::Result<()> {
    let style = match report.verdict {
        Verdict::Equivalent => "success",
        Verdict::Inconclusive => "warning",
        Verdict::Degraded | Verdict::NotExercised | Verdict::Insensitive => "error",
    };
    let context = format!("kv-correctness-{}", report.suite.name);
    let mut agent = Command::new("buildkite-agent")
        .args(["annotate", "--style", style, "--context", &context])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .context("start buildkite-agent")?;
    if let Some(mut input) = agent.stdin.take() {
        input.write_all(to_markdown(report, PAGE_LIMIT).as_bytes()).context("write to buildkite-agent")?;
    }
    let status = agent.wait()?;
    anyhow::ensure!(status.success(), "buildkite-agent ended with {status}");
    Ok(())
}
