//! The threads of a pool: each takes jobs, runs those of blocking handlers, and hands those of async
//! ones to the runtime.

use std::collections::HashMap;
use std::sync::Arc;
use std::thread;
#[cfg(feature = "tokio")]
use std::time::Instant;

use super::Runtime;
#[cfg(feature = "tokio")]
use super::pool::Task;
use super::pool::{Pool, Shared};
use crate::JobId;
use crate::backend::{Claim, Consumer, Next};
#[cfg(feature = "tokio")]
use crate::clock::Clock;
use crate::context::{Attempt, Context, Followed};
use crate::error::StartError;
use crate::handler::{Called, Route};
use crate::limits::Admission;
#[cfg(feature = "tokio")]
use crate::limits::Permit;
use crate::{expiry, settle, user_code};

pub(super) type Routes<S> = HashMap<&'static str, Arc<dyn Route<S>>>;

/// One thread of a pool.
pub(super) struct Worker<S> {
    state: S,
    routes: Arc<Routes<S>>,
    shared: Arc<Shared>,
    at: usize,
    #[cfg_attr(not(feature = "tokio"), allow(dead_code))]
    runtime: Runtime,
    /// The job that it runs, or took last.
    id: JobId,
    /// Whether its queue is another one than that of the job that it ran last.
    is_other_queue: bool,
}

pub(super) fn start<S: Clone + Send + Sync + 'static>(
    state: S,
    routes: Routes<S>,
    shared: Arc<Shared>,
    threads: usize,
    name: &str,
    runtime: Runtime,
) -> Result<Pool, StartError> {
    // Dropped on an error, it stops the threads that run by then.
    let pool = Pool {
        shared: Arc::clone(&shared),
    };
    let routes = Arc::new(routes);
    // Held until all threads run, so that the pool does not leave the mill in between.
    let starting = Alive::new(&shared);
    for at in 0..threads {
        let worker = Worker {
            state: state.clone(),
            routes: Arc::clone(&routes),
            shared: Arc::clone(&shared),
            at,
            runtime: runtime.clone(),
            id: JobId::new("", 0),
            is_other_queue: false,
        };
        // Read before the levels that exist, so that none is missed.
        let levels = shared.levels();
        let consumer = shared.served.consumer(&*shared.mill.inner.backend)?;
        let alive = Alive::new(&shared);
        let builder = thread::Builder::new().name(format!("{name}-{at}"));
        builder
            .spawn(move || worker.live(consumer, levels, alive))
            .map_err(StartError::Thread)?;
    }
    drop(starting);
    Ok(pool)
}

/// Counts a thread of a pool from before its start until it has ended, in whatever way.
pub(super) struct Alive(Arc<Shared>);

impl Alive {
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        shared.begin_thread();
        Self(Arc::clone(shared))
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.end_thread();
    }
}

impl<S: Clone + Send + Sync + 'static> Worker<S> {
    fn live(mut self, mut consumer: Box<dyn Consumer>, mut levels: u64, alive: Alive) {
        while self.work(&mut *consumer, levels) {
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
        // What the application gave is dropped before the thread counts as ended.
        drop(consumer);
        user_code::discard(self);
        drop(alive);
    }

    /// Runs jobs until the pool stops or the mill is closed; true if the levels have changed.
    fn work(&mut self, consumer: &mut dyn Consumer, levels: u64) -> bool {
        let shared = Arc::clone(&self.shared);
        let stopped = || shared.is_stopping() || shared.levels() != levels;
        while !shared.is_stopping() {
            if shared.levels() != levels {
                return true;
            }
            if !shared.wait_for_task() {
                return false;
            }
            let taken =
                user_code::call(|| consumer.next(None, &stopped, &mut |claim| self.run(claim)));
            match taken {
                Ok(Next::Closed) => return false,
                Ok(Next::Taken | Next::Nothing) => {}
                // Of a subscriber or a waker: that of a handler does not get here.
                Err(panic) => tracing::error!(panic, "a worker was interrupted by a panic"),
            }
        }
        false
    }

    /// A worker without a thread, which a caller has run the jobs that it takes.
    #[cfg(feature = "testing")]
    pub(super) fn inline(state: S, routes: Routes<S>, shared: Arc<Shared>) -> Self {
        Self {
            state,
            routes: Arc::new(routes),
            shared,
            at: 0,
            #[cfg(feature = "tokio")]
            runtime: Runtime::Inline,
            #[cfg(not(feature = "tokio"))]
            runtime: super::NoRuntime,
            id: JobId::new("", 0),
            is_other_queue: false,
        }
    }

    /// Runs an attempt, or begins it.
    pub(super) fn run(&mut self, claim: &mut dyn Claim) {
        if claim.queue() == self.id.place() {
            self.id.set_number(claim.number());
        } else {
            self.id = JobId::new(claim.queue(), claim.number());
            self.is_other_queue = true;
        }
        let mill = &self.shared.mill;
        if expiry::end_expired(mill, &self.id, claim)
            || !mill.inner.flows.admit(mill, &self.id, claim)
        {
            // A place that was kept for it is for others.
            return mill.inner.limits.forget_grant(&self.id);
        }
        let Some(route) = self.routes.get(claim.kind()) else {
            mill.inner.limits.forget_grant(&self.id);
            return mill.inner.parked.park(&self.id, claim);
        };
        let route = Arc::clone(route);
        let options = route.options();
        let Admission::Runs(mut permit) = mill.inner.limits.admit(&self.id, claim) else {
            return;
        };
        #[cfg(feature = "tokio")]
        let task = match route.is_async() {
            false => None,
            true => match self.shared.begin_task(&self.id, claim) {
                Some(task) => Some(task),
                None => return,
            },
        };
        permit.begin();
        let seat = self.shared.seat(self.at);
        seat.begin(&self.id, std::mem::take(&mut self.is_other_queue));
        let timeout = options.timeout;
        let deadline = timeout.and_then(|timeout| mill.inner.clock.now().checked_add(timeout));
        let attempt = Attempt {
            mill,
            id: &self.id,
            claim: &*claim,
            deadline,
            pool_stops: &self.shared.stopping,
            context: std::cell::OnceCell::new(),
        };
        let called = route.call(&self.state, &attempt);
        let context = attempt.context.into_inner();
        match called {
            Called::Returned(returned) => {
                let followed = followed_by(context);
                settle::settle(mill, claim, &self.id, options, returned, followed);
            }
            #[cfg(feature = "tokio")]
            Called::Begun(future) => {
                let begun = Begun {
                    mill: mill.clone(),
                    id: self.id.clone(),
                    claim: claim.detach(),
                    context,
                    _permit: Some(permit),
                    task,
                };
                self.spawn(begun, &route, deadline, future);
                return seat.end();
            }
        }
        seat.end();
        drop(permit);
    }

    /// Has the runtime finish an attempt.
    #[cfg(feature = "tokio")]
    fn spawn(
        &self,
        begun: Begun,
        route: &Arc<dyn Route<S>>,
        deadline: Option<Instant>,
        future: Running,
    ) {
        let route = Arc::clone(route);
        let clock = begun.mill.inner.clock.clone();
        let returned = Guarded::new(Box::pin(until(clock, deadline, future)));
        match &self.runtime {
            Runtime::None => {}
            Runtime::Tokio(runtime) => {
                runtime.spawn(async move {
                    let mut begun = begun;
                    let returned = returned.await;
                    begun.end(route.options(), returned);
                });
            }
            #[cfg(feature = "testing")]
            Runtime::Inline => {
                let mut begun = begun;
                let returned = super::inline::block_on(returned);
                begun.end(route.options(), returned);
            }
        }
    }
}

/// An attempt that goes on as a task. Dropped before it has ended, as the runtime ends, it gives its
/// job back without a failed attempt, and stops its pool, which could not run another one.
#[cfg(feature = "tokio")]
struct Begun {
    mill: crate::Mill,
    id: JobId,
    /// Taken at the end.
    claim: Option<Box<dyn Claim + Send>>,
    context: Option<Context>,
    _permit: Option<Permit>,
    task: Option<Task>,
}

#[cfg(feature = "tokio")]
impl Begun {
    fn end(&mut self, options: &crate::KindOptions, returned: settle::Returned) {
        if let Some(mut claim) = self.claim.take() {
            let followed = followed_by(self.context.take());
            settle::settle(
                &self.mill,
                &mut *claim,
                &self.id,
                options,
                returned,
                followed,
            );
        }
    }
}

#[cfg(feature = "tokio")]
impl Drop for Begun {
    fn drop(&mut self) {
        let Some(mut claim) = self.claim.take() else {
            return;
        };
        followed_by(self.context.take());
        if let Some(task) = &self.task {
            task.stop_pool();
        }
        drop(claim.hold());
    }
}

/// An async handler that runs.
#[cfg(feature = "tokio")]
pub(super) type Running = std::pin::Pin<Box<dyn Future<Output = settle::Returned> + Send>>;

/// What is stored with the completion.
fn followed_by(context: Option<Context>) -> Followed {
    context.map(|context| context.end()).unwrap_or_default()
}

/// Awaits a handler until its time is up.
#[cfg(feature = "tokio")]
pub(super) async fn until(
    clock: Clock,
    deadline: Option<Instant>,
    future: Running,
) -> settle::Returned {
    let future = Guarded::new(future);
    let Some(deadline) = deadline else {
        return future.await;
    };
    let returned = match clock.sleeps_until(deadline) {
        Some(until) => tokio::time::timeout_at(until.into(), future).await.ok(),
        None => clock.unless_reached(deadline, future).await,
    };
    returned.unwrap_or_else(|| {
        let reason = "the attempt took too long";
        Err(crate::Failure::retry(reason.to_owned()))
    })
}

/// A future whose panics are failures, also those of its drop.
#[cfg(feature = "tokio")]
pub(super) struct Guarded(Option<Running>);

#[cfg(feature = "tokio")]
impl Guarded {
    pub(super) fn new(future: Running) -> Self {
        Self(Some(future))
    }
}

#[cfg(feature = "tokio")]
impl Future for Guarded {
    type Output = settle::Returned;

    fn poll(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<settle::Returned> {
        let Some(future) = &mut self.0 else {
            return std::task::Poll::Pending;
        };
        let polled = user_code::call(|| future.as_mut().poll(cx));
        polled.unwrap_or_else(|panic| std::task::Poll::Ready(Err(crate::Failure::retry(panic))))
    }
}

#[cfg(feature = "tokio")]
impl Drop for Guarded {
    fn drop(&mut self) {
        user_code::discard(self.0.take());
    }
}
