//! The threads of a pool: each takes jobs, runs those of blocking handlers, and hands those of async
//! ones to the runtime.

use std::collections::HashMap;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;

use super::chunks::{Call, Member};
use super::concurrency::Spawn;
use super::pool::{Pool, Shared};
use super::seat::{Seat, Timed};
use super::start::Runtime;
#[cfg(feature = "tokio")]
use super::task::Begun;
use crate::JobId;
use crate::backend::{Claim, Consumer, Next};
use crate::context::{Attempt, followed_by};
use crate::enqueue::header;
use crate::error::StartError;
use crate::figures::Watch;
use crate::handler::{Called, Intake, Route};
use crate::limits::Permit;
use crate::unique::Began;
use crate::{expiry, settle, span, user_code};

pub(super) type Routes<S> = HashMap<&'static str, Arc<dyn Route<S>>, RandomState>;

/// One thread of a pool.
pub(super) struct Worker<S> {
    pub(super) state: S,
    routes: Arc<Routes<S>>,
    pub(super) shared: Arc<Shared>,
    pub(super) seat: Arc<Seat>,
    #[cfg_attr(not(feature = "tokio"), allow(dead_code))]
    pub(super) runtime: Runtime,
    /// The job that it runs, or took last.
    id: JobId,
    /// Whether its queue is another one than that of the job that it ran last.
    pub(super) is_other_queue: bool,
    /// Its handler was stuck, and another thread has its place.
    is_replaced: bool,
    pub(super) watch: Watch,
}

/// What starts the threads of a pool, at its start and later.
struct Spawner<S> {
    state: S,
    routes: Arc<Routes<S>>,
    name: String,
    runtime: Runtime,
}

impl<S: Clone + Send + Sync + 'static> Spawn for Spawner<S> {
    fn spawn(&self, shared: &Arc<Shared>) -> Result<(), StartError> {
        let state = user_code::call(|| self.state.clone());
        let state = state.map_err(|panic| StartError::Thread(std::io::Error::other(panic)))?;
        let alive = Alive::new(shared, Some(&self.name));
        let worker = Worker {
            state,
            routes: Arc::clone(&self.routes),
            shared: Arc::clone(shared),
            seat: Arc::clone(&alive.seat),
            runtime: self.runtime.clone(),
            id: JobId::new("", 0),
            is_other_queue: false,
            is_replaced: false,
            watch: Watch::new(&shared.mill),
        };
        // Read before the levels that exist, so that none is missed.
        let levels = shared.levels();
        let consumer = shared.served.consumer(&*shared.mill.inner.backend)?;
        let builder = thread::Builder::new().name(alive.seat.thread.clone());
        builder
            .spawn(move || worker.live(consumer, levels, alive))
            .map_err(StartError::Thread)?;
        Ok(())
    }
}

pub(super) fn start<S: Clone + Send + Sync + 'static>(
    state: S,
    routes: Routes<S>,
    shared: Arc<Shared>,
    name: &str,
    runtime: Runtime,
) -> Result<Pool, StartError> {
    // Dropped on an error, it stops the threads that run by then.
    let pool = Pool {
        shared: Arc::clone(&shared),
    };
    *shared.spawn.lock() = Some(Arc::new(Spawner {
        state,
        routes: Arc::new(routes),
        name: name.to_owned(),
        runtime,
    }));
    shared.leases.start(name)?;
    shared.chunks.start(&shared, name)?;
    shared.watch.set_pool(&shared);
    let wanted = shared.state.lock().wanted;
    if let Err(error) = shared.have_threads(wanted) {
        // A number that an operator has stored is not to keep a service from starting.
        let has_some = shared.state.lock().active > 0;
        if !(has_some && wanted > shared.concurrency.threads) {
            return Err(error);
        }
        tracing::error!(%error, wanted, "the pool has fewer threads than were set before this start");
    }
    if let Some(scaling) = &shared.scaling {
        scaling.start(&shared)?;
    }
    Ok(pool)
}

/// Counts a thread of a pool from before its start until it has ended, in whatever way.
pub(super) struct Alive {
    shared: Arc<Shared>,
    pub(super) seat: Arc<Seat>,
}

impl Alive {
    pub(super) fn new(shared: &Arc<Shared>, name: Option<&str>) -> Self {
        Self {
            seat: shared.begin_thread(name),
            shared: Arc::clone(shared),
        }
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.shared.end_thread(&self.seat);
    }
}

impl<S: Clone + Send + Sync + 'static> Worker<S> {
    fn live(mut self, mut consumer: Box<dyn Consumer>, mut levels: u64, alive: Alive) {
        while self.work(&mut *consumer, levels) {
            if self.shared.is_surplus() {
                break;
            }
            // Read before the levels that exist, so that none is missed.
            levels = self.shared.levels();
            let backend = &*self.shared.mill.inner.backend;
            match self.shared.served.consumer(backend) {
                Ok(new) => consumer = new,
                // The consumer that it has serves the levels that were there before; the next new one
                // has it try again.
                Err(error) => tracing::error!(%error, "a new level of a queue is not served yet"),
            }
        }
        // This thread was to run them.
        self.shared.chunks.have_others_run_enough();
        // What the application gave is dropped before the thread counts as ended.
        drop(consumer);
        user_code::discard(self);
        drop(alive);
    }

    /// Runs jobs until the pool stops or the mill is closed; true if the levels have changed.
    fn work(&mut self, consumer: &mut dyn Consumer, levels: u64) -> bool {
        let (shared, routes) = (Arc::clone(&self.shared), Arc::clone(&self.routes));
        let has_async = routes.values().any(|route| route.is_async());
        let chunks = &shared.chunks;
        let stopped = || shared.is_stopping() || shared.levels() != levels || chunks.has_due();
        while !shared.is_stopping() {
            if shared.levels() != levels {
                return true;
            }
            if has_async && !shared.wait_for_task() {
                return false;
            }
            let taken = user_code::call(|| match chunks.call() {
                None => consumer.next(None, &stopped, &mut |claim| self.run(&routes, claim)),
                Some(Call::Run) => self.run_due(&routes),
                Some(Call::Fill) => self.fill(consumer, &routes),
            });
            match taken {
                Ok(Next::Closed) => return false,
                Ok(Next::Taken | Next::Nothing) => {}
                // Of a subscriber or a waker: that of a handler does not get here.
                Err(panic) => {
                    tracing::error!(panic, "a worker was interrupted by a panic");
                    self.end_timed();
                    self.seat.end_chunk();
                }
            }
            if self.is_replaced {
                return false;
            }
        }
        false
    }

    /// A worker without a thread, which a caller has run the jobs that it takes.
    #[cfg(feature = "testing")]
    pub(super) fn inline(
        state: S,
        routes: Routes<S>,
        shared: Arc<Shared>,
        seat: Arc<Seat>,
    ) -> Self {
        Self {
            state,
            routes: Arc::new(routes),
            watch: Watch::new(&shared.mill),
            shared,
            seat,
            #[cfg(feature = "tokio")]
            runtime: Runtime::Inline,
            #[cfg(not(feature = "tokio"))]
            runtime: super::start::NoRuntime,
            id: JobId::new("", 0),
            is_other_queue: false,
            is_replaced: false,
        }
    }

    #[cfg(feature = "testing")]
    pub(super) fn routes(&self) -> Arc<Routes<S>> {
        Arc::clone(&self.routes)
    }

    /// Runs an attempt, or begins it, unless the job is not to run.
    pub(super) fn run(&mut self, routes: &Routes<S>, claim: &mut dyn Claim) {
        if self.shared.is_stopping() {
            // Taken in the moment in which the pool was stopped, perhaps because a handler that ends
            // for that has given it back.
            return give_back(claim);
        }
        if claim.queue() == self.id.place() {
            self.id.set_number(claim.number());
        } else {
            self.id = JobId::new(claim.queue(), claim.number());
            self.is_other_queue = true;
        }
        let mill = &self.shared.mill;
        match mill.inner.before.begin(mill, &self.id, claim) {
            Began::AsItIs => self.attempt(routes, claim),
            Began::InTurn(turn) => self.attempt(routes, &mut turn.of(claim)),
            // A place that was kept for it is for others.
            Began::GivenBack => mill.inner.limits.forget_grant(&self.id),
        }
    }

    #[inline]
    fn attempt(&mut self, routes: &Routes<S>, claim: &mut dyn Claim) {
        let mill = &self.shared.mill;
        let has_headers = claim.may_have_headers();
        if has_headers
            && (expiry::end_expired(mill, &self.id, claim)
                || !mill.inner.flows.admit(mill, &self.id, claim))
        {
            // A place that was kept for it is for others.
            return mill.inner.limits.forget_grant(&self.id);
        }
        let Some((kind, route)) = routes.get_key_value(claim.kind()) else {
            mill.inner.limits.forget_grant(&self.id);
            return mill.inner.parked.park(mill, &self.id, claim);
        };
        let options = route.options();
        let (limits, mut permit) = (&mill.inner.limits, Permit::none());
        if !limits.admit(&self.id, options.cost, claim, &mut permit) {
            return;
        }
        let kept = self.shared.leases.keep(&self.id, claim);
        let intake = route.intake();
        if let Intake::Chunks { .. } = intake {
            let member = Member::new(&self.id, claim, permit.detach(), kept);
            return self.gather(kind, route, member);
        }
        let is_task = intake == Intake::Task;
        #[cfg(feature = "tokio")]
        let task = match is_task {
            false => None,
            true => match self.shared.begin_task(&self.id, claim) {
                Some(task) => Some(task),
                None => return,
            },
        };
        permit.begin();
        let watched = self.watch.begin(&self.id, kind, claim, is_task);
        let seat = &*self.seat;
        seat.begin(&self.id, std::mem::take(&mut self.is_other_queue));
        let own = has_headers.then(|| own_timeout(claim)).flatten();
        let timeout = own.or(options.timeout);
        let deadline = timeout.and_then(|timeout| self.begin_timed(kind, timeout, &**route));
        let attempt = Attempt {
            mill,
            id: &self.id,
            claim: &*claim,
            deadline,
            pool_stops: &self.shared.stopping,
            context: std::cell::OnceCell::new(),
        };
        let span = span::of(&attempt);
        let called = span::within(span.as_ref(), || route.call(&self.state, &attempt));
        let context = attempt.context.into_inner();
        match called {
            Called::Returned(returned) => {
                let ran = watched.end(mill, self.watch.cell(), claim);
                let followed = followed_by(context);
                settle::settle(mill, claim, &self.id, options, returned, followed, &ran);
            }
            #[cfg(feature = "tokio")]
            Called::Begun(future) => {
                let begun = Begun {
                    mill: mill.clone(),
                    id: self.id.clone(),
                    claim: claim.detach(),
                    context,
                    _permit: Some(permit.detach()),
                    _kept: kept,
                    task,
                    watched: Some((watched, self.watch.shared_cell())),
                };
                self.spawn(begun, route, deadline, future, span);
                return seat.end();
            }
        }
        seat.end();
        drop(permit);
        drop(kept);
        if deadline.is_some() {
            self.end_timed();
        }
    }

    /// Ends what the watch looks for. A thread whose handler was stuck goes on if its place is free.
    pub(super) fn end_timed(&mut self) {
        if self.seat.end_timed() {
            self.is_replaced = !self.shared.end_stuck(&self.seat);
        }
    }

    /// Has the watch look for the job if its handler goes on for too long. Returns when its time is
    /// up.
    pub(super) fn begin_timed(
        &self,
        kind: &'static str,
        timeout: Duration,
        route: &dyn Route<S>,
    ) -> Option<Instant> {
        let began = self.shared.mill.inner.clock.now();
        let deadline = began.checked_add(timeout)?;
        if !route.is_async() {
            let stuck_at = deadline.checked_add(route.options().grace);
            // A time that overflows is one that never comes.
            if let Some(stuck_at) = stuck_at {
                let timed = Timed { kind, began };
                self.shared.watch.begin(&self.seat, timed, stuck_at);
            }
        }
        Some(deadline)
    }
}

/// How long an attempt may take, if the job says so itself.
fn own_timeout(claim: &dyn Claim) -> Option<Duration> {
    let bytes = claim.header(header::TIMEOUT)?.try_into().ok()?;
    Some(Duration::from_nanos(u64::from_le_bytes(bytes)))
}

/// Gives a job back that was not begun.
#[cold]
pub(super) fn give_back(claim: &mut dyn Claim) {
    match claim.hold() {
        Some(held) => drop(held),
        None => {
            let after = Duration::ZERO;
            let _ = claim.settle(crate::backend::Settlement::Snooze { after });
        }
    }
}
