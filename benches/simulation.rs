//! The simulated study at full size: `cargo bench --bench simulation`, with `RUNS=2000` before it for four times the runs.
//!
//! Prints, as the table of docs/statistics.md, how often each verdict is given where the truth is known. The test of
//! the same name does the same with few questions.
#![expect(clippy::print_stdout, reason = "a bench prints its results")]

#[path = "../tests/simulation/study.rs"]
mod study;

use kv_correctness::comparison::{Criteria, plan_questions};
use kv_correctness::stats::clopper_pearson;
use study::{Flips, Stopping, Study};

const MMLU: Study = Study {
    questions: 14_042,
    subjects: 57,
    accuracy: 0.68,
    flip_rate: 0.01,
    loss: 0.0,
    flips: Flips::Independent,
    margin: 0.005,
    stopping: Stopping::Never,
    runs: 500,
    seed: 1,
};

fn main() {
    let runs = std::env::var("RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(MMLU.runs);
    println!(
        "| flips | change in points | flips within a subject | early stop | degraded | equivalent | stopped | asked |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for flip_rate in [0.01, 0.02] {
        let criteria = Criteria { assumed_flip_rate: flip_rate, ..Criteria::default() };
        let plan = plan_questions(&MMLU.subject_sizes(), 1, &criteria);
        let planned = plan.detectable_loss.expect("all of MMLU detects a loss");
        for flips in [Flips::Independent, Flips::BySubject] {
            for loss in [0.0, planned, MMLU.margin, -MMLU.margin] {
                for stopping in [Stopping::Never, Stopping::OnHarm] {
                    print_row(&Study { flip_rate, loss, flips, stopping, runs, ..MMLU });
                }
            }
        }
    }
}

fn print_row(study: &Study) {
    let endings = study.run();
    let percent = |count| {
        let limits = clopper_pearson(count, endings.runs, 0.95);
        let share = 100.0 * f64::from(count) / f64::from(endings.runs);
        format!("{share:.1} ({:.1}–{:.1})", 100.0 * limits.lower, 100.0 * limits.upper)
    };
    println!(
        "| {} % | {:.3} | {} | {} | {} | {} | {} | {} |",
        100.0 * study.flip_rate,
        0.0 - 100.0 * study.loss,
        if study.flips == Flips::Independent { "independent" } else { "correlated" },
        if study.stopping == Stopping::Never { "off" } else { "on" },
        percent(endings.degraded),
        percent(endings.equivalent),
        endings.stopped,
        endings.asked / u64::from(endings.runs),
    );
}
