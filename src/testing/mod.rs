//! Tests that run whole queues through simulated crashes, failing disks and random sequences of
//! operations, and check what the queue guarantees.

pub(crate) mod crash_simulation;
pub(crate) mod fault_injection;
mod figures;
mod labels;
