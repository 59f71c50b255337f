//! An open engine together with the tasks that serve it, from open to close.

use std::ops::Deref;
#[cfg(test)]
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
#[cfg(feature = "async")]
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::Engine;
#[cfg(feature = "manual-clock")]
use super::advances;
use super::maintenance::MaintenanceTask;
use super::open::Wakers;
use crate::StorageError;
use crate::dispatch::Dispatch;
use crate::dispatch::gate::Gate;
use crate::error::OpenError;
use crate::events::event;
use crate::log::lease::Lease;
use crate::log::recovery::RecoveryReport;
use crate::options::Builder;
use crate::runtime::{Runtime, Serve, Task};
use crate::time::Tick;
use crate::tree::Seat;
use crate::user_code;

impl Engine {
    /// Refuses further enqueues, wakes all sleepers, and leaves the files in a state that the next
    /// open can read with the least work. Jobs in flight can still be settled.
    fn close(&self) -> Result<(), Arc<StorageError>> {
        {
            // A thread that cancels a job relies on what the delivery words say.
            let _moving = self.dispatch.moving.lock();
            self.gate().set(Gate::CLOSED);
            for stripe in self.dispatch.stripes() {
                stripe.end_deliveries();
            }
        }
        let mut result = match self.poison() {
            None => self.keep_delays(),
            Some(_) => Ok(()),
        };
        for stripe in self.dispatch.stripes() {
            stripe.close();
        }
        self.wake_consumers();
        self.room.notify_all();
        result = result.and(self.flush());
        if result.is_ok() {
            result = self.settle_elsewhere();
        }
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

    /// The engine with its tasks, for who has a reference that keeps it open and wants to keep it
    /// open otherwise.
    pub(crate) fn running(&self) -> Arc<Running> {
        let running = self.running.get().and_then(Weak::upgrade);
        running.expect("the caller has a reference that keeps the queue open")
    }

    /// Does what the timer thread would do if it woke up now.
    #[cfg(test)]
    pub(crate) fn turn_timer(&self) {
        use crate::dispatch::timer::Now;
        let due = self.dispatch.timer.take_due(Now::of(&self.clock));
        self.bring_back(due);
    }
}

/// The timer of a queue, as a task of its runtime.
pub(super) struct TimerTask {
    engine: Weak<Engine>,
    /// When the next lease times out. Locked by one turn at a time.
    next_end: Mutex<Option<Tick>>,
}

/// Rounds of a turn, after which it is the turn of other queues.
const MAX_ROUNDS: usize = 64;
/// A shorter wait would end immediately, again and again.
const MIN_WAIT: Duration = Duration::from_micros(1);

impl TimerTask {
    fn new(engine: &Arc<Engine>) -> Self {
        Self {
            engine: Arc::downgrade(engine),
            next_end: Mutex::new(None),
        }
    }

    fn rounds(&self, engine: &Engine) -> Option<Instant> {
        let mut next_end = self.next_end.lock();
        for _ in 0..MAX_ROUNDS {
            match engine.dispatch.timer.check(&engine.clock, *next_end) {
                Ok(due) => *next_end = engine.bring_back(due),
                Err(wait) => return engine.clock.looks_again(wait?.max(MIN_WAIT)),
            }
        }
        Some(Instant::now())
    }
}

impl Serve for TimerTask {
    fn turn(&self) -> Option<Instant> {
        let engine = self.engine.upgrade()?;
        let next = user_code::call_here(|| self.rounds(&engine)).unwrap_or_else(|panic| {
            event!(error, panic, "a timer has panicked: a bug in logmill");
            None
        });
        // This may close the files of the queue.
        drop(engine);
        next
    }
}

/// An engine with the tasks that serve it. The last handle to drop it closes the queue.
pub(crate) struct Running {
    engine: Arc<Engine>,
    /// Has a manual clock turn the timer.
    #[cfg(feature = "manual-clock")]
    advances: Option<crate::ClockSubscription>,
    #[cfg(feature = "manual-clock")]
    upkeep: Option<advances::Upkeep>,
    /// The timer and maintenance.
    tasks: Vec<Task>,
    /// The thread that flushes for async tasks, once there is one.
    #[cfg(feature = "async")]
    flusher: Mutex<Option<thread::JoinHandle<()>>>,
    /// The threads that do the tasks. Dropped last.
    _runtime: Option<Arc<Runtime>>,
    #[cfg(test)]
    is_dead: AtomicBool,
}

impl Running {
    /// Opens the queue that the builder describes, for the seat in its tree if it is in one.
    pub(crate) fn open(
        builder: &Builder,
        seat: Option<Seat>,
    ) -> Result<(Self, RecoveryReport), OpenError> {
        let runtime = match &seat {
            Some(seat) => Arc::clone(seat.tree().runtime()),
            None => Arc::new(Runtime::for_one()),
        };
        let (timer, maintenance) = (runtime.timer_task(), runtime.maintenance_task());
        let wakers = Wakers {
            timer: timer.waker(),
            maintenance: maintenance.waker(),
        };
        let (engine, report) = Engine::open(builder, seat, wakers)?;
        let engine = Arc::new(engine);
        if let Err(error) = runtime.start() {
            let home = Arc::clone(&engine.home);
            drop(Self::new(engine, Vec::new(), None));
            home.undo_creation();
            return Err(OpenError::Thread(error));
        }
        #[cfg(feature = "manual-clock")]
        let advances = advances::serve(&timer, TimerTask::new(&engine), &engine.clock);
        #[cfg(feature = "manual-clock")]
        let upkeep = advances::serve_upkeep(&maintenance, MaintenanceTask::new(&engine));
        #[cfg(not(feature = "manual-clock"))]
        {
            timer.serve(TimerTask::new(&engine));
            maintenance.serve(MaintenanceTask::new(&engine));
        }
        #[cfg_attr(not(feature = "manual-clock"), expect(unused_mut))]
        let mut running = Self::new(engine, vec![timer, maintenance], Some(runtime));
        #[cfg(feature = "manual-clock")]
        {
            running.advances = advances;
            running.upkeep = Some(upkeep);
        }
        Ok((running, report))
    }

    /// Like [`open`](Self::open), with nobody who serves it. The queue must not be open.
    #[cfg(test)]
    pub(crate) fn open_idle(builder: &Builder) -> Result<(Self, RecoveryReport), OpenError> {
        let place = builder.in_tree.as_ref();
        let seat = place.map(|place| place.tree.take_seat(&place.name, None));
        let (engine, report) = Engine::open(builder, seat.flatten(), Wakers::default())?;
        Ok((Self::new(Arc::new(engine), Vec::new(), None), report))
    }

    fn new(engine: Arc<Engine>, tasks: Vec<Task>, runtime: Option<Arc<Runtime>>) -> Self {
        if let Some((state, id)) = engine.home.state() {
            let signal = Arc::clone(&engine.signal);
            state.register(id, Arc::new(move || signal.kick()));
        }
        if let Err(error) = engine.take_waiting() {
            event!(warn, %error, "jobs of transactions have to wait");
        }
        Self {
            engine,
            #[cfg(feature = "manual-clock")]
            advances: None,
            #[cfg(feature = "manual-clock")]
            upkeep: None,
            tasks,
            #[cfg(feature = "async")]
            flusher: Mutex::new(None),
            _runtime: runtime,
            #[cfg(test)]
            is_dead: AtomicBool::new(false),
        }
    }

    /// Shares it between handles.
    pub(crate) fn share(self) -> Arc<Self> {
        let running = Arc::new(self);
        let _ = running.engine.running.set(Arc::downgrade(&running));
        running
    }

    /// Starts the thread that flushes for async tasks, if it does not run.
    #[cfg(feature = "async")]
    pub(super) fn start_flusher(&self) -> Result<(), OpenError> {
        if !self.engine.flusher.begin_start() {
            return Ok(());
        }
        let engine = Arc::clone(&self.engine);
        let started = thread::Builder::new()
            .name("logmill-flusher".to_owned())
            .spawn(move || engine.run_flusher());
        match started {
            Ok(thread) => {
                *self.flusher.lock() = Some(thread);
                Ok(())
            }
            Err(error) => {
                self.engine.flusher.undo_start();
                Err(OpenError::Thread(error))
            }
        }
    }

    /// Waits for the thread that flushes for async tasks. If it is this thread, as user code called
    /// from it held the last handle, it ends when that code has returned.
    #[cfg(feature = "async")]
    fn stop_flusher(&self) {
        self.engine.flusher.stop();
        if let Some(thread) = self.flusher.lock().take()
            && thread.thread().id() != thread::current().id()
        {
            // It does not panic; if it did, that has been reported, and closing goes on.
            let _ = thread.join();
        }
    }

    /// Does at once what maintenance has to do of what has happened, see
    /// [`Queue::rest`](crate::Queue::rest).
    #[cfg(feature = "manual-clock")]
    pub(crate) fn rest(&self) {
        if let Some(upkeep) = &self.upkeep {
            upkeep.turn_now();
        }
    }

    /// Lets others find the queue in its tree.
    pub(crate) fn show(self: &Arc<Self>) {
        if let Some(seat) = &self.engine.home.seat {
            seat.show(self);
        }
    }

    /// Simulates the death of the process: nothing more is done to the files.
    #[cfg(test)]
    pub(crate) fn die(&self) {
        self.is_dead.store(true, Ordering::Relaxed);
    }

    /// Closes the queue. The tasks go on for the jobs in flight until the last handle is gone.
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
        if let Some(seat) = &self.engine.home.seat {
            seat.note_closing();
        }
        #[cfg(feature = "manual-clock")]
        drop(self.advances.take());
        // If user code called from a turn held the last handle, that turn ends when the code has
        // returned, and keeps the engine alive until then. Any other turn is waited for.
        self.tasks.clear();
        #[cfg(feature = "async")]
        self.stop_flusher();
        if let Some((state, id)) = self.engine.home.state() {
            state.leave(id);
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
