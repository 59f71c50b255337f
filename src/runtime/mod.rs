//! The runtime: the few threads that serve any number of queues.
//!
//! Each queue has a *task* in each of two *lanes*: the timer's and maintenance's. A task does one
//! *turn* at a time, on any thread of its lane, and says when its next turn is due. It is woken when
//! there is something to do earlier. A wake-up costs the same whatever the number of queues: tasks
//! that are woken wait in a list, the others in a map ordered by due time.
//!
//! **No queue waits behind a stranger.** A turn may wait for the disk, or call code of the user that
//! does not return. So before a thread begins a turn, there is another one that takes what comes
//! next, unless all threads that the lane may have are in turns. A thread in user code does not
//! count as one of them. A queue alone has a thread for each lane, and no need of more.
//!
//! The threads keep neither queues nor the runtime alive.

mod lane;
#[cfg(all(loom, test))]
mod loom_models;
#[cfg(all(test, not(loom)))]
mod tests;

use std::io;
use std::sync::Arc;
use std::time::Instant;

use self::lane::Lane;
pub(crate) use self::lane::{Task, outside};

/// Threads for the timers of many queues: turns are short, so one that waits for the disk, at a
/// page fault, is reason enough for a second.
const TIMER_THREADS: usize = 2;
/// Threads for the maintenance of many queues. More would not make one disk faster; with fewer, a
/// few long flushes would hold up the others.
const MAINTENANCE_THREADS: usize = 4;

/// What a task does.
pub(crate) trait Serve: Send + Sync {
    /// Does what there is to do; returns when the next turn is due if the task is not woken before.
    /// Does not panic.
    fn turn(&self) -> Option<Instant>;
}

/// The threads of the queues of a tree, or of one queue.
pub(crate) struct Runtime {
    timer: Arc<Lane>,
    maintenance: Arc<Lane>,
    /// It starts no threads: a test does what they would.
    #[cfg(feature = "simulated-disk")]
    is_idle: std::sync::atomic::AtomicBool,
}

impl Runtime {
    /// For one queue.
    pub(crate) fn for_one() -> Self {
        Self::new(1, 1)
    }

    /// For many queues.
    pub(crate) fn for_many() -> Self {
        Self::new(TIMER_THREADS, MAINTENANCE_THREADS)
    }

    fn new(timer: usize, maintenance: usize) -> Self {
        Self {
            timer: Lane::new("logmill-timer", timer),
            maintenance: Lane::new("logmill-maintenance", maintenance),
            #[cfg(feature = "simulated-disk")]
            is_idle: std::sync::atomic::AtomicBool::new(false),
        }
    }

    /// Has it start no threads.
    #[cfg(feature = "simulated-disk")]
    pub(crate) fn stay_idle(&self) {
        self.is_idle
            .store(true, std::sync::atomic::Ordering::Relaxed);
    }

    /// Whether it starts no threads.
    #[cfg(feature = "simulated-disk")]
    pub(crate) fn is_idle(&self) -> bool {
        self.is_idle.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Starts the first thread of each lane, unless there is one.
    pub(crate) fn start(&self) -> io::Result<()> {
        #[cfg(feature = "simulated-disk")]
        if self.is_idle() {
            return Ok(());
        }
        self.timer.start()?;
        self.maintenance.start()
    }

    /// A new task in the timer's lane.
    pub(crate) fn timer_task(&self) -> Task {
        Lane::add(&self.timer)
    }

    /// A new task in maintenance's lane.
    pub(crate) fn maintenance_task(&self) -> Task {
        Lane::add(&self.maintenance)
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        self.timer.stop();
        self.maintenance.stop();
    }
}

/// Wakes a task; the default wakes none.
#[derive(Clone, Default)]
pub(crate) struct Waker(Option<Arc<lane::Shared>>);

impl Waker {
    pub(crate) fn wake(&self) {
        if let Some(task) = &self.0 {
            task.wake();
        }
    }
}
