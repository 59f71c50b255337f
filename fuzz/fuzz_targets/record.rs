//! Fuzz target: records and acks in memory, see `logmill_fuzz::record`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| logmill_fuzz::record(bytes));
