//! Answers that do not feel their KV, on made-up evidence: nothing passes by them.

use super::*;
use crate::comparison::scene::spoilt_probe;
use crate::comparison::sensitivity::worse_probe;
use crate::model::{SpoiltAnswers, SpoiltProbe};

/// A scene whose request with spoilt KV is changed.
fn probed(scene: &Scene, change: impl FnOnce(&mut SpoiltAnswers)) -> Evidence {
    let mut probe = spoilt_probe(&scene.arms[ArmName::Load as usize][0]);
    if let SpoiltProbe::Asked(answers) = &mut probe {
        change(answers);
    }
    Evidence { spoilt: Some(probe), ..scene.evidence() }
}

fn numb(answers: &mut SpoiltAnswers) {
    answers.spoilt = answers.alone.clone();
}

#[test]
fn answers_that_do_not_feel_their_kv_are_insensitive_whichever_rung_would_pass_them() {
    // By bits.
    let (comparison, judgement) = judged(&probed(&Scene::new(40, 4, 0.9), numb));
    assert_eq!((judgement.verdict, judgement.decided_by), (Verdict::Insensitive, Rung::Faults));
    assert_eq!(comparison.bit_exact.outcome, Outcome::Passed);
    assert!(judgement.reason.contains("no bit of its answer moves"), "{}", judgement.reason);
    // By the KV itself.
    let mut scene = Scene::new(40, 4, 0.9);
    let (comparison, judgement) = judged(&probed(scene.with_kv(), numb));
    assert_eq!((judgement.verdict, comparison.kv.outcome), (Verdict::Insensitive, Outcome::Passed));
    // By nothing: a model that guesses is not merely inconclusive.
    let mut scene = Scene::new(40, 4, 0.26);
    scene.without_control().edit_all(ArmName::Load, |_, observation| nudge(observation, 0.01));
    assert_eq!(judged(&probed(&scene, numb)).1.verdict, Verdict::Insensitive);
    // Felt, all of these are what they were.
    assert_eq!(judged(&probed(&Scene::new(40, 4, 0.9), |_| {})).1.verdict, Verdict::Equivalent);
}

#[test]
fn an_answer_that_is_no_number_beside_a_spoilt_chunk_is_harm_and_one_with_it_is_a_feeling() {
    let scene = Scene::new(40, 4, 0.9);
    let none = |answer: &mut Observation| (answer.no_numbers, answer.letters) = (true, [-10_000.0; 4]);
    for beside in [true, false] {
        let (_, judgement) = judged(&probed(&scene, |answers| {
            none(if beside { &mut answers.alone } else { &mut answers.again });
        }));
        assert_eq!((judgement.verdict, judgement.decided_by), (Verdict::Degraded, Rung::Distribution));
    }
    let (_, judgement) = judged(&probed(&scene, |answers| none(&mut answers.spoilt)));
    assert_eq!(judgement.verdict, Verdict::Equivalent);
}

#[test]
fn what_is_proven_wrong_or_was_not_served_stays_so() {
    let mut scene = Scene::new(40, 4, 0.9);
    scene.edit(ArmName::Load, 3, |observation| nudge(observation, 1e-6));
    assert_eq!(judged(&probed(&scene, numb)).1.verdict, Verdict::Degraded);
    let mut scene = Scene::new(40, 4, 0.9);
    scene.edit_all(ArmName::Load, |_, observation| observation.cached_tokens = 0);
    assert_eq!(judged(&probed(&scene, numb)).1.verdict, Verdict::NotExercised);
}

#[test]
fn moving_no_farther_than_by_asking_again_is_feeling_nothing() {
    let moved = |spoilt: f64, again: f64| {
        let evidence = probed(&Scene::new(40, 4, 0.9), |answers| {
            answers.spoilt = answers.alone.clone();
            answers.spoilt.letters[1] -= spoilt;
            answers.again.letters[2] -= again;
        });
        judged(&evidence).1.verdict
    };
    assert_eq!(moved(1e-6, 0.0), Verdict::Equivalent);
    assert_eq!(moved(0.5, 0.1), Verdict::Equivalent);
    assert_eq!(moved(0.1, 0.5), Verdict::Insensitive);
    assert_eq!(moved(0.0, 0.0), Verdict::Insensitive);
}

#[test]
fn what_was_not_seen_to_be_felt_is_inconclusive_and_never_equivalent() {
    let not_asked =
        SpoiltProbe::NotAsked { reason: "This engine's KV cannot be reached: no hook.".to_owned() };
    let unseen = [
        Evidence { spoilt: Some(not_asked), ..Scene::new(40, 4, 0.9).evidence() },
        probed(&Scene::new(40, 4, 0.9), |answers| answers.cells = 0),
        probed(&Scene::new(40, 4, 0.9), |answers| answers.spoilt.cached_tokens = 256),
    ];
    for evidence in unseen {
        let (comparison, judgement) = judged(&evidence);
        assert_eq!((judgement.verdict, judgement.decided_by), (Verdict::Inconclusive, Rung::Faults));
        assert_eq!(comparison.sensitivity.outcome, Outcome::DoesNotApply);
        assert!(judgement.reason.contains(&comparison.sensitivity.words), "{}", judgement.reason);
    }
}

#[test]
fn planted_faults_tell_by_themselves() {
    let evidence = Evidence { spoilt: None, ..Scene::new(40, 4, 0.9).evidence() };
    assert_eq!(judged(&evidence).1.verdict, Verdict::Equivalent);
}

#[test]
fn in_each_part_of_a_run_answers_must_be_seen_to_feel_their_kv() {
    let not_asked = || Some(SpoiltProbe::NotAsked { reason: "It ended early.".to_owned() });
    let scene = Scene::new(4, 2, 0.9);
    let probe = |number: usize| Some(spoilt_probe(&scene.arms[ArmName::Load as usize][number]));
    let numb = probed(&scene, numb).spoilt;
    assert_eq!(worse_probe(probe(2), probe(0)), worse_probe(probe(0), probe(2)));
    assert_eq!(worse_probe(probe(2), probe(0)), probe(0));
    assert_eq!(worse_probe(probe(0), not_asked()), not_asked());
    assert_eq!(worse_probe(not_asked(), numb.clone()), numb);
}
