//! Random numbers that are to be nobody else's: of queues, of logs, of segments.

/// A number other than zero that no other call returns, in this process or another one, but with a
/// probability of one in 2^64. It depends on no generator that an application could seed.
pub(crate) fn new() -> u64 {
    // A simulation is to run the same way each time.
    #[cfg(test)]
    return fastrand::u64(1..);
    #[cfg(not(test))]
    {
        use std::hash::{BuildHasher, RandomState};
        // Its keys come from the system, and differ from call to call.
        RandomState::new().hash_one(0_u64).max(1)
    }
}
