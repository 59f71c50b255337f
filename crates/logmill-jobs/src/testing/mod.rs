//! Tests of handlers and of flows of jobs, with the feature `testing`.
//!
//! - [`TestMill`] is a mill in a temporary directory, on a [`ManualClock`], whose jobs run inline.
//! - [`attempt`] runs one handler on one job, without workers.
//! - [`enqueued`] and [`assert_enqueued`] look at the jobs that wait.
//! - [`simulate`] crashes the process of a flow at each of its steps, and finds what goes wrong then.

mod attempt;
mod backend;
mod enqueued;
mod files;
mod memory;
mod mill;
mod probe;
mod report;
mod simulate;
mod stage;
mod storage;

pub use logmill::ManualClock;

pub use self::attempt::{Attempted, TestAttempt, attempt};
pub use self::enqueued::{Enqueued, assert_enqueued, assert_not_enqueued, enqueued};
pub use self::mill::TestMill;
pub use self::probe::CrashPoint;
pub use self::report::{How, Ran, RunError, RunReport};
pub use self::simulate::{Outside, Sim, Simulated, simulate, simulate_one};
