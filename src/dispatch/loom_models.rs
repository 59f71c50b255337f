//! Loom models of how consumers sleep and are woken, of stealing, and of suspects; in the folder, of
//! pausing, watching, cancelling, leases at hand, and the rest of maintenance. They are run as those
//! of `log/loom_models.rs`.
//!
//! A lost wake-up is a deadlock, which loom reports. No sleeper has a deadline, as that would hide
//! a lost wake-up. The types under test are the real ones: the event count, the tail, the cursor,
//! the marks, the suspects, the leases at hand, the gate, the cancelled jobs and the rest.
//!
//! Loom knows no barrier that one thread runs on all others. In the models, the consumer's side has
//! a fence instead, which gives the same two outcomes.
//!
//! In loom, SeqCst fences synchronize with each other, which those of the language do not. No model
//! relies on that. What the fences let a consumer see is a single flag or pointer. The data that it
//! stands for is published by the Acquire of that flag, or by the lock of the event count.

mod at_hand;
mod cancelling;
mod pausing;
mod resting;
#[cfg(feature = "async")]
mod wakers;
mod watching;

use std::sync::Arc;

use loom::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use super::marks::Marks;
use super::suspects::Suspects;
use crate::Sequence;
use crate::event_count::EventCount;
use crate::log::tail::{Cursor, Position, Reserved, Tail};
use crate::sync::model::{check, concurrently};

const START: Position = Position { index: 0, units: 0 };

/// A model of a segment, with records of one unit each.
struct Segment {
    tail: Tail,
    cursor: Cursor,
    /// For each unit: 1 if a record is committed there, else 0.
    commit_words: Vec<AtomicU32>,
}

impl Segment {
    fn new(records: u32) -> Self {
        Self {
            tail: Tail::open(START, records),
            cursor: Cursor::new(START),
            commit_words: (0..records).map(|_| AtomicU32::new(0)).collect(),
        }
    }

    /// Models `Segment::append`. Returns false if the segment is full.
    fn append(&self) -> bool {
        match self.tail.reserve(1, 1) {
            Reserved::At(position) => {
                self.commit_words[position.units as usize].store(1, Ordering::Release);
                true
            }
            Reserved::Closing(end) => {
                self.tail.close(end);
                false
            }
            Reserved::Closed => false,
        }
    }

    /// Models `Pinned::claim` of one record.
    fn claim(&self) -> bool {
        loop {
            let from = self.cursor.position();
            let Some(word) = self.commit_words.get(from.units as usize) else {
                return false;
            };
            if word.load(Ordering::Acquire) == 0 {
                return false;
            }
            let to = Position {
                index: from.index + 1,
                units: from.units + 1,
            };
            if self.cursor.advance(from, to) {
                return true;
            }
        }
    }

    /// Models `Segment::may_have_work`.
    fn may_have_work(&self) -> bool {
        self.tail.reserved_past(self.cursor.position())
    }
}

/// Models `Source::wait`: sleeps until `take` has found work, or until the last look before falling
/// asleep finds that there may be some.
///
/// In the latter case a real consumer would stay awake and look again. That is left out, to keep
/// the models finite.
fn sleep(sleepers: &EventCount, take: impl Fn() -> bool, may_have_work: impl Fn() -> bool) {
    while !take() {
        let registered = sleepers.register();
        if may_have_work() {
            sleepers.cancel(registered);
            return;
        }
        sleepers.wait(registered, None);
    }
}

/// A model of a queue with one segment.
struct Queue {
    segment: Segment,
    sleepers: EventCount,
}

impl Queue {
    fn new(records: u32) -> Arc<Self> {
        Arc::new(Self {
            segment: Segment::new(records),
            sleepers: EventCount::new(),
        })
    }

    fn enqueue(&self) {
        assert!(self.segment.append());
        self.sleepers.notify(1);
    }

    fn sleep(&self) {
        sleep(
            &self.sleepers,
            || self.segment.claim(),
            || self.segment.may_have_work(),
        );
    }
}

#[test]
fn a_consumer_that_falls_asleep_is_woken_for_a_record() {
    check(Some(4), || {
        let queue = Queue::new(2);
        concurrently(
            &queue,
            [
                |queue| {
                    queue.enqueue();
                    queue.enqueue();
                },
                |queue| {
                    queue.sleep();
                    queue.sleep();
                },
            ],
        );
        assert!(queue.sleepers.is_quiet());
    });
}

#[test]
fn two_consumers_that_fall_asleep_are_woken_for_a_record_each() {
    check(Some(3), || {
        let queue = Queue::new(2);
        concurrently(
            &queue,
            [Queue::sleep, Queue::sleep, |queue| {
                queue.enqueue();
                queue.enqueue();
            }],
        );
        assert!(queue.sleepers.is_quiet());
    });
}

#[test]
fn a_consumer_is_woken_for_the_records_of_two_producers() {
    check(Some(3), || {
        let queue = Queue::new(2);
        concurrently(
            &queue,
            [Queue::enqueue, Queue::enqueue, |queue| {
                queue.sleep();
                queue.sleep();
            }],
        );
        assert!(queue.sleepers.is_quiet());
    });
}

#[test]
fn one_notification_of_two_records_wakes_two_consumers() {
    check(Some(3), || {
        let queue = Queue::new(2);
        concurrently(
            &queue,
            [Queue::sleep, Queue::sleep, |queue| {
                assert!(queue.segment.append());
                assert!(queue.segment.append());
                queue.sleepers.notify(2);
            }],
        );
        assert!(queue.sleepers.is_quiet());
    });
}

#[test]
fn a_permit_meant_for_a_consumer_that_does_not_sleep_after_all_is_not_lost() {
    check(Some(4), || {
        let queue = Queue::new(1);
        concurrently(
            &queue,
            [
                |queue| {
                    let registered = queue.sleepers.register();
                    // It has found other work, and does not look again.
                    queue.sleepers.cancel(registered);
                },
                Queue::sleep,
                Queue::enqueue,
            ],
        );
        assert!(queue.sleepers.is_quiet());
    });
}

/// A model of work that does not come through a tail: jobs in the injector, or a flag.
struct Injector {
    jobs: AtomicUsize,
    sleepers: EventCount,
}

impl Injector {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            jobs: AtomicUsize::new(0),
            sleepers: EventCount::new(),
        })
    }

    /// Relaxed, here and in `sleep`: the fences alone must be enough.
    fn inject(&self) {
        self.jobs.fetch_add(1, Ordering::Relaxed);
        self.sleepers.notify_fenced(1);
    }

    fn sleep(&self) {
        let take = || {
            self.jobs
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |jobs| {
                    jobs.checked_sub(1)
                })
                .is_ok()
        };
        sleep(&self.sleepers, take, || {
            self.jobs.load(Ordering::Relaxed) > 0
        });
    }
}

#[test]
fn a_consumer_that_falls_asleep_is_woken_for_an_injected_job() {
    check(None, || {
        let injector = Injector::new();
        concurrently(&injector, [Injector::inject, Injector::sleep]);
        assert!(injector.sleepers.is_quiet());
    });
}

#[test]
fn two_consumers_that_fall_asleep_are_woken_for_an_injected_job_each() {
    check(Some(3), || {
        let injector = Injector::new();
        concurrently(
            &injector,
            [Injector::sleep, Injector::sleep, |injector| {
                injector.inject();
                injector.inject();
            }],
        );
        assert!(injector.sleepers.is_quiet());
    });
}

#[test]
fn stopping_wakes_every_sleeper() {
    check(Some(3), || {
        // A job stands for the flag, and is never taken.
        let queue = Injector::new();
        let sleep_until_stopped = |queue: &Injector| {
            let is_stopped = || queue.jobs.load(Ordering::Relaxed) > 0;
            sleep(&queue.sleepers, is_stopped, is_stopped);
        };
        concurrently(
            &queue,
            [sleep_until_stopped, sleep_until_stopped, |queue| {
                queue.jobs.store(1, Ordering::Relaxed);
                queue.sleepers.notify_all();
            }],
        );
        assert!(queue.sleepers.is_quiet());
    });
}

#[test]
fn stopping_some_sleepers_reaches_them_though_others_go_to_sleep_meanwhile() {
    check(Some(3), || {
        struct Pools {
            injector: Injector,
            is_stopped: AtomicUsize,
        }
        let pools = Arc::new(Pools {
            injector: Injector {
                jobs: AtomicUsize::new(0),
                sleepers: EventCount::new(),
            },
            is_stopped: AtomicUsize::new(0),
        });
        concurrently(
            &pools,
            [
                |pools| {
                    // This one takes no jobs, so that only the stop can end its sleep.
                    let is_stopped = || pools.is_stopped.load(Ordering::Relaxed) == 1;
                    sleep(&pools.injector.sleepers, is_stopped, is_stopped);
                },
                |pools| pools.injector.sleep(),
                |pools| {
                    pools.is_stopped.store(1, Ordering::Relaxed);
                    pools.injector.sleepers.notify_all();
                    pools.injector.inject();
                },
            ],
        );
        assert!(pools.injector.sleepers.is_quiet());
    });
}

/// A model of a stripe: a full segment, and the one that a roll makes active.
struct Log {
    segments: [Segment; 2],
    active: AtomicUsize,
    sleepers: EventCount,
}

impl Log {
    fn new() -> Arc<Self> {
        let stripe = Self {
            segments: [Segment::new(0), Segment::new(2)],
            active: AtomicUsize::new(0),
            sleepers: EventCount::new(),
        };
        // The first segment is full, closed and claimed, and nobody has rolled yet.
        assert!(!stripe.segments[0].append());
        Arc::new(stripe)
    }

    /// Models `Log::roll`.
    fn roll(&self) {
        // As `ArcSwap` in the real log, which releases here and acquires in the loads.
        self.sleepers
            .publish(|| self.active.store(1, Ordering::Release));
    }

    /// Models `Log::append_shared`, but returns false if the active segment has no room.
    fn try_enqueue(&self) -> bool {
        let active = self.active.load(Ordering::Acquire);
        let appended = self.segments[active].append();
        if appended {
            self.sleepers.notify(1);
        }
        appended
    }

    /// Sleeps until there is a record in the active segment. The one before it has no unclaimed
    /// records.
    fn sleep(&self) {
        sleep(
            &self.sleepers,
            || self.claiming().claim(),
            || self.may_have_work(),
        );
    }

    fn claiming(&self) -> &Segment {
        &self.segments[self.active.load(Ordering::Acquire)]
    }

    fn may_have_work(&self) -> bool {
        let segment = self.claiming();
        segment.may_have_work() || !std::ptr::eq(segment, self.claiming())
    }
}

#[test]
fn a_consumer_of_a_full_segment_is_woken_for_a_record_of_the_next() {
    check(Some(4), || {
        let stripe = Log::new();
        concurrently(
            &stripe,
            [Log::sleep, |stripe| {
                stripe.roll();
                assert!(stripe.try_enqueue());
            }],
        );
        assert!(stripe.sleepers.is_quiet());
    });
}

#[test]
fn a_consumer_of_a_full_segment_is_woken_for_a_record_of_a_producer_that_did_not_roll() {
    check(Some(3), || {
        let stripe = Log::new();
        concurrently(
            &stripe,
            [Log::roll, Log::sleep, |stripe| {
                while !stripe.try_enqueue() {
                    loom::thread::yield_now();
                }
            }],
        );
        assert!(stripe.sleepers.is_quiet());
    });
}

#[test]
fn two_consumers_of_a_full_segment_are_woken_for_a_record_each_of_the_next() {
    check(Some(3), || {
        let stripe = Log::new();
        concurrently(
            &stripe,
            [Log::sleep, Log::sleep, |stripe| {
                stripe.roll();
                assert!(stripe.try_enqueue());
                assert!(stripe.try_enqueue());
            }],
        );
        assert!(stripe.sleepers.is_quiet());
    });
}

#[test]
fn a_consumer_of_a_full_segment_is_woken_for_records_of_producers_that_did_and_did_not_roll() {
    check(Some(2), || {
        let stripe = Log::new();
        concurrently(
            &stripe,
            [
                |stripe| {
                    stripe.roll();
                    assert!(stripe.try_enqueue());
                },
                |stripe| {
                    stripe.sleep();
                    stripe.sleep();
                },
                |stripe| {
                    while !stripe.try_enqueue() {
                        loom::thread::yield_now();
                    }
                },
            ],
        );
        assert!(stripe.sleepers.is_quiet());
    });
}

/// A model of a consumer that others can steal from: its deque, and the mark that tells them to
/// look there.
struct Victim {
    jobs: AtomicUsize,
    marks: Marks,
    sleepers: EventCount,
}

impl Victim {
    /// A consumer without jobs, whose mark is still set from earlier ones.
    fn new() -> Arc<Self> {
        let victim = Self {
            jobs: AtomicUsize::new(0),
            marks: Marks::new(),
            sleepers: EventCount::new(),
        };
        victim.marks.set(5);
        Arc::new(victim)
    }

    /// Models `Dispatch::offer`, of a consumer that takes no job after that.
    fn share(&self) {
        // Relaxed, here and below: the fences alone must be enough.
        self.jobs.fetch_add(1, Ordering::Relaxed);
        self.marks.set(5);
        self.sleepers.notify_fenced(1);
    }

    /// Models `Dispatch::steal`.
    fn steal(&self) -> bool {
        if self.marks.get() & 1 << 5 == 0 {
            return false;
        }
        let stolen = self
            .jobs
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |jobs| {
                jobs.checked_sub(1)
            });
        if stolen.is_ok() {
            return true;
        }
        // As `ConsumerPlace::note_empty` and what follows it.
        self.marks.clear(5);
        if self.jobs.load(Ordering::Relaxed) > 0 {
            self.marks.set(5);
            self.sleepers.notify_fenced(1);
        }
        false
    }

    fn sleep(&self) {
        let has_work = || self.marks.get() & 1 << 5 != 0 && self.jobs.load(Ordering::Relaxed) > 0;
        sleep(&self.sleepers, || self.steal(), has_work);
    }
}

#[test]
fn a_consumer_that_falls_asleep_is_woken_to_steal_a_job() {
    check(None, || {
        let victim = Victim::new();
        concurrently(&victim, [Victim::share, Victim::sleep]);
        assert!(victim.sleepers.is_quiet());
    });
}

#[test]
fn a_job_to_steal_is_not_lost_to_a_consumer_that_saw_none_and_took_the_mark_off() {
    check(Some(3), || {
        let victim = Victim::new();
        concurrently(
            &victim,
            [
                |victim| _ = victim.steal(),
                |victim| {
                    victim.share();
                    victim.share();
                },
                Victim::sleep,
            ],
        );
        // Any job that is left can be found by stealing.
        while victim.steal() {}
        assert_eq!(victim.jobs.load(Ordering::Relaxed), 0);
        assert!(victim.sleepers.is_quiet());
    });
}

#[test]
fn two_consumers_that_fall_asleep_are_woken_to_steal_a_job_each() {
    check(Some(2), || {
        let victim = Victim::new();
        concurrently(
            &victim,
            [Victim::sleep, Victim::sleep, |victim| {
                victim.share();
                victim.share();
            }],
        );
        assert!(victim.sleepers.is_quiet());
    });
}

/// A model of suspects, which consumers take and settle one at a time.
struct Suspected {
    suspects: Suspects<u32>,
    sleepers: EventCount,
    /// How many suspects a handler has.
    at_work: AtomicUsize,
}

impl Suspected {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            suspects: Suspects::new(),
            sleepers: EventCount::new(),
            at_work: AtomicUsize::new(0),
        })
    }

    /// Models `Dispatch::add_suspect`.
    fn add(&self, number: u32) {
        if self.suspects.add(1, Sequence::new(number.into()), number) {
            self.sleepers.notify_fenced(1);
        }
    }

    /// Models a delivery and `Dispatch::end_suspect`. Returns whether there was a suspect to take.
    fn handle(&self) -> bool {
        let taken = self.suspects.take().is_some();
        if taken {
            let before = self.at_work.fetch_add(1, Ordering::Relaxed);
            assert_eq!(before, 0, "two suspects in handlers at the same time");
            self.at_work.fetch_sub(1, Ordering::Relaxed);
            if self.suspects.end() {
                self.sleepers.notify_fenced(1);
            }
        }
        taken
    }

    /// Models `Source::wait` as [`sleep`] does, but goes on looking, since another consumer may
    /// have taken the suspect that it saw.
    fn wait(&self) {
        while !self.handle() {
            let registered = self.sleepers.register();
            if self.suspects.can_take() {
                self.sleepers.cancel(registered);
                loom::thread::yield_now();
            } else {
                self.sleepers.wait(registered, None);
            }
        }
    }
}

#[test]
fn no_two_consumers_have_a_suspect_and_each_gets_one() {
    check(Some(3), || {
        let gate = Suspected::new();
        gate.add(1);
        gate.add(2);
        concurrently(&gate, [Suspected::wait, Suspected::wait]);
        assert_eq!(gate.suspects.len(), 0);
        assert!(gate.sleepers.is_quiet());
    });
}

#[test]
fn a_consumer_asleep_is_woken_for_a_suspect_that_is_added() {
    check(Some(2), || {
        let gate = Suspected::new();
        concurrently(
            &gate,
            [Suspected::wait, Suspected::wait, |gate| {
                gate.add(1);
                gate.add(2);
            }],
        );
        assert_eq!(gate.suspects.len(), 0);
    });
}
