//! The ladder on made-up evidence: each way in which a run can go, and what it must be called.

use proptest::prelude::*;

use crate::dataset::Choice;
use crate::engine::{Observation, TokenLogprob};
use crate::stats::PairOutcome;

use super::scene::{Scene, read_letter, say, scatter};
use super::*;

fn judged(evidence: &Evidence) -> (Comparison, Judgement) {
    let comparison = compare(evidence, &Criteria::default()).unwrap();
    let mut judgements = conclude([&comparison]).judgements;
    (comparison, judgements.remove(0))
}

#[track_caller]
fn assert_judged(scene: &mut Scene, verdict: Verdict, decided_by: Rung) -> (Comparison, Judgement) {
    let (comparison, judgement) = judged(&scene.evidence());
    assert_eq!((judgement.verdict, judgement.decided_by), (verdict, decided_by), "{}", judgement.reason);
    (comparison, judgement)
}

/// Moves a letter's log-probability, as other kernels would.
fn nudge(observation: &mut Observation, nats: f64) {
    observation.letters[0] -= nats;
}

/// A machine whose baseline does not repeat itself to the last bit.
fn noisy(scene: &mut Scene) -> &mut Scene {
    scene.edit(ArmName::Repeat, 0, |observation| nudge(observation, 1e-6))
}

/// Answers with another letter.
fn err(observation: &mut Observation) {
    let next = (observation.steps[0].chosen.token as usize + 1) % 4;
    say(observation, Choice::ALL[next]);
}

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
fn no_hits_are_not_exercised_although_all_answers_agree() {
    let mut scene = Scene::new(40, 4, 0.9);
    scene.edit_all(ArmName::Load, |_, observation| observation.cached_tokens = 0);
    let (_, judgement) = assert_judged(&mut scene, Verdict::NotExercised, Rung::Exercised);
    assert!(judgement.reason.contains("not one of the 20480 tokens"), "{}", judgement.reason);
}

#[test]
fn one_request_with_a_chunk_too_few_is_not_exercised_and_named() {
    let mut scene = Scene::new(40, 4, 0.9);
    scene.edit(ArmName::Load, 17, |observation| observation.cached_tokens = 256);
    let (comparison, _) = assert_judged(&mut scene, Verdict::NotExercised, Rung::Exercised);
    let offender = &comparison.exercised.offenders[0];
    assert_eq!(
        (offender.question.to_string().as_str(), offender.cached, offender.predicted),
        ("subject_01/test/5", 256, 512)
    );
}

#[test]
fn hits_that_nothing_had_stored_are_degraded() {
    let mut scene = Scene::new(40, 4, 0.9);
    scene.edit(ArmName::Store, 3, |observation| observation.cached_tokens = 256);
    assert_judged(&mut scene, Verdict::Degraded, Rung::Exercised);
    let mut scene = Scene::new(40, 4, 0.9);
    scene.edit(ArmName::Load, 3, |observation| observation.cached_tokens = 513);
    assert_judged(&mut scene, Verdict::Degraded, Rung::Exercised);
}

#[test]
fn hits_that_the_server_did_not_count_are_not_exercised() {
    let mut evidence = Scene::new(40, 4, 0.9).evidence();
    evidence.server.as_mut().unwrap().load.hit_tokens -= 256;
    assert_eq!(judged(&evidence).1.verdict, Verdict::NotExercised);
    let mut evidence = Scene::new(40, 4, 0.9).evidence();
    evidence.server.as_mut().unwrap().load_reads_at_least = Some(2 * 80);
    assert_eq!(judged(&evidence).1.verdict, Verdict::NotExercised);
}

#[test]
fn a_prompt_served_whole_may_count_for_one_token_more_at_the_server() {
    let mut scene = Scene::new(40, 4, 0.9);
    scene.questions[0].expected = Expected { prompt_tokens: 512, store_at_most: 0, load: 511, control: 256 };
    for arm in [ArmName::Baseline, ArmName::Repeat, ArmName::Control, ArmName::Store, ArmName::Load] {
        scene.edit(arm, 0, |observation| observation.prompt_tokens = 512);
    }
    scene.edit(ArmName::Control, 0, |observation| observation.cached_tokens = 256);
    scene.edit(ArmName::Load, 0, |observation| observation.cached_tokens = 511);
    let mut evidence = scene.evidence();
    evidence.server.as_mut().unwrap().load.hit_tokens += 1;
    let (comparison, judgement) = judged(&evidence);
    assert_eq!(judgement.verdict, Verdict::Equivalent, "{}", judgement.reason);
    assert_eq!(comparison.noise_floor.control.unwrap().unmatched_by_rule, 1);
    evidence.server.as_mut().unwrap().load.hit_tokens += 1;
    assert_eq!(judged(&evidence).1.verdict, Verdict::NotExercised);
}

#[test]
fn the_lowest_bit_of_one_log_probability_is_degraded_and_located() {
    let mut scene = Scene::new(40, 4, 0.9);
    scene.edit(ArmName::Load, 6, |observation| {
        let listed = &mut observation.steps[1].top[1];
        listed.logprob = f64::from_bits(listed.logprob.to_bits() ^ 1);
    });
    let (comparison, judgement) = assert_judged(&mut scene, Verdict::Degraded, Rung::BitExact);
    let first = &comparison.bit_exact.against_control.first[0];
    assert_eq!(
        (first.question.to_string().as_str(), first.token, first.rank),
        ("subject_02/test/2", 1, Some(1))
    );
    assert_eq!(first.kind, DifferenceKind::Logprobs);
    assert!(first.largest.is_some_and(|largest| largest > 0.0 && largest < 1e-14));
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
fn bits_that_differ_prove_nothing_where_batches_differ_and_kernels_heed_the_split() {
    let mut scene = Scene::new(40, 4, 0.9);
    scene.edit(ArmName::Load, 6, |observation| nudge(observation, 1e-6));
    let together = |scene: &Scene| judged(&Evidence { batching: Batching::Together, ..scene.evidence() });
    // The control has the baseline's bits: the kernels heed neither split nor batch.
    assert_eq!(together(&scene).1.verdict, Verdict::Degraded);
    for arm in [ArmName::Control, ArmName::Load] {
        scene.edit(arm, 9, |observation| nudge(observation, 1e-6));
    }
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
fn a_model_that_guesses_is_inconclusive_unless_bits_decide() {
    let mut scene = Scene::new(6000, 20, 0.26);
    scene.without_control().edit_all(ArmName::Load, |_, observation| nudge(observation, 0.01));
    let (_, judgement) = assert_judged(&mut scene, Verdict::Inconclusive, Rung::Answers);
    assert!(judgement.reason.starts_with("The model hardly beats guessing"), "{}", judgement.reason);
}

#[test]
fn a_model_that_always_says_the_commonest_letter_does_not_beat_guessing() {
    let mut scene = Scene::new(6000, 20, 0.0);
    for asked in &mut scene.questions {
        asked.answer = if scatter(asked.id.row as usize, 5) < 0.6 { Choice::A } else { asked.answer };
    }
    for arm in [ArmName::Baseline, ArmName::Repeat, ArmName::Store, ArmName::Load] {
        scene.edit_all(arm, |_, observation| say(observation, Choice::A));
    }
    scene.without_control().edit_all(ArmName::Load, |_, observation| nudge(observation, 0.01));
    let (comparison, _) = assert_judged(&mut scene, Verdict::Inconclusive, Rung::Answers);
    assert!(comparison.answers.guessing > 0.6);
}

/// 6000 questions without a control, whose load pass moves a little and errs or mends as told.
fn with_flips(harms: usize, gains: usize) -> Scene {
    let mut scene = Scene::new(6000, 20, 0.7);
    let published: Vec<Choice> = scene.questions.iter().map(|asked| asked.answer).collect();
    let (mut harms, mut gains) = (harms, gains);
    scene.without_control().edit_all(ArmName::Load, |number, observation| {
        nudge(observation, 0.01);
        let right = read_letter(observation) == Some(published[number]);
        // Near ties, so that only the answers rung has something to say.
        if right && harms > 0 && number % 7 == 0 {
            harms -= 1;
            err(observation);
        } else if !right && gains > 0 && number % 7 == 0 {
            gains -= 1;
            say(observation, published[number]);
        }
    });
    scene
}

/// Criteria under which only answers can decide.
fn answers_alone() -> Criteria {
    let tolerance =
        Tolerance { beyond_gap_rate: 0.9, mean_divergence: 9.0, letter_difference: 99.0, flip_rate: 0.9 };
    Criteria { tolerance, ..Criteria::default() }
}

fn judged_by_answers(harms: usize, gains: usize) -> (Comparison, Judgement) {
    let comparison = compare(&with_flips(harms, gains).evidence(), &answers_alone()).unwrap();
    let judgement = conclude([&comparison]).judgements.remove(0);
    assert_eq!(judgement.decided_by, Rung::Answers, "{}", judgement.reason);
    (comparison, judgement)
}

#[test]
fn enough_questions_with_few_flips_either_way_are_equivalent() {
    let (comparison, judgement) = judged_by_answers(6, 7);
    assert_eq!(judgement.verdict, Verdict::Equivalent, "{}", judgement.reason);
    let kinds = |kind| comparison.answers.flips.iter().filter(|flip| flip.kind == kind).count();
    assert_eq!((kinds(FlipKind::RightToWrong), kinds(FlipKind::WrongToRight)), (6, 7));
}

#[test]
fn a_loss_too_large_for_chance_is_degraded() {
    let (_, judgement) = judged_by_answers(20, 6);
    assert_eq!(judgement.verdict, Verdict::Degraded, "{}", judgement.reason);
}

#[test]
fn several_comparisons_share_the_chance_of_a_false_alarm() {
    // A p-value that is small enough for one comparison is not for each of two.
    let (comparison, alone) = judged_by_answers(14, 5);
    let p_value = comparison.answers.generated.against_reference.robust_loss_p_value();
    assert!(p_value > LOSS_ALPHA / 2.0 && p_value < LOSS_ALPHA, "{p_value}");
    assert_eq!(alone.verdict, Verdict::Degraded, "{}", alone.reason);
    let both = conclude([&comparison, &comparison]);
    assert_ne!(both.overall, Verdict::Degraded, "{:?}", both.judgements);
}

#[test]
fn a_gain_beyond_the_margin_is_a_change_and_so_degraded() {
    let (_, judgement) = judged_by_answers(0, 60);
    assert_eq!(judgement.verdict, Verdict::Degraded, "{}", judgement.reason);
}

#[test]
fn many_harms_are_beyond_doubt_whatever_their_subjects() {
    let mut scene = Scene::new(40, 1, 1.0);
    scene.without_control().edit_all(ArmName::Load, |number, observation| {
        if number < 13 {
            err(observation);
        }
    });
    let (_, judgement) = assert_judged(&mut scene, Verdict::Degraded, Rung::EarlyStop);
    assert!(judgement.reason.contains("turned 13 right answers wrong"), "{}", judgement.reason);
}

#[test]
fn tokens_that_part_beyond_the_gap_are_degraded_without_any_control() {
    let mut scene = Scene::new(40, 4, 0.9);
    scene.without_control().edit(ArmName::Load, 3, err);
    assert_judged(&mut scene, Verdict::Degraded, Rung::NearTies);
}

#[test]
fn letters_that_move_too_far_are_degraded_without_any_control() {
    let mut scene = Scene::new(40, 4, 0.9);
    scene.without_control().edit_all(ArmName::Load, |_, observation| observation.letters.rotate_left(1));
    assert_judged(&mut scene, Verdict::Degraded, Rung::Distribution);
}

#[test]
fn runs_without_the_cache_that_move_as_far_leave_nothing_to_decide() {
    let mut scene = Scene::new(6000, 20, 0.9);
    for arm in [ArmName::Repeat, ArmName::Load] {
        scene.edit_all(arm, |_, observation| observation.letters.rotate_left(1));
    }
    assert_judged(scene.without_control(), Verdict::Inconclusive, Rung::Distribution);
}

#[test]
fn an_unparsable_answer_is_its_own_class_and_never_right() {
    let mut scene = Scene::new(40, 4, 1.0);
    scene.edit(ArmName::Load, 2, |observation| {
        observation.steps[0].top.insert(0, TokenLogprob { token: 77, logprob: -0.1 });
        observation.steps[0].chosen = observation.steps[0].top[0];
    });
    let comparison = compare(&scene.evidence(), &Criteria::default()).unwrap();
    let load = comparison.answers.generated.load;
    assert_eq!((load.right, load.wrong, load.unparsable), (39, 0, 1));
    assert_eq!(comparison.answers.flips[0].kind, FlipKind::ToUnparsable);
    assert_eq!(comparison.answers.generated.against_baseline.table.harms, 1);
    assert_eq!(comparison.answers.most_likely.load.right, 40);
}

#[test]
fn a_load_pass_may_lack_questions_only_after_enough_harm() {
    let scene = || {
        let mut scene = Scene::new(40, 4, 1.0);
        scene.edit_all(ArmName::Load, |_, observation| err(observation));
        scene.arms[ArmName::Load as usize].truncate(16);
        scene.without_control().evidence()
    };
    assert!(matches!(
        compare(&scene(), &Criteria::default()),
        Err(EvidenceError::Missing { arm: ArmName::Load, .. })
    ));
    let mut monitor = HarmMonitor::new(1);
    let stop = (0..16).find_map(|_| monitor.observe(PairOutcome::Harm)).unwrap();
    assert_eq!(stop.pairs, 13);
    let stopped = Evidence { early_stop: Some(stop), ..scene() };
    let (comparison, judgement) = judged(&stopped);
    assert_eq!(
        (judgement.verdict, judgement.decided_by),
        (Verdict::Degraded, Rung::EarlyStop),
        "{}",
        judgement.reason
    );
    assert_eq!(comparison.questions, 16);
    let unfounded = Evidence { early_stop: Some(EarlyStop { harms: 3, ..stop }), ..scene() };
    assert!(matches!(compare(&unfounded, &Criteria::default()), Err(EvidenceError::UnfoundedStop { .. })));
}

#[test]
fn evidence_that_does_not_belong_together_is_refused() {
    let mut scene = Scene::new(4, 2, 1.0);
    scene.edit(ArmName::Repeat, 1, |observation| observation.prompt_tokens += 1);
    assert!(matches!(
        compare(&scene.evidence(), &Criteria::default()),
        Err(EvidenceError::OtherPrompt { arm: ArmName::Repeat, .. })
    ));
    let mut scene = Scene::new(4, 2, 1.0);
    scene.questions.remove(2);
    assert!(matches!(
        compare(&scene.evidence(), &Criteria::default()),
        Err(EvidenceError::Unasked { arm: ArmName::Baseline, .. })
    ));
    let mut observations = Scene::new(2, 1, 1.0).arms[0].clone();
    observations[1].question = observations[0].question.clone();
    assert!(matches!(
        Arm::new(ArmName::Load, observations, read_letter),
        Err(EvidenceError::Duplicate { arm: ArmName::Load, .. })
    ));
    let mut observations = Scene::new(2, 1, 1.0).arms[0].clone();
    observations[1].steps[0].top[2].logprob = f64::NAN;
    let refused = Arm::new(ArmName::Load, observations, read_letter).unwrap_err();
    assert!(matches!(refused, EvidenceError::NotNumbers { .. }) && refused.hint().is_some());
    let absurd = Criteria { margin: 0.0, ..Criteria::default() };
    assert_eq!(
        compare(&Scene::new(4, 2, 1.0).evidence(), &absurd),
        Err(EvidenceError::AbsurdCriterion("margin"))
    );
}

#[test]
fn the_worst_comparison_is_the_verdict_of_the_run() {
    let mut unused = Scene::new(40, 4, 0.9);
    unused.edit_all(ArmName::Load, |_, observation| observation.cached_tokens = 0);
    let mut broken = Scene::new(40, 4, 0.9);
    broken.edit(ArmName::Load, 0, err);
    let of = |evidence: Evidence| compare(&evidence, &Criteria::default()).unwrap();
    let (fine, unused, broken) =
        (of(Scene::new(40, 4, 0.9).evidence()), of(unused.evidence()), of(broken.evidence()));
    assert_eq!(conclude([&fine, &unused]).overall, Verdict::NotExercised);
    assert_eq!(conclude([&unused, &broken, &fine]).overall, Verdict::Degraded);
    assert_eq!(conclude([&fine]).overall, Verdict::Equivalent);
    assert_eq!(conclude([]).overall, Verdict::NotExercised);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn the_order_of_the_evidence_leaves_no_trace(order in Just((0..30).collect::<Vec<usize>>()).prop_shuffle(), harmed in 0_usize..30) {
        let mut scene = Scene::new(30, 3, 0.8);
        noisy(&mut scene).edit(ArmName::Load, harmed, err);
        let bytes = |evidence: &Evidence| serde_json::to_vec(&compare(evidence, &Criteria::default()).unwrap()).unwrap();
        let sorted = bytes(&scene.evidence());
        for arm in &mut scene.arms {
            *arm = order.iter().map(|&number| arm[number].clone()).collect();
        }
        scene.questions = order.iter().rev().map(|&number| scene.questions[number].clone()).collect();
        prop_assert_eq!(&bytes(&scene.evidence()), &sorted);
        let read: Comparison = serde_json::from_slice(&sorted).unwrap();
        prop_assert_eq!(serde_json::to_vec(&read).unwrap(), sorted);
    }
}
