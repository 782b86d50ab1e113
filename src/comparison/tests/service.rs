//! Rung 0 on made-up evidence: what was served, and what that must be called.

use super::*;

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
fn wrong_kv_among_what_was_served_is_degraded_whatever_else_is_missing() {
    let served = |cached: u32, wrong: bool| {
        let mut scene = Scene::new(40, 4, 0.9);
        scene.edit(ArmName::Load, 17, |observation| observation.cached_tokens = cached);
        if wrong {
            scene.edit(ArmName::Load, 3, |observation| nudge(observation, 1e-6));
        }
        scene.evidence()
    };
    // A retrieve that failed: fewer tokens for one request, and another's bits are wrong.
    for cached in [0, 256] {
        let (_, judgement) = judged(&served(cached, true));
        assert_eq!((judgement.verdict, judgement.decided_by), (Verdict::Degraded, Rung::BitExact));
        assert!(judgement.reason.contains("1 of 40 requests got fewer"), "{}", judgement.reason);
        assert_eq!(judged(&served(cached, false)).1.verdict, Verdict::NotExercised);
    }
    // A load that failed and is reported as loaded: only the counters differ.
    let mut evidence = served(512, true);
    evidence.server.as_mut().unwrap().load.hit_tokens -= 256;
    let (_, judgement) = judged(&evidence);
    assert_eq!((judgement.verdict, judgement.decided_by), (Verdict::Degraded, Rung::BitExact));
    assert!(judgement.reason.contains("count different hits"), "{}", judgement.reason);
    // The same where bits prove nothing, by how far the letters move.
    let mut scene = Scene::new(40, 4, 0.9);
    noisy(&mut scene).edit(ArmName::Load, 17, |observation| observation.cached_tokens = 256);
    scene.edit(ArmName::Load, 3, |observation| observation.letters.rotate_left(1));
    assert_judged(&mut scene, Verdict::Degraded, Rung::Distribution);
}

#[test]
fn a_request_that_was_served_less_is_not_held_against_a_control_of_other_shapes() {
    // Computing a prefix alone moves the last bits; a request that was served nothing has the baseline's.
    let mut scene = Scene::new(40, 4, 0.9);
    for arm in [ArmName::Control, ArmName::Load] {
        scene.edit_all(arm, |number, observation| {
            if arm == ArmName::Control || number != 17 {
                nudge(observation, 1e-6);
            }
        });
    }
    scene.edit(ArmName::Load, 17, |observation| observation.cached_tokens = 0);
    assert_judged(&mut scene, Verdict::NotExercised, Rung::Exercised);
}

#[test]
fn answers_of_plain_vllm_are_not_exercised_however_they_move() {
    let mut scene = Scene::new(40, 4, 0.9);
    scene.edit_all(ArmName::Load, |_, observation| {
        observation.cached_tokens = 0;
        observation.letters.rotate_left(1);
    });
    assert_judged(&mut scene, Verdict::NotExercised, Rung::Exercised);
    scene.edit(ArmName::Store, 3, |observation| nudge(observation, 1e-6));
    assert_judged(&mut scene, Verdict::Degraded, Rung::BitExact);
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
    evidence.server.as_mut().unwrap().store.hit_tokens += 256;
    assert_eq!(judged(&evidence).1.verdict, Verdict::NotExercised);
}

/// A run of forty prompts of two chunks each, of whose shards the server counted so many.
fn shards(bound: Bound, counted: [u64; 2]) -> Verdict {
    let mut evidence = Scene::new(40, 4, 0.9).evidence();
    let server = evidence.server.as_mut().unwrap();
    // Multi-head latent attention on two ranks: stored once, read by both.
    let (written_shards, read_shards) = (1, 2);
    server.sharding =
        Some(Sharding { chunk_tokens: 256, stored_chunks: 80, written_shards, read_shards, bound });
    [server.store.chunks_written, server.load.chunks_read] = counted;
    judged(&evidence).1.verdict
}

#[test]
fn shards_that_were_not_written_or_not_read_are_not_exercised() {
    for bound in [Bound::Exactly, Bound::AtLeast] {
        assert_eq!(shards(bound, [80, 160]), Verdict::Equivalent);
        assert_eq!(shards(bound, [79, 160]), Verdict::NotExercised);
        assert_eq!(shards(bound, [80, 159]), Verdict::NotExercised);
        assert_eq!(shards(bound, [80, 80]), Verdict::NotExercised);
    }
}

#[test]
fn shards_beyond_the_stacks_rule_are_not_as_predicted_where_memory_is_the_only_tier() {
    for counted in [[81, 160], [160, 160], [80, 161]] {
        assert_eq!(shards(Bound::Exactly, counted), Verdict::NotExercised);
        assert_eq!(shards(Bound::AtLeast, counted), Verdict::Equivalent);
    }
}

#[test]
fn a_prompt_served_whole_may_count_for_one_token_more_at_the_server() {
    let mut scene = Scene::new(40, 4, 0.9);
    scene.questions[0].expected = Expected { prompt_tokens: 512, store_at_most: 0, load: 511, control: 511 };
    for arm in [ArmName::Baseline, ArmName::Repeat, ArmName::Control, ArmName::Store, ArmName::Load] {
        scene.edit(arm, 0, |observation| observation.prompt_tokens = 512);
    }
    for arm in [ArmName::Control, ArmName::Load] {
        scene.edit(arm, 0, |observation| observation.cached_tokens = 511);
    }
    let mut evidence = scene.evidence();
    evidence.server.as_mut().unwrap().load.hit_tokens += 1;
    let (comparison, judgement) = judged(&evidence);
    assert_eq!(judgement.verdict, Verdict::Equivalent, "{}", judgement.reason);
    assert_eq!(comparison.noise_floor.control.unwrap().matched, 40);
    evidence.server.as_mut().unwrap().load.hit_tokens += 1;
    assert_eq!(judged(&evidence).1.verdict, Verdict::NotExercised);
}

#[test]
fn hits_from_another_tier_than_the_routes_are_not_exercised() {
    let judge = |tier, tokens, loads| {
        let mut evidence = Scene::new(40, 4, 0.9).evidence();
        let server = evidence.server.as_mut().unwrap();
        server.tier = Some(tier);
        (server.load.second_tier_tokens, server.load.second_tier_loads) = (tokens, loads);
        let (comparison, judgement) = judged(&evidence);
        (comparison.exercised.service, judgement.verdict)
    };
    let (right, wrong) =
        ((Service::AsPredicted, Verdict::Equivalent), (Service::WrongTier, Verdict::NotExercised));
    assert_eq!(judge(ServingTier::Memory, 0, 0), right);
    assert_eq!(judge(ServingTier::Memory, 256, 1), wrong);
    assert_eq!(judge(ServingTier::Memory, 0, 1), wrong);
    let disk = ServingTier::Second { name: "fs".to_owned(), at_least: 1024 };
    assert_eq!(judge(disk.clone(), 1024, 4), right);
    assert_eq!(judge(disk.clone(), 20480, 40), right);
    assert_eq!(judge(disk.clone(), 768, 4), wrong, "not every chunk came from there");
    assert_eq!(judge(disk.clone(), 1024, 0), wrong, "what came from there has another name");
}

#[test]
fn a_count_of_vllms_own_that_differs_from_its_requests_is_no_service() {
    let evidence = |store: u64, load: u64| {
        let mut evidence = Scene::new(40, 4, 0.9).evidence();
        evidence.server = None;
        evidence.engine = Some(EngineEvidence { external: [store, load], ..EngineEvidence::default() });
        evidence
    };
    let (comparison, judgement) = judged(&evidence(0, 20480));
    assert_eq!(judgement.verdict, Verdict::Equivalent, "{}", judgement.reason);
    assert_eq!(comparison.exercised.external.map(|external| external.load), Some(20480));
    for (store, load) in [(0, 20479), (0, 20481), (256, 20480), (0, 0)] {
        let (_, judgement) = judged(&evidence(store, load));
        assert_eq!((judgement.verdict, judgement.decided_by), (Verdict::NotExercised, Rung::Exercised));
        assert!(judgement.reason.contains("tells other hits than its requests"), "{}", judgement.reason);
    }
}

#[test]
fn what_vllms_own_prefix_cache_served_in_either_pass_is_no_service_of_the_connector() {
    for (external, own) in [([0, 0], [0, 20480]), ([0, 20224], [0, 256]), ([0, 20480], [16, 0])] {
        let mut scene = Scene::new(40, 4, 0.9);
        // As on a real engine: in the store pass the connector could have served nothing.
        scene.edit(ArmName::Store, 3, |observation| observation.cached_tokens = u32::from(own[0] > 0) * 16);
        let mut evidence = scene.evidence();
        evidence.server = None;
        evidence.engine = Some(EngineEvidence { external, own, source: None });
        let (comparison, judgement) = judged(&evidence);
        assert_eq!(comparison.exercised.service, Service::WrongTier);
        assert_eq!((judgement.verdict, judgement.decided_by), (Verdict::NotExercised, Rung::Exercised));
        let served = format!("prefix cache served {} tokens", own[0] + own[1]);
        assert!(judgement.reason.contains(&served), "{}", judgement.reason);
    }
}

#[test]
fn hits_that_were_predicted_otherwise_may_be_the_descriptions_fault() {
    for (cached, by_engine) in [(256, true), (768, true), (256, false)] {
        let mut scene = Scene::new(40, 4, 0.9);
        scene.edit(ArmName::Load, 17, |observation| observation.cached_tokens = cached);
        let mut evidence = scene.evidence();
        if by_engine {
            evidence.server = None;
            evidence.engine = Some(EngineEvidence::default());
        }
        let (_, judgement) = judged(&evidence);
        assert_eq!(judgement.decided_by, Rung::Exercised, "{}", judgement.reason);
        assert_eq!(judgement.next_step.contains("`[hits]`"), by_engine, "{}", judgement.next_step);
    }
}

#[test]
fn where_a_connector_has_several_places_what_is_served_must_come_from_the_routes() {
    for (tokens, expected) in
        [(1024, Service::AsPredicted), (20480, Service::AsPredicted), (1023, Service::WrongTier)]
    {
        let mut evidence = Scene::new(40, 4, 0.9).evidence();
        evidence.server = None;
        let source = Some(SourceHits { name: "disk".to_owned(), at_least: 1024, tokens });
        evidence.engine = Some(EngineEvidence { external: [0, 20480], own: [0; 2], source });
        let (comparison, judgement) = judged(&evidence);
        assert_eq!(comparison.exercised.service, expected, "{}", judgement.reason);
        let is_told = judgement.reason.contains("vLLM calls `disk`; it counts 1023 from there");
        assert_eq!(is_told, expected == Service::WrongTier, "{}", judgement.reason);
    }
}

#[test]
fn a_store_pass_that_was_to_generate_fewer_tokens_is_held_against_as_many_of_the_baseline() {
    let mut scene = Scene::new(40, 4, 0.9);
    for arm in [ArmName::Baseline, ArmName::Repeat, ArmName::Control, ArmName::Store, ArmName::Load] {
        scene.edit_all(arm, |_, observation| {
            let step = observation.steps[0].clone();
            observation.steps = if arm == ArmName::Store { vec![step] } else { vec![step.clone(), step] };
        });
    }
    let mut evidence = scene.evidence();
    assert_eq!(judged(&evidence).1.verdict, Verdict::Degraded);
    evidence.store_tokens = Some(1);
    assert_eq!(judged(&evidence).1.verdict, Verdict::Equivalent);
    scene.edit(ArmName::Store, 3, |observation| nudge(observation, 1e-6));
    let evidence = Evidence { store_tokens: Some(1), ..scene.evidence() };
    assert_eq!(judged(&evidence).1.verdict, Verdict::Degraded);
}

#[test]
fn a_request_that_was_preempted_is_looked_up_again() {
    // As on a GPU: vLLM counts what was served first, the server what it served in all.
    let mut scene = Scene::new(40, 4, 0.9);
    scene.edit(ArmName::Load, 7, |observation| {
        observation.preemptions = 2;
        observation.served_again = vec![512, 256];
    });
    let mut evidence = scene.evidence();
    let rule = Sharding {
        chunk_tokens: 256,
        stored_chunks: 0,
        written_shards: 1,
        read_shards: 1,
        bound: Bound::Exactly,
    };
    let server = evidence.server.as_mut().unwrap();
    server.sharding = Some(rule);
    assert_eq!(judged(&evidence).1.verdict, Verdict::NotExercised);
    let server = evidence.server.as_mut().unwrap();
    server.load.hit_tokens += 768;
    server.load.chunks_read += 3;
    let (comparison, judgement) = judged(&evidence);
    assert_eq!(judgement.verdict, Verdict::Equivalent, "{}", judgement.reason);
    let load = comparison.exercised.load;
    assert_eq!((load.cached_tokens, load.preemptions, load.served_again_tokens), (20480, 2, 768));
    // One lookup more than there were requests to look up.
    evidence.server.as_mut().unwrap().load.hit_tokens += 256;
    let (_, judgement) = judged(&evidence);
    assert_eq!(judgement.verdict, Verdict::NotExercised);
    assert!(judgement.reason.contains("20480 tokens and 768 again"), "{}", judgement.reason);
}

#[test]
fn a_preempted_prompt_that_is_served_whole_computes_its_last_token_again() {
    let mut scene = Scene::new(40, 4, 0.9);
    scene.edit(ArmName::Store, 7, |observation| {
        observation.preemptions = 1;
        observation.served_again = vec![511];
    });
    for counted in [511, 512] {
        let mut evidence = scene.evidence();
        evidence.server.as_mut().unwrap().store.hit_tokens += counted;
        assert_eq!(judged(&evidence).1.verdict, Verdict::Equivalent);
    }
}

#[test]
fn where_loads_were_made_to_fail_some_must_have_failed_and_what_was_served_decides() {
    let evidence = |served_less: bool| {
        let mut scene = Scene::new(40, 4, 0.9);
        if served_less {
            scene.edit(ArmName::Load, 17, |observation| observation.cached_tokens = 256);
        }
        let mut evidence = scene.evidence();
        evidence.server.as_mut().unwrap().load.failed_loads = 1;
        Evidence { loads_fail: true, ..evidence }
    };
    let (comparison, judgement) = judged(&evidence(true));
    assert_eq!(comparison.exercised.service, Service::LoadsFailed);
    assert_eq!(comparison.exercised.load.under_served, 1);
    let failed = comparison.exercised.failed.unwrap();
    assert_eq!(failed.words(), "1 loads failed; 256 tokens that were stored were computed again");
    assert_eq!(judgement.verdict, Verdict::Equivalent, "{}", judgement.reason);
    // Less that was served for another reason is no load that failed.
    let mut counted = evidence(true);
    counted.server.as_mut().unwrap().load.failed_loads = 0;
    let (comparison, judgement) = judged(&counted);
    assert_eq!(comparison.exercised.service, Service::UnderServed);
    assert_eq!(judgement.verdict, Verdict::NotExercised, "{}", judgement.reason);
    let (comparison, judgement) = judged(&evidence(false));
    assert_eq!(comparison.exercised.service, Service::NothingFailed);
    assert_eq!(judgement.verdict, Verdict::NotExercised, "{}", judgement.reason);
    // Nor does it excuse a store pass that counts otherwise than vLLM does.
    let mut unstored = evidence(true);
    unstored.server.as_mut().unwrap().store.hit_tokens += 256;
    let (comparison, judgement) = judged(&unstored);
    assert_eq!(comparison.exercised.service, Service::CountersDisagree);
    assert_eq!(judgement.verdict, Verdict::NotExercised, "{}", judgement.reason);
    // What is served wrong is degraded as ever.
    let mut scene = Scene::new(40, 4, 0.9);
    scene.edit(ArmName::Load, 17, |observation| observation.cached_tokens = 256);
    scene.edit(ArmName::Load, 3, |observation| nudge(observation, 1e-6));
    let mut wrong = Evidence { loads_fail: true, ..scene.evidence() };
    wrong.server.as_mut().unwrap().load.failed_loads = 1;
    let (_, judgement) = judged(&wrong);
    assert_eq!(judgement.verdict, Verdict::Degraded, "{}", judgement.reason);
    // Nor may more be served than was stored.
    let mut scene = Scene::new(40, 4, 0.9);
    scene.edit(ArmName::Load, 17, |observation| observation.cached_tokens = 768);
    let (comparison, _) = judged(&Evidence { loads_fail: true, ..scene.evidence() });
    assert_eq!(comparison.exercised.service, Service::OverServed);
}

#[test]
fn requests_that_met_a_chunk_in_loading_may_be_served_less_and_no_more_of_them_than_were_counted() {
    let evidence = |contended: u64| {
        let mut scene = Scene::new(40, 4, 0.9);
        for question in [17, 23] {
            scene.edit(ArmName::Load, question, |observation| observation.cached_tokens = 256);
        }
        let mut evidence = scene.evidence();
        evidence.server.as_mut().unwrap().load.contended = contended;
        evidence
    };
    let (comparison, judgement) = judged(&evidence(2));
    assert_eq!(comparison.exercised.service, Service::Contended);
    let words = comparison.exercised.failed.unwrap().words();
    assert_eq!(
        words,
        "2 chunks were just being loaded for another request; 512 tokens that were stored were computed again"
    );
    assert_eq!(judgement.verdict, Verdict::Equivalent, "{}", judgement.reason);
    let (comparison, judgement) = judged(&evidence(1));
    assert_eq!(comparison.exercised.service, Service::UnderServed);
    assert_eq!(judgement.verdict, Verdict::NotExercised, "{}", judgement.reason);
    // It excuses nothing else: a store pass or a load pass that counts otherwise than vLLM does, a load that failed, ranks that each
    // count the same chunk, a cache that hardly served.
    let off: [fn(&mut ServerEvidence); 3] = [
        |server| server.store.hit_tokens += 256,
        |server| server.load.hit_tokens -= 256,
        |server| server.load.failed_loads = 1,
    ];
    for spoil in off {
        let mut evidence = evidence(2);
        spoil(evidence.server.as_mut().unwrap());
        assert_eq!(judged(&evidence).0.exercised.service, Service::UnderServed);
    }
    let mut on_two_ranks = evidence(2);
    let [written_shards, read_shards] = [1, 2];
    let bound = Bound::AtLeast;
    on_two_ranks.server.as_mut().unwrap().sharding =
        Some(Sharding { chunk_tokens: 256, stored_chunks: 0, written_shards, read_shards, bound });
    on_two_ranks.server.as_mut().unwrap().load.chunks_read = 1000;
    assert_eq!(judged(&on_two_ranks).0.exercised.service, Service::UnderServed);
    let mut scene = Scene::new(40, 4, 0.9);
    for question in 0..21 {
        scene.edit(ArmName::Load, question, |observation| observation.cached_tokens = 256);
    }
    let mut hardly = scene.evidence();
    hardly.server.as_mut().unwrap().load.contended = 40;
    assert_eq!(judged(&hardly).0.exercised.service, Service::UnderServed);
}

#[test]
fn chunks_that_generated_tokens_complete_may_be_written_and_no_more_than_these() {
    let evidence = |written: u64| {
        let mut scene = Scene::new(40, 4, 0.9);
        for arm in [ArmName::Baseline, ArmName::Repeat, ArmName::Control, ArmName::Store, ArmName::Load] {
            scene.edit_all(arm, |_, observation| {
                let step = observation.steps[0].clone();
                observation.steps = vec![step.clone(), step];
            });
            // Two prompts are one token short of whole chunks.
            for question in [3, 5] {
                scene.edit(arm, question, |observation| observation.prompt_tokens = 767);
            }
        }
        let mut evidence = scene.evidence();
        for question in [3, 5] {
            evidence.questions[question].expected.prompt_tokens = 767;
        }
        let server = evidence.server.as_mut().unwrap();
        let chunk_tokens = 256;
        let [written_shards, read_shards] = [1, 1];
        server.sharding = Some(Sharding {
            chunk_tokens,
            stored_chunks: 80,
            written_shards,
            read_shards,
            bound: Bound::Exactly,
        });
        server.store.chunks_written = written;
        server.load.chunks_read = 80;
        evidence
    };
    for (written, service) in [
        (79, Service::CountersDisagree),
        (80, Service::AsPredicted),
        (82, Service::AsPredicted),
        (83, Service::CountersDisagree),
    ] {
        assert_eq!(judged(&evidence(written)).0.exercised.service, service, "{written}");
    }
}
