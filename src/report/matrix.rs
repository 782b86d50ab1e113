//! Models by routes, a verdict each. Main function: [`write_matrix`].

use std::fmt::{self, Write};

use super::Report;
use crate::model::Route;

/// Writes the table, where a run has more than one route; and what was not run, with what mends it.
pub(super) fn write_matrix(text: &mut String, report: &Report) -> fmt::Result {
    let routes = &report.suite.routes;
    if routes.len() > 1 {
        let models: Vec<&str> = report.suite.models.iter().map(|model| model.name.as_str()).collect();
        let width = models.iter().map(|model| model.len()).max().unwrap_or(0);
        let heads: Vec<String> = routes.iter().map(|route| format!("{route:<14}")).collect();
        writeln!(text, "\n{:width$}  {}", "", heads.concat().trim_end())?;
        for model in models {
            let cells: Vec<String> =
                routes.iter().map(|&route| format!("{:<14}", cell(report, model, route))).collect();
            writeln!(text, "{model:width$}  {}", cells.concat().trim_end())?;
        }
    }
    for not_run in &report.not_run {
        writeln!(text, "\n{} over {}: not run", not_run.model, not_run.route)?;
        writeln!(text, "  {:<12} {}", "why", not_run.reason)?;
        writeln!(text, "  {:<12} {}", "next", not_run.next_step)?;
    }
    Ok(())
}

fn cell(report: &Report, model: &str, route: Route) -> &'static str {
    let found = report.findings.iter().find(|finding| finding.model == model && finding.route == route);
    found.map_or("not run", |finding| finding.judgement.verdict.name())
}
