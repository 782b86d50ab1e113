//! The KV itself on the ladder.

use crate::comparison::scene::{Scene, made_up_kv, say};
use crate::comparison::{
    ArmName, Batching, Comparison, Criteria, Evidence, Expected, Fidelity, Judgement, Outcome, Pass, Rung,
    SecondLook, Sight, Verdict, WrongWhen, compare, conclude, find_wrong_cells,
};
use crate::dataset::Choice;
use crate::model::{KvRecord, LayerDigests};

/// Several sequences at a time and a model at chance level, where nothing but the KV can show equivalence.
fn noisy() -> Scene {
    let mut scene = Scene::new(40, 4, 0.25);
    scene.with_kv().edit_all(ArmName::Load, |number, observation| {
        if number % 3 == 0 {
            observation.letters[0] -= 1e-4;
        }
    });
    scene
}

fn judged(scene: &Scene) -> (Comparison, Judgement) {
    judge(&Evidence { batching: Batching::Together, ..scene.evidence() })
}

fn judge(evidence: &Evidence) -> (Comparison, Judgement) {
    let comparison = compare(evidence, &Criteria::default()).unwrap();
    let judgement = conclude([&comparison]).judgements.remove(0);
    (comparison, judgement)
}

#[test]
fn right_kv_decides_where_neither_bits_nor_answers_can() {
    let (comparison, judgement) = judged(&noisy());
    assert_eq!((judgement.verdict, judgement.decided_by), (Verdict::Equivalent, Rung::Kv), "{judgement:?}");
    assert_eq!((comparison.kv.served, comparison.kv.computed), (40 * 2 * 2 * 2, 40 * 2 * 2 * 2));
    let evidence = Evidence { kv: None, batching: Batching::Together, ..noisy().evidence() };
    assert_eq!(judge(&evidence).1.verdict, Verdict::Inconclusive);
}

#[test]
fn where_the_suite_says_so_right_kv_decides_nothing_and_wrong_kv_convicts_all_the_same() {
    let criteria = Criteria { kv_decides: false, ..Criteria::default() };
    let judged = |scene: &Scene| {
        let evidence = Evidence { batching: Batching::Together, ..scene.evidence() };
        let judgement = conclude([&compare(&evidence, &criteria).unwrap()]).judgements.remove(0);
        (judgement.verdict, judgement.decided_by)
    };
    assert_eq!(judged(&noisy()), (Verdict::Inconclusive, Rung::Answers));
    let mut able = Scene::new(1000, 4, 0.5);
    assert_eq!(judged(able.with_kv()), (Verdict::Equivalent, Rung::BitExact));
    able.edit_all(ArmName::Load, |_, observation| observation.letters[0] -= 1e-4);
    assert_eq!(judged(&able), (Verdict::Equivalent, Rung::Answers));
    able.edit_kv(7, 1, |chunk| chunk.first = LayerDigests::new(vec![made_up_kv(7, 1, 0, 0), 99]));
    assert_eq!(judged(&able), (Verdict::Degraded, Rung::Kv));
}

#[test]
fn an_answer_that_is_no_number_is_harm_whatever_else_was_seen() {
    for arm in [ArmName::Store, ArmName::Load] {
        let mut scene = noisy();
        scene.edit_all(arm, |number, observation| {
            if number == 5 {
                (observation.no_numbers, observation.letters) = (true, [-10_000.0; 4]);
            }
        });
        for kv in [scene.evidence().kv, None] {
            let (comparison, judgement) =
                judge(&Evidence { kv, batching: Batching::Together, ..scene.evidence() });
            assert_eq!((judgement.verdict, judgement.decided_by), (Verdict::Degraded, Rung::Distribution));
            assert_eq!(comparison.without_numbers.unwrap().answers, 1);
            assert!(
                judgement.reason.ends_with("(first: subject_01/test/2), and all that it computes alone are.")
            );
        }
    }
}

#[test]
fn one_wrong_cell_is_harm_and_is_named() {
    let mut scene = noisy();
    scene.edit_kv(7, 1, |chunk| chunk.first = LayerDigests::new(vec![made_up_kv(7, 1, 0, 0), 99]));
    let (comparison, judgement) = judged(&scene);
    assert_eq!((judgement.verdict, judgement.decided_by), (Verdict::Degraded, Rung::Kv));
    let kv = &comparison.kv;
    assert_eq!((kv.wrong_when_read, kv.wrong_at_the_end, kv.late), (1, 1, 0));
    insta::assert_snapshot!(kv.first[0].words(), @"subject_03/test/2, load pass, chunk 2, layer 1, rank 0: wrong when read and at the end");
    assert_eq!(kv.maps[0].chunks, ["..", ".X"]);
}

#[test]
fn bytes_that_belong_elsewhere_are_recognised() {
    let cases = [
        (0x0000, "zeros"),
        (made_up_kv(7, 0, 1, 0), "the KV of chunk 1"),
        (made_up_kv(7, 1, 0, 0), "the KV of layer layer 0"),
        (made_up_kv(7, 1, 1, 1), "the KV of rank 1"),
        (made_up_kv(3, 1, 1, 0), "the KV of the prompt of subject_03/test/1"),
    ];
    for (digest, words) in cases {
        let digest = if digest == 0 { zeros() } else { digest };
        let mut scene = noisy();
        scene.edit_kv(7, 1, |chunk| chunk.first = LayerDigests::new(vec![made_up_kv(7, 1, 0, 0), digest]));
        assert_eq!(judged(&scene).0.kv.first[0].looks_like.as_deref(), Some(words));
    }
}

/// What the worker's arithmetic gives for a chunk of zeros.
fn zeros() -> u128 {
    0xd308_a385_886a_3f24_4473_7003_2e8a_1913
}

#[test]
fn kv_that_was_right_only_at_the_end_came_too_late() {
    let mut scene = noisy();
    scene.edit_kv(2, 0, |chunk| {
        chunk.last = Some(chunk.first.clone());
        chunk.first = LayerDigests::new(vec![5, made_up_kv(2, 0, 1, 0)]);
    });
    let (comparison, judgement) = judged(&scene);
    assert_eq!((comparison.kv.late, comparison.kv.first[0].when), (1, WrongWhen::WhenRead));
    assert!(judgement.reason.contains("attention read them too early"), "{}", judgement.reason);
}

#[test]
fn what_was_computed_must_stay_as_it_was_until_its_request_ends() {
    let mut scene = noisy();
    let KvRecord::Request { chunks, .. } = &mut scene.kv_of_store()[4] else { panic!() };
    chunks[0].last = Some(LayerDigests::new(vec![1, 2]));
    let (comparison, judgement) = judged(&scene);
    assert_eq!((comparison.kv.changed, judgement.verdict), (2, Verdict::Degraded));
}

#[test]
fn any_copy_of_the_same_prefix_is_a_right_one() {
    let mut scene = noisy();
    // The engine computed it twice, as after a preemption, with other bits.
    let again = LayerDigests::new(vec![11, 12]);
    let KvRecord::Request { chunks, .. } = &mut scene.kv_of_store()[4] else { panic!() };
    let mut second = chunks[0].clone();
    second.first = again.clone();
    chunks.push(second);
    scene.edit_kv(4, 0, |chunk| chunk.first = again);
    assert_eq!(judged(&scene).1.verdict, Verdict::Equivalent);
}

#[test]
fn what_was_not_seen_proves_nothing() {
    let mut without_digest = noisy();
    without_digest.kv_of_load()[5] =
        KvRecord::Request { question: without_digest.questions[5].id.clone(), chunks: Vec::new() };
    let mut without_origin = noisy();
    without_origin.kv_of_store().remove(5);
    let mut without_hook = noisy();
    without_hook.kv_of_load().push(KvRecord::NotObserved { reason: "this vLLM lacks a hook".to_owned() });
    let mut without_a_layer = noisy();
    let first_layer_alone = LayerDigests::new(vec![made_up_kv(5, 1, 0, 0)]);
    without_a_layer.edit_kv(5, 1, |chunk| chunk.first = first_layer_alone.clone());
    let mut with_an_absent_digest = noisy();
    with_an_absent_digest
        .edit_kv(5, 1, |chunk| chunk.first = LayerDigests::new(vec![made_up_kv(5, 1, 0, 0), 0]));
    for scene in [without_digest, without_origin, without_hook, without_a_layer, with_an_absent_digest] {
        let (comparison, judgement) = judged(&scene);
        assert_eq!(comparison.kv.outcome, Outcome::DoesNotApply, "{}", comparison.kv.words);
        assert_eq!(judgement.verdict, Verdict::Inconclusive);
    }
}

#[test]
fn right_kv_does_not_excuse_answers_that_move() {
    let mut scene = Scene::new(40, 4, 0.9);
    scene.with_kv().edit_all(ArmName::Load, |number, observation| {
        if number % 4 == 0 {
            say(observation, Choice::ALL[(number / 4) % 4]);
        }
    });
    let (comparison, judgement) = judged(&scene);
    assert_eq!(comparison.kv.outcome, Outcome::Passed);
    assert_eq!(judgement.verdict, Verdict::Degraded);
}

/// A prompt without a matching control errs in the load pass, and another one in control and load pass alike.
fn undecided(beyond_chunks: u32) -> (Comparison, Judgement) {
    let mut scene = Scene::new(40, 4, 0.9);
    scene.with_kv();
    scene.questions[0].expected.control = 256;
    scene.edit(ArmName::Control, 0, |observation| observation.cached_tokens = 256);
    for (arm, question) in [(ArmName::Load, 0), (ArmName::Control, 1), (ArmName::Load, 1)] {
        scene.edit(arm, question, |observation| {
            let letter = Choice::ALL[(observation.steps[0].chosen.token as usize + 1) % 4];
            say(observation, letter);
        });
    }
    scene.questions[7].expected.load += beyond_chunks;
    scene.edit(ArmName::Load, 7, |observation| observation.cached_tokens += beyond_chunks);
    judge(&Evidence { server: None, ..scene.evidence() })
}

#[test]
fn right_kv_leaves_open_what_outputs_leave_open_where_some_of_it_was_not_seen() {
    let (_, judgement) = undecided(0);
    assert_eq!((judgement.verdict, judgement.decided_by), (Verdict::Equivalent, Rung::Kv), "{judgement:?}");
    let (comparison, judgement) = undecided(10);
    assert_eq!(comparison.kv.outcome, Outcome::Passed);
    assert!(
        comparison
            .kv
            .words
            .ends_with(" 10 served tokens lie in no chunk that is held: of them only outputs tell.")
    );
    assert_eq!(judgement.verdict, Verdict::Inconclusive, "{judgement:?}");
}

#[test]
fn kv_stored_with_loss_is_no_copy_and_must_only_stay_as_it_was() {
    let mut scene = noisy();
    scene.edit_kv(7, 1, |chunk| chunk.first = LayerDigests::new(vec![98, 99]));
    let lossy = |scene: &Scene| Evidence { fidelity: Fidelity::Lossy, ..scene.evidence() };
    assert_eq!(judge(&lossy(&scene)).0.kv.outcome, Outcome::DoesNotApply);
    scene.edit_kv(7, 1, |chunk| chunk.last = Some(LayerDigests::new(vec![98, 97])));
    assert_eq!(judge(&lossy(&scene)).0.kv.outcome, Outcome::Failed);
}

#[test]
fn every_wrong_cell_can_be_named_where_a_comparison_names_the_first_few() {
    let mut scene = noisy();
    for question in 0..40 {
        scene.edit_kv(question, 0, |chunk| chunk.first = LayerDigests::new(vec![7, 8]));
    }
    let evidence = Evidence { batching: Batching::Together, ..scene.evidence() };
    let named = find_wrong_cells(&evidence).unwrap();
    let first = judge(&evidence).0.kv.first;
    assert_eq!((named.len(), first.len()), (80, 10));
    assert_eq!(named[..10], first);
}

#[test]
fn only_what_is_wrong_in_the_end_keeps_its_second_look() {
    let mut scene = noisy();
    scene.edit_kv(7, 1, |chunk| chunk.first = LayerDigests::new(vec![made_up_kv(7, 1, 0, 0), 99]));
    let question = scene.questions[7].id.clone();
    let look = |layer: &str| SecondLook {
        question: question.clone(),
        pass: Pass::Load,
        chunk: 1,
        layer: layer.to_owned(),
        rank: 0,
        sight: Sight::Gone { reason: "it is gone".to_owned() },
    };
    scene.kv().looks = vec![look("layer 0"), look("layer 1")];
    assert_eq!(judged(&scene).0.kv.looks, [look("layer 1")]);
}

/// One sequence at a time, with one cell of the store pass that the baseline computed otherwise.
fn disturbed() -> Scene {
    let mut scene = Scene::new(40, 4, 0.9);
    scene.with_kv();
    let other = |records: &mut Vec<KvRecord>| {
        let KvRecord::Request { chunks, .. } = &mut records[4] else { panic!() };
        let chunk = chunks.iter_mut().find(|chunk| (chunk.chunk, chunk.rank) == (1, 0)).unwrap();
        chunk.first = LayerDigests::new(vec![made_up_kv(4, 1, 0, 0), 77]);
    };
    other(&mut scene.kv().store);
    other(&mut scene.kv().load);
    scene
}

#[test]
fn a_store_pass_that_computes_other_kv_than_the_baseline_was_disturbed() {
    let (comparison, judgement) = judge(&disturbed().evidence());
    let computed = comparison.kv.as_baseline.unwrap();
    assert_eq!((computed.outcome, computed.compared, computed.differing), (Outcome::Failed, 40 * 8, 1));
    assert_eq!(comparison.kv.outcome, Outcome::Passed);
    assert_eq!((judgement.verdict, judgement.decided_by), (Verdict::Degraded, Rung::Kv));
    insta::assert_snapshot!(judgement.reason, @"1 of 320 cells that the store pass computed differ from the baseline's, 0 of 320 of its repeat. The baseline's KV repeats itself bit for bit, so this is no noise. First: subject_00/test/2, chunk 2, layer 1, rank 0. Nothing was served there, so storing disturbs what is computed.");
}

#[test]
fn a_disturbed_store_pass_is_told_even_where_nothing_was_served() {
    let mut scene = disturbed();
    scene.edit_all(ArmName::Load, |_, observation| observation.cached_tokens = 0);
    assert_eq!(judge(&scene.evidence()).1.verdict, Verdict::Degraded);
}

#[test]
fn other_kv_than_the_baselines_proves_nothing_where_the_baseline_or_its_batches_move() {
    let together = Evidence { batching: Batching::Together, ..disturbed().evidence() };
    let mut unsteady = disturbed();
    let KvRecord::Request { chunks, .. } = &mut unsteady.kv().repeat[9] else { panic!() };
    chunks[0].first = LayerDigests::new(vec![1, 2]);
    let mut unseen = disturbed();
    unseen.kv().repeat.clear();
    // Every cell other and not one log-probability: another form of the same numbers.
    let mut in_another_form = Scene::new(40, 4, 0.9);
    in_another_form.with_kv();
    for record in &mut in_another_form.kv().baseline {
        let KvRecord::Request { chunks, .. } = record else { panic!() };
        for chunk in chunks {
            chunk.first = LayerDigests::new(vec![1, 2]);
        }
    }
    in_another_form.kv().repeat = in_another_form.kv().baseline.clone();
    for evidence in [together, unsteady.evidence(), unseen.evidence(), in_another_form.evidence()] {
        let (comparison, judgement) = judge(&evidence);
        let computed = comparison.kv.as_baseline.unwrap();
        assert_eq!(computed.outcome, Outcome::DoesNotApply, "{}", computed.words);
        assert_ne!(judgement.verdict, Verdict::Degraded, "{}", judgement.reason);
    }
}

#[test]
fn a_store_pass_that_was_served_itself_is_not_held_against_the_baseline() {
    let mut scene = disturbed();
    scene.questions[4].expected.store_at_most = 256;
    scene.edit(ArmName::Store, 4, |observation| observation.cached_tokens = 256);
    let computed = judge(&scene.evidence()).0.kv.as_baseline.unwrap();
    assert_eq!((computed.outcome, computed.compared), (Outcome::Passed, 39 * 8));
}

#[test]
fn bits_prove_nothing_of_a_prompt_that_the_store_pass_computed_otherwise_behind_a_served_prefix() {
    let behind_a_prefix = |mut scene: Scene| {
        scene.questions[4].expected.store_at_most = 256;
        scene.edit(ArmName::Store, 4, |observation| observation.cached_tokens = 256);
        scene.edit(ArmName::Load, 4, |observation| {
            let listed = &mut observation.steps[1].top[1];
            listed.logprob = f32::from_bits(listed.logprob.to_bits() ^ 1);
        });
        judge(&scene.evidence())
    };
    let (comparison, judgement) = behind_a_prefix(disturbed());
    assert_eq!(
        (comparison.bit_exact.against_control.compared, comparison.bit_exact.left_over.questions),
        (39, 1)
    );
    assert_ne!(judgement.verdict, Verdict::Degraded, "{}", judgement.reason);

    let mut as_computed = Scene::new(40, 4, 0.9);
    as_computed.with_kv();
    let (_, judgement) = behind_a_prefix(as_computed);
    assert_eq!((judgement.verdict, judgement.decided_by), (Verdict::Degraded, Rung::BitExact));
}

/// What a lossy form of storage makes of each computed cell, by its declared arithmetic: the served cells of the load pass.
fn stored_with_loss() -> Scene {
    let lossy =
        |digests: &LayerDigests| LayerDigests::new(digests.iter().flatten().map(|digest| !digest).collect());
    let mut scene = noisy();
    let kv = scene.kv();
    for record in kv.store.iter_mut().chain(&mut kv.load) {
        let KvRecord::Request { chunks, .. } = record else { panic!() };
        for chunk in chunks {
            if chunk.served {
                chunk.first = lossy(&chunk.first);
            } else {
                chunk.stored = Some(lossy(&chunk.first));
            }
        }
    }
    scene
}

#[test]
fn what_is_stored_with_a_declared_loss_must_be_what_that_makes_of_it() {
    let lossy = |scene: &Scene| Evidence { fidelity: Fidelity::Lossy, ..scene.evidence() };
    let mut scene = stored_with_loss();
    let (comparison, judgement) = judge(&lossy(&scene));
    assert_eq!(comparison.kv.outcome, Outcome::Passed, "{}", comparison.kv.words);
    // What the loss does to the answers is not for this rung to say.
    assert_eq!(judgement.decided_by, Rung::Answers);

    // Another scale, or no loss at all: other bytes than the declared ones.
    scene.edit_kv(7, 1, |chunk| chunk.first = LayerDigests::new(vec![98, !made_up_kv(7, 1, 1, 0)]));
    let (comparison, judgement) = judge(&lossy(&scene));
    assert_eq!((judgement.verdict, judgement.decided_by), (Verdict::Degraded, Rung::Kv));
    assert_eq!((comparison.kv.wrong_cells(), comparison.kv.first[0].layer.as_str()), (1, "layer 0"));
    // Another chunk's.
    let mut scene = stored_with_loss();
    let other = [0, 1].map(|layer| !made_up_kv(7, 0, layer, 0)).to_vec();
    scene.edit_kv(7, 1, |chunk| chunk.first = LayerDigests::new(other));
    let kv = judge(&lossy(&scene)).0.kv;
    assert_eq!((kv.wrong_cells(), kv.first[0].looks_like.as_deref()), (2, Some("the KV of chunk 1")));
}

/// A run whose first prompt is two chunks long and served whole, with what was digested of its second chunk in the load pass on
/// each rank: as it was loaded, and nothing behind it.
fn with_a_whole_prompt() -> Scene {
    let mut scene = noisy();
    scene.questions[0].expected = Expected { prompt_tokens: 512, store_at_most: 0, load: 511, control: 511 };
    for arm in [ArmName::Baseline, ArmName::Repeat, ArmName::Control, ArmName::Store, ArmName::Load] {
        scene.edit(arm, 0, |observation| observation.prompt_tokens = 512);
    }
    for arm in [ArmName::Control, ArmName::Load] {
        scene.edit(arm, 0, |observation| observation.cached_tokens = 511);
    }
    let KvRecord::Request { chunks, .. } = &mut scene.kv().load[0] else { panic!("it was observed") };
    for chunk in chunks.iter_mut().filter(|chunk| chunk.chunk == 1) {
        chunk.last = Some(LayerDigests::new(vec![0, 0]));
    }
    scene
}

#[test]
fn the_last_chunk_of_a_whole_prompt_is_held_as_it_was_loaded() {
    let (comparison, judgement) = judged(&with_a_whole_prompt());
    assert_eq!((judgement.verdict, judgement.decided_by), (Verdict::Equivalent, Rung::Kv), "{judgement:?}");
    assert_eq!((comparison.kv.served, comparison.kv.left_out), (40 * 2 * 2 * 2, 0));

    let mut spoilt = with_a_whole_prompt();
    spoilt.edit_kv(0, 1, |chunk| chunk.first = LayerDigests::new(vec![made_up_kv(0, 1, 0, 0), 99]));
    let (comparison, judgement) = judged(&spoilt);
    assert_eq!((judgement.verdict, judgement.decided_by), (Verdict::Degraded, Rung::Kv));
    assert_eq!((comparison.kv.first[0].chunk, comparison.kv.wrong_cells()), (1, 1));

    let mut unseen = with_a_whole_prompt();
    let KvRecord::Request { chunks, .. } = &mut unseen.kv().load[0] else { panic!("it was observed") };
    chunks.retain(|chunk| chunk.chunk != 1);
    let (comparison, _) = judged(&unseen);
    assert_eq!((comparison.kv.outcome, comparison.kv.missing), (Outcome::DoesNotApply, 2));
}

#[test]
fn the_last_chunk_of_a_whole_prompt_is_left_out_where_its_last_row_need_not_be_loaded() {
    let mut scene = with_a_whole_prompt();
    scene.edit_kv(0, 1, |chunk| chunk.first = LayerDigests::new(vec![98, 99]));
    let mut evidence = Evidence { batching: Batching::Together, ..scene.evidence() };
    evidence.kv.as_mut().unwrap().loads_whole_chunks = false;
    let (comparison, judgement) = judge(&evidence);
    assert_eq!((judgement.verdict, judgement.decided_by), (Verdict::Equivalent, Rung::Kv), "{judgement:?}");
    assert_eq!((comparison.kv.left_out, comparison.kv.missing), (1, 0));
}

#[test]
fn wrong_kv_is_harm_also_where_the_load_pass_was_served_nothing() {
    let unserved = || {
        let mut scene = noisy();
        scene.edit_all(ArmName::Load, |_, observation| observation.cached_tokens = 0);
        for record in &mut scene.kv().load {
            let KvRecord::Request { chunks, .. } = record else { panic!("it was observed") };
            for chunk in chunks {
                chunk.served = false;
            }
        }
        scene
    };
    assert_eq!(judged(&unserved()).1.verdict, Verdict::NotExercised);
    let mut scene = unserved();
    let KvRecord::Request { chunks, .. } = &mut scene.kv().store[4] else { panic!("it was observed") };
    chunks[0].last = Some(LayerDigests::new(vec![1, 2]));
    let (_, judgement) = judged(&scene);
    assert_eq!((judgement.verdict, judgement.decided_by), (Verdict::Degraded, Rung::Kv), "{judgement:?}");
    assert!(judgement.reason.contains("LMCache served not one of the"), "{}", judgement.reason);
}

/// Two ranks whose second layer sees 256 tokens: of 512 that are served it holds the last chunk alone.
fn with_windows() -> Scene {
    let mut scene = noisy();
    scene.kv().windows = vec![vec![None, Some(256)]; 2];
    scene.kv().block_tokens = 128;
    for record in &mut scene.kv().load {
        let KvRecord::Request { chunks, .. } = record else { panic!("it was observed") };
        for chunk in chunks.iter_mut().filter(|chunk| chunk.chunk == 0) {
            let full = chunk.first.of_layer(0).unwrap();
            chunk.first = LayerDigests::new(vec![full, 0]);
        }
    }
    scene
}

#[test]
fn a_layer_that_sees_a_window_need_not_hold_what_lies_before_it() {
    let (comparison, judgement) = judged(&with_windows());
    assert_eq!((judgement.verdict, judgement.decided_by), (Verdict::Equivalent, Rung::Kv), "{judgement:?}");
    assert_eq!((comparison.kv.served, comparison.kv.not_digested), (40 * 2 * 3, 0));
    // A wider window, or none, would hold it.
    for windows in [Vec::new(), vec![vec![None, Some(512)]; 2]] {
        let mut scene = with_windows();
        scene.kv().windows = windows;
        assert_eq!(judged(&scene).0.kv.not_digested, 40 * 2);
    }
    // What lies within it must be there.
    let mut scene = with_windows();
    scene.edit_kv(3, 1, |chunk| chunk.first = LayerDigests::new(vec![made_up_kv(3, 1, 0, 0), 0]));
    assert_eq!(judged(&scene).0.kv.outcome, Outcome::DoesNotApply);
}

#[test]
fn a_layer_of_which_nothing_was_held_proves_nothing() {
    // A window of half a chunk: what is left of a chunk has no digest.
    let mut scene = with_windows();
    scene.kv().windows = vec![vec![None, Some(128)]; 2];
    for record in &mut scene.kv().load {
        let KvRecord::Request { chunks, .. } = record else { panic!("it was observed") };
        for chunk in chunks {
            let full = chunk.first.of_layer(0).unwrap();
            chunk.first = LayerDigests::new(vec![full, 0]);
        }
    }
    let comparison = judged(&scene).0;
    assert_eq!((comparison.kv.unheld_layers, comparison.kv.outcome), (2, Outcome::DoesNotApply));
    assert!(comparison.kv.words.starts_with("2 layers keep a window"), "{}", comparison.kv.words);
}

/// Of layers that keep a state each served chunk but the last has none.
fn with_states() -> Scene {
    let mut scene = with_windows();
    scene.kv().windows = vec![vec![None, Some(1)]; 2];
    scene
}

#[test]
fn a_layer_that_keeps_a_state_is_held_by_the_last_one_that_was_served() {
    let (comparison, judgement) = judged(&with_states());
    assert_eq!((judgement.verdict, judgement.decided_by), (Verdict::Equivalent, Rung::Kv), "{judgement:?}");
    // It must be there.
    let mut scene = with_states();
    scene.edit_kv(3, 1, |chunk| chunk.first = LayerDigests::new(vec![made_up_kv(3, 1, 0, 0), 0]));
    assert_eq!((judged(&scene).0.kv.not_digested, judged(&scene).0.kv.outcome), (1, Outcome::DoesNotApply));
    assert_eq!(comparison.kv.not_digested, 0);
    // An old one is another one.
    let mut scene = with_states();
    scene.edit_kv(7, 1, |chunk| chunk.first = LayerDigests::new(vec![made_up_kv(7, 1, 0, 0), 99]));
    let (comparison, judgement) = judged(&scene);
    assert_eq!((judgement.verdict, judgement.decided_by), (Verdict::Degraded, Rung::Kv));
    insta::assert_snapshot!(comparison.kv.first[0].words(), @"subject_03/test/2, load pass, chunk 2, layer 1 (recurrent state), rank 0: wrong when read and at the end");
}

#[test]
fn a_wrong_cell_of_a_layer_that_sees_a_window_is_named_with_it() {
    let mut scene = with_windows();
    scene.edit_kv(7, 1, |chunk| chunk.first = LayerDigests::new(vec![made_up_kv(7, 1, 0, 0), 99]));
    let (comparison, judgement) = judged(&scene);
    assert_eq!((judgement.verdict, judgement.decided_by), (Verdict::Degraded, Rung::Kv));
    insta::assert_snapshot!(comparison.kv.first[0].words(), @"subject_03/test/2, load pass, chunk 2, layer 1 (sliding window of 256 tokens), rank 0: wrong when read and at the end");
    assert_eq!(comparison.kv.maps[0].chunks, ["._", ".X"]);
}

#[test]
fn a_window_gives_away_whole_blocks_behind_the_first_token_that_goes_on() {
    let kept = |served: u32, block: u32| -> Vec<u32> {
        let mut scene = with_windows();
        scene.kv().block_tokens = block;
        let kv = scene.kv().clone();
        (0..4).filter(|chunk| kv.keeps(512, *chunk, served)).collect()
    };
    assert_eq!(kept(1024, 128), [2, 3]);
    // The last token is computed again: it sees itself and 511 before it.
    assert_eq!(kept(1023, 128), [2, 3]);
    assert_eq!(kept(1022, 128), [2, 3]);
    assert_eq!(kept(768, 128), [1, 2, 3]);
    assert_eq!(kept(700, 128), [1, 2, 3]);
    assert_eq!(kept(700, 256), [0, 1, 2, 3]);
    assert_eq!(kept(0, 128), [0, 1, 2, 3]);
}
