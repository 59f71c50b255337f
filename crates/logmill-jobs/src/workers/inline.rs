//! Workers without threads, for tests: the caller runs the jobs, one after the other.

use std::time::Instant;

use super::Workers;
use super::concurrency::Concurrency;
use super::pool::Shared;
use super::thread::{Alive, Worker};
use crate::backend::{Consumer, Next};
use crate::error::StartError;
use crate::mill::Mill;

/// Workers that run on the thread of their caller.
pub(crate) struct Inline<S> {
    worker: Worker<S>,
    consumer: Box<dyn Consumer>,
    levels: u64,
    shared: std::sync::Arc<Shared>,
    _alive: Alive,
}

impl<S: Clone + Send + Sync + 'static> Inline<S> {
    pub(crate) fn new(workers: &Workers<S>, mill: &Mill) -> Result<Self, StartError> {
        let (routes, served) = workers.parts(mill)?;
        crate::flow::resume(mill)?;
        mill.finish_interrupted()?;
        let concurrency = Concurrency {
            name: workers.name.clone(),
            threads: 1,
            tasks: 1,
            scale: None,
            is_stored: false,
        };
        let shared = Shared::new(mill, served, concurrency)?;
        // Dropped on an error, it has the pool leave the mill.
        let alive = Alive::new(&shared, None);
        // Read before the levels that exist, so that none is missed.
        let levels = shared.levels();
        let consumer = shared.served.consumer(&*mill.inner.backend)?;
        let kinds: Vec<_> = routes.keys().copied().collect();
        let worker = Worker::inline(
            workers.state.clone(),
            routes,
            shared.clone(),
            alive.seat.clone(),
        );
        mill.inner.parked.release(kinds.into_iter());
        Ok(Self {
            worker,
            consumer,
            levels,
            shared,
            _alive: alive,
        })
    }

    /// Runs a job that is there, if one is. What unwinds from the backend is not caught.
    pub(crate) fn run_next(&mut self) -> Result<Next, StartError> {
        let levels = self.shared.levels();
        if levels != self.levels {
            let backend = &*self.shared.mill.inner.backend;
            self.consumer = self.shared.served.consumer(backend)?;
            self.levels = levels;
        }
        let worker = &mut self.worker;
        let routes = worker.routes();
        let now = Some(Instant::now());
        Ok(self
            .consumer
            .next(now, &|| false, &mut |claim| worker.run(&routes, claim)))
    }
}

/// Waits for an async handler that runs on this thread, in a runtime of its own. Within another runtime, which may
/// not be blocked that way, another thread runs it meanwhile.
#[cfg(feature = "tokio")]
pub(crate) fn wait_for(
    clock: &crate::clock::Clock,
    deadline: Option<Instant>,
    future: super::thread::Running,
) -> crate::settle::Returned {
    let returned = super::thread::until(clock.clone(), deadline, future, None);
    block_on(super::thread::Guarded::new(Box::pin(returned)))
}

/// Polls a future on this thread, as [`wait_for`] says.
#[cfg(feature = "tokio")]
pub(super) fn block_on(
    returned: impl Future<Output = crate::settle::Returned> + Send,
) -> crate::settle::Returned {
    let run = || match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime.block_on(returned),
        Err(error) => Err(error.into()),
    };
    if tokio::runtime::Handle::try_current().is_err() {
        return run();
    }
    std::thread::scope(|scope| match scope.spawn(run).join() {
        Ok(returned) => returned,
        Err(panic) => Err(crate::Failure::retry(crate::user_code::message_of(panic))),
    })
}
