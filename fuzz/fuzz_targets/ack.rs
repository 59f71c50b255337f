//! See `logmill_fuzz::ack`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| logmill_fuzz::ack(bytes));
