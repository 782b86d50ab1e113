//! Whether a real LMCache tells KV of one identity from KV of another: `run --foreign` on the embedded models. Minutes of work, so
//! only on request (`cargo test --test it real_identity -- --ignored --nocapture --test-threads 1`).

use kv_correctness::foreign::{Difference, ForeignFindings, Meaning, Reading, Storer, Way};
use kv_correctness::machine::Device;
use kv_correctness::model::Dtype;

use crate::real::run;

/// What is known of LMCache 0.5.6: salt, chunk size and what is longer than what was stored are told apart; nothing else is. Wherever
/// something is served, a salt mends it. Readers are asked group by group, so that what ended is kept where a later one does not.
fn is_as_known(group: &str, code: i32) {
    let report = run(&format!("--foreign={group}"), code);
    assert_eq!(report.foreign_kv.len(), 2);
    let has_avx512 = matches!(&report.device, Device::Cpu { features, .. } if features.contains("avx512f"));
    for foreign in report.foreign_kv {
        let is_mla = foreign.model == "canary-mla";
        // vLLM keeps KV in eight bits on a processor with AVX-512 alone, and latent vectors on none.
        let has_eight_bits = has_avx512 && !is_mla;
        let findings = &foreign.findings;
        for reading in &findings.readings {
            println!("{}, {}: {:?}, {:?}", foreign.model, reading.words(), reading.outcome, reading.mend);
        }
        for reading in &findings.readings {
            check(findings, reading, is_mla, has_eight_bits);
        }
    }
}

#[test]
#[ignore = "runs vLLM and LMCache for minutes"]
fn salt_chunk_size_and_length_are_told_apart_and_all_else_is_a_finding_that_a_salt_mends() {
    is_as_known("basic", 0);
}

/// Keys of sharded KV hold the number of shards, those of KV that each rank has whole hold no number of ranks.
#[test]
#[ignore = "runs vLLM and LMCache for minutes"]
fn numbers_of_ranks_are_told_apart_where_kv_is_sharded_and_a_salt_mends_the_rest() {
    is_as_known("ranks", 0);
}

#[test]
#[ignore = "runs vLLM and LMCache for minutes"]
fn adapters_are_not_told_apart_and_a_salt_mends_it() {
    is_as_known("lora", 0);
}

#[test]
#[ignore = "runs vLLM and LMCache for minutes"]
fn forms_of_eight_bits_are_not_told_apart_and_a_salt_mends_it() {
    // Of MLA nothing can be stored in eight bits, without AVX-512 of the dense model neither; what the suite stored is there.
    is_as_known("fp8", 0);
}

#[test]
#[ignore = "runs vLLM and LMCache for minutes"]
fn data_types_in_memory_are_not_told_apart_and_a_salt_mends_it() {
    is_as_known("memory", 0);
}

#[test]
#[ignore = "runs vLLM and LMCache for minutes"]
fn prompts_of_embeddings_are_not_told_apart_and_a_salt_mends_it() {
    is_as_known("embeddings", 0);
}

fn check(findings: &ForeignFindings, reading: &Reading, is_mla: bool, has_eight_bits: bool) {
    let is_fp8 = matches!(reading.stored.by, Storer::KvDataType { .. });
    let fails = !has_eight_bits && (is_fp8 || matches!(reading.differs_in, Difference::KvDataType { .. }));
    // The engine copies what is of another type than it reads into.
    let chokes = reading.stored.over == Way::Memory;
    let expected = match reading.differs_in {
        _ if fails => Meaning::Failed,
        Difference::Nothing => Meaning::ControlHolds,
        Difference::Salt | Difference::ChunkSize { .. } | Difference::DataType { dtype: Dtype::Float32 } => {
            Meaning::Miss
        }
        Difference::Ranks { .. } if !is_mla => Meaning::Miss,
        Difference::DataType { .. } if chokes => Meaning::Failed,
        _ => Meaning::Finding,
    };
    assert_eq!(findings.meaning(reading), expected, "{}", reading.words());
    let is_mended = match expected {
        Meaning::Finding => Some(true),
        Meaning::Failed if chokes => Some(true),
        // MLA's engine fails with a salt as well. What could not be stored is asked with none, nor is an engine that did not start, as
        // that of the dense model without AVX-512.
        Meaning::Failed if !is_fp8 && is_mla => Some(false),
        _ => None,
    };
    assert_eq!(reading.is_mended(), is_mended, "{}", reading.words());
}
