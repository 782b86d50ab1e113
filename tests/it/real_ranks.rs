//! Whether a real LMCache tells KV of one rank from KV of two: an engine of each on one server, each asked for what the other
//! stored. Minutes of work, so only on request (`cargo test --test it real_ranks -- --ignored --nocapture`).

use kv_correctness::engine::{LmcacheServer, PrefixCache, Worker};
use kv_correctness::model::Observation;
use serde_json::{Value, json};

use crate::real_bench::{Bench, CHUNK_TOKENS, Caching, PATIENCE, PROMPTS, WHOLE_TOKENS, prompts, served};

/// What one engine was served of what another had stored, and what that did to its answers.
#[derive(Debug)]
struct Loaded {
    /// Tokens of all prompts' whole chunks that were served.
    served: u32,
    /// Prompts whose letters differ from those over KV that the engine stored itself.
    differing: usize,
    /// The largest difference of a letter's log-probability.
    largest: f64,
    /// What the engine answers over KV that it stored itself.
    own: Vec<Observation>,
}

/// Asks every prompt, and waits until the chunks that were not served are stored in so many shards each: they arrive after
/// the answers.
async fn ask(worker: &mut Worker, server: &LmcacheServer, shards: u64) -> Vec<Observation> {
    let before = server.counters().await.unwrap();
    let observations = worker.score(&prompts(0), PrefixCache::Read, || {}).await.unwrap();
    let computed = u64::from(WHOLE_TOKENS - served(&observations)) / u64::from(CHUNK_TOKENS) * shards;
    let after = server.settle(before, computed, PATIENCE).await.unwrap();
    assert_eq!(after.since(before).written_chunks, computed);
    observations
}

/// Has `reader` ask for what is on the server, and then for the same stored by itself.
async fn load(reader: &mut Worker, server: &LmcacheServer, shards: u64) -> Loaded {
    let foreign = ask(reader, server, shards).await;
    server.clear().await.unwrap();
    ask(reader, server, shards).await;
    let own = ask(reader, server, shards).await;
    assert_eq!(served(&own), WHOLE_TOKENS);
    let differences = differences(&foreign, &own);
    Loaded {
        served: served(&foreign),
        differing: differences.iter().filter(|difference| **difference > 0.0).count(),
        largest: largest(&differences),
        own,
    }
}

/// For each prompt the largest difference of a letter's log-probability.
fn differences(one: &[Observation], other: &[Observation]) -> Vec<f64> {
    let of = |(one, other): (&Observation, &Observation)| {
        let pairs = one.letters.into_iter().zip(other.letters);
        largest(&pairs.map(|(one, other)| (one - other).abs()).collect::<Vec<_>>())
    };
    one.iter().zip(other).map(of).collect()
}

fn largest(differences: &[f64]) -> f64 {
    differences.iter().copied().fold(0.0, f64::max)
}

/// What two ranks load of what one stored, and one of what two stored. `shards` are those of a chunk stored by two ranks.
fn exchange(model: &str, cpu_arguments: Value, shards: u64) -> [Loaded; 2] {
    let bench = Bench::new(model, cpu_arguments);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let loaded = runtime.block_on(async {
        let server = bench.server().await;
        let engine = |name, ranks| bench.engine(name, ranks, Caching::Lmcache(server.connector(None)));
        let (mut one, mut two) = tokio::join!(engine("of-one", 1), engine("of-two", 2));
        assert_eq!(served(&ask(&mut one, &server, 1).await), 0);
        let by_two = load(&mut two, &server, shards).await;
        let by_one = load(&mut one, &server, 1).await;
        one.finish().await.unwrap();
        two.finish().await.unwrap();
        [by_two, by_one]
    });
    for (what, Loaded { served, differing, largest, .. }) in
        ["two ranks load what one", "one loads what two"].iter().zip(&loaded)
    {
        println!(
            "{model}: {what} stored: {served} of {WHOLE_TOKENS} tokens served; the letters of {differing} of {PROMPTS} prompts \
             differ from those over KV of its own, by at most {largest:.1e}"
        );
    }
    println!("{model}: each over KV of its own, by at most {:.1e}", between_ranks(&loaded));
    loaded
}

/// The largest difference between what one rank and two answer, each over KV of its own.
fn between_ranks([by_two, by_one]: &[Loaded; 2]) -> f64 {
    largest(&differences(&by_two.own, &by_one.own))
}

#[test]
#[ignore = "runs vLLM and LMCache for minutes"]
fn sharded_kv_of_another_number_of_ranks_is_never_served() {
    for loaded in exchange("canary-dense", json!({}), 2) {
        assert_eq!(loaded.served, 0);
    }
}

/// A finding: keys of a model whose KV is replicated hold no number of ranks. LMCache 0.5.6 counts the ranks of such a model
/// as one, so KV that another number of ranks computed is served. It has the right shape, and moves an answer no more than
/// the numbers of ranks differ by themselves: ranks round in another order.
#[test]
#[ignore = "runs vLLM and LMCache for minutes"]
fn replicated_kv_of_another_number_of_ranks_is_served_and_moves_answers_as_ranks_do_by_themselves() {
    let cpu_arguments = json!({"compilation_config": {"custom_ops": ["-rotary_embedding"]}});
    let exchanged = exchange("canary-mla", cpu_arguments, 1);
    let of_ranks = between_ranks(&exchanged);
    for loaded in exchanged {
        assert_eq!(loaded.served, WHOLE_TOKENS);
        assert!(loaded.largest < 4.0 * of_ranks, "{} against {of_ranks}", loaded.largest);
    }
}
