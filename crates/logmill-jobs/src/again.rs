//! Steps that are stored only if nobody has changed what they were made from. Within a process, locks
//! see to that. On a shared backend another process may be faster, and the step is made anew.

use std::time::Duration;

use crate::backend::BackendError;
use crate::error::EnqueueError;
use crate::mill::Mill;

/// So often a step is made: each time somebody else has got on.
const MOST: u32 = 64;
/// Between two times it waits no longer than this.
const LONGEST: Duration = Duration::from_millis(20);

/// An error that may say that another process was faster.
pub(crate) trait MayConflict {
    fn is_conflict(&self) -> bool;
}

impl MayConflict for BackendError {
    fn is_conflict(&self) -> bool {
        matches!(self, Self::Conflict(_))
    }
}

impl MayConflict for EnqueueError {
    fn is_conflict(&self) -> bool {
        matches!(self, Self::Storage(error) if error.is_conflict())
    }
}

/// Makes a step, again while other processes are faster. It holds no lock between two times.
pub(crate) fn again<T, E: MayConflict>(
    mill: &Mill,
    mut step: impl FnMut() -> Result<T, E>,
) -> Result<T, E> {
    if !mill.is_shared() {
        return step();
    }
    for time in 1..MOST {
        match step() {
            Err(error) if error.is_conflict() => {
                // Longer the more others there are, and not all at the same time.
                let longest = LONGEST.min(Duration::from_micros(50) * time * time);
                std::thread::sleep(longest.mul_f64(fastrand::f64()));
            }
            done => return done,
        }
    }
    step()
}
