//! An archive of any bytes is read or refused with a hint.
#![no_main]

use kv_correctness::dataset::{Limits, extract_with_rest};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let limits = Limits { archive_bytes: 16 << 20, member_bytes: 4 << 20, ..Limits::default() };
    if let Err(error) = extract_with_rest(bytes, &limits) {
        assert!(error.hint().is_some(), "{error}");
    }
});
