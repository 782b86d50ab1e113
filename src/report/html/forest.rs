//! The forest plot: each comparison's change in accuracy with its intervals, over the margin. Main type: [`Forest`].

use crate::report::Report;
use crate::report::words::points;

/// Width of a strip in its own units.
const WIDTH: f64 = 1000.0;
/// Where tick marks may stand, in points.
const STEPS: [f64; 9] = [0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0];

/// All strips over one scale.
pub(super) struct Forest {
    /// Left end and width of the margin.
    pub(super) margin: (String, String),
    /// The margin in points.
    pub(super) margin_words: String,
    pub(super) zero: String,
    pub(super) rows: Vec<ForestRow>,
    pub(super) ticks: Vec<Tick>,
}

/// A mark of the scale, its place in per cent.
pub(super) struct Tick {
    pub(super) left: String,
    pub(super) words: String,
}

/// One comparison.
pub(super) struct ForestRow {
    pub(super) place: usize,
    pub(super) name: String,
    pub(super) point: String,
    pub(super) interval: (String, String),
    pub(super) clusters: Option<(String, String)>,
    pub(super) words: String,
    pub(super) cluster_words: Option<String>,
}

impl Forest {
    /// Strips for all findings. Suites may not mix margins, so the first finding's is that of all.
    pub(super) fn of(report: &Report) -> Self {
        let tests =
            || report.findings.iter().map(|finding| &finding.comparison.answers.generated.against_baseline);
        let margin = report.suite.criteria.margin;
        let ends = tests().flat_map(|test| [Some(test.interval), test.cluster_interval]).flatten();
        let farthest =
            ends.map(|interval| interval.lower.abs().max(interval.upper.abs())).fold(margin, f64::max);
        let reach = (1.15 * farthest).min(1.1);
        let x = |share: f64| format!("{:.1}", (0.5 + share / (2.0 * reach)).clamp(0.0, 1.0) * WIDTH);
        let step = STEPS.into_iter().find(|step| 100.0 * reach / step <= 3.0).unwrap_or(100.0) / 100.0;
        let ticks = (-3..=3).map(|number| f64::from(number) * step).filter(|share| share.abs() <= reach);
        Self {
            margin: (x(-margin), format!("{:.1}", margin / reach * WIDTH)),
            margin_words: format!("{}", 100.0 * margin),
            zero: x(0.0),
            ticks: ticks
                .map(|share| Tick {
                    left: format!("{:.2}", (0.5 + share / (2.0 * reach)) * 100.0),
                    words: if share == 0.0 { "0".to_owned() } else { format!("{:+}", round(100.0 * share)) },
                })
                .collect(),
            rows: report
                .findings
                .iter()
                .zip(tests())
                .enumerate()
                .map(|(place, (finding, test))| ForestRow {
                    place,
                    name: format!("{} over {}", finding.model, finding.route),
                    point: x(test.difference),
                    interval: (x(test.interval.lower), x(test.interval.upper)),
                    clusters: test.cluster_interval.map(|interval| (x(interval.lower), x(interval.upper))),
                    words: format!(
                        "{} ({} to {})",
                        points(test.difference),
                        points(test.interval.lower),
                        points(test.interval.upper)
                    ),
                    cluster_words: test
                        .cluster_interval
                        .map(|interval| format!("{} to {}", points(interval.lower), points(interval.upper))),
                })
                .collect(),
        }
    }
}

/// To hundredths, so that ticks are written short.
fn round(number: f64) -> f64 {
    (100.0 * number).round() / 100.0
}
