//! Whether a real LMCache tells KV of one identity from KV of another: `run --foreign` on the embedded models. Minutes of work, so
//! only on request (`cargo test --test it real_identity -- --ignored --nocapture`).

use kv_correctness::foreign::{Difference, Meaning};
use kv_correctness::suite::Dtype;

use crate::real::run;

/// What is known of LMCache 0.5.6: salt, chunk size and a data type of another size are told apart; weights and a data type of the
/// same size are not.
#[test]
#[ignore = "runs vLLM and LMCache for minutes"]
fn salt_and_chunk_size_are_told_apart_and_data_type_and_weights_are_findings() {
    let report = run("--foreign", 0);
    assert_eq!(report.foreign_kv.len(), 2);
    for foreign in report.foreign_kv {
        let findings = &foreign.findings;
        for reading in &findings.readings {
            println!("{}, {}: {:?}", foreign.model, reading.differs_in.words(), reading.outcome);
            let expected = match reading.differs_in {
                Difference::Nothing => Meaning::ControlHolds,
                Difference::Salt
                | Difference::ChunkSize { .. }
                | Difference::DataType { dtype: Dtype::Float32 } => Meaning::Miss,
                Difference::DataType { .. } | Difference::Weights => Meaning::Finding,
            };
            assert_eq!(findings.meaning(reading), expected, "{}", reading.differs_in.words());
        }
    }
}
