//! Fuzz target: the bytes of a MANIFEST, see `logmill_fuzz::manifest`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| logmill_fuzz::manifest(bytes));
