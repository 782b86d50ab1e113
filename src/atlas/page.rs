//! Charts as one HTML file that needs nothing else: no script, no address, light and dark, readable on paper. Main function: [`to_page`].

use std::collections::BTreeMap;

use askama::Template;

use super::chart::{Chart, Line, Outcome, Row};
use crate::comparison::Verdict;

/// Charts as a page, one below the other.
#[must_use]
pub fn to_page(charts: &[Chart]) -> String {
    let models = names(charts, |row| row.cell.model.clone());
    let routes = names(charts, |row| row.cell.route.to_string());
    let page = Page {
        version: env!("CARGO_PKG_VERSION"),
        charts: charts
            .iter()
            .enumerate()
            .map(|(place, chart)| ChartView::of(chart, place, &models, &routes))
            .collect(),
        models: filters(&models, "model"),
        routes: filters(&routes, "route"),
        kinds: KINDS.to_vec(),
    };
    page.render().expect("a page can be written to a string")
}

#[derive(Template)]
#[template(path = "atlas.html")]
struct Page {
    version: &'static str,
    charts: Vec<ChartView>,
    models: Vec<Filter>,
    routes: Vec<Filter>,
    kinds: Vec<Kind>,
}

/// What can be chosen to be shown alone.
struct Filter {
    id: String,
    name: String,
}

struct ChartView {
    name: String,
    description: String,
    counts: Vec<(Kind, usize)>,
    lmcache: Vec<String>,
    rows: Vec<RowView>,
    cells: Vec<CellView>,
    machines: Vec<String>,
}

/// One vLLM with every LMCache.
struct RowView {
    vllm: String,
    torch: Option<String>,
    pairs: Vec<Vec<CellView>>,
}

#[derive(Clone)]
struct CellView {
    id: String,
    vllm: String,
    lmcache: String,
    model: String,
    route: String,
    /// Classes by which it is filtered.
    classes: String,
    kind: Kind,
    decided_by: &'static str,
    reason: String,
    since: String,
    asked: String,
    report: Option<String>,
}

/// How an outcome is shown: never by colour alone.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Kind {
    class: &'static str,
    symbol: &'static str,
    words: &'static str,
    meaning: &'static str,
}

const KINDS: [Kind; 8] = [
    Kind {
        class: "equivalent",
        symbol: "✓",
        words: "equivalent",
        meaning: "KV that was stored and loaded changes nothing",
    },
    Kind {
        class: "degraded", symbol: "✕", words: "degraded", meaning: "it changes what the model computes"
    },
    Kind {
        class: "not-exercised",
        symbol: "∅",
        words: "not exercised",
        meaning: "the cache was not used as it must be, so nothing is proven",
    },
    Kind {
        class: "inconclusive",
        symbol: "?",
        words: "inconclusive",
        meaning: "neither harm nor equivalence is shown",
    },
    Kind { class: "insensitive", symbol: "!", words: "insensitive", meaning: "a fault would go unseen" },
    Kind {
        class: "idle",
        symbol: "–",
        words: "not run",
        meaning: "it was tried and did not come to a verdict",
    },
    Kind {
        class: "idle",
        symbol: "×",
        words: "no environment",
        meaning: "the two cannot be installed together, or nobody has",
    },
    Kind { class: "idle", symbol: "…", words: "waiting", meaning: "planned and not tried yet" },
];

impl Kind {
    fn of(outcome: &Outcome) -> Self {
        let place = match outcome {
            Outcome::Judged { verdict, .. } => match verdict {
                Verdict::Equivalent => 0,
                Verdict::Degraded => 1,
                Verdict::NotExercised => 2,
                Verdict::Inconclusive => 3,
                Verdict::Insensitive => 4,
            },
            Outcome::NotRun { .. } => 5,
            Outcome::NoEnvironment { .. } => 6,
            Outcome::Waiting => 7,
        };
        KINDS[place]
    }
}

fn names(charts: &[Chart], name: impl Fn(&Row) -> String) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for row in charts.iter().flat_map(|chart| &chart.rows) {
        let name = name(row);
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

fn filters(names: &[String], what: &str) -> Vec<Filter> {
    let ids = names
        .iter()
        .enumerate()
        .map(|(place, name)| Filter { id: format!("{what}-{place}"), name: name.clone() });
    ids.collect()
}

impl ChartView {
    fn of(chart: &Chart, place: usize, models: &[String], routes: &[String]) -> Self {
        let class = |names: &[String], what: &str, name: &str| {
            let place = names.iter().position(|known| known == name).unwrap_or_default();
            format!("{what}-{place}")
        };
        let cells: Vec<CellView> = chart
            .rows
            .iter()
            .enumerate()
            .map(|(number, row)| {
                let route = row.cell.route.to_string();
                let classes =
                    [class(models, "model", &row.cell.model), class(routes, "route", &route)].join(" ");
                CellView::of(chart, row, format!("cell-{place}-{number}"), classes)
            })
            .collect();
        let mut counts: Vec<(Kind, usize)> = Vec::new();
        for kind in KINDS {
            let count = cells.iter().filter(|cell| cell.kind == kind).count();
            if count > 0 {
                counts.push((kind, count));
            }
        }
        let lmcache: Vec<String> = chart.lmcache.iter().rev().cloned().collect();
        let torch: BTreeMap<&str, &str> = chart
            .rows
            .iter()
            .filter_map(|row| Some((row.cell.vllm.as_str(), row.made.as_ref()?.torch.as_str())))
            .collect();
        let rows = chart.vllm.iter().rev().map(|vllm| RowView {
            vllm: vllm.clone(),
            torch: torch.get(vllm.as_str()).map(|torch| (*torch).to_owned()),
            pairs: lmcache
                .iter()
                .map(|lmcache| {
                    let of_pair = |cell: &&CellView| cell.vllm == *vllm && cell.lmcache == *lmcache;
                    cells.iter().filter(of_pair).cloned().collect()
                })
                .collect(),
        });
        let mut machines: Vec<String> =
            chart.rows.iter().filter_map(|row| Some(row.made.as_ref()?.device.clone())).collect();
        machines.sort_unstable();
        machines.dedup();
        Self {
            name: chart.name.clone(),
            description: chart.description.clone(),
            counts,
            rows: rows.collect(),
            lmcache,
            cells,
            machines,
        }
    }
}

impl CellView {
    fn of(chart: &Chart, row: &Row, id: String, classes: String) -> Self {
        let (decided_by, reason, asked) = match &row.outcome {
            Outcome::Judged { decided_by, reason, questions, .. } => {
                (decided_by.short_name(), reason.clone(), questions.to_string())
            }
            Outcome::NotRun { reason } | Outcome::NoEnvironment { reason } => {
                ("", reason.clone(), String::new())
            }
            Outcome::Waiting => ("", String::new(), String::new()),
        };
        Self {
            id,
            vllm: row.cell.vllm.clone(),
            lmcache: row.cell.lmcache.clone(),
            model: row.cell.model.clone(),
            route: row.cell.route.to_string(),
            classes,
            kind: Kind::of(&row.outcome),
            decided_by,
            reason,
            since: since(chart, row),
            asked,
            report: row.made.as_ref().map(|made| made.report.clone()).filter(|link| !link.is_empty()),
        }
    }
}

/// Since which releases an outcome is what it is, in words.
fn since(chart: &Chart, row: &Row) -> String {
    if row.outcome == Outcome::Waiting {
        return String::new();
    }
    let words: Vec<String> = [(Line::Vllm, "vLLM"), (Line::Lmcache, "LMCache")]
        .into_iter()
        .filter_map(|(line, name)| Some(format!("{name} {}", chart.since(row, line)?)))
        .collect();
    if words.is_empty() { "all that were tested".to_owned() } else { words.join("; ") }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::machine::DeviceKind;

    #[test]
    fn a_page_shows_each_cell_with_a_symbol_and_links_to_its_report_and_holds_no_address() {
        let mut chart = Chart::new("gpu", "of a <test>", DeviceKind::Cuda);
        for (number, (_, report)) in crate::report::fixture::every_kind().iter().enumerate() {
            let mut report = report.clone();
            let package = report.environment.packages.get_mut("lmcache").unwrap();
            package.version = format!("0.5.{number}");
            chart.add_report(&report, &format!("reports/{number}.html")).unwrap();
        }
        let page = to_page(&[chart.clone(), chart.clone()]);
        let kinds: BTreeSet<&str> = chart.rows.iter().map(|row| Kind::of(&row.outcome).class).collect();
        assert!(kinds.len() > 2, "{kinds:?}");
        for kind in kinds {
            assert!(page.contains(&format!("class=\"chip {kind} ")), "{kind}");
        }
        let links = page.matches("href=\"reports/").count();
        let reported = chart.rows.iter().filter(|row| row.made.is_some()).count();
        assert_eq!(links, 2 * 2 * reported, "in the matrix and in the list, of both charts");
        assert!(page.contains("of a &#60;test&#62;") || page.contains("of a &lt;test&gt;"));
        assert!(!page.contains("://") && !page.contains("<script"), "it needs nothing else");
    }
}
