//! Rungs 2 to 4 on made-up evidence: what statistics decide where bits do not.

use super::*;

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
    let p_value = comparison.answers.generated.against_reference.harm_p_value();
    assert!(p_value > ANSWERS_ALPHA / 2.0 && p_value < ANSWERS_ALPHA, "{p_value}");
    assert_eq!(alone.verdict, Verdict::Degraded, "{}", alone.reason);
    let both = conclude([&comparison, &comparison]);
    assert_ne!(both.overall, Verdict::Degraded, "{:?}", both.judgements);
}

#[test]
fn the_comparisons_that_share_it_are_those_that_were_planned_whatever_decides_them() {
    let (comparison, _) = judged_by_answers(14, 5);
    // The other one could not be run.
    let planned = Comparison { comparisons: 2, ..comparison.clone() };
    assert_ne!(conclude([&planned]).overall, Verdict::Degraded);
    // Bits decide the other one.
    let by_bits = compare(&Scene::new(40, 4, 0.5).evidence(), &Criteria::default()).unwrap();
    let judgements = conclude([&comparison, &by_bits]).judgements;
    assert_eq!(judgements[1].decided_by, Rung::BitExact);
    assert_ne!(judgements[0].verdict, Verdict::Degraded, "{}", judgements[0].reason);
}

#[test]
fn a_change_beyond_the_margin_shares_it_too() {
    // The 90 % interval lies beyond the margin, as it does in one run of twenty that changes by just the margin.
    let (comparison, judgement) = judged_by_answers(0, 42);
    let test = comparison.answers.generated.against_reference;
    assert!(test.beyond_margin && test.change_p_value > 0.1 * ANSWERS_ALPHA, "{}", test.change_p_value);
    assert_ne!(judgement.verdict, Verdict::Degraded, "{}", judgement.reason);
}

#[test]
fn planned_and_reported_questions_agree() {
    let (comparison, _) = judged_by_answers(6, 7);
    let planned = plan_questions(&[300; 20], 1, &answers_alone());
    assert_eq!(comparison.answers.questions_needed, planned.questions_needed, "{}", planned.words);
}

#[test]
fn a_gain_beyond_the_margin_is_a_change_and_so_degraded() {
    let (_, judgement) = judged_by_answers(0, 60);
    assert_eq!(judgement.verdict, Verdict::Degraded, "{}", judgement.reason);
}

#[test]
fn many_harms_of_many_subjects_are_beyond_doubt() {
    let harmed = |subjects| {
        let mut scene = Scene::new(40, subjects, 1.0);
        scene.without_control().edit_all(ArmName::Load, |number, observation| {
            if number < 13 {
                err(observation);
            }
        });
        judged(&scene.evidence()).1
    };
    let judgement = harmed(20);
    assert_eq!((judgement.verdict, judgement.decided_by), (Verdict::Degraded, Rung::EarlyStop));
    assert!(judgement.reason.contains("turned 13 right answers wrong"), "{}", judgement.reason);
    // The flips of one subject may hang together.
    assert_ne!(harmed(1).decided_by, Rung::EarlyStop);
}

/// Chooses the token behind the runner-up, which leaves answers and letters alone.
fn part_beyond_the_gap(observation: &mut Observation) {
    observation.steps[1].chosen = TokenLogprob { token: 7, logprob: -6.0 };
}

#[test]
fn tokens_that_part_beyond_the_gap_are_degraded_without_any_control() {
    let mut scene = Scene::new(40, 4, 0.9);
    for question in [3, 9, 14, 20, 22, 31, 33, 38] {
        scene.edit(ArmName::Load, question, part_beyond_the_gap);
    }
    let (comparison, _) = assert_judged(scene.without_control(), Verdict::Degraded, Rung::NearTies);
    // Eight of eight on one side of two: 40·39···33 ÷ 80·79···73.
    assert!((comparison.near_ties.p_value - 0.002_65).abs() < 1e-5, "{}", comparison.near_ties.p_value);
}

#[test]
fn one_token_beyond_the_gap_is_no_proof() {
    let mut scene = Scene::new(40, 4, 0.9);
    scene.without_control().edit_all(ArmName::Load, |_, observation| nudge(observation, 1e-3));
    scene.edit(ArmName::Load, 3, part_beyond_the_gap);
    let (comparison, judgement) = assert_judged(&mut scene, Verdict::Inconclusive, Rung::NearTies);
    assert!((comparison.near_ties.p_value - 0.5).abs() < 1e-12);
    assert!(judgement.reason.contains("on 40 pairs of answers"), "{}", judgement.reason);
}

#[test]
fn a_rung_whose_noise_was_hardly_observed_does_not_convict() {
    // Under memory pressure the control was served as planned for two questions of forty, so its noise reads nothing.
    let pressed = |change: fn(&mut Observation)| {
        let mut scene = Scene::new(40, 4, 0.9);
        scene.edit_all(ArmName::Control, |number, observation| {
            if number >= 2 {
                observation.cached_tokens = 0;
            }
        });
        for question in (2..40).step_by(3) {
            scene.edit(ArmName::Load, question, change);
        }
        Evidence { batching: Batching::Together, ..scene.evidence() }
    };
    let (comparison, judgement) = judged(&pressed(part_beyond_the_gap));
    assert_eq!((judgement.verdict, judgement.decided_by), (Verdict::Inconclusive, Rung::NearTies));
    assert_eq!((comparison.near_ties.load.beyond_gap, comparison.near_ties.innocent.compared), (13, 4));
    assert!(judgement.reason.contains("on 4 pairs of answers"), "{}", judgement.reason);
    let (_, judgement) = judged(&pressed(|observation| observation.letters.rotate_left(1)));
    assert_eq!((judgement.verdict, judgement.decided_by), (Verdict::Inconclusive, Rung::Distribution));
}

#[test]
fn answers_bring_their_own_noise_and_convict_by_how_many_flips_go_one_way() {
    // Of 6000 questions the control was served as planned for two; the load pass is held against the baseline.
    let pressed = |harms: usize, gains: usize| {
        let mut scene = with_flips(harms, gains);
        noisy(scene.with_control()).edit_all(ArmName::Control, |number, observation| {
            if number >= 2 {
                observation.cached_tokens = 0;
            }
        });
        let comparison = compare(&scene.evidence(), &answers_alone()).unwrap();
        assert_eq!(comparison.near_ties.innocent.compared, 4);
        conclude([&comparison]).judgements.remove(0)
    };
    // As many harms as gains, few harms alone, and both by chance: what noise does.
    for (harms, gains) in [(20, 20), (3, 0), (9, 5)] {
        let judgement = pressed(harms, gains);
        assert_ne!(judgement.verdict, Verdict::Degraded, "{}", judgement.reason);
    }
    assert_eq!(pressed(20, 6).verdict, Verdict::Degraded);
}

#[test]
fn the_more_was_seen_of_the_noise_the_fewer_partings_it_takes_to_convict() {
    let parted = |observed: usize, partings: usize| {
        let mut scene = Scene::new(320, 8, 0.9);
        scene.edit_all(ArmName::Control, |number, observation| {
            if number >= observed {
                observation.cached_tokens = 0;
            }
        });
        for question in 0..partings {
            scene.edit(ArmName::Load, 319 - question, part_beyond_the_gap);
        }
        let evidence = Evidence { batching: Batching::Together, ..scene.evidence() };
        judged(&evidence).1.verdict == Verdict::Degraded
    };
    let needed = |observed| (1..=320).find(|partings| parted(observed, *partings));
    // Of 320: five if all of the noise was seen, more if half of it was, and most of them if nearly nothing was.
    assert_eq!([320, 160, 40, 2].map(needed), [Some(5), Some(8), Some(24), Some(239)]);
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
fn subjects_that_move_as_one_do_not_pass_for_many_questions() {
    // Twelve harms in one subject of twenty: beyond chance question by question, not subject by subject.
    let mut scene = Scene::new(6000, 20, 0.7);
    let published: Vec<Choice> = scene.questions.iter().map(|asked| asked.answer).collect();
    let mut harms = 12;
    scene.without_control().edit_all(ArmName::Load, |number, observation| {
        nudge(observation, 0.01);
        if number % 20 == 3 && harms > 0 && read_letter(observation) == Some(published[number]) {
            harms -= 1;
            err(observation);
        }
    });
    let comparison = compare(&scene.evidence(), &answers_alone()).unwrap();
    let test = comparison.answers.generated.against_baseline;
    assert_eq!((test.table.harms, test.table.gains, test.subjects), (12, 0, 20));
    assert!(test.loss_p_value < 0.001);
    assert!((test.robust_loss_p_value() - 0.5).abs() < 1e-12);
    let judgement = conclude([&comparison]).judgements.remove(0);
    assert_ne!(judgement.verdict, Verdict::Degraded, "{}", judgement.reason);
}

/// Fails on a load pass of which every fourth question is changed, passes without, and does not apply where a run without
/// the cache is changed alike: one of the rungs 2 and 3, whichever `tolerance` leaves within reach.
#[track_caller]
fn assert_judges_alone(tolerance: Tolerance, change: impl Fn(&mut Observation)) {
    let criteria = Criteria { tolerance, ..Criteria::default() };
    let outcomes = |changed: &[ArmName]| {
        let mut scene = Scene::new(40, 4, 0.9);
        for arm in changed {
            scene.edit_all(*arm, |number, observation| {
                if number % 4 == 0 {
                    change(observation);
                }
            });
        }
        let comparison = compare(&scene.evidence(), &criteria).unwrap();
        [comparison.near_ties.outcome, comparison.distribution.outcome]
    };
    assert_eq!(outcomes(&[]), [Outcome::Passed; 2]);
    let failed = outcomes(&[ArmName::Load]);
    assert_eq!(failed.iter().filter(|outcome| **outcome == Outcome::Failed).count(), 1, "{failed:?}");
    for innocent in [ArmName::Repeat, ArmName::Control] {
        let excused =
            failed.map(|outcome| if outcome == Outcome::Failed { Outcome::DoesNotApply } else { outcome });
        assert_eq!(outcomes(&[innocent, ArmName::Load]), excused, "{innocent}");
    }
}

#[test]
fn each_measure_fails_on_its_own_and_only_where_runs_without_the_cache_stay_still() {
    let out_of_reach = answers_alone().tolerance;
    let choose_the_second = |observation: &mut Observation| {
        observation.steps[0].top.swap(0, 1);
        observation.steps[0].chosen = observation.steps[0].top[0];
    };
    let turn_letters = |observation: &mut Observation| observation.letters.rotate_left(1);
    assert_judges_alone(Tolerance { beyond_gap_rate: 0.001, ..out_of_reach }, choose_the_second);
    assert_judges_alone(Tolerance { flip_rate: 0.02, ..out_of_reach }, choose_the_second);
    assert_judges_alone(Tolerance { mean_divergence: 0.01, ..out_of_reach }, turn_letters);
    assert_judges_alone(Tolerance { letter_difference: 1.0, ..out_of_reach }, turn_letters);
}

#[test]
fn equivalence_must_hold_subject_by_subject_too() {
    // Fifteen gains in one subject, fourteen harms in another: nearly no change, but not a steady one.
    let mut scene = Scene::new(6000, 20, 0.7);
    let published: Vec<Choice> = scene.questions.iter().map(|asked| asked.answer).collect();
    let (mut harms, mut gains) = (14, 15);
    scene.without_control().edit_all(ArmName::Load, |number, observation| {
        nudge(observation, 0.01);
        let right = read_letter(observation) == Some(published[number]);
        if number % 20 == 3 && right && harms > 0 {
            harms -= 1;
            err(observation);
        } else if number % 20 == 4 && !right && gains > 0 {
            gains -= 1;
            say(observation, published[number]);
        }
    });
    let comparison = compare(&scene.evidence(), &answers_alone()).unwrap();
    let test = comparison.answers.generated.against_baseline;
    assert!(test.interval.lies_within(0.005) && !test.within_margin, "{test:?}");
    let judgement = conclude([&comparison]).judgements.remove(0);
    assert_eq!(judgement.verdict, Verdict::Inconclusive, "{}", judgement.reason);
    assert!(judgement.reason.contains("with subjects as clusters"), "{}", judgement.reason);
}

#[test]
fn what_the_control_loses_as_well_is_not_blamed_on_the_cache() {
    let mut scene = Scene::new(6000, 20, 0.7);
    for arm in [ArmName::Control, ArmName::Load] {
        scene.edit_all(arm, |number, observation| {
            if number % 500 == 7 {
                err(observation);
            }
        });
    }
    noisy(&mut scene).edit(ArmName::Load, 5, |observation| nudge(observation, 0.01));
    let comparison = compare(&scene.evidence(), &answers_alone()).unwrap();
    let generated = &comparison.answers.generated;
    assert!(generated.against_baseline.table.harms > 5);
    assert_eq!(generated.against_reference.table.discordant(), 0);
    let judgement = conclude([&comparison]).judgements.remove(0);
    assert_ne!(judgement.verdict, Verdict::Degraded, "{}", judgement.reason);
}
