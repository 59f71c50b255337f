//! The gate that each delivery passes: whether there is anything to check before the handler runs.
//!
//! A consumer stores in the delivery word of a job that a handler has it, and then looks at the
//! gate. A thread that cancels a job changes the gate and then looks at the delivery word. One of
//! the two must see the other. Between its store and its load the consumer would need a fence,
//! which costs as much as the rest of a delivery. Instead, the thread that cancels has the kernel
//! run a barrier on all threads of the process (`membarrier`), wherever they are: each consumer
//! has then either made its store visible, or loads the changed gate. The consumer only keeps the
//! compiler from swapping the two.
//!
//! Where the kernel offers no such barrier, the gate is never open, and consumers fence.

use std::io;
#[cfg(not(any(loom, miri)))]
use std::sync::OnceLock;

#[cfg(not(any(loom, miri)))]
use rustix::thread::{MembarrierCommand, MembarrierQuery, membarrier, membarrier_query};

use crate::sync::{AtomicUsize, Ordering, fence};

/// Flags of what a consumer has to check; 0 if nothing.
pub(crate) struct Gate(AtomicUsize);

impl Gate {
    /// The queue is closed.
    pub(crate) const CLOSED: usize = 1;
    /// The queue is paused.
    pub(crate) const PAUSED: usize = 2;
    /// Jobs were cancelled that consumers may still come to.
    pub(crate) const CANCELS: usize = 4;
    /// The kernel has no barrier for other threads.
    const FENCED: usize = 8;

    pub(crate) fn new() -> Self {
        Self(AtomicUsize::new(match has_barrier() {
            true => 0,
            false => Self::FENCED,
        }))
    }

    /// Has consumers fence, as where the kernel has no barrier for other threads.
    #[cfg(test)]
    pub(crate) fn always_fence(&self) {
        self.set(Self::FENCED);
    }

    /// Whether there is nothing to check, for a consumer that has stored that a handler has the
    /// job. If not, it [looks](Self::look).
    #[inline(always)]
    pub(crate) fn is_open(&self) -> bool {
        light_fence();
        self.0.load(Ordering::Relaxed) == 0
    }

    /// What is to be checked.
    pub(crate) fn look(&self) -> usize {
        fence(Ordering::SeqCst);
        self.0.load(Ordering::Relaxed)
    }

    /// Whether the kernel has a barrier for other threads.
    pub(super) fn has_barrier(&self) -> bool {
        !self.has(Self::FENCED)
    }

    /// Whether one of these flags is set. It may have been set a moment ago and not be seen yet,
    /// except by a thread that takes a lock which the setter has held since.
    #[inline]
    pub(crate) fn has(&self, flags: usize) -> bool {
        // Acquire pairs with the Release in `clear`: who sees that no job is cancelled sees those
        // done that were.
        self.0.load(Ordering::Acquire) & flags != 0
    }

    // Relaxed: what needs an order has a barrier or a lock.
    pub(crate) fn set(&self, flags: usize) {
        self.0.fetch_or(flags, Ordering::Relaxed);
    }

    pub(crate) fn clear(&self, flags: usize) {
        self.0.fetch_and(!flags, Ordering::Release);
    }

    /// Does what the first [`barrier`](Self::barrier) of a process has to do, which may take some
    /// milliseconds.
    ///
    /// # Errors
    /// If the kernel has no barrier for other threads or refuses it.
    pub(super) fn prepare(&self) -> io::Result<()> {
        match self.has_barrier() {
            true => register(),
            false => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// A fence for all threads of the process. Each consumer that does not see the flags that were
    /// set before has stored by now that a handler has its job.
    pub(crate) fn barrier(&self) -> io::Result<()> {
        fence(Ordering::SeqCst);
        if !self.has(Self::FENCED) {
            heavy_fence()?;
            fence(Ordering::SeqCst);
        }
        Ok(())
    }
}

/// Keeps the compiler from swapping what is before with what is after. The barrier of the other
/// side does the rest.
#[inline(always)]
pub(super) fn light_fence() {
    #[cfg(not(any(loom, miri)))]
    std::sync::atomic::compiler_fence(Ordering::SeqCst);
    // Loom and Miri know no barrier for other threads, so both sides have a fence there.
    #[cfg(any(loom, miri))]
    fence(Ordering::SeqCst);
}

/// Whether the kernel can run a barrier on all threads of the process.
fn has_barrier() -> bool {
    #[cfg(any(loom, miri))]
    return true;
    #[cfg(not(any(loom, miri)))]
    {
        let needed =
            MembarrierQuery::PRIVATE_EXPEDITED | MembarrierQuery::REGISTER_PRIVATE_EXPEDITED;
        membarrier_query().contains(needed)
    }
}

#[cfg(not(any(loom, miri)))]
fn register() -> io::Result<()> {
    // The first registration of a process may take some milliseconds, so it is left to the first
    // barrier.
    static REGISTERED: OnceLock<()> = OnceLock::new();
    if REGISTERED.get().is_none() {
        membarrier(MembarrierCommand::RegisterPrivateExpedited)?;
        let _ = REGISTERED.set(());
    }
    Ok(())
}

#[cfg(not(any(loom, miri)))]
fn heavy_fence() -> io::Result<()> {
    register()?;
    Ok(membarrier(MembarrierCommand::PrivateExpedited)?)
}

#[cfg(any(loom, miri))]
fn register() -> io::Result<()> {
    Ok(())
}

#[cfg(any(loom, miri))]
fn heavy_fence() -> io::Result<()> {
    Ok(())
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_gate_is_open_while_nothing_is_to_be_checked() {
        let gate = Gate::new();
        if has_barrier() {
            assert!(gate.is_open());
        }
        gate.set(Gate::PAUSED | Gate::CANCELS);
        gate.barrier().unwrap();
        assert!(!gate.is_open());
        gate.clear(Gate::PAUSED);
        assert!(gate.has(Gate::CANCELS) && !gate.has(Gate::PAUSED | Gate::CLOSED));
        assert_ne!(gate.look() & Gate::CANCELS, 0);
    }

    #[test]
    fn without_a_barrier_for_other_threads_the_gate_is_never_open() {
        let gate = Gate::new();
        gate.set(Gate::FENCED);
        assert!(!gate.is_open());
        gate.barrier().unwrap();
        assert_eq!(gate.look() & !Gate::FENCED, 0);
    }
}
