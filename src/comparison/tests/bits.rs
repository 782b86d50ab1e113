//! Rung 1 on made-up evidence: bits that agree, that differ, and that prove nothing.

use super::*;

#[test]
fn a_load_pass_that_equals_the_control_is_equivalent() {
    let (comparison, judgement) =
        assert_judged(&mut Scene::new(40, 4, 0.5), Verdict::Equivalent, Rung::BitExact);
    assert_eq!(
        judgement.reason,
        "The load pass equals the control bit for bit on all 40 questions with equal shapes."
    );
    assert_eq!(comparison.bit_exact.against_control.compared, 40);
}

#[test]
fn the_lowest_bit_of_one_log_probability_is_degraded_and_located() {
    let mut scene = Scene::new(40, 4, 0.9);
    scene.edit(ArmName::Load, 6, |observation| {
        let listed = &mut observation.steps[1].top[1];
        listed.logprob = f32::from_bits(listed.logprob.to_bits() ^ 1);
    });
    let (comparison, judgement) = assert_judged(&mut scene, Verdict::Degraded, Rung::BitExact);
    let first = &comparison.bit_exact.against_control.first[0];
    assert_eq!(
        (first.question.to_string().as_str(), first.token, first.rank),
        ("subject_02/test/2", 1, Some(1))
    );
    assert_eq!(first.kind, DifferenceKind::Logprobs);
    assert!(first.largest.is_some_and(|largest| largest > 0.0 && largest < 1e-6));
    assert!(judgement.reason.contains("in 1 of 40 questions"), "{}", judgement.reason);
}

#[test]
fn bits_that_differ_prove_nothing_where_the_baseline_does_not_repeat_itself() {
    let mut scene = Scene::new(40, 4, 0.9);
    noisy(&mut scene).edit(ArmName::Load, 6, |observation| nudge(observation, 1e-6));
    let (comparison, judgement) = assert_judged(&mut scene, Verdict::Inconclusive, Rung::Answers);
    assert_eq!(comparison.bit_exact.outcome, Outcome::DoesNotApply);
    assert!(
        comparison.noise_floor.words.contains("1 of 40 questions differ"),
        "{}",
        comparison.noise_floor.words
    );
    assert!(
        judgement.reason.starts_with("40 questions are too few for a margin of 0.5 points"),
        "{}",
        judgement.reason
    );
    assert!(judgement.reason.contains("about 5198 questions are needed"), "{}", judgement.reason);
}

#[test]
fn bits_that_differ_prove_nothing_where_requests_are_computed_together() {
    let mut scene = Scene::new(40, 4, 0.9);
    scene.edit(ArmName::Load, 6, |observation| nudge(observation, 1e-6));
    let together = |scene: &Scene| judged(&Evidence { batching: Batching::Together, ..scene.evidence() });
    // The control has the baseline's bits; still the load pass may have been alone in a batch.
    let (comparison, judgement) = together(&scene);
    assert_eq!(judgement.verdict, Verdict::Inconclusive, "{}", judgement.reason);
    assert!(comparison.noise_floor.words.contains("computed together"), "{}", comparison.noise_floor.words);
    assert_judged(&mut scene, Verdict::Degraded, Rung::BitExact);
}

#[test]
fn bits_that_agree_prove_equality_even_where_the_baseline_does_not_repeat_itself() {
    assert_judged(noisy(&mut Scene::new(40, 4, 0.3)), Verdict::Equivalent, Rung::BitExact);
}

#[test]
fn likely_tokens_with_none_in_common_are_disjoint_and_not_a_difference_of_zero() {
    let mut scene = Scene::new(40, 4, 0.9);
    scene.edit(ArmName::Load, 0, |observation| {
        let step = &mut observation.steps[0];
        step.top = (0..4).map(|rank| TokenLogprob { token: 100 + rank, logprob: -0.4 }).collect();
        step.chosen = step.top[0];
    });
    let (comparison, judgement) = assert_judged(&mut scene, Verdict::Degraded, Rung::BitExact);
    let tally = &comparison.bit_exact.against_control;
    assert_eq!(
        (tally.disjoint, tally.first[0].kind, tally.first[0].largest),
        (1, DifferenceKind::Disjoint, None)
    );
    assert!(judgement.reason.contains("(1 share no likely token)"), "{}", judgement.reason);
}

#[test]
fn nothing_behind_the_first_differing_token_is_compared() {
    let mut scene = Scene::new(40, 4, 0.9);
    scene.edit(ArmName::Load, 0, |observation| {
        err(observation);
        observation.steps[1].top[1].logprob = -70.0;
    });
    let (comparison, _) = assert_judged(&mut scene, Verdict::Degraded, Rung::BitExact);
    let tally = &comparison.bit_exact.against_control;
    assert_eq!((tally.first[0].kind, tally.first[0].token), (DifferenceKind::Token, 0));
    assert!(tally.largest < 10.0, "{}", tally.largest);
}

#[test]
fn an_answer_that_ends_early_differs() {
    let mut scene = Scene::new(40, 4, 0.9);
    scene.edit(ArmName::Load, 0, |observation| observation.steps.truncate(1));
    let (comparison, _) = assert_judged(&mut scene, Verdict::Degraded, Rung::BitExact);
    assert_eq!(comparison.bit_exact.against_control.first[0].kind, DifferenceKind::Length);
}

#[test]
fn a_store_pass_that_disturbs_what_it_stores_is_degraded() {
    let mut scene = Scene::new(40, 4, 0.9);
    scene.edit(ArmName::Store, 5, |observation| nudge(observation, 1e-3));
    let (_, judgement) = assert_judged(&mut scene, Verdict::Degraded, Rung::BitExact);
    assert!(judgement.reason.starts_with("The store pass differs from the baseline"), "{}", judgement.reason);
}

/// A run of 40 questions whose first prompt the control cannot match, with that prompt's load pass changed.
fn with_an_unmatched_prompt(change: impl FnOnce(&mut Observation)) -> Scene {
    let mut scene = Scene::new(40, 4, 0.9);
    scene.questions[0].expected.control = 256;
    scene.edit(ArmName::Control, 0, |observation| observation.cached_tokens = 256);
    scene.edit(ArmName::Load, 0, change);
    scene
}

#[test]
fn a_prompt_without_a_matching_control_is_judged_by_the_tolerances() {
    let mut mild = with_an_unmatched_prompt(|observation| nudge(observation, 0.02));
    let (comparison, judgement) = assert_judged(&mut mild, Verdict::Equivalent, Rung::BitExact);
    assert_eq!(comparison.bit_exact.left_over.questions, 1);
    assert!(
        judgement.reason.contains("on all 39 questions") && judgement.reason.contains("1 more"),
        "{}",
        judgement.reason
    );
    assert_judged(&mut with_an_unmatched_prompt(err), Verdict::Degraded, Rung::NearTies);
    let mut far = with_an_unmatched_prompt(|observation| nudge(observation, 1.2));
    assert_judged(&mut far, Verdict::Degraded, Rung::Distribution);
    let mut noisy = with_an_unmatched_prompt(err);
    for arm in [ArmName::Control, ArmName::Load] {
        noisy.edit(arm, 1, err);
    }
    assert_judged(&mut noisy, Verdict::Inconclusive, Rung::NearTies);
}

#[test]
fn a_control_that_mostly_missed_cannot_show_equivalence() {
    let mut scene = Scene::new(40, 4, 0.9);
    scene.edit_all(ArmName::Control, |number, observation| {
        if number >= 10 {
            observation.cached_tokens = 0;
        }
    });
    scene.edit_all(ArmName::Load, |number, observation| {
        if number >= 10 {
            nudge(observation, 0.01);
        }
    });
    let (comparison, _) = assert_judged(&mut scene, Verdict::Inconclusive, Rung::Answers);
    assert_eq!(comparison.noise_floor.control.unwrap().missed, 30);
}

#[test]
fn without_a_control_equality_with_the_baseline_is_enough() {
    let mut scene = Scene::new(40, 4, 0.3);
    let (comparison, _) = assert_judged(scene.without_control(), Verdict::Equivalent, Rung::BitExact);
    assert_eq!(comparison.bit_exact.against_baseline.compared, 40);
    assert!(comparison.noise_floor.words.contains("There is no control"), "{}", comparison.noise_floor.words);
}

#[test]
fn kv_that_is_stored_with_loss_is_judged_by_its_answers_alone() {
    let mut scene = Scene::new(40, 4, 0.9);
    let lossy = |scene: &Scene| judged(&Evidence { fidelity: Fidelity::Lossy, ..scene.evidence() });
    for question in 0..40 {
        scene.edit(ArmName::Load, question, |observation| nudge(observation, 2.0));
    }
    let (comparison, judgement) = lossy(&scene);
    let outcomes =
        [comparison.bit_exact.outcome, comparison.near_ties.outcome, comparison.distribution.outcome];
    assert_eq!(outcomes, [Outcome::DoesNotApply; 3]);
    assert_eq!((judgement.verdict, judgement.decided_by), (Verdict::Inconclusive, Rung::Answers));
    assert!(comparison.noise_floor.words.ends_with("answers alone decide, within the margin."));
    assert_judged(&mut scene, Verdict::Degraded, Rung::BitExact);
    // What is stored with loss still must not disturb whoever stores it.
    scene.edit(ArmName::Store, 6, |observation| nudge(observation, 1e-6));
    let (_, judgement) = lossy(&scene);
    assert_eq!((judgement.verdict, judgement.decided_by), (Verdict::Degraded, Rung::BitExact));
    assert!(judgement.reason.starts_with("The store pass differs"), "{}", judgement.reason);
}

#[test]
fn the_lowest_bit_of_a_prompt_that_is_served_whole_is_degraded() {
    let mut scene = Scene::new(40, 4, 0.9);
    scene.questions[0].expected = Expected { prompt_tokens: 512, store_at_most: 0, load: 511, control: 511 };
    for arm in [ArmName::Baseline, ArmName::Repeat, ArmName::Control, ArmName::Store, ArmName::Load] {
        scene.edit(arm, 0, |observation| observation.prompt_tokens = 512);
    }
    for arm in [ArmName::Control, ArmName::Load] {
        scene.edit(arm, 0, |observation| observation.cached_tokens = 511);
    }
    assert_judged(&mut scene, Verdict::Equivalent, Rung::BitExact);
    scene.edit(ArmName::Load, 0, |observation| nudge(observation, 1e-6));
    let (comparison, _) = assert_judged(&mut scene, Verdict::Degraded, Rung::BitExact);
    assert_eq!(comparison.bit_exact.against_control.differing, 1);
}
