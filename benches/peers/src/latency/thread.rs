//! What the kernel does to a thread: which core it has, how often it loses it, and its page
//! faults.

use std::ops::{AddAssign, Sub};

use anyhow::Result;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use nix::unistd::Pid;
use serde::Serialize;

/// The calling thread.
const SELF: Pid = Pid::from_raw(0);

/// A core each for the generator and for the consumer, if there are two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cores {
    pub generator: usize,
    pub consumer: usize,
}

impl Cores {
    /// The first two that this process may use.
    pub fn find() -> Result<Option<Self>> {
        let allowed = sched_getaffinity(SELF)?;
        let mut cores = (0..CpuSet::count()).filter(|&core| allowed.is_set(core).unwrap_or(false));
        Ok(cores.next().zip(cores.next()).map(|(first, second)| Self {
            generator: first,
            consumer: second,
        }))
    }
}

/// Keeps the calling thread on a core, and with it the threads that it starts.
pub fn pin(core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core)?;
    Ok(sched_setaffinity(SELF, &set)?)
}

/// What happened to a thread, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Page faults without a read from disk.
    pub minor_faults: i64,
    /// It lost its core to another thread.
    pub preemptions: i64,
    /// It gave its core up: it slept, or waited for a lock or for the disk.
    pub waits: i64,
    /// Microseconds of CPU time.
    pub cpu: i64,
}

impl Usage {
    /// Of the calling thread since it began.
    pub fn now() -> Self {
        match getrusage(UsageWho::RUSAGE_THREAD) {
            Ok(usage) => Self {
                minor_faults: usage.minor_page_faults(),
                preemptions: usage.involuntary_context_switches(),
                waits: usage.voluntary_context_switches(),
                cpu: usage.user_time().num_microseconds() + usage.system_time().num_microseconds(),
            },
            // There is no other error than a bad argument.
            Err(_) => Self::default(),
        }
    }
}

impl Sub for Usage {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            minor_faults: self.minor_faults - earlier.minor_faults,
            preemptions: self.preemptions - earlier.preemptions,
            waits: self.waits - earlier.waits,
            cpu: self.cpu - earlier.cpu,
        }
    }
}

impl AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.minor_faults += other.minor_faults;
        self.preemptions += other.preemptions;
        self.waits += other.waits;
        self.cpu += other.cpu;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleep_counts_as_a_wait() {
        let before = Usage::now();
        std::thread::sleep(std::time::Duration::from_millis(1));
        assert!((Usage::now() - before).waits >= 1);
    }

    #[test]
    fn a_pinned_thread_has_one_core() {
        let Some(cores) = Cores::find().unwrap() else {
            return;
        };
        assert_ne!(cores.generator, cores.consumer);
        let pinned = std::thread::spawn(move || {
            pin(cores.consumer).unwrap();
            Cores::find().unwrap()
        });
        assert_eq!(pinned.join().unwrap(), None);
    }
}
