//! An open engine together with its threads, from open to close.

use std::ops::Deref;
use std::sync::Arc;
#[cfg(feature = "async")]
use std::sync::Weak;
#[cfg(test)]
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};

use super::{CLOSED, Engine, maintenance};
use crate::StorageError;
use crate::dispatch::Dispatch;
use crate::error::OpenError;
use crate::events::{Mutex, event};
use crate::log::lease::Lease;
use crate::log::recovery::RecoveryReport;
use crate::options::Builder;
use crate::time::Tick;

impl Engine {
    /// Refuses further enqueues, wakes all sleepers, and leaves the files in a state that the next
    /// open can read with the least work. Jobs in flight can still be settled.
    fn close(&self) -> Result<(), Arc<StorageError>> {
        self.state.fetch_or(CLOSED, Ordering::Relaxed);
        for stripe in self.dispatch.stripes() {
            stripe.end_deliveries();
        }
        let mut result = match self.poison() {
            None => self.dispatch.keep_delays(),
            Some(_) => Ok(()),
        };
        for stripe in self.dispatch.stripes() {
            stripe.close();
        }
        self.wake_consumers();
        self.room.notify_all();
        result = result.and(self.flush());
        for stripe in self.dispatch.stripes() {
            result = result.and(stripe.seal(true).map(|_| ()));
            result = result.and(stripe.reclaim_all());
        }
        result
    }

    fn close_dead_log(&self) -> Result<(), Arc<StorageError>> {
        self.write_letters()?;
        self.settle_deaths()?;
        self.dead.log().close();
        self.dead.log().seal(true)?;
        self.dead.log().reclaim_all()
    }

    /// The timer thread's loop: makes due jobs available and ends leases that have timed out.
    fn run_timer(&self) {
        let mut next_end = None;
        while let Some(due) = self.dispatch.timer.wait(self.clock, next_end) {
            next_end = self.bring_back(due);
        }
    }

    /// Makes due jobs available, ends leases that have timed out, and wakes tasks whose time has
    /// come; returns when the next lease or task is due.
    fn bring_back(&self, due: Vec<Lease>) -> Option<Tick> {
        if !due.is_empty() {
            self.dispatch.inject_all(due);
        }
        let end = self.end_leases();
        #[cfg(feature = "async")]
        let end = end
            .into_iter()
            .chain(self.alarms.ring(self.clock.now()))
            .min();
        end
    }

    /// Ends leases that have timed out; returns when the next one would.
    fn end_leases(&self) -> Option<Tick> {
        let (timed_out, next) = self.leases.as_ref()?.time_out(self.clock.now());
        for timed_out in timed_out {
            self.fail_current(
                timed_out.lease,
                timed_out.attempts,
                "the lease timed out".into(),
                true,
            );
        }
        next
    }

    /// The engine with its threads, for who has a reference that keeps it open and wants to keep it
    /// open otherwise.
    #[cfg(feature = "async")]
    pub(crate) fn running(&self) -> Arc<Running> {
        let running = self.running.get().and_then(Weak::upgrade);
        running.expect("the caller has a reference that keeps the queue open")
    }

    /// Does what the timer thread would do if it woke up now.
    #[cfg(test)]
    pub(crate) fn turn_timer(&self) {
        use crate::dispatch::timer::Now;
        let due = self.dispatch.timer.take_due(Now::of(self.clock));
        self.bring_back(due);
    }
}

/// An engine with its threads. The last handle to drop it closes the queue.
pub(crate) struct Running {
    engine: Arc<Engine>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    #[cfg(test)]
    is_dead: AtomicBool,
}

impl Running {
    pub(crate) fn open(builder: &Builder) -> Result<(Self, RecoveryReport), OpenError> {
        let (running, report) = Self::open_idle(builder)?;
        let timer = running.spawn("logmill-timer", Engine::run_timer);
        let threads = timer.and_then(|()| running.spawn("logmill-maintenance", maintenance::run));
        if let Err(error) = threads {
            let home = Arc::clone(&running.home);
            // Dropping it stops the threads.
            drop(running);
            home.undo_creation();
            return Err(error);
        }
        Ok((running, report))
    }

    /// Like [`open`](Self::open), without the threads.
    pub(crate) fn open_idle(builder: &Builder) -> Result<(Self, RecoveryReport), OpenError> {
        let (engine, report) = Engine::open(builder)?;
        let running = Self {
            engine: Arc::new(engine),
            threads: Mutex::default(),
            #[cfg(test)]
            is_dead: AtomicBool::new(false),
        };
        Ok((running, report))
    }

    /// Shares it between handles.
    pub(crate) fn share(self) -> Arc<Self> {
        let running = Arc::new(self);
        #[cfg(feature = "async")]
        let _ = running.engine.running.set(Arc::downgrade(&running));
        running
    }

    /// Simulates the death of the process: nothing more is done to the files.
    #[cfg(test)]
    pub(crate) fn die(&self) {
        self.is_dead.store(true, Ordering::Relaxed);
    }

    fn spawn(
        &self,
        name: &str,
        run: impl FnOnce(&Engine) + Send + 'static,
    ) -> Result<(), OpenError> {
        let engine = Arc::clone(&self.engine);
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || run(&engine))
            .map_err(OpenError::Thread)?;
        self.threads.lock().push(thread);
        Ok(())
    }

    /// Starts the thread that flushes for tasks, if it does not run.
    #[cfg(feature = "async")]
    pub(super) fn start_flusher(&self) -> Result<(), OpenError> {
        if !self.engine.flusher.begin_start() {
            return Ok(());
        }
        let started = self.spawn("logmill-flusher", Engine::run_flusher);
        started.inspect_err(|_| self.engine.flusher.undo_start())
    }

    /// Closes the queue. The threads run on for the jobs in flight until the last handle is gone.
    pub(crate) fn close(&self) -> Result<(), Arc<StorageError>> {
        self.engine.close()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        #[cfg(test)]
        if self.is_dead.load(Ordering::Relaxed) {
            return;
        }
        self.engine.dispatch.timer.stop();
        self.engine.signal.stop();
        #[cfg(feature = "async")]
        self.engine.flusher.stop();
        let this = thread::current().id();
        for thread in self.threads.get_mut().drain(..) {
            // If user code called from this thread held the last handle, this thread ends when that
            // code has returned, and keeps the engine alive until then.
            if thread.thread().id() != this {
                // The threads do not panic; if one did, it has been reported, and closing goes on.
                let _ = thread.join();
            }
        }
        let closed = self.engine.close().and(self.engine.close_dead_log());
        if let Err(error) = closed {
            #[cfg(feature = "async")]
            for stripe in self.engine.dispatch.stripes() {
                stripe.rounds.close(&error);
            }
            // Everything is in the page cache, and the next open scans what was not sealed.
            event!(error, %error, "the queue was not closed cleanly");
        }
    }
}

impl Deref for Running {
    type Target = Engine;

    fn deref(&self) -> &Engine {
        &self.engine
    }
}

impl AsRef<Dispatch> for Arc<Running> {
    fn as_ref(&self) -> &Dispatch {
        &self.engine.dispatch
    }
}
