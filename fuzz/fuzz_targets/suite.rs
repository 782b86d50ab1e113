//! A suite of any text is taken or refused with a hint, and what is taken can be divided by.
#![no_main]

use kv_correctness::suite::Suite;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| match Suite::parse(text, "fuzzed") {
    Ok(suite) => assert!(suite.lmcache.chunk_tokens > 0 && suite.engine.max_model_len > suite.engine.max_tokens),
    Err(error) => assert!(error.hint().is_some(), "{error}"),
});
