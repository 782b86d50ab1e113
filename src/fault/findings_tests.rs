use super::*;
use crate::comparison::{
    Arm, ArmName, Asked, Batching, Criteria, CutEvidence, Evidence, Expected, Fidelity, ServerEvidence,
    WithoutNumbers, compare,
};
use crate::dataset::{Choice, Split};
use crate::fault::{Arrangement, CATALOGUE, Fault};
use crate::model::{Dtype, KvShape, Observation, Step, TokenLogprob};

const QUESTIONS: u32 = 4;
const SERVED: u32 = 512;

fn observation(row: u32, cached_tokens: u32, logprob: f32) -> Observation {
    let top = vec![TokenLogprob { token: 0, logprob }, TokenLogprob { token: 1, logprob: -3.0 }];
    Observation {
        question: QuestionId { subject: "anatomy".parse().unwrap(), split: Split::Test, row },
        prompt_tokens: 600,
        cached_tokens,
        preemptions: 0,
        served_again: Vec::new(),
        no_numbers: false,
        letters: [f64::from(logprob), -3.0, -4.0, -5.0],
        steps: vec![Step { chosen: top[0], top }],
    }
}

/// Four questions whose load pass is served so many tokens and gives the first question this log-probability.
fn loaded(cached_tokens: u32, logprob: f32) -> Comparison {
    let arm = |name, cached_tokens, logprob| {
        let value = |row| if row == 1 { logprob } else { -0.5 };
        let observations = (1..=QUESTIONS).map(|row| observation(row, cached_tokens, value(row))).collect();
        Arm::new(name, observations, |_| Some(Choice::A)).unwrap()
    };
    let expected = Expected { prompt_tokens: 600, store_at_most: 0, load: SERVED, control: SERVED };
    let asked = |row| Asked { id: observation(row, 0, 0.0).question, answer: Choice::A, expected };
    let counted = |tokens: u32| crate::comparison::ServerCounters {
        requested_tokens: 0,
        hit_tokens: u64::from(tokens * QUESTIONS),
        second_tier_tokens: 0,
        second_tier_loads: 0,
        failed_loads: 0,
        contended: 0,
        given: 0,
        chunks_written: 0,
        chunks_read: 0,
    };
    let evidence = Evidence {
        comparisons: 1,
        cache: "LMCache".to_owned(),
        questions: (1..=QUESTIONS).map(asked).collect(),
        batching: Batching::OneAtATime,
        fidelity: Fidelity::Exact,
        baseline: arm(ArmName::Baseline, 0, -0.5),
        repeat: arm(ArmName::Repeat, 0, -0.5),
        control: Some(arm(ArmName::Control, SERVED, -0.5)),
        store: arm(ArmName::Store, 0, -0.5),
        load: arm(ArmName::Load, cached_tokens, logprob),
        cut: CutEvidence::LeftOut { reason: String::new() },
        server: Some(ServerEvidence {
            store: counted(0),
            load: counted(cached_tokens),
            cut: crate::comparison::ServerCounters::default(),
            tier: None,
            sharding: None,
        }),
        kv: None,
        engine: None,
        store_tokens: None,
        spoilt: None,
        loads_fail: false,
        early_stop: None,
    };
    compare(&evidence, &Criteria::default()).unwrap()
}

fn on_disk(tokens: u32) -> ServerCounters {
    let hit_tokens = u64::from(tokens * QUESTIONS);
    ServerCounters { hit_tokens, hit_second_tier_tokens: hit_tokens, ..ServerCounters::default() }
}

fn variant(name: &str) -> Variant {
    let shape = KvShape::Dense { layers: 2, kv_heads: 2, head_size: 64 };
    let mut variants = Fault::variants(shape, 1, 1).into_iter();
    variants.find(|variant| variant.fault.name == name && variant.tier == Tier::Disk).unwrap()
}

fn trial(name: &str, changed_bits: u64, comparison: &Comparison, counted: ServerCounters) -> Trial {
    let damage = Damage { chunks: 1, changed_bits, ..Damage::default() };
    Trial::judge(&variant(name), &damage, Reading { comparison, counted, located: None })
}

fn findings(trials: Vec<Trial>) -> FaultFindings {
    let layout = Layout {
        shape: KvShape::Dense { layers: 2, kv_heads: 2, head_size: 64 },
        dtype: Dtype::Bfloat16,
        rows: 256,
        arrangement: Arrangement::LayersFirst { block_rows: 128 },
    };
    FaultFindings::new(layout, Vec::new(), 8, 8, trials)
}

#[test]
fn a_fault_that_moves_a_bit_is_killed_and_one_that_moves_none_survives() {
    let seen = trial("zeros", 9, &loaded(SERVED, -0.500_000_1), on_disk(SERVED));
    let decided = (seen.fate, seen.verdict, seen.decided_by);
    assert_eq!(decided, (Fate::Killed, Some(Verdict::Degraded), Some(Rung::BitExact)));
    assert_eq!(seen.seen_by, [Rung::BitExact]);
    let unseen = trial("zeros", 9, &loaded(SERVED, -0.5), on_disk(SERVED));
    assert_eq!((unseen.fate, unseen.verdict), (Fate::Survived, Some(Verdict::Equivalent)));
}

#[test]
fn blunter_rungs_are_named_when_they_see_it_as_well() {
    let seen = trial("zeros", 9, &loaded(SERVED, -2.5), on_disk(SERVED));
    assert_eq!(seen.seen_by, [Rung::BitExact, Rung::Distribution]);
}

#[test]
fn an_unchanged_read_must_stay_equivalent_whatever_the_fault() {
    let harmless = trial("identity", 0, &loaded(SERVED, -0.5), on_disk(SERVED));
    assert_eq!(harmless.fate, Fate::Harmless);
    assert_eq!(trial("zeros", 0, &loaded(SERVED, -0.5), on_disk(SERVED)).fate, Fate::Harmless);
    assert_eq!(trial("identity", 0, &loaded(SERVED, -0.6), on_disk(SERVED)).fate, Fate::FalseAlarm);
    assert_eq!(trial("identity", 0, &loaded(0, -0.5), on_disk(0)).fate, Fate::FalseAlarm);
}

#[test]
fn a_fault_that_was_not_read_from_its_tier_shows_nothing() {
    let from_memory = ServerCounters { hit_second_tier_tokens: 0, ..on_disk(SERVED) };
    assert_eq!(trial("zeros", 9, &loaded(SERVED, -0.6), from_memory).fate, Fate::NotRead);
    assert_eq!(trial("identity", 0, &loaded(SERVED, -0.5), from_memory).fate, Fate::NotRead);
}

#[test]
fn a_chunk_that_was_loaded_once_and_served_from_memory_to_others_was_read() {
    let shared =
        |given_chunks| ServerCounters { hit_second_tier_tokens: 256, given_chunks, ..on_disk(SERVED) };
    let judge = |changed_bits, logprob, named, given_chunks| {
        let damage = Damage { chunks: 1, changed_bits, ..Damage::default() };
        let located = Located { planted: 2, named, elsewhere: 0, ..Located::default() };
        let comparison = loaded(SERVED, logprob);
        let reading =
            Reading { comparison: &comparison, counted: shared(given_chunks), located: Some(located) };
        Trial::judge(&variant("zeros"), &damage, reading).fate
    };
    // The bytes tell that it was read, whatever was counted; the counts alone do where nothing was changed.
    assert_eq!(judge(9, -0.6, 2, 0), Fate::Killed);
    assert_eq!(judge(9, -0.6, 0, 9), Fate::NotRead);
    assert_eq!(judge(0, -0.5, 0, 1), Fate::Harmless);
    assert_eq!(judge(0, -0.5, 0, 0), Fate::NotRead);
}

#[test]
fn what_lmcache_notices_itself_is_seen_in_the_hits() {
    let cut = trial("file cut", 9, &loaded(256, -0.5), on_disk(256));
    assert_eq!((cut.fate, cut.decided_by), (Fate::Killed, Some(Rung::Exercised)));
    assert!(cut.served_tokens < cut.predicted_tokens);
    let unserved = trial("no-op cache", 9, &loaded(0, -0.5), on_disk(0));
    assert_eq!((unserved.fate, unserved.verdict), (Fate::Killed, Some(Verdict::NotExercised)));
    assert_eq!(trial("no-op cache", 9, &loaded(SERVED, -0.5), on_disk(SERVED)).fate, Fate::Survived);
}

#[test]
fn an_exchange_that_moves_no_bit_is_neutral_and_never_a_survivor() {
    let unmoved = trial("chunks swapped", 9, &loaded(SERVED, -0.5), on_disk(SERVED));
    let moved = trial("chunks swapped", 9, &loaded(SERVED, -0.500_000_1), on_disk(SERVED));
    assert_eq!((unmoved.fate, moved.fate), (Fate::Neutral, Fate::Killed));
    let findings = findings(vec![unmoved, moved]);
    assert_eq!((findings.score.planted, findings.score.neutral), (1, 1));
    assert_eq!(findings.doubt(), None);
}

#[test]
fn a_survivor_makes_the_verdict_insensitive_and_is_named() {
    let killed = trial("zeros", 9, &loaded(SERVED, -0.6), on_disk(SERVED));
    let survived = trial("int8", 5, &loaded(SERVED, -0.5), on_disk(SERVED));
    assert_eq!(findings(vec![killed.clone()]).doubt(), None);
    let findings = findings(vec![killed, survived]);
    assert_eq!((findings.score.killed, findings.score.planted), (1, 2));
    let doubt = findings.doubt().unwrap();
    assert_eq!((doubt.verdict, doubt.decided_by), (Verdict::Insensitive, Rung::Faults));
    insta::assert_snapshot!(
        doubt.reason,
        @"1 of 2 planted faults were seen; 1 survived (first: int8 (middle chunk)). A pass would not show that the cache is sound."
    );
}

#[test]
fn a_no_op_cache_that_passes_is_misjudged_and_never_a_planted_fault() {
    let passed = trial("no-op cache", 9, &loaded(SERVED, -0.5), on_disk(SERVED));
    let findings = findings(vec![passed]);
    assert_eq!(findings.score.planted, 0);
    assert_eq!(findings.score.misjudged, ["no-op cache (every chunk)"]);
    assert_eq!(findings.doubt().unwrap().verdict, Verdict::Insensitive);
}

#[test]
fn the_smallest_change_that_each_rung_saw_is_kept() {
    let far = trial("zeros", 900, &loaded(SERVED, -2.5), on_disk(SERVED));
    let near = trial("int8", 5, &loaded(SERVED, -0.6), on_disk(SERVED));
    let findings = findings(vec![far, near]);
    assert_eq!(findings.score.seen_by, BTreeMap::from([(Rung::BitExact, 2), (Rung::Distribution, 1)]));
    let smallest = findings.smallest;
    let bits = |rung| smallest.get(&rung).map(|dose| dose.changed_bits);
    assert_eq!(
        (bits(Rung::BitExact), bits(Rung::Distribution), bits(Rung::Answers)),
        (Some(5), Some(900), None)
    );
}

#[test]
fn names_say_what_was_planted_where() {
    let trial = |name| trial(name, 1, &loaded(SERVED, -0.5), on_disk(SERVED)).name();
    assert_eq!(trial("zeros"), "zeros (first chunk)");
    assert_eq!(trial("layer lost"), "layer lost (middle chunk, first layer)");
    assert_eq!(trial("wrong scale"), "wrong scale 1 + 1/128 (middle chunk)");
    assert!(CATALOGUE.iter().all(|fault| !fault.what.is_empty() && !fault.stands_for.is_empty()));
}

#[test]
fn an_answer_that_is_no_number_shows_a_fault_but_not_of_bytes_that_did_not_change() {
    let without_numbers = Some(WithoutNumbers { answers: 1, first: observation(1, 0, 0.0).question });
    let comparison = Comparison { without_numbers, ..loaded(SERVED, -0.5) };
    let findings = findings(vec![
        trial("random bits", 4, &comparison, on_disk(SERVED)),
        trial("identity", 0, &comparison, on_disk(SERVED)),
    ]);
    assert_eq!((findings.score.killed, findings.score.planted), (1, 1));
    assert_eq!(findings.score.misjudged, ["identity (every chunk)"]);
}

#[test]
fn what_was_not_planted_in_memory_is_told() {
    let whole = findings(Vec::new());
    assert_eq!(whole.not_in_memory(), None);
    let ended = FaultFindings { left_out: 6, ..whole.clone() };
    assert_eq!(
        ended.not_in_memory().unwrap(),
        "6 plantings were left out, since an answer that was no number had ended the server that held the chunks"
    );
    let small = FaultFindings { chunks_in_memory: 3, ..whole };
    assert!(small.not_in_memory().unwrap().starts_with("3 chunks were found there (is /dev/shm too small?)"));
}

/// A turn of single bits of which so many of eight are named.
fn turn(named: u64, logprob: f32) -> Trial {
    let located = Some(Located { planted: 8, named, elsewhere: 0, ..Located::default() });
    let damage = Damage { chunks: 8, changed_bits: 1, ..Damage::default() };
    let (comparison, counted) = (&loaded(SERVED, logprob), on_disk(SERVED));
    Trial::judge(&variant("single bits"), &damage, Reading { comparison, counted, located })
}

#[test]
fn single_bits_count_as_one_planting_that_is_seen_if_each_is_named() {
    let joined = Trial::joined(&[turn(8, -2.5), turn(8, -0.5), turn(8, -0.6)]).unwrap();
    assert_eq!((joined.passes, joined.chunks, joined.changed_bits), (3, 24, 1));
    assert_eq!((joined.differing, joined.questions), (2, 12));
    assert_eq!(joined.located_words().as_deref(), Some("24 of 24"));
    assert_eq!(joined.seen_in, BTreeMap::from([(Rung::BitExact, 2), (Rung::Distribution, 1)]));
    insta::assert_snapshot!(joined.name(), @"single bits (24 places in 3 passes)");
}

#[test]
fn one_bit_that_is_not_named_makes_all_of_them_survive_whatever_other_rungs_see() {
    let joined = Trial::joined(&[turn(8, -0.6), turn(7, -0.6)]).unwrap();
    assert_eq!((joined.fate, joined.located_words().as_deref()), (Fate::Survived, Some("15 of 16")));
    assert!(findings(vec![joined]).doubt().is_some());
}

#[test]
fn a_misreading_that_changes_nothing_stored_must_be_seen_all_the_same() {
    let name = "position off by one";
    let seen = trial(name, 0, &loaded(SERVED, -0.500_000_1), on_disk(SERVED));
    let unseen = trial(name, 0, &loaded(SERVED, -0.5), on_disk(SERVED));
    assert_eq!((seen.fate, unseen.fate), (Fate::Killed, Fate::Survived));
    let found = findings(vec![seen]);
    assert_eq!((found.score.killed, found.score.seen_by[&Rung::BitExact]), (1, 1));
    assert!(found.smallest.is_empty(), "no bit of a chunk was changed");
    assert_eq!(found.trials[0].name(), "position off by one (last chunk of whole prompts)");
}
