//! Each verdict and its exit code, from what a cache can do wrong.

use crate::lab::{Lab, at_once};

/// The verdict's lines in the summary of a run that must end with this exit code.
fn judge(faults: &str, code: i32) -> String {
    let lab = Lab::new();
    let ended = lab.run(faults, "");
    assert_eq!(ended.code, code, "{}{}", ended.err, ended.out);
    let wanted = ["tiny", "  decided by", "  why", "  next", "verdict"];
    let lines: Vec<&str> =
        ended.out.lines().filter(|line| wanted.iter().any(|start| line.starts_with(start))).collect();
    lines.join("\n")
}

#[test]
fn the_last_bit_of_one_log_probability_in_the_load_pass_is_degraded() {
    insta::assert_snapshot!(judge("bit@load", 1), @r"
    tiny (dense) over mp: DEGRADED
      decided by   bits: log-probabilities against the control's
      why          The load pass differs from the control, which computes the same shapes by vLLM alone: in 2 of 24 questions, by up to 2.4e-7 nats (first: botany/test/4, generated token 1). The baseline repeats itself bit for bit, so this is no noise.
      next         The KV that was stored or loaded for that question is wrong: run it alone, then bisect the revisions.
    verdict: degraded (exit code 1)
    ");
}

#[test]
fn an_answer_that_is_no_number_is_degraded_where_a_cache_gave_it() {
    let degraded = judge("none@load", 1);
    assert!(degraded.contains("  decided by   distribution of the four letters"), "{degraded}");
    assert!(
        degraded.contains(
            "The log-probabilities of 2 answers of vLLM with a cache are no numbers (first: botany/test/"
        ),
        "{degraded}"
    );
}

#[test]
fn a_chunk_that_is_served_wrong_is_named() {
    let lab = Lab::new();
    let ended = lab.run("rot@load", "");
    assert_eq!(ended.code, 1, "{}{}", ended.err, ended.out);
    let located: Vec<&str> = ended.out.lines().filter(|line| line.starts_with("  located")).collect();
    assert_eq!(
        located,
        [
            "  located      Of the 21 chunks of botany/test/1, number 3 is the first that is served wrong (tokens 32 to 47)."
        ]
    );
    let (again, steps) = lab.steps_of(|| lab.run("rot@load", ""));
    assert_eq!((again.out, steps), (ended.out, Vec::new()));
    // A cell of KV that is named need not be looked for.
    let ended = lab.run("rot@load wrongkv@load", "--force cached");
    assert_eq!(ended.code, 1, "{}{}", ended.err, ended.out);
    assert!(!ended.out.contains("  located"), "{}", ended.out);
}

#[test]
fn served_kv_that_no_engine_computed_is_named_by_question_chunk_layer_and_rank() {
    for (fault, when, seen) in [
        (
            "wrongkv@load",
            "wrong when read and at the end",
            "1 of 192 elements differs, in 1 bit, in token 5 of the chunk. First: token 5 of the prompt, value, head 1, \
             element 2,",
        ),
        (
            "wrongkv@load window@look",
            "wrong when read and at the end",
            "1 of 192 elements differs, in 1 bit, in token 5 of the chunk. First: token 5 of the prompt, value, head 1, \
             element 2,",
        ),
        (
            "late@load",
            "wrong when read, and right at the end: it came too late",
            "not seen, since attention read other bytes, and the right ones have taken their place since",
        ),
        (
            "wrongkv@load blind@look",
            "wrong when read and at the end",
            "not seen, since its blocks held something else before they could be looked at",
        ),
    ] {
        let lab = Lab::new();
        let ended = lab.run(fault, "");
        assert_eq!(ended.code, 1, "{}{}", ended.err, ended.out);
        assert!(ended.out.contains("decided by   kv: "), "{}", ended.out);
        let cell = format!("load pass, chunk 1, layer 1, rank 0: {when}");
        assert!(ended.out.contains(&cell), "{}", ended.out);
        let looks: Vec<&str> = ended.out.lines().filter(|line| line.starts_with("  looked again")).collect();
        assert!(looks[0].contains(seen), "{looks:?}");
    }
}

#[test]
fn what_only_prefixes_of_prompts_are_served_wrong_is_degraded() {
    let lab = Lab::new();
    let ended = lab.run("", "");
    assert_eq!(ended.code, 0, "{}{}", ended.err, ended.out);
    let hits = ended.out.lines().find(|line| line.starts_with("  hits")).unwrap();
    assert!(hits.contains("; cut pass "), "{hits}");
    for (fault, decided_by, why) in [
        ("wrongkv@cut", "kv: ", ", cut pass, chunk 1, layer 1, rank 0: wrong when read and at the end"),
        (
            "bit@cut",
            "bits: ",
            "The cut pass differs from the control, which computes the same prefixes of prompts by vLLM alone",
        ),
        (
            "none@cut",
            "distribution ",
            "The log-probabilities of 1 answers of vLLM with a cache are no numbers",
        ),
        ("ghost@cut", "hits: ", "0 of the load pass and 1 of the cut pass"),
    ] {
        let ended = lab.run(fault, "--force cached");
        assert_eq!(ended.code, 1, "{fault}: {}{}", ended.err, ended.out);
        assert!(ended.out.contains(&format!("  decided by   {decided_by}")), "{fault}: {}", ended.out);
        assert!(ended.out.contains(why), "{fault}: {}", ended.out);
    }
    let ended = lab.run("blind@cut", "--force cached");
    assert_eq!(ended.code, 4, "{}{}", ended.err, ended.out);
    assert!(ended.out.contains("LMCache served 0 of "), "{}", ended.out);
    assert!(ended.out.contains(" tokens in the cut pass; "), "{}", ended.out);
}

#[test]
fn without_digests_the_next_rung_decides() {
    let lab = Lab::new();
    let ended = lab.run("blindfold@load", "");
    assert_eq!(ended.code, 0, "{}{}", ended.err, ended.out);
    assert!(ended.out.contains("decided by   bits: "), "{}", ended.out);
    assert!(ended.out.contains("could not be observed: the fake engine lacks a hook"), "{}", ended.out);
}

#[test]
fn what_a_served_store_pass_stored_in_other_shapes_is_not_judged_by_bits() {
    let lab = Lab::new();
    let ended = lab.run("shared@store", "");
    assert_eq!(ended.code, 0, "{}{}", ended.err, ended.out);
    // Only the first questions' chunks were computed in the control's shapes: the others' difference may be rounding.
    let ended = lab.run("shared@store rot@load", "--force cached");
    assert_eq!(ended.code, 1, "{}{}", ended.err, ended.out);
    let bits = ended.out.lines().find(|line| line.starts_with("  bits")).unwrap().to_owned();
    insta::assert_snapshot!(bits, @"  bits         load pass differs from its control in 3 of 3; cut pass from its own in 0 of 6; baseline from its repeat in 0 of 24");
}

#[test]
fn another_questions_kv_is_degraded_and_the_flips_are_listed_with_their_questions() {
    let lab = Lab::new();
    let ended = lab.run("swap@load", "");
    assert_eq!(ended.code, 1, "{}{}", ended.err, ended.out);
    insta::assert_snapshot!(lab.redact(&ended.out), @r"
    suite facts on [DEVICE]; vLLM 0.32.0, LMCache 0.5.6

    tiny (dense) over mp: DEGRADED
      decided by   bits: log-probabilities against the control's
      why          The load pass differs from the control, which computes the same shapes by vLLM alone: in 22 of 24 questions, by up to 6.03 nats (first: botany/test/1, generated token 1). The baseline repeats itself bit for bit, so this is no noise.
      next         The KV that was stored or loaded for that question is wrong: run it alone, then bisect the revisions.
      asked        24 questions: a fault that strikes one request in 8 meets one of these with 95 % probability
      hits         load pass 8287 of 8287 predicted tokens, 0 of 24 requests off; cut pass 880 of 880 predicted, 0 of 6 off; store pass 0 of at most 5632
      kv           1146 of 1146 served cells (a chunk in a layer on a rank) are copies of computed ones, when read and at the end. Prefixes of stored prompts read 110 of them.
      store pass   0 of 1036 cells that the store pass computed differ from the baseline's, 0 of 1036 of its repeat. Storing did not disturb.
      felt         With chunk 21 of botany/test/1 at zero (2 cells), its letters move by up to 2.4e-7 nats.
      bits         load pass differs from its control in 22 of 24; cut pass from its own in 0 of 6; baseline from its repeat in 0 of 24
      located      Of the 21 chunks of botany/test/1, number 1 is the first that is served wrong (tokens 0 to 15).
      accuracy     baseline 83.3 %, with LMCache 29.2 %; difference -54.17 points (90 % interval -69.61 to -37.88), exact McNemar p = 2.4e-4
      unparsable   2 answers of the baseline, 2 with LMCache
      flips        15 of 24 answers changed
                   botany/test/1 right to wrong: B -> C, published B: …ows hold something else and matter less. Which letter is on that very old shelf?
                   botany/test/2 right to wrong: A -> B, published A: …old something else and matter less. Which letter is on that very very old shelf?
                   botany/test/4 right to wrong: C -> A, published C: …her rows hold something else and matter less. Which letter is on that old shelf?
                   botany/test/7 right to wrong: D -> A, published D: …omething else and matter less. Which letter is on that very very very old shelf?
                   botany/test/9 from unparsable: none -> C, published B: …ows hold something else and matter less. Which letter is on that very old shelf?
                   and 10 more in report.json
      noise floor  The baseline repeats itself bit for bit on all 24 questions. The control computes the load pass's shapes for 24 of 24 questions. So the load pass must equal the control bit for bit.
      logs         [LAB]/cache/store-1/entries/baseline/[DIGEST]/notes/
                   [LAB]/cache/store-1/entries/control/[DIGEST]/notes/
                   [LAB]/cache/store-1/entries/cached/[DIGEST]/notes/

    verdict: degraded (exit code 1)
    log: out/log.jsonl
    ");
}

#[test]
fn lost_answers_are_degraded_even_where_bits_prove_nothing() {
    insta::assert_snapshot!(judge("noise@engine swap@load", 1), @r"
    tiny (dense) over mp: DEGRADED
      decided by   near ties: tokens that differ and were not nearly tied
      why          15 of 24 questions and 0 of 6 prefixes of stored prompts part from the reference in a token that was no near tie, where 0 may (first: botany/test/1, load pass, generated token 1). Runs of vLLM alone do so half as often at most.
      next         Run the first such question alone, over this route and by vLLM alone, and compare log-probabilities.
    verdict: degraded (exit code 1)
    ");
}

#[test]
fn hits_that_nobody_stored_are_degraded() {
    insta::assert_snapshot!(judge("shared@store ghost@store", 1), @r"
    tiny (dense) over mp: DEGRADED
      decided by   hits: what was served against what must be
      why          The cache claimed more tokens than earlier requests had stored, for 2 requests of the store pass, 0 of the load pass and 0 of the cut pass (first: botany/test/2, 272 tokens instead of 256). It serves stale KV, another request's KV, or counts wrongly.
      next         Look at how hits are found and counted: keys, chunk boundaries, a prompt that is served whole.
    verdict: degraded (exit code 1)
    ");
}

#[test]
fn noise_and_few_questions_are_inconclusive() {
    insta::assert_snapshot!(judge("noise@engine blindfold@load", 3), @r"
    tiny (dense) over mp: INCONCLUSIVE
      decided by   answers: paired, against the margin
      why          24 questions are too few for a margin of 0.5 points: the 90 % interval of the change in accuracy is -10.131 to +10.131 points (0 to 0 with subjects as clusters), and about 5198 questions are needed. No harm was found, which is not the same as none.
      next         Ask more questions (--subjects all), or use a backend with a control.
    verdict: inconclusive (exit code 3)
    ");
}

#[test]
fn noise_and_a_model_that_guesses_are_inconclusive() {
    insta::assert_snapshot!(judge("noise@engine chance@engine blindfold@load", 3), @r"
    tiny (dense) over mp: INCONCLUSIVE
      decided by   answers: paired, against the margin
      why          The model hardly beats guessing: at least 3.5 % right (95 % bound), where 30.0 % are needed and one letter, always given, reaches 25.0 %. A broken cache could not make its answers worse, and bits do not decide here.
      next         Use a model that can answer, more questions, or a backend with a control.
    verdict: inconclusive (exit code 3)
    ");
}

#[test]
fn a_backend_without_a_control_is_inconclusive_where_cached_prefixes_move_the_last_bits() {
    insta::assert_snapshot!(judge("blind@control blindfold@load", 3), @r"
    tiny (dense) over mp: INCONCLUSIVE
      decided by   answers: paired, against the margin
      why          24 questions are too few for a margin of 0.5 points: the 90 % interval of the change in accuracy is -10.131 to +10.131 points (0 to 0 with subjects as clusters), and about 5198 questions are needed. No harm was found, which is not the same as none.
      next         Ask more questions (--subjects all), or use a backend with a control.
    verdict: inconclusive (exit code 3)
    ");
}

#[test]
fn a_cache_that_serves_nothing_is_not_exercised_whatever_the_answers_are() {
    insta::assert_snapshot!(judge("empty@server", 4), @r#"
    tiny (dense) over mp: NOT EXERCISED
      decided by   hits: what was served against what must be
      why          LMCache served not one of the 2767 tokens that it must serve in the load pass. The answers are those of plain vLLM and prove nothing.
      next         Look for "degraded mode", a failed connection or differing hash seeds in the logs.
    verdict: not exercised (exit code 4)
    "#);
    assert_eq!(judge("empty@server wrong@load", 4), judge("empty@server noise@engine chance@engine", 4));
}

#[test]
fn a_cache_that_serves_nothing_is_found_out_after_few_questions() {
    let lab = Lab::new();
    let ended = lab.run("empty@server", "-q");
    insta::assert_snapshot!(ended.err, @"warning: tiny over mp: the cache served nothing for the first 8 questions; the rest is not asked");
    let steps = lab.steps();
    let cached = steps.iter().position(|step| step == "start cached").unwrap();
    assert_eq!(steps[cached + 1..], ["store 8", "load 8"]);
}

#[test]
fn a_cache_that_serves_too_little_is_not_exercised() {
    insta::assert_snapshot!(judge("lose@server", 4), @r"
    tiny (dense) over mp: NOT EXERCISED
      decided by   hits: what was served against what must be
      why          LMCache served 768 of 8287 tokens in the load pass; 24 of 24 requests got fewer than were stored for them (first: botany/test/1, 16 tokens instead of 336).
      next         Look for evictions, failed stores or failed loads in the logs; give the cache more memory if it was full.
    verdict: not exercised (exit code 4)
    ");
}

#[test]
fn a_server_that_counts_other_hits_than_vllm_is_not_exercised() {
    insta::assert_snapshot!(judge("lie@server", 4), @r"
    tiny (dense) over mp: NOT EXERCISED
      decided by   hits: what was served against what must be
      why          vLLM and the LMCache server count different hits (load pass: vLLM says 8287 tokens, the server 8304). One of them reports what did not happen.
      next         Look for loads that failed or were repeated in LMCache's log.
    verdict: not exercised (exit code 4)
    ");
}

#[test]
fn a_route_without_a_connector_for_the_device_is_not_exercised() {
    let lab = Lab::new();
    let ended = lab.run("", "--route in-process");
    assert_eq!(ended.code, 4, "{}{}", ended.err, ended.out);
    assert_eq!(lab.steps().last().unwrap(), "load 8");
}

/// A run with the model on two ranks: the verdict, and what the server wrote and read beside what it had to.
fn on_two_ranks(faults: &str) -> (i32, [(u64, u64); 2]) {
    let lab = Lab::new();
    lab.edit("suite.toml", "source = \"model\"", "source = \"model\"\ntensor_parallel_size = 2");
    let ended = lab.run(faults, "-q");
    let server = lab.report().findings[0].comparison.exercised.server.clone().unwrap();
    let shards = server.shards.unwrap();
    let counts = [(server.store.chunks_written, shards.written), (server.load.chunks_read, shards.read)];
    (ended.code, counts)
}

#[test]
fn every_rank_must_write_and_read_its_shard_of_every_chunk() {
    // Two of them wait for chunks that never come.
    let ended = at_once(["", "unwritten@server", "unread@server"], on_two_ranks);
    let (code, [written, read]) = ended[0];
    assert_eq!((code, written.0), (0, written.1));
    // One prompt is whole chunks: its last chunk is read although one token less of it is served.
    assert_eq!(read.0, read.1 + 2);
    let (code, [written, _]) = ended[1];
    assert_eq!((code, 2 * written.0), (4, written.1));
    let (code, [_, read]) = ended[2];
    assert_eq!((code, 2 * read.0), (4, read.1 + 2));
}

#[test]
fn answers_that_do_not_feel_their_kv_are_insensitive_whatever_agrees() {
    insta::assert_snapshot!(judge("numb@engine", 5), @r"
    tiny (dense) over mp: INSENSITIVE
      decided by   planted faults
      why          This model's answers do not feel the KV that they are served, so wrong KV would pass. With chunk 21 of botany/test/1 at zero (2 cells), no bit of its answer moves.
      next         Use trained weights, and look at whether vLLM reads what the connector loads.
    verdict: insensitive (exit code 5)
    ");
    // Asked again it moves as far by itself.
    assert!(judge("restless@engine", 5).contains("and by up to 0.500 without any change"));
    // It could not be spoilt.
    assert!(judge("unreachable@engine", 3).contains("was not seen, though: Of botany/test/1 no chunk"));
}

#[test]
fn a_request_that_was_preempted_is_expected_to_be_looked_up_again() {
    let lab = Lab::new();
    let ended = lab.run("preempt@load", "");
    assert_eq!(ended.code, 0, "{}{}", ended.err, ended.out);
    assert!(ended.out.contains("; requests lost their blocks 2 times and were served "), "{}", ended.out);
    // Looked up again for a reason that nobody told.
    let lab = Lab::new();
    let ended = lab.run("untold@load", "");
    assert_eq!(ended.code, 4, "{}{}", ended.err, ended.out);
}

#[test]
fn rounds_are_planned_for_the_blocks_that_a_suite_leaves_vllm() {
    let lab = Lab::new();
    lab.edit("suite.toml", "swap_space = 0", "num_gpu_blocks_override = 128");
    let ended = lab.run("", "");
    assert_eq!(ended.code, 0, "{}", ended.err);
    let largest = |lab: &Lab| {
        let rounds = lab.steps().iter().filter_map(|step| step.strip_prefix("control ")?.parse().ok()).max();
        rounds.unwrap_or(0_u32)
    };
    assert!((1..8).contains(&largest(&lab)), "{:?}", lab.steps());
    // Whoever names larger blocks has more room.
    lab.edit(
        "suite.toml",
        "num_gpu_blocks_override = 128",
        "num_gpu_blocks_override = 128\nblock_size = 128",
    );
    lab.run("", "");
    assert_eq!(largest(&lab), 16);
}

#[test]
fn an_engine_with_less_room_than_was_planned_for_is_an_error_and_no_control() {
    let lab = Lab::new();
    insta::assert_snapshot!(lab.error(&lab.run("narrow@start", "")), @r"
    error: failed to hold a round of the control: it takes 5776 tokens of vLLM's KV cache, which says that it holds 512, in blocks of 16, where 349525 were planned for

    hint: raise `engine.kv_cache_gib` and leave `lmcache.memory_gib` as it is, which bounds a round, too; where the suite names `num_gpu_blocks_override`, raise that, with `block_size = 16` beside it
    ");
}
