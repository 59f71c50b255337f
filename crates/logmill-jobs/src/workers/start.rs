//! The start of workers: what they serve, and where their handlers run.

use std::sync::Arc;

use super::chunks::{self, Chunks};
use super::concurrency::Concurrency;
use super::pool::{Pool, Shared};
use super::served::Served;
use super::thread::Alive;
use super::{Workers, thread};
use crate::error::StartError;
use crate::handler::Intake;
use crate::limits::Subject;
use crate::middleware::{Chain, Wrapped};
use crate::mill::Mill;

/// Where async handlers run.
#[cfg(feature = "tokio")]
#[derive(Clone)]
pub(super) enum Runtime {
    /// There are none.
    None,
    Tokio(tokio::runtime::Handle),
    /// On the thread that runs the worker, which waits.
    #[cfg(feature = "testing")]
    Inline,
}
#[cfg(not(feature = "tokio"))]
pub(super) type Runtime = NoRuntime;

/// There are no async handlers.
#[cfg(not(feature = "tokio"))]
#[derive(Clone)]
pub(super) struct NoRuntime;

impl<S: Clone + Send + Sync + 'static> Workers<S> {
    /// Starts the workers.
    ///
    /// # Errors
    /// See [`StartError`]; nothing runs then.
    pub fn start(self, mill: &Mill) -> Result<Pool, StartError> {
        let (by_kind, served) = self.parts(mill)?;
        let threads = match self.scale.map(|scale| scale.bounds()) {
            Some((least, most)) => self.threads.unwrap_or(least).clamp(least, most),
            None => self.threads.unwrap_or_else(|| match self.has_blocking {
                true => std::thread::available_parallelism().map_or(1, usize::from),
                false => 1,
            }),
        };
        let runtime = self.runtime()?;
        crate::flow::resume(mill)?;
        mill.finish_interrupted()?;
        let concurrency = Concurrency {
            name: self.name.clone(),
            threads,
            tasks: self.tasks,
            scale: self.scale,
            is_stored: self.is_dynamic,
        };
        let chunks = Chunks::new(mill, &by_kind);
        // A level that was made by a process which died before it paused it is paused here.
        for queue in served.names() {
            mill.queue(queue)?;
        }
        let shared = Shared::new(mill, served, concurrency, chunks)?;
        // Held until all threads run, so that the pool does not leave the mill in between; and that it does
        // if a subscriber panics.
        let starting = Alive::new(&shared, None);
        let (threads, tasks) = shared.wanted();
        mill.inner
            .limits
            .warn_of_few_workers(self.jobs(threads, tasks));
        let kinds: Vec<_> = by_kind.keys().copied().collect();
        let pool = thread::start(self.state, by_kind, shared, &self.name, runtime)?;
        drop(starting);
        mill.inner.parked.release(kinds.into_iter());
        Ok(pool)
    }

    /// Examples of the jobs that come to the workers, each with how many of them may run at once.
    fn jobs(
        &self,
        threads: usize,
        tasks: usize,
    ) -> impl Iterator<Item = (Subject<'_>, usize)> + Clone {
        self.routes.iter().flat_map(move |route| {
            let workers = match route.intake() {
                Intake::Task => tasks,
                Intake::Thread => threads,
                Intake::Chunks { is_async } => {
                    let calls = if is_async { tasks } else { threads };
                    calls.saturating_mul(chunks::most_of(&**route))
                }
            };
            let queues = self.queues.keys().map(String::as_str);
            let queues = queues.chain(std::iter::once(route.options().queue));
            queues.flat_map(move |queue| {
                let kinds = route.kinds().into_iter();
                kinds.map(move |kind| {
                    (
                        Subject {
                            queue,
                            kind,
                            key: None,
                        },
                        workers,
                    )
                })
            })
        })
    }

    /// The handlers by kind, and the queues.
    #[cfg_attr(not(feature = "schedules"), expect(unused_variables))]
    pub(super) fn parts(&self, mill: &Mill) -> Result<(thread::Routes<S>, Served), StartError> {
        let mut by_kind = thread::Routes::default();
        let mut queues = self.queues.clone();
        let chain: Chain = self.middleware.iter().map(Arc::clone).collect();
        for route in &self.routes {
            let route = Wrapped::route(Arc::clone(route), &chain);
            for kind in route.kinds() {
                if by_kind.insert(kind, Arc::clone(&route)).is_some() {
                    return Err(StartError::DuplicateKind(kind.to_owned()));
                }
            }
            queues.entry(route.options().queue.to_owned()).or_insert(1);
        }
        if by_kind.is_empty() {
            return Err(StartError::NoHandlers);
        }
        let served = Served::new(&queues, self.choice)?;
        #[cfg(feature = "schedules")]
        for (queue, kind, schedule) in crate::schedules::kinds(mill)? {
            if queues.contains_key(&queue) && !by_kind.contains_key(&*kind) {
                return Err(StartError::UnhandledSchedule { schedule, kind });
            }
        }
        Ok((by_kind, served))
    }

    #[cfg(feature = "tokio")]
    fn runtime(&self) -> Result<Runtime, StartError> {
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => Ok(Runtime::Tokio(runtime)),
            Err(_) if self.has_async => Err(StartError::NoRuntime),
            Err(_) => Ok(Runtime::None),
        }
    }

    #[cfg(not(feature = "tokio"))]
    fn runtime(&self) -> Result<Runtime, StartError> {
        Ok(NoRuntime)
    }
}
