//! Loom models of jobs that are cancelled while they are delivered, acked, or fail.

use std::sync::Arc;

use loom::sync::Mutex;
use loom::sync::atomic::{AtomicU32, Ordering};

use crate::Sequence;
use crate::dispatch::cancels::{Cancels, Decided, Meeting};
use crate::dispatch::gate::Gate;
use crate::sync::model::{check, concurrently};

/// A model of a job that is delivered, and may wait in the timer, while it is cancelled.
struct OneJob {
    gate: Gate,
    cancels: Cancels<(), (), ()>,
    /// 1 while a handler has it. Relaxed throughout: the gate alone must be enough.
    delivery_word: AtomicU32,
    /// Where jobs have lease timeouts: whether a handler has it.
    leases: Option<Mutex<bool>>,
    /// How often its done bit was set.
    done: AtomicU32,
    /// How often it was counted as cancelled.
    cancelled: AtomicU32,
    /// Whether it waits in the timer.
    timer: Mutex<bool>,
    /// How often a handler got it.
    delivered: AtomicU32,
}

/// Its record.
const RECORD: Sequence = Sequence::new(7);

impl OneJob {
    fn new(is_running: bool) -> Arc<Self> {
        Self::with(is_running, None)
    }

    fn with(is_running: bool, leases: Option<Mutex<bool>>) -> Arc<Self> {
        Arc::new(Self {
            leases,
            gate: Gate::new(),
            cancels: Cancels::new(),
            delivery_word: AtomicU32::new(is_running.into()),
            done: AtomicU32::new(0),
            cancelled: AtomicU32::new(0),
            timer: Mutex::new(false),
            delivered: AtomicU32::new(is_running.into()),
        })
    }

    fn ack(&self) {
        assert_eq!(self.done.fetch_add(1, Ordering::AcqRel), 0, "done twice");
    }

    /// Models `Engine::note_ended`.
    fn note_ended(&self, was_waiting: bool) {
        if !was_waiting {
            self.cancelled.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Models `Engine::meet`. Returns whether the job goes on.
    fn meet(&self) -> bool {
        if self.gate.look() & Gate::CANCELS == 0 {
            return true;
        }
        let ack = |()| self.ack();
        match self.cancels.meet(&self.gate, RECORD, (), false, ack) {
            Meeting::NotCancelled(()) => return true,
            Meeting::Left => {}
            Meeting::Ended(met) => self.note_ended(met.was_waiting),
        }
        false
    }

    /// Models a delivery, up to the handler. Returns whether the handler gets the job.
    fn deliver(&self) -> bool {
        self.delivery_word.store(1, Ordering::Relaxed);
        let goes_on = self.gate.is_open() || self.meet();
        self.delivered.fetch_add(goes_on.into(), Ordering::Relaxed);
        goes_on
    }

    /// Models a handler that acks a job with a lease timeout: `Leases::begin` and `Leases::ack`.
    fn lease_and_ack(&self) {
        let lock = || self.leases.as_ref().unwrap().lock().unwrap();
        let begins = {
            let mut is_running = lock();
            *is_running = !self.cancels.has(&self.gate, RECORD);
            *is_running
        };
        if begins || self.meet() {
            self.delivered.fetch_add(1, Ordering::Relaxed);
            let mut is_running = lock();
            *is_running = false;
            self.ack();
        }
    }

    /// Models a handler that acks the job.
    fn deliver_and_ack(&self) {
        if self.deliver() {
            self.ack();
        }
    }

    /// Models a handler that fails, so that the job waits in the timer.
    fn fail(&self) {
        self.delivery_word.store(0, Ordering::Relaxed);
        if self.gate.is_open() || self.meet() {
            let is_refused = {
                let mut timer = self.timer.lock().unwrap();
                let is_refused = self.cancels.has(&self.gate, RECORD);
                *timer = !is_refused;
                is_refused
            };
            if is_refused {
                // It comes back, and the consumer that gets it finds out.
                self.deliver_and_ack();
            }
        }
    }

    /// Models `Engine::cancel`. Returns whether a handler had the job, and it was not cancelled yet.
    fn cancel(&self) -> bool {
        if self.cancels.begin(&self.gate, RECORD).is_err() {
            return false;
        }
        let is_running = match &self.leases {
            Some(leases) => *leases.lock().unwrap(),
            None => {
                self.gate.barrier().unwrap();
                self.delivery_word.load(Ordering::Relaxed) == 1
            }
        };
        if self.done.load(Ordering::Acquire) == 1 {
            assert!(self.cancels.give_up(&self.gate, RECORD).is_none());
            return false;
        }
        if is_running {
            self.cancels.note_running(RECORD);
        } else if std::mem::take(&mut *self.timer.lock().unwrap()) {
            self.cancels.leave(RECORD, ());
        }
        let is_done = |_: &()| self.done.load(Ordering::Acquire) == 1;
        let ack = |()| self.ack();
        let decided = self
            .cancels
            .decide(&self.gate, RECORD, (), is_done, (), false, ack);
        match decided {
            Decided::Waits => _ = self.cancelled.fetch_add(1, Ordering::Relaxed),
            Decided::Met(_) => self.note_ended(false),
            Decided::Running | Decided::Done(()) => {}
        }
        is_running
    }

    /// Models `Queue::contains`.
    fn is_there(&self) -> bool {
        !self.cancels.is_gone(&self.gate, RECORD) && !self.is_done()
    }

    fn is_done(&self) -> bool {
        self.done.load(Ordering::Acquire) == 1
    }

    /// Models maintenance, and checks that nothing is left of the cancelled job.
    fn sweep(&self) {
        let is_done = |_: &(), _| self.is_done();
        self.cancels.sweep(&self.gate, is_done, |_| false);
        assert!(!self.gate.has(Gate::CANCELS), "an entry is left");
    }
}

#[test]
fn a_job_that_is_cancelled_is_not_delivered_or_whoever_cancels_it_sees_the_handler() {
    check(None, || {
        let job = OneJob::new(false);
        let [handler, running] = concurrently(&job, [OneJob::deliver, OneJob::cancel]);
        // The other way round, it is just being given to a handler that will not get it.
        assert!(!handler || running, "delivered after it was cancelled");
        if handler {
            // Its handler fails, and finds out.
            assert!(!job.meet());
        }
        assert!(job.is_done());
        assert_eq!(job.cancelled.load(Ordering::Relaxed), 1);
        job.sweep();
    });
}

/// Cancels a job while a handler gets it and acks it.
fn check_ends_once(leases: fn() -> Option<Mutex<bool>>, handler: fn(&OneJob)) {
    check(None, move || {
        let job = OneJob::with(false, leases());
        concurrently(&job, [handler, |job| _ = job.cancel()]);
        assert!(job.is_done());
        let delivered = job.delivered.load(Ordering::Relaxed);
        let cancelled = job.cancelled.load(Ordering::Relaxed);
        assert_eq!(delivered + cancelled, 1);
        job.sweep();
    });
}

#[test]
fn a_job_that_is_acked_while_it_is_cancelled_ends_once() {
    check_ends_once(|| None, OneJob::deliver_and_ack);
}

#[test]
fn a_job_with_a_lease_timeout_that_is_acked_while_it_is_cancelled_ends_once() {
    check_ends_once(|| Some(Mutex::new(false)), OneJob::lease_and_ack);
}

#[test]
fn a_job_that_fails_while_it_is_cancelled_does_not_come_back() {
    check(None, || {
        let job = OneJob::new(true);
        concurrently(&job, [OneJob::fail, |job| _ = job.cancel()]);
        assert!(!*job.timer.lock().unwrap(), "it waits in the timer");
        assert!(job.is_done());
        assert_eq!(job.cancelled.load(Ordering::Relaxed), 1);
        assert_eq!(job.delivered.load(Ordering::Relaxed), 1);
        job.sweep();
    });
}

#[test]
fn a_job_that_was_cancelled_is_gone_also_while_it_is_met() {
    check(None, || {
        let job = OneJob::new(false);
        assert!(!job.cancel());
        let look = |job: &OneJob| {
            assert!(!job.is_there(), "it has come back");
            assert!(!job.cancel());
        };
        concurrently(&job, [|job| assert!(!job.deliver()), look]);
        assert!(job.is_done());
        assert_eq!(job.cancelled.load(Ordering::Relaxed), 1);
        job.sweep();
    });
}
