//! Random numbers that are to be nobody else's: of flows, and of enqueues with a key.

use std::hash::{BuildHasher, Hasher, RandomState};

/// A number that no other call returns, in this process or another one, but with a probability of one
/// in 2^64. It depends on no generator that an application could seed.
pub(crate) fn new() -> u64 {
    // Its keys come from the system, and differ from call to call.
    RandomState::new().hash_one(0_u64)
}

/// A hasher for keys that are hashes themselves, or random: takes them as they are.
#[derive(Default)]
pub(crate) struct Same(u64);

impl Hasher for Same {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = bytes
            .iter()
            .fold(self.0, |hash, byte| hash.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}
