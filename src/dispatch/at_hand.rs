//! The leases that a consumer delivers next, which it takes without a locked instruction.
//!
//! The owner takes from the front; others, when they have nothing to do, take from the back. In the
//! deque of Chase and Lev ("Dynamic circular work-stealing deque", SPAA 2005) the owner needs a
//! fence between its claim of a slot and its look at the thieves, which costs as much as half a
//! delivery. Here it only keeps the compiler from swapping the two, and the thief, which comes
//! rarely, has the kernel run a barrier on all threads of the process, as for the [`Gate`]:
//!
//! 1. The owner stores that a slot is taken, and then looks whether a thief is at work.
//! 2. A thief says that it is at work, runs the barrier, and then looks how far the owner has come.
//!
//! So the thief sees the owner's claim, or the owner sees the thief, and waits until it is gone.
//! Where the kernel has no such barrier, nothing is put here.

#![allow(unsafe_code)]

use std::array;
use std::cell::Cell;
use std::io;
use std::mem::MaybeUninit;
use std::sync::{Arc, PoisonError};

use crossbeam_utils::CachePadded;

use super::gate::{Gate, light_fence};
use crate::log::run::RUN_JOBS;
use crate::sync::{AtomicBool, AtomicU32, Mutex, MutexGuard, Ordering, UnsafeCell};

/// What is at hand at most: the leases of a run. Few in the models, where each is watched.
const SLOTS: u32 = if cfg!(loom) { 4 } else { RUN_JOBS };

/// The owner's end.
pub(super) struct AtHand<T> {
    shared: Arc<CachePadded<Shared<T>>>,
    /// The slot to take next, as the owner has stored it in `shared`.
    next: Cell<u32>,
    is_filling: Cell<bool>,
}

/// The other consumers' end.
pub(super) struct Taker<T>(Arc<CachePadded<Shared<T>>>);

struct Shared<T> {
    /// The slot to take next; ahead by one while the owner finds out whether there is one. Stored
    /// by the owner. Slots are counted on, round and round.
    next: AtomicU32,
    /// The end of what is at hand. Raised by the owner when nothing is, and lowered by a thief.
    end: AtomicU32,
    /// Whether a thief is at work.
    is_taken_from: AtomicBool,
    /// Held by the thief at work.
    thief: Mutex<()>,
    /// Whether the kernel has refused the barrier, so that only the owner can take anything.
    is_refused: AtomicBool,
    slots: [UnsafeCell<MaybeUninit<T>>; SLOTS as usize],
}

// SAFETY: `pop`, `Filling::push` and `take` see to it that no two threads access a slot at once;
// what is in it may come from one thread and go to another.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as for Send.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> AtHand<T> {
    pub(super) fn new() -> (Self, Taker<T>) {
        let shared = Arc::new(CachePadded::new(Shared {
            next: AtomicU32::new(0),
            end: AtomicU32::new(0),
            is_taken_from: AtomicBool::new(false),
            thief: Mutex::new(()),
            is_refused: AtomicBool::new(false),
            slots: array::from_fn(|_| UnsafeCell::new(MaybeUninit::uninit())),
        }));
        let own = Self {
            shared: Arc::clone(&shared),
            next: Cell::new(0),
            is_filling: Cell::new(false),
        };
        (own, Taker(shared))
    }

    /// Takes the next one.
    #[inline(always)]
    pub(super) fn pop(&self) -> Option<T> {
        let shared = &**self.shared;
        let at = self.next.get();
        // Relaxed: the thief's barrier keeps this store before the load that follows.
        shared.next.store(at.wrapping_add(1), Ordering::Relaxed);
        light_fence();
        // Acquire pairs with the Release of a thief that is gone, so that `end` is as it left it.
        if shared.is_taken_from.load(Ordering::Acquire) {
            drop(shared.lock());
        }
        if shared.end.load(Ordering::Relaxed) == at {
            shared.next.store(at, Ordering::Relaxed);
            return None;
        }
        self.next.set(at.wrapping_add(1));
        // SAFETY: the slot was filled, as it is before `end`, and only this call reads it. A thief
        // that did not see the store above was at work when this thread looked, or before: it is
        // gone, and took only what is behind `end`. Any other one leaves this slot alone.
        Some(unsafe { shared.read(at) })
    }

    /// For adding some while nothing is at hand; None if something is, or is being added already by
    /// a caller of this one.
    pub(super) fn fill(&self) -> Option<Filling<'_, T>> {
        let is_empty = self.shared.len() == 0 && !self.is_filling.replace(true);
        is_empty.then(|| Filling {
            own: self,
            count: 0,
        })
    }

    pub(super) fn len(&self) -> usize {
        self.shared.len()
    }
}

/// What is being added to the leases at hand. It can be taken once this is dropped.
pub(super) struct Filling<'a, T> {
    own: &'a AtHand<T>,
    count: u32,
}

impl<T> Filling<'_, T> {
    /// Gives the value back if all slots are taken.
    #[inline]
    pub(super) fn push(&mut self, value: T) -> Result<(), T> {
        if self.count == SLOTS {
            return Err(value);
        }
        let at = self.own.next.get().wrapping_add(self.count);
        // SAFETY: the slot is behind `end`, where neither the owner nor a thief reads, and what was
        // in it has been taken.
        unsafe { self.own.shared.write(at, value) };
        self.count += 1;
        Ok(())
    }
}

impl<T> Drop for Filling<'_, T> {
    fn drop(&mut self) {
        let end = self.own.next.get().wrapping_add(self.count);
        // Release pairs with the thief's Acquire: it finds the slots filled. No thief changes `end`
        // at this moment, as nothing was at hand.
        self.own.shared.end.store(end, Ordering::Release);
        self.own.is_filling.set(false);
    }
}

impl<T> Taker<T> {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is something to take, unless the kernel refuses the barrier.
    pub(super) fn has_any(&self) -> bool {
        self.len() > 0 && !self.0.is_refused.load(Ordering::Relaxed)
    }

    /// A number that changes when the owner takes something.
    pub(super) fn progress(&self) -> u32 {
        self.0.next.load(Ordering::Relaxed)
    }

    /// Takes the later half of what is at hand, in order; nothing if another thief is at work. The
    /// barrier interrupts every core that runs a thread of the process.
    ///
    /// # Errors
    /// If the kernel has no such barrier or refuses it. Nothing is taken then or later.
    pub(super) fn take(&self, gate: &Gate, taken: &mut Vec<T>) -> io::Result<()> {
        let shared = &**self.0;
        // Before the owner may have to wait for this thread.
        let prepared = gate.prepare();
        let Ok(_thief) = shared.thief.try_lock() else {
            return Ok(());
        };
        if prepared.is_err() || self.len() == 0 {
            shared
                .is_refused
                .fetch_or(prepared.is_err(), Ordering::Relaxed);
            return prepared;
        }
        // Relaxed: the barrier orders it before the loads that follow.
        shared.is_taken_from.store(true, Ordering::Relaxed);
        let passed = gate.barrier();
        shared
            .is_refused
            .fetch_or(passed.is_err(), Ordering::Relaxed);
        if passed.is_ok() {
            let next = shared.next.load(Ordering::Relaxed);
            // Acquire pairs with the Release of `Filling`.
            let end = shared.end.load(Ordering::Acquire);
            let count = between(next, end).div_ceil(2);
            let from = end.wrapping_sub(count);
            for at in (0..count).map(|at| from.wrapping_add(at)) {
                // SAFETY: the slot was filled, as it is before `end`. The owner has not stored that
                // it has taken it; if it does so now, it sees this thief, waits, and finds that
                // `end` is not past the slot any more.
                taken.push(unsafe { shared.read(at) });
            }
            if count > 0 {
                // If there was nothing, the owner may be raising the end at this moment. Release
                // pairs with the Acquire of an owner that finds nothing at hand, and fills the slots
                // again.
                shared.end.store(from, Ordering::Release);
            }
        }
        // Release: who sees this sees the new end.
        shared.is_taken_from.store(false, Ordering::Release);
        passed
    }
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, ()> {
        self.thief.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many are at hand; a moment ago, except for the owner while there is none.
    fn len(&self) -> usize {
        let next = self.next.load(Ordering::Relaxed);
        between(next, self.end.load(Ordering::Acquire)) as usize
    }

    /// # Safety
    /// The slot is filled, and no other thread reads or writes it. It is not filled any more.
    #[inline(always)]
    unsafe fn read(&self, at: u32) -> T {
        let slot = &self.slots[(at % SLOTS) as usize];
        // SAFETY: by the caller.
        slot.with_mut(|slot| unsafe { (*slot).assume_init_read() })
    }

    /// # Safety
    /// The slot is not filled, and no other thread reads or writes it.
    #[inline(always)]
    unsafe fn write(&self, at: u32, value: T) {
        let slot = &self.slots[(at % SLOTS) as usize];
        // SAFETY: by the caller.
        slot.with_mut(|slot| unsafe { _ = (*slot).write(value) });
    }
}

/// From `next` to `end`; `next` may be ahead by one.
fn between(next: u32, end: u32) -> u32 {
    let count = end.wrapping_sub(next);
    if count > SLOTS { 0 } else { count }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::hint::spin_loop;
    use std::sync::atomic::AtomicU64;
    use std::thread;

    use super::*;

    fn fill<T>(own: &AtHand<T>, values: impl IntoIterator<Item = T>) {
        let mut filling = own.fill().unwrap();
        for value in values {
            assert!(filling.push(value).is_ok());
        }
    }

    fn take<T>(taker: &Taker<T>) -> Vec<T> {
        let mut taken = Vec::new();
        taker.take(&Gate::new(), &mut taken).unwrap();
        taken
    }

    #[test]
    fn the_owner_takes_from_the_front_and_others_the_half_at_the_back() {
        let (own, taker) = AtHand::new();
        // Round the slots, and round the numbers.
        for at in [0, 60, u32::MAX - 3] {
            own.next.set(at);
            own.shared.next.store(at, Ordering::Relaxed);
            own.shared.end.store(at, Ordering::Relaxed);
            fill(&own, 0..10);
            assert_eq!((own.pop(), own.pop(), own.len()), (Some(0), Some(1), 8));
            assert_eq!(take(&taker), [6, 7, 8, 9]);
            assert_eq!(take(&taker), [4, 5]);
            assert_eq!((own.pop(), taker.len()), (Some(2), 1));
            assert_eq!(take(&taker), [3]);
            assert_eq!((own.pop(), take(&taker)), (None, Vec::new()));
            assert_eq!((own.pop(), own.len()), (None, 0));
        }
    }

    #[test]
    fn there_is_room_for_a_run_and_only_while_nothing_is_at_hand() {
        let (own, _taker) = AtHand::new();
        let mut filling = own.fill().unwrap();
        // A subscriber that is told of something may look for a job now.
        assert!(own.fill().is_none());
        assert_eq!(own.pop(), None);
        for value in 0..SLOTS {
            assert_eq!(filling.push(value), Ok(()));
        }
        assert_eq!(filling.push(SLOTS), Err(SLOTS));
        assert_eq!(own.pop(), None);
        drop(filling);
        assert!(own.fill().is_none());
        for value in 0..SLOTS {
            assert_eq!(own.pop(), Some(value));
            assert_eq!(own.fill().is_none(), value + 1 < SLOTS);
        }
    }

    #[test]
    fn where_the_kernel_has_no_barrier_only_the_owner_takes() {
        let (own, taker) = AtHand::new();
        let gate = Gate::new();
        gate.always_fence();
        fill(&own, 0..3);
        assert!(taker.has_any());
        assert!(taker.take(&gate, &mut Vec::new()).is_err());
        assert_eq!((taker.has_any(), taker.len()), (false, 3));
        assert!((0..3).eq(std::iter::from_fn(|| own.pop())));
    }

    /// Ends the thieves, also if the owner panics.
    struct Stop<'a>(&'a AtomicBool);

    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    /// Fills again and again, with up to `most`, until others have taken so many; adds up the
    /// values.
    fn race(others_take: u64, most: u64, thieves: usize) {
        let (own, taker) = AtHand::new();
        let (sum, stolen) = (AtomicU64::new(0), AtomicU64::new(0));
        let (mut expected, mut next) = (0, 0);
        let add = |value: u64| _ = sum.fetch_add(value, Ordering::Relaxed);
        let is_stopped = AtomicBool::new(false);
        let is_over = || stolen.load(Ordering::Relaxed) >= others_take;
        thread::scope(|scope| {
            for _ in 0..thieves {
                scope.spawn(|| {
                    let gate = Gate::new();
                    while !is_over() && !is_stopped.load(Ordering::Relaxed) {
                        let mut taken = Vec::new();
                        taker.take(&gate, &mut taken).unwrap();
                        stolen.fetch_add(taken.len() as u64, Ordering::Relaxed);
                        taken.into_iter().for_each(add);
                    }
                });
            }
            let _stop = Stop(&is_stopped);
            for round in 0.. {
                if is_over() {
                    break;
                }
                let values = next..next + 1 + round % most;
                next = values.end;
                expected += values.clone().sum::<u64>();
                fill(&own, values);
                let mut popped = 0;
                while let Some(value) = own.pop() {
                    add(value);
                    popped += 1;
                    assert!(popped <= SLOTS, "what a thief took is at hand");
                    // Sometimes a thief comes between two.
                    for _ in 0..round % 50 {
                        spin_loop();
                    }
                }
            }
        });
        assert_eq!((own.pop(), sum.into_inner()), (None, expected));
    }

    #[test]
    fn each_value_is_taken_once_whoever_takes_it() {
        if Gate::new().has_barrier() {
            let others_take = if cfg!(miri) { 20 } else { 2_000 };
            race(others_take, 3, 1);
            race(others_take, 64, 1);
            race(others_take, 5, 2);
        }
    }
}
