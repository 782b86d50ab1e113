//! The simulated study with many runs at full size: `cargo bench --bench simulation`.
//!
//! Prints how often each verdict is given where the truth is known. The test of the same name does the same with few.
#![expect(clippy::print_stdout, reason = "a bench prints its results")]

#[path = "../tests/simulation/study.rs"]
mod study;

use kv_correctness::comparison::{Criteria, plan_questions};
use kv_correctness::stats::clopper_pearson;
use study::{Flips, Stopping, Study};

fn main() {
    let runs = std::env::var("RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(500);
    println!(
        "{:<52} {:>16} {:>16} {:>7} {:>9}",
        "14042 questions, 57 subjects, margin 0.5 points", "degraded %", "equivalent %", "stopped", "asked"
    );
    for flip_rate in [0.005, 0.01, 0.02] {
        let criteria = Criteria { assumed_flip_rate: flip_rate, ..Criteria::default() };
        let detectable = plan_questions(14_042, 57, 1, &criteria).detectable_loss.expect("enough questions");
        for (flips, hang_together) in [(Flips::Independent, "independent"), (Flips::BySubject, "by subject")]
        {
            for loss in [0.0, detectable, 0.005] {
                for stopping in [Stopping::Never, Stopping::OnHarm] {
                    let study = Study {
                        questions: 14_042,
                        subjects: 57,
                        accuracy: 0.68,
                        flip_rate,
                        loss: loss.min(flip_rate),
                        flips,
                        margin: 0.005,
                        stopping,
                        runs,
                        seed: 1,
                    };
                    let endings = study.run();
                    let percent = |count| {
                        let limits = clopper_pearson(count, endings.runs, 0.95);
                        let share = 100.0 * f64::from(count) / f64::from(endings.runs);
                        format!("{share:.1} ({:.1}–{:.1})", 100.0 * limits.lower, 100.0 * limits.upper)
                    };
                    println!(
                        "flips {:>4} %, loss {:>5.3} points, {hang_together:<12} {:<7} {:>16} {:>16} {:>7} {:>9}",
                        100.0 * flip_rate,
                        100.0 * study.loss,
                        if stopping == Stopping::Never { "never" } else { "on harm" },
                        percent(endings.degraded),
                        percent(endings.equivalent),
                        endings.stopped,
                        endings.asked / u64::from(endings.runs),
                    );
                }
            }
        }
    }
}
