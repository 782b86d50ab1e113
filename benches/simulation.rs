//! The simulated study at full size: `cargo bench --bench simulation`, with `RUNS=0.1` before it for a tenth of the runs, with `PARTS=8` for
//! questions that are asked in eight shards.
//!
//! Prints, as the table of docs/statistics.md, how often each verdict is given where the truth is known. The test of
//! the same name does the same with few questions.
#![expect(clippy::print_stdout, reason = "a bench prints its results")]

#[path = "../tests/simulation/study.rs"]
mod study;

use kv_correctness::comparison::{Criteria, plan_questions};
use kv_correctness::stats::clopper_pearson;
use study::{Endings, Flips, Study};

/// Test questions of MMLU's 57 subjects, in the order of their names.
const MMLU: &[u32] = &[
    100, 135, 152, 100, 265, 144, 100, 100, 100, 173, 102, 100, 235, 114, 145, 378, 126, 100, 310, 203, 100,
    165, 198, 193, 390, 270, 238, 151, 545, 216, 204, 237, 223, 131, 121, 108, 163, 112, 103, 234, 100, 783,
    346, 895, 306, 311, 324, 282, 1534, 272, 612, 110, 245, 201, 100, 166, 171,
];

const LARGE: Study = Study {
    sizes: MMLU,
    comparisons: 10,
    shards: 1,
    accuracy: 0.68,
    flip_rate: 0.01,
    loss: 0.0,
    flips: Flips::Independent,
    margin: 0.005,
    runs: 1000,
    seed: 1,
};

fn main() {
    assert_eq!(MMLU.iter().sum::<u32>(), 14_042, "all of MMLU's test questions");
    let part = std::env::var("RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(1.0);
    println!(
        "| questions | flips | change in points | flips of a subject | comparisons | early stop | degraded | found | equivalent | stopped | asked |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    for (name, sizes, runs) in
        [("8 × 40", &[40; 8][..], 20.0), ("57 × 50", &[50; 57], 4.0), ("MMLU's 14042", MMLU, 1.0)]
    {
        for (flip_rate, flips) in [0.01, 0.02, 0.05]
            .into_iter()
            .flat_map(|rate| [(rate, Flips::Independent), (rate, Flips::BySubject)])
        {
            let runs = whole(f64::from(LARGE.runs) * runs * part);
            print_rows(name, &Study { sizes, flip_rate, flips, runs, ..LARGE });
        }
    }
    for (name, sizes, runs) in [("57 × 50", &[50; 57][..], 1.0), ("MMLU's 14042", MMLU, 0.4)] {
        for (flip_rate, flips) in
            [0.01, 0.02].into_iter().flat_map(|rate| [(rate, Flips::Independent), (rate, Flips::BySubject)])
        {
            for comparisons in [1, 10] {
                let criteria = Criteria { assumed_flip_rate: flip_rate, ..Criteria::default() };
                let planned = plan_questions(sizes, comparisons, &criteria).detectable_loss;
                let runs = whole(f64::from(LARGE.runs) * runs * part);
                let study = Study { sizes, comparisons, flip_rate, flips, runs, ..LARGE };
                let losses = [planned, Some(LARGE.margin), Some(-LARGE.margin)];
                for loss in losses.into_iter().flatten().take(if comparisons == 1 { 3 } else { 1 }) {
                    print_rows(name, &Study { loss, ..study });
                }
            }
        }
    }
}

fn print_rows(name: &str, study: &Study) {
    let shards = std::env::var("PARTS").ok().and_then(|parts| parts.parse().ok()).unwrap_or(study.shards);
    let endings = Study { shards, ..*study }.run_on_all_cores();
    print_row(name, study, "off", endings.without_stop);
    print_row(name, study, "on", endings.with_stop);
}

fn print_row(name: &str, study: &Study, early_stop: &str, endings: Endings) {
    let percent = |count| {
        let limits = clopper_pearson(count, endings.runs, 0.95);
        let share = 100.0 * f64::from(count) / f64::from(endings.runs);
        format!("{share:.1} ({:.1}–{:.1})", 100.0 * limits.lower, 100.0 * limits.upper)
    };
    println!(
        "| {name} | {} % | {} | {} | {} | {} | {} | {} | {} | {:.2} % | {} |",
        100.0 * study.flip_rate,
        if study.loss == 0.0 { "none".to_owned() } else { format!("{:+.3}", -100.0 * study.loss) },
        if study.flips == Flips::Independent { "independent" } else { "correlated" },
        study.comparisons,
        early_stop,
        percent(endings.degraded),
        percent(endings.found),
        percent(endings.equivalent),
        100.0 * f64::from(endings.stopped) / f64::from(endings.runs),
        endings.asked / u64::from(endings.runs),
    );
}

/// A count from a product of small numbers.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small positive number")]
fn whole(number: f64) -> u32 {
    number.ceil() as u32
}
