//! An event count: idle consumers sleep here, and threads that bring work wake them.
//!
//! A consumer registers, looks for work once more, and only then waits. A thread that brings work
//! looks for sleepers afterwards. Two orders make sure that one of them sees the other:
//!
//! - A producer reserves with a read-modify-write on the segment's tail, and pays for one load
//!   here. The consumer's last look is a read-modify-write on the same tail
//!   (`Tail::reserved_past`), so one comes before the other in the tail's modification order, and
//!   if the consumer's comes first, the producer acquires from it.
//! - Every other thread (timer, injector) puts a SeqCst fence between the work and the look, and
//!   the consumer has one between registering and looking.
//!
//! A roll creates a new tail for producers to reserve on, which a consumer that looked at the old
//! one does not know. The roll makes the new segment active while it holds the lock that
//! registering takes ([`EventCount::publish`]), so each consumer registers before or after:
//!
//! - If before, a producer that finds the new segment has acquired, through the pointer to it, what
//!   the roll saw under the lock: it sees that the consumer registered when it looks for sleepers,
//!   and wakes one.
//! - If after, the consumer sees the new segment in its last look, and stays awake to look at its
//!   tail.
//!
//! So a roll wakes no consumer: that is left to the producers, one sleeper per record.
//!
//! A thread with news for all sleepers (the queue or a pool of workers stops) takes the lock too,
//! so that each sleeper is either woken or registers later and knows.
//!
//! A wake-up for work is a permit, and any waiting consumer may take it: one that has registered
//! since is just as good for the work. News for all must reach those that were registered. It is
//! not a permit, because a consumer that it does not concern could take a permit from one that it
//! does.
//!
//! A consumer of several queues sleeps at several event counts, see `bell.rs`. With the feature
//! `async`, tasks wait beside threads, see `wakers.rs`. A consumer that looks for work again and
//! again spares producers the wake-ups, see `watch.rs`.

mod bell;
#[cfg(all(loom, test))]
mod loom_models;
#[cfg(feature = "async")]
mod wakers;
mod watch;

use std::sync::PoisonError;
use std::time::Instant;

use crossbeam_utils::CachePadded;

use self::bell::Bells;
pub(crate) use self::bell::{Bell, Hook};
#[cfg(feature = "async")]
pub(crate) use self::wakers::Waiting;
#[cfg(feature = "async")]
use self::wakers::Wakers;
use crate::sync::{AtomicUsize, Condvar, Mutex, MutexGuard, Ordering, fence};

/// The sleepers of a queue.
pub(crate) struct EventCount {
    /// Registered and not yet given a permit; a copy of [`State::asleep`] that is read without the
    /// lock. Relaxed throughout: it is ordered by the read-modify-writes and fences described at
    /// the top of this file.
    sleepers: AtomicUsize,
    /// The same as producers see it: 0 while a consumer [watches](Self::watch). On a cache line of its
    /// own, which is written only when it changes, so that producers mostly have it.
    to_wake: CachePadded<AtomicUsize>,
    state: Mutex<State>,
    wake: Condvar,
}

struct State {
    waiting: usize,
    /// Whether a consumer watches.
    is_watched: bool,
    /// Whether a roll has left it to that one to ask for maintenance.
    wants_maintenance: bool,
    /// Wake-ups given and not yet consumed.
    permits: usize,
    /// How often all sleepers were woken.
    wakes_of_all: u64,
    /// Threads that wait here and elsewhere.
    bells: Bells,
    #[cfg(feature = "async")]
    wakers: Wakers,
}

impl State {
    /// How many threads and tasks are registered and not yet woken.
    fn asleep(&self) -> usize {
        let threads = self.waiting + self.bells.len();
        #[cfg(feature = "async")]
        return threads + self.wakers.len();
        #[cfg(not(feature = "async"))]
        threads
    }
}

/// Held by a caller that has registered, until it waits or cancels.
#[must_use]
pub(crate) struct Registration {
    wakes_of_all: u64,
}

impl EventCount {
    pub(crate) fn new() -> Self {
        Self {
            sleepers: AtomicUsize::new(0),
            to_wake: CachePadded::new(AtomicUsize::new(0)),
            state: Mutex::new(State {
                waiting: 0,
                is_watched: false,
                wants_maintenance: false,
                permits: 0,
                wakes_of_all: 0,
                bells: Bells::default(),
                #[cfg(feature = "async")]
                wakers: Wakers::default(),
            }),
            wake: Condvar::new(),
        }
    }

    /// Announces that the caller is about to sleep. It must look for work once more, and then
    /// [`wait`](Self::wait) or [`cancel`](Self::cancel).
    pub(crate) fn register(&self) -> Registration {
        let mut state = self.lock();
        state.waiting += 1;
        self.note_asleep(&state);
        let wakes_of_all = state.wakes_of_all;
        drop(state);
        // Pairs with the fence in `notify_fenced`: of two fences one comes first, and what was
        // stored before the first is seen by the loads after the second.
        fence(Ordering::SeqCst);
        Registration { wakes_of_all }
    }

    /// Undoes [`register`](Self::register).
    pub(crate) fn cancel(&self, registration: Registration) {
        let mut state = self.lock();
        if state.wakes_of_all == registration.wakes_of_all && !self.deregister(&mut state) {
            // A thread with a bell, or a task, sleeps on until it is told.
            self.wake_some(state, 1);
        }
    }

    /// Returns false if it has used up a permit.
    fn deregister(&self, state: &mut State) -> bool {
        // A permit that was meant for the caller goes to another sleeper if there is one: both were
        // told of work, and one of them has found some.
        let has_others = state.waiting > 0;
        if has_others {
            state.waiting -= 1;
            self.note_asleep(state);
        } else {
            state.permits -= 1;
        }
        has_others
    }

    fn note_asleep(&self, state: &State) {
        let asleep = state.asleep();
        let to_wake = if state.is_watched { 0 } else { asleep };
        self.sleepers.store(asleep, Ordering::Relaxed);
        if self.to_wake.load(Ordering::Relaxed) != to_wake {
            self.to_wake.store(to_wake, Ordering::Relaxed);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic runs under the lock, so lock poisoning carries no information.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sleeps until woken or until the deadline.
    pub(crate) fn wait(&self, registration: Registration, deadline: Option<Instant>) {
        let mut state = self.lock();
        loop {
            if state.wakes_of_all != registration.wakes_of_all {
                return;
            }
            if state.permits > 0 {
                state.permits -= 1;
                return;
            }
            match deadline {
                None => {
                    state = self
                        .wake
                        .wait(state)
                        .unwrap_or_else(PoisonError::into_inner);
                }
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        self.deregister(&mut state);
                        return;
                    }
                    (state, _) = self
                        .wake
                        .wait_timeout(state, left)
                        .unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    /// Wakes up to `count` sleepers, after work was made visible by a read-modify-write on a
    /// variable that sleepers look at with a read-modify-write of their own. Wakes none while a
    /// consumer watches.
    #[inline]
    pub(crate) fn notify(&self, count: usize) {
        if self.to_wake.load(Ordering::Relaxed) > 0 {
            self.notify_slow(count);
        }
    }

    /// Whether there are sleepers. It may have changed a moment ago.
    #[inline]
    pub(crate) fn may_have_any(&self) -> bool {
        self.sleepers.load(Ordering::Relaxed) > 0
    }

    /// Wakes up to `count` sleepers, after work was made visible in any other way.
    pub(crate) fn notify_fenced(&self, count: usize) {
        // Pairs with the fence in `register`.
        fence(Ordering::SeqCst);
        if self.sleepers.load(Ordering::Relaxed) > 0 {
            self.notify_slow(count);
        }
    }

    /// Wakes all registered sleepers, after there was news for them.
    pub(crate) fn notify_all(&self) {
        let mut state = self.lock();
        state.wakes_of_all += 1;
        // Unconsumed permits belong to sleepers that this wakes up.
        state.waiting = 0;
        state.permits = 0;
        state.bells.ring(usize::MAX);
        #[cfg(feature = "async")]
        let wakers = state.wakers.take(usize::MAX);
        self.note_asleep(&state);
        drop(state);
        self.wake.notify_all();
        #[cfg(feature = "async")]
        wakers::wake(wakers);
    }

    /// Runs `change` so that a consumer that registers later knows of it, and a thread that learns
    /// of it from memory that it released knows of all consumers that registered before. `change`
    /// must not call this event count.
    pub(crate) fn publish<T>(&self, change: impl FnOnce() -> T) -> T {
        let _state = self.lock();
        change()
    }

    #[cold]
    fn notify_slow(&self, count: usize) {
        self.wake_some(self.lock(), count);
    }

    /// Wakes up to `count` sleepers, threads before tasks: a thread has nothing else to do first.
    fn wake_some(&self, mut state: MutexGuard<'_, State>, count: usize) {
        let woken = count.min(state.waiting);
        // Subtracted immediately, so that the next caller does not wake them again.
        state.waiting -= woken;
        state.permits += woken;
        let _rung = state.bells.ring(count - woken);
        #[cfg(feature = "async")]
        let wakers = state.wakers.take(count - woken - _rung);
        self.note_asleep(&state);
        drop(state);
        for _ in 0..woken {
            self.wake.notify_one();
        }
        #[cfg(feature = "async")]
        wakers::wake(wakers);
    }

    /// How many are registered and not yet woken.
    #[cfg(test)]
    pub(crate) fn asleep(&self) -> usize {
        self.lock().asleep()
    }

    /// Whether nobody is registered and no permit is left over.
    #[cfg(test)]
    pub(super) fn is_quiet(&self) -> bool {
        let state = self.lock();
        state.asleep() == 0
            && state.permits == 0
            && self.sleepers.load(Ordering::Relaxed) == 0
            && self.to_wake.load(Ordering::Relaxed) == 0
            && !state.is_watched
            && !state.wants_maintenance
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_registration_taken_back_leaves_nothing_to_wake() {
        let sleepers = EventCount::new();
        let registered = sleepers.register();
        sleepers.cancel(registered);
        assert!(sleepers.is_quiet());
        sleepers.notify(1);
        sleepers.notify_all();
        assert!(sleepers.is_quiet());
    }

    #[test]
    fn a_notification_between_registering_and_waiting_is_not_lost() {
        let sleepers = EventCount::new();
        let registered = sleepers.register();
        sleepers.notify(1);
        sleepers.notify(1);
        sleepers.wait(registered, None);
        assert!(sleepers.is_quiet());
    }

    #[test]
    fn a_sleeper_that_reaches_its_deadline_is_registered_no_more() {
        let sleepers = EventCount::new();
        let registered = sleepers.register();
        sleepers.wait(registered, Some(Instant::now()));
        assert!(sleepers.is_quiet());
    }

    #[test]
    fn a_permit_at_the_deadline_is_used_rather_than_left() {
        let sleepers = EventCount::new();
        let registered = sleepers.register();
        sleepers.notify(1);
        sleepers.wait(registered, Some(Instant::now()));
        assert!(sleepers.is_quiet());
    }

    #[test]
    fn a_permit_of_one_that_does_not_wait_goes_to_another_that_does() {
        let sleepers = EventCount::new();
        let cancels = sleepers.register();
        let waits = sleepers.register();
        sleepers.notify(1);
        sleepers.cancel(cancels);
        sleepers.wait(waits, None);
        assert!(sleepers.is_quiet());
    }

    #[test]
    fn news_for_all_is_not_taken_from_them_by_one_that_registers_later() {
        let sleepers = EventCount::new();
        let first = sleepers.register();
        let second = sleepers.register();
        sleepers.notify(1);
        sleepers.notify_all();
        let late = sleepers.register();
        sleepers.wait(late, Some(Instant::now()));
        // The late consumer has gone to sleep and reached its deadline, and no other one sleeps.
        assert!(sleepers.is_quiet());
        sleepers.wait(first, None);
        sleepers.cancel(second);
        assert!(sleepers.is_quiet());
    }
}
