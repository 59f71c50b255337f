//! Random numbers that are to be nobody else's: of flows, and of enqueues with a key.

use std::hash::{BuildHasher, RandomState};

/// A number that no other call returns, in this process or another one, but with a probability of one
/// in 2^64. It depends on no generator that an application could seed.
pub(crate) fn new() -> u64 {
    // Its keys come from the system, and differ from call to call.
    RandomState::new().hash_one(0_u64)
}
