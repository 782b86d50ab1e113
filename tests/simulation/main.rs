//! The verdict is given as often as promised: made-up runs with a known truth, judged as real ones are.
//!
//! Few runs of few questions, so that it takes seconds; `cargo bench --bench simulation` has many of many. Each limit
//! allows for the number of runs: it fails only when the promise is refuted with 99 % confidence.

mod study;

use kv_correctness::comparison::{Criteria, Plan, plan_questions};
use kv_correctness::stats::{lower_bound, upper_bound};
use study::{BothEndings, Endings, Flips, Study};

/// Many flips in few questions: a hard case for a test of loss.
const RESTLESS: Study = Study {
    sizes: &[3, 8, 13, 18, 23, 27, 32, 37, 42, 47],
    comparisons: 1,
    shards: 1,
    accuracy: 0.5,
    flip_rate: 0.4,
    loss: 0.0,
    flips: Flips::Independent,
    margin: 0.04,
    runs: 300,
    seed: 11,
};

/// Few flips, and enough questions for the margin.
const STEADY: Study =
    Study { sizes: &[6, 13, 20, 27, 34, 45, 52, 60, 68, 75], accuracy: 0.85, flip_rate: 0.03, ..RESTLESS };

/// What is planned for such runs.
fn plan(study: Study) -> Plan {
    let assumed_flip_correlation = match study.flips {
        Flips::Independent => 0.0,
        Flips::BySubject => Criteria::default().assumed_flip_correlation,
    };
    let (margin, assumed_flip_rate) = (study.margin, study.flip_rate);
    let criteria = Criteria { margin, assumed_flip_rate, assumed_flip_correlation, ..Criteria::default() };
    plan_questions(study.sizes, study.comparisons, &criteria)
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

/// Holds both ways of ending a run against the promises for runs without an effect.
#[track_caller]
fn assert_hardly_ever_degraded(BothEndings { without_stop, with_stop }: BothEndings) {
    assert_at_most(0.05, without_stop.degraded, without_stop);
    assert_at_most(0.05, with_stop.degraded, with_stop);
    assert_at_most(0.001, with_stop.stopped, with_stop);
}

#[test]
fn without_an_effect_at_most_one_run_in_twenty_is_called_degraded() {
    assert_hardly_ever_degraded(RESTLESS.run());
}

#[test]
fn nor_where_the_flips_of_a_subject_go_the_same_way() {
    // So many flips a subject that a test which takes them as independent would call one run in six degraded.
    assert_hardly_ever_degraded(Study { flips: Flips::BySubject, ..RESTLESS }.run());
}

#[test]
fn nor_where_ten_comparisons_can_each_be() {
    // So few questions that an interval beyond the margin is not rare; so many flips that one subject may stop a run.
    const FEW: Study =
        Study { sizes: &[40; 8], comparisons: 10, accuracy: 0.68, margin: 0.005, runs: 60, ..RESTLESS };
    for flips in [Flips::Independent, Flips::BySubject] {
        for flip_rate in [0.02, 0.2] {
            assert_hardly_ever_degraded(Study { flip_rate, flips, ..FEW }.run());
        }
    }
}

#[test]
fn nor_where_eight_parts_are_asked_apart_and_judged_together() {
    for flips in [Flips::Independent, Flips::BySubject] {
        assert_hardly_ever_degraded(Study { shards: 8, flips, ..RESTLESS }.run());
    }
}

#[test]
fn parts_find_the_planned_loss_as_the_whole_does_and_a_broken_connector_in_each_part() {
    let study = Study { shards: 8, ..RESTLESS };
    let endings = Study { loss: plan(study).detectable_loss.unwrap(), ..study }.run();
    for endings in [endings.without_stop, endings.with_stop] {
        assert_at_least(0.9, endings.found, endings);
    }
    let broken = Study { sizes: &[50; 57], accuracy: 0.68, flip_rate: 0.5, loss: 0.35, runs: 40, ..study };
    let endings = broken.run().with_stop;
    assert_eq!((endings.stopped, endings.degraded), (40, 40), "{endings:?}");
}

#[test]
fn the_planned_loss_is_found_as_often_as_promised() {
    for flips in [Flips::Independent, Flips::BySubject] {
        let study = Study { flips, ..RESTLESS };
        let endings = Study { loss: plan(study).detectable_loss.unwrap(), ..study }.run();
        for endings in [endings.without_stop, endings.with_stop] {
            assert_at_least(0.9, endings.found, endings);
        }
    }
    // And among others that have none.
    let study = Study { sizes: &[15; 20], comparisons: 4, runs: 60, ..RESTLESS };
    let endings = Study { loss: plan(study).detectable_loss.unwrap(), ..study }.run().without_stop;
    assert_at_least(0.9, endings.found, endings);
}

#[test]
fn without_an_effect_enough_questions_show_equivalence() {
    // The plan counts questions one by one; the interval by ten subjects asks for a third more.
    assert!(
        plan(STEADY).questions_needed < STEADY.sizes.iter().sum::<u32>() * 3 / 4,
        "{}",
        plan(STEADY).words
    );
    let endings = STEADY.run().without_stop;
    assert_at_least(0.95, endings.equivalent, endings);
}

#[test]
fn a_change_as_large_as_the_margin_is_hardly_ever_called_equivalent() {
    for change in [STEADY.margin, -STEADY.margin] {
        let endings = Study { loss: change, flip_rate: 0.06, ..STEADY }.run().without_stop;
        assert_at_most(0.05, endings.equivalent, endings);
    }
}

#[test]
fn a_broken_connector_is_stopped_after_a_few_subjects() {
    // Loading spoils half of the right answers and mends a few by luck.
    let broken = Study { sizes: &[50; 57], accuracy: 0.68, flip_rate: 0.5, loss: 0.35, runs: 40, ..RESTLESS };
    let endings = broken.run().with_stop;
    assert_eq!((endings.stopped, endings.degraded), (40, 40), "{endings:?}");
    assert!(endings.asked / 40 < 400, "{} questions on average", endings.asked / 40);
}
