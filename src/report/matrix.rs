//! Models by routes, a verdict each. Main function: [`write_matrix`].

use std::fmt::{self, Write};

use super::Report;
use crate::model::Route;

/// Characters of a line that is still read as one: of a wider table routes are the rows.
const WIDEST: usize = 100;
/// Characters of a column, at least.
const COLUMN: usize = 14;

/// Writes the table, where a run has more than one route; and what was not run, with what mends it.
pub(super) fn write_matrix(text: &mut String, report: &Report) -> fmt::Result {
    let routes = &report.suite.routes;
    if routes.len() > 1 {
        let models = report.suite.models.iter().map(|model| model.name.as_str());
        let by_model: Vec<Vec<&str>> = models
            .map(|model| {
                [model].into_iter().chain(routes.iter().map(|&route| cell(report, model, route))).collect()
            })
            .collect();
        let heads = [""].into_iter().chain(routes.iter().map(|route| route.name())).collect();
        let table: Vec<Vec<&str>> = [heads].into_iter().chain(by_model).collect();
        let widths = column_widths(&table);
        let table = if widths.iter().sum::<usize>() > WIDEST { transpose(&table) } else { table };
        let widths = column_widths(&table);
        writeln!(text)?;
        for row in table {
            let cells: Vec<String> =
                row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            writeln!(text, "{}", cells.concat().trim_end())?;
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

/// Characters that each column takes, the space behind it among them.
fn column_widths(table: &[Vec<&str>]) -> Vec<usize> {
    let columns = table.first().map_or(0, Vec::len);
    let longest = |column: usize| table.iter().map(|row| row[column].len() + 2).max().unwrap_or(0);
    (0..columns).map(|column| if column == 0 { longest(0) } else { longest(column).max(COLUMN) }).collect()
}

fn transpose<'a>(table: &[Vec<&'a str>]) -> Vec<Vec<&'a str>> {
    let columns = table.first().map_or(0, Vec::len);
    (0..columns).map(|column| table.iter().map(|row| row[column]).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::fixture;

    #[test]
    fn of_many_routes_each_is_a_row_so_that_a_line_stays_short() {
        let (_, mut report) = fixture::every_kind().remove(0);
        let names =
            ["in-process", "mp", "mp+fs", "mp+redis", "mp+p2p", "mp+valkey", "example", "simple-offload"];
        report.suite.routes = names.map(Route::named).to_vec();
        let mut text = String::new();
        write_matrix(&mut text, &report).unwrap();
        assert!(text.lines().all(|line| line.len() <= WIDEST), "{text}");
        assert!(text.contains("\nsimple-offload  not run"), "{text}");
        report.suite.routes.truncate(3);
        let mut text = String::new();
        write_matrix(&mut text, &report).unwrap();
        assert!(text.lines().nth(1).is_some_and(|line| line.contains("in-process")), "{text}");
    }
}
