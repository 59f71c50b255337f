//! Simulations that lead whole queues through crashes, failing disks and random lives, and demand what
//! is promised.

pub(crate) mod crash_simulation;
pub(crate) mod fault_injection;
mod figures;
