//! Fuzz target: operations on a queue, see `logmill_fuzz::operations`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| logmill_fuzz::operations(bytes));
