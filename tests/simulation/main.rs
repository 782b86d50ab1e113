//! The verdict is given as often as promised: made-up runs with a known truth, judged as real ones are.
//!
//! Few runs of few questions, so that it takes seconds; `cargo bench --bench simulation` has many of many. Each limit
//! allows for the number of runs: it fails only when the promise is refuted with 99 % confidence.

mod study;

use kv_correctness::comparison::{Criteria, plan_questions};
use kv_correctness::stats::{lower_bound, upper_bound};
use study::{Endings, Flips, Stopping, Study};

const QUESTIONS: u32 = 700;
const SUBJECTS: u32 = 20;
const FLIP_RATE: f64 = 0.06;
const MARGIN: f64 = 0.04;

/// 120 runs of 700 questions: enough for a margin of four points at this flip rate.
fn study(loss: f64, flips: Flips, stopping: Stopping) -> Endings {
    let study = Study {
        questions: QUESTIONS,
        subjects: SUBJECTS,
        accuracy: 0.85,
        flip_rate: FLIP_RATE,
        loss,
        flips,
        margin: MARGIN,
        stopping,
        runs: 120,
        seed: 11,
    };
    study.run()
}

#[track_caller]
fn assert_at_most(share: f64, count: u32, endings: Endings) {
    assert!(lower_bound(count, endings.runs, 0.99) <= share, "{count} of {endings:?} refute at most {share}");
}

#[track_caller]
fn assert_at_least(share: f64, count: u32, endings: Endings) {
    assert!(
        upper_bound(count, endings.runs, 0.99) >= share,
        "{count} of {endings:?} refute at least {share}"
    );
}

#[test]
fn without_an_effect_at_most_one_run_in_twenty_is_called_degraded() {
    for flips in [Flips::Independent, Flips::BySubject] {
        for stopping in [Stopping::Never, Stopping::OnHarm] {
            let endings = study(0.0, flips, stopping);
            assert_at_most(0.05, endings.degraded, endings);
            assert_at_most(0.01, endings.stopped, endings);
        }
    }
}

#[test]
fn without_an_effect_enough_questions_show_equivalence() {
    let criteria = Criteria { margin: MARGIN, assumed_flip_rate: FLIP_RATE, ..Criteria::default() };
    // The plan counts questions one by one; the interval by subjects costs a little more.
    let plan = plan_questions(QUESTIONS, SUBJECTS, 1, &criteria);
    assert!(plan.questions_needed < QUESTIONS - 100, "{}", plan.words);
    let endings = study(0.0, Flips::Independent, Stopping::Never);
    assert_at_least(0.95, endings.equivalent, endings);
}

#[test]
fn the_planned_loss_is_found_as_often_as_promised() {
    let criteria = Criteria { margin: MARGIN, assumed_flip_rate: FLIP_RATE, ..Criteria::default() };
    let loss = plan_questions(QUESTIONS, SUBJECTS, 1, &criteria).detectable_loss.unwrap();
    for stopping in [Stopping::Never, Stopping::OnHarm] {
        let endings = study(loss, Flips::Independent, stopping);
        assert_at_least(0.9, endings.degraded, endings);
    }
}

#[test]
fn a_loss_as_large_as_the_margin_is_hardly_ever_called_equivalent() {
    for flips in [Flips::Independent, Flips::BySubject] {
        let endings = study(MARGIN, flips, Stopping::Never);
        assert_at_most(0.05, endings.equivalent, endings);
    }
}

#[test]
fn a_broken_connector_is_stopped_after_tens_of_questions() {
    // Loading spoils half of the answers and mends a few by luck.
    let broken = Study {
        questions: QUESTIONS,
        subjects: SUBJECTS,
        accuracy: 0.68,
        flip_rate: 0.5,
        loss: 0.35,
        flips: Flips::Independent,
        margin: MARGIN,
        stopping: Stopping::OnHarm,
        runs: 40,
        seed: 3,
    };
    let endings = broken.run();
    assert_eq!((endings.stopped, endings.degraded), (40, 40), "{endings:?}");
    assert!(endings.asked / 40 < 80, "{} questions on average", endings.asked / 40);
}
