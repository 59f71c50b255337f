//! Fuzz target: the bytes of an ack file, see `logmill_fuzz::ack`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| logmill_fuzz::ack(bytes));
