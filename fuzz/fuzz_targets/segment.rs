//! Fuzz target: the bytes of a segment file, see `logmill_fuzz::segment`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| logmill_fuzz::segment(bytes));
