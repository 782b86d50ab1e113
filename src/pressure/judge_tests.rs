use super::*;
use crate::comparison::{Fidelity, KvEvidence, Provenance, ServedRequest, WrongWhen, trace_requests};
use crate::digest::digest_bytes;
use crate::model::{ChunkDigests, KvRecord, LayerDigests, PressureEvents};
use crate::pressure::{Beyond, Demand, HitsApart, Short, request_id};

const EVENTS: PressureEvents = PressureEvents {
    steps: 100,
    preemptions: 4,
    loads: 9,
    resumed_loads: 3,
    failed_loads: 0,
    aborted_storing: 2,
    aborted_loading: 1,
    overlaps: 5,
    asynchronous_loads: true,
};

/// Two requests of one prompt of one block: the first computed it, the second was served this.
fn traced(served: u128) -> Provenance {
    let digests = |digest| LayerDigests::new(vec![digest]);
    let record = |number, served, digest| KvRecord::Request {
        question: request_id(1, number),
        chunks: vec![ChunkDigests {
            rank: 0,
            chunk: 0,
            served,
            first: digests(digest),
            last: None,
            stored: None,
        }],
    };
    let evidence = KvEvidence {
        chunk_tokens: 32,
        layers: vec![vec!["layer".to_owned()]],
        windows: Vec::new(),
        block_tokens: 32,
        shared_by_ranks: false,
        loads_whole_chunks: true,
        prefixes: (0..2).map(|number| (request_id(1, number), vec![digest_bytes(b"prefix")])).collect(),
        store: vec![record(0, false, 7), record(1, true, served)],
        load: Vec::new(),
        cut: Vec::new(),
        baseline: Vec::new(),
        repeat: Vec::new(),
        looks: Vec::new(),
    };
    let request =
        |number, served| ServedRequest { question: request_id(1, number), prompt_tokens: 40, served };
    trace_requests(&evidence, Fidelity::Exact, &[request(0, vec![0]), request(1, vec![32])])
}

type Change = fn(&mut PressureFindings);

fn findings(change: Change) -> PressureFindings {
    let seed = SeedFindings {
        seed: 2,
        own_cache: true,
        requests: 46,
        events: EVENTS,
        evicted_chunks: Some(8),
        failed_chunks: 0,
        hits: HitsApart { connector: 640, own: 32 },
        kv: traced(7),
        served_beyond: 0,
        beyond: Vec::new(),
        served_short: 0,
        short: Vec::new(),
    };
    let mut findings = PressureFindings {
        piece_tokens: 32,
        stored_tokens: 64,
        never_evicts: None,
        never_preempts: None,
        never_aborts_loads: None,
        loads_fail: false,
        seeds: vec![seed],
    };
    change(&mut findings);
    findings
}

fn judged(change: Change) -> (Verdict, Rung, String) {
    let Judgement { verdict, decided_by, reason, .. } = findings(change).judgement();
    (verdict, decided_by, reason)
}

#[test]
fn copies_within_bounds_through_every_event_are_equivalent() {
    let (verdict, rung, reason) = judged(|_| {});
    assert_eq!((verdict, rung), (Verdict::Equivalent, Rung::Kv), "{reason}");
}

#[test]
fn each_event_that_never_happened_is_named_and_proves_nothing() {
    let cases: [(Change, &str); 8] = [
        (|it| it.seeds[0].events.preemptions = 0, "preemptions"),
        (|it| it.seeds[0].events.resumed_loads = 0, "resumed loads"),
        (|it| it.seeds[0].evicted_chunks = Some(0), "evicted chunks"),
        (|it| it.seeds[0].events.aborted_storing = 0, "aborts while storing"),
        (|it| it.seeds[0].events.aborted_loading = 0, "aborts while loading"),
        (|it| it.seeds[0].events.overlaps = 0, "stores beside loads"),
        (|it| it.seeds[0].hits.connector = 0, "tokens from the connector"),
        (|it| it.seeds[0].hits.own = 0, "tokens from vLLM's own cache"),
    ];
    for (change, name) in cases {
        let expected = format!("There were none of these, and there must be: {name}.");
        assert_eq!(judged(change), (Verdict::NotExercised, Rung::Exercised, expected));
    }
}

#[test]
fn what_cannot_happen_is_not_demanded_and_said() {
    let change: Change = |it| {
        it.never_evicts = Some("a folder grows".to_owned());
        it.never_preempts = Some("it cannot resume".to_owned());
        let seed = &mut it.seeds[0];
        (seed.evicted_chunks, seed.own_cache, seed.hits.own) = (None, false, 0);
        (seed.events.preemptions, seed.events.resumed_loads) = (0, 0);
        (seed.events.asynchronous_loads, seed.events.aborted_loading) = (false, 0);
    };
    assert_eq!(judged(change).0, Verdict::Equivalent);
    let impossible = findings(change).demands();
    let impossible = impossible.into_iter().filter(|(_, demand)| matches!(demand, Demand::Impossible(_)));
    let impossible: Vec<&str> = impossible.map(|(event, _)| event.name()).collect();
    let expected = ["preemptions", "resumed loads", "evicted chunks", "aborts while loading"];
    assert_eq!(impossible[..4], expected);
    assert_eq!(impossible[4..], ["tokens from vLLM's own cache"]);
    let left_alone: Change = |it| {
        it.never_aborts_loads = Some("the suite breaks none off".to_owned());
        it.seeds[0].events.aborted_loading = 0;
    };
    assert_eq!(judged(left_alone).0, Verdict::Equivalent);
    // Where nothing was loaded at all it is not known whether loads could be met.
    assert_eq!(judged(|it| it.seeds[0].events = PressureEvents::default()).0, Verdict::NotExercised);
}

#[test]
fn a_wrong_cell_is_harm_with_seed_request_block_and_layer_whatever_else_is_missing() {
    let (verdict, rung, reason) = judged(|it| {
        it.seeds[0].kv = traced(9);
        it.seeds[0].events = PressureEvents::default();
    });
    assert_eq!((verdict, rung), (Verdict::Degraded, Rung::Kv));
    insta::assert_snapshot!(reason, @"Seed 2: 1 of 1 served and 0 of 1 computed cells (a block in a layer on a rank) hold other bytes than any engine computed for their tokens, or did not stay as they were. First: request 1, block 1 (tokens 0 to 31), layer, rank 0: wrong when read and at the end.");
    assert_eq!(traced(9).first[0].when, WrongWhen::Throughout);
}

#[test]
fn service_beyond_what_was_computed_is_harm_and_service_short_of_it_proves_nothing() {
    let (verdict, rung, reason) = judged(|it| {
        it.seeds[0].served_beyond = 2;
        it.seeds[0].beyond = vec![Beyond { request: 17, served: 128, at_most: 64 }];
    });
    assert_eq!((verdict, rung), (Verdict::Degraded, Rung::Exercised));
    assert_eq!(
        reason,
        "Seed 2: 2 requests were served what nobody had stored; the first, request 17, 128 tokens where 64 had been computed."
    );
    let (verdict, rung, _) = judged(|it| {
        it.seeds[0].served_short = 1;
        it.seeds[0].short = vec![Short { request: 4, served: 0, at_least: 64 }];
    });
    assert_eq!((verdict, rung), (Verdict::NotExercised, Rung::Exercised));
}

#[test]
fn loads_that_were_promised_and_not_given_prove_nothing() {
    assert_eq!(judged(|it| it.seeds[0].failed_chunks = 3).0, Verdict::NotExercised);
    assert_eq!(judged(|it| it.seeds[0].events.failed_loads = 1).0, Verdict::NotExercised);
    assert_eq!(judged(|it| it.loads_fail = true).0, Verdict::NotExercised);
}

#[test]
fn kv_that_was_not_seen_proves_nothing() {
    let (verdict, rung, reason) = judged(|it| it.seeds[0].kv = Provenance::not_observed());
    assert_eq!((verdict, rung), (Verdict::NotExercised, Rung::Kv), "{reason}");
}
