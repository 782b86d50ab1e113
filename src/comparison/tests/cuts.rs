//! Prefixes of stored prompts, behind the load pass.

use crate::comparison::scene::{Scene, made_up_kv};
use crate::comparison::{
    Batching, Bound, Comparison, Criteria, CutEvidence, CutHits, Evidence, Judgement, Outcome, Pass, Rung,
    ServerEvidence, Service, Sharding, Verdict, compare, conclude, find_wrong_cells, join_evidence,
};
use crate::model::{KvRecord, LayerDigests};

const CUTS: usize = 5;

fn cut() -> Scene {
    let mut scene = Scene::new(40, 4, 0.9);
    scene.with_cuts(CUTS).with_kv();
    scene
}

fn judge(evidence: &Evidence) -> (Comparison, Judgement) {
    let comparison = compare(evidence, &Criteria::default()).unwrap();
    let judgement = conclude([&comparison]).judgements.remove(0);
    (comparison, judgement)
}

/// Makes the only chunk of a prefix wrong in its second layer on rank 0.
fn spoil(scene: &mut Scene, number: usize) {
    let KvRecord::Request { chunks, .. } = &mut scene.kv().cut[number] else { panic!("it was observed") };
    chunks[0].first = LayerDigests::new(vec![made_up_kv(number, 0, 0, 0), 99]);
}

#[test]
fn right_prefixes_change_no_verdict_and_are_counted() {
    let (comparison, judgement) = judge(&cut().evidence());
    assert_eq!((judgement.verdict, judgement.decided_by), (Verdict::Equivalent, Rung::Kv), "{judgement:?}");
    // A chunk of a prefix is a cell in two layers on two ranks.
    assert_eq!((comparison.kv.served, comparison.kv.served_to_cuts), (40 * 8 + 20, 20));
    assert!(judgement.reason.contains("Prefixes of stored prompts read 20 of them."), "{}", judgement.reason);
    let CutHits::Asked(hits) = &comparison.exercised.cut else { panic!("they were asked") };
    assert_eq!((hits.requests, hits.predicted_tokens, hits.cached_tokens), (5, 5 * 256, 5 * 256));
    assert_eq!((comparison.bit_exact.cuts.compared, comparison.bit_exact.cuts.differing), (5, 0));
}

#[test]
fn a_wrong_cell_that_only_a_prefix_reads_is_harm_and_is_named() {
    let mut scene = cut();
    spoil(&mut scene, 3);
    for batching in [Batching::OneAtATime, Batching::Together] {
        let evidence = Evidence { batching, ..scene.evidence() };
        let (comparison, judgement) = judge(&evidence);
        assert_eq!((judgement.verdict, judgement.decided_by), (Verdict::Degraded, Rung::Kv));
        let first = &comparison.kv.first[0];
        assert_eq!((first.pass, first.chunk, comparison.kv.wrong_cells()), (Pass::Cut, 0, 1));
        assert_eq!(find_wrong_cells(&evidence).unwrap(), std::slice::from_ref(first));
        assert_eq!(comparison.kv.maps[0].chunks, [".X"]);
    }
    let first = &judge(&scene.evidence()).0.kv.first[0];
    insta::assert_snapshot!(first.words(), @"subject_03/test/1, cut pass, chunk 1, layer 1, rank 0: wrong when read and at the end");
}

#[test]
fn prefixes_must_be_served_the_chunks_that_are_in_them() {
    let served = |tokens| {
        let mut scene = cut();
        scene.cuts()[2].observation.cached_tokens = tokens;
        judge(&scene.evidence())
    };
    let (comparison, judgement) = served(0);
    assert_eq!((judgement.verdict, judgement.decided_by), (Verdict::NotExercised, Rung::Exercised));
    assert!(
        judgement.reason.contains("1024 of 1280 tokens in the cut pass; 1 of 5 requests"),
        "{}",
        judgement.reason
    );
    assert_eq!(comparison.exercised.offenders[0].pass, Pass::Cut);
    let (_, judgement) = served(257);
    assert_eq!((judgement.verdict, judgement.decided_by), (Verdict::Degraded, Rung::Exercised));
    assert!(judgement.reason.contains("0 of the load pass and 1 of the cut pass"), "{}", judgement.reason);
}

#[test]
fn the_server_must_have_counted_what_prefixes_were_served() {
    let judged = |change: fn(&mut ServerEvidence)| {
        let mut evidence = cut().evidence();
        let server = evidence.server.as_mut().unwrap();
        server.sharding = Some(Sharding {
            chunk_tokens: 256,
            stored_chunks: 80,
            written_shards: 1,
            read_shards: 1,
            bound: Bound::Exactly,
        });
        server.store.chunks_written = 80;
        change(server);
        judge(&evidence)
    };
    assert_eq!(judged(|_| ()).1.verdict, Verdict::Equivalent);
    let (comparison, judgement) = judged(|server| server.cut.hit_tokens = 1024);
    assert_eq!((judgement.verdict, judgement.decided_by), (Verdict::NotExercised, Rung::Exercised));
    assert_eq!(comparison.exercised.service, Service::CountersDisagree);
    assert!(judgement.reason.contains("cut pass: vLLM says 1280 tokens, the server 1024"), "{judgement:?}");
    let (_, judgement) = judged(|server| server.cut.chunks_read = 4);
    assert!(
        judgement.reason.contains("cut pass: 5 chunks had to be read, the server counts 4"),
        "{judgement:?}"
    );
}

/// Prefixes whose controls were served otherwise, so that bits cannot hold them; this one of them says something else.
fn parted_prefix(scene: &mut Scene, number: usize) {
    let cut = &mut scene.cuts()[number];
    cut.control.as_mut().unwrap().cached_tokens = 0;
    let was = cut.observation.steps[0].chosen;
    let other = cut.observation.steps[0].top[2];
    cut.observation.steps[0].chosen = other;
    cut.observation.steps[0].top[0] = other;
    cut.observation.steps[0].top[2] = was;
}

#[test]
fn a_prefix_that_bits_cannot_hold_is_held_by_near_ties() {
    let mut scene = Scene::new(40, 4, 0.9);
    scene.with_cuts(10);
    parted_prefix(&mut scene, 4);
    let evidence = |batching| Evidence { kv: None, batching, ..scene.evidence() };
    let (comparison, judgement) = judge(&evidence(Batching::OneAtATime));
    assert_eq!((comparison.bit_exact.cuts.compared, comparison.near_ties.cuts.beyond_gap), (9, 1));
    assert_eq!((judgement.verdict, judgement.decided_by), (Verdict::Degraded, Rung::NearTies));
    insta::assert_snapshot!(judgement.reason, @"1 of 10 prefixes of stored prompts part from what vLLM alone makes of them in a token that was no near tie (first: subject_00/test/2, generated token 1), and bits cannot be held against anything there. All others are bit-exact.");
    assert_eq!(comparison.near_ties.first[0].pass, Pass::Cut);
    // Together one may be chance, and most cannot be.
    assert_ne!(judge(&evidence(Batching::Together)).1.verdict, Verdict::Degraded);
    for number in [0, 1, 2, 3, 5, 6, 7, 8] {
        parted_prefix(&mut scene, number);
    }
    let evidence = Evidence { kv: None, batching: Batching::Together, ..scene.evidence() };
    let (_, judgement) = judge(&evidence);
    assert_eq!((judgement.verdict, judgement.decided_by), (Verdict::Degraded, Rung::NearTies));
    insta::assert_snapshot!(judgement.reason, @"0 of 40 questions and 9 of 10 prefixes of stored prompts part from the reference in a token that was no near tie, where 0 may (first: subject_00/test/1, cut pass, generated token 1). Runs of vLLM alone do so half as often at most.");
}

#[test]
fn chunks_that_were_just_being_loaded_for_another_prefix_excuse_it() {
    let mut scene = cut();
    scene.cuts()[2].observation.cached_tokens = 0;
    let KvRecord::Request { chunks, .. } = &mut scene.kv().cut[2] else { panic!("it was observed") };
    for chunk in chunks.iter_mut() {
        chunk.served = false;
    }
    let mut evidence = scene.evidence();
    evidence.server.as_mut().unwrap().cut.contended = 1;
    let (comparison, judgement) = judge(&evidence);
    assert_eq!(comparison.exercised.service, Service::AsPredicted);
    assert_eq!(judgement.verdict, Verdict::Equivalent, "{judgement:?}");
}

#[test]
fn what_most_prefixes_lack_is_no_chance_meeting() {
    let mut scene = cut();
    for number in 0..3 {
        scene.cuts()[number].observation.cached_tokens = 0;
    }
    let mut evidence = Evidence { kv: None, ..scene.evidence() };
    let service = |evidence: &Evidence| judge(evidence).0.exercised.service;
    evidence.server.as_mut().unwrap().cut.contended = 9;
    assert_eq!(service(&evidence), Service::UnderServed);
    let CutEvidence::Asked(cuts) = &mut evidence.cut else { panic!("they were asked") };
    for cut in &mut cuts[..2] {
        cut.observation.cached_tokens = cut.expected;
    }
    let server = evidence.server.as_mut().unwrap();
    (server.cut.hit_tokens, server.cut.chunks_read) = (4 * 256, 4);
    assert_eq!(service(&evidence), Service::AsPredicted);
    // A load that failed is no meeting.
    evidence.server.as_mut().unwrap().cut.failed_loads = 1;
    assert_eq!(service(&evidence), Service::UnderServed);
}

#[test]
fn answers_do_not_decide_where_nothing_holds_what_prefixes_were_served() {
    let evidence =
        Evidence { kv: None, batching: Batching::Together, ..Scene::new(6000, 20, 0.9).evidence() };
    assert_eq!(judge(&evidence).1.verdict, Verdict::Equivalent, "no prefixes were asked");
    let mut scene = Scene::new(6000, 20, 0.9);
    scene.with_cuts(CUTS);
    for cut in scene.cuts() {
        cut.control = None;
    }
    let evidence = Evidence { kv: None, batching: Batching::Together, ..scene.evidence() };
    let judgement = judge(&evidence).1;
    assert_eq!((judgement.verdict, judgement.decided_by), (Verdict::Inconclusive, Rung::Answers));
    assert!(judgement.reason.contains("5 prefixes of stored prompts"), "{}", judgement.reason);
}

#[test]
fn none_that_were_asked_are_told_as_none_that_could_be() {
    let evidence = Evidence { cut: CutEvidence::Asked(Vec::new()), ..Scene::new(40, 4, 0.9).evidence() };
    let CutHits::LeftOut { reason } = judge(&evidence).0.exercised.cut else { panic!("there are none") };
    assert!(reason.contains("no prompt that was asked has a chunk"), "{reason}");
}

#[test]
fn a_prefix_whose_bits_are_not_its_controls_is_harm_where_bits_decide() {
    let mut scene = cut();
    scene.cuts()[1].observation.letters[0] -= 1e-6;
    let evidence = |batching| Evidence { kv: None, batching, ..scene.evidence() };
    let (comparison, judgement) = judge(&evidence(Batching::OneAtATime));
    assert_eq!((judgement.verdict, judgement.decided_by), (Verdict::Degraded, Rung::BitExact));
    assert!(judgement.reason.starts_with("The cut pass differs from the control"), "{}", judgement.reason);
    assert_eq!(comparison.bit_exact.cuts.differing, 1);
    let (comparison, _) = judge(&evidence(Batching::Together));
    assert_eq!(comparison.bit_exact.outcome, Outcome::DoesNotApply);
    // What the control was served otherwise is no measure.
    let mut other = scene.evidence();
    if let CutEvidence::Asked(cuts) = &mut other.cut {
        cuts[1].control.as_mut().unwrap().cached_tokens = 0;
    }
    assert_eq!(judge(&other).1.verdict, Verdict::Equivalent);
}

#[test]
fn a_prefix_that_was_not_digested_proves_nothing() {
    let mut scene = cut();
    scene.kv().cut.remove(0);
    assert_eq!(judge(&scene.evidence()).0.kv.outcome, Outcome::DoesNotApply);
}

#[test]
fn prefixes_of_parts_are_those_of_the_whole() {
    let mut scene = cut();
    spoil(&mut scene, 3);
    let whole = scene.evidence();
    let part = |is_first: bool| {
        let is_in = |question: &crate::dataset::QuestionId| (question.row == 1) == is_first;
        let arm = |arm: &crate::comparison::Arm| arm.of_questions(is_in);
        let CutEvidence::Asked(cuts) = &whole.cut else { panic!("they were asked") };
        let cuts = cuts.iter().filter(|cut| is_in(&cut.observation.question)).cloned().collect();
        Evidence {
            questions: whole.questions.iter().filter(|asked| is_in(&asked.id)).cloned().collect(),
            baseline: arm(&whole.baseline),
            repeat: arm(&whole.repeat),
            control: whole.control.as_ref().map(arm),
            store: arm(&whole.store),
            load: arm(&whole.load),
            cut: CutEvidence::Asked(cuts),
            kv: None,
            server: None,
            ..whole.clone()
        }
    };
    let joined = join_evidence(vec![part(false), part(true)]).unwrap();
    let all = Evidence { kv: None, server: None, ..whole.clone() };
    assert_eq!(compare(&joined, &Criteria::default()).unwrap(), compare(&all, &Criteria::default()).unwrap());
    let without = Evidence { cut: CutEvidence::LeftOut { reason: "no".to_owned() }, ..part(true) };
    assert!(join_evidence(vec![part(false), without]).unwrap_err().to_string().starts_with("cut is"));
}
