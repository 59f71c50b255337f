//! Attempts of async handlers, which go on as tasks of the runtime.

use std::sync::Arc;
use std::time::Instant;

use super::leases::Kept;
use super::pool::Task;
use super::start::Runtime;
use super::thread::Worker;
use crate::JobId;
use crate::backend::Claim;
use crate::clock::Clock;
use crate::context::Context;
use crate::context::followed_by;
use crate::figures::{self, Cell};
use crate::handler::Route;
use crate::limits::Permit;
use crate::{settle, span, user_code};

impl<S: Clone + Send + Sync + 'static> Worker<S> {
    /// Has the runtime finish an attempt.
    pub(super) fn spawn(
        &self,
        begun: Begun,
        route: &Arc<dyn Route<S>>,
        deadline: Option<Instant>,
        future: Running,
        span: Option<span::Entering>,
    ) {
        let route = Arc::clone(route);
        let mut begun = begun;
        self.have_awaited(deadline, future, span, move |returned| {
            begun.end(route.options(), returned);
        });
    }

    /// Has the runtime await a handler until its time is up, and then call this. What is to be called is
    /// dropped after the future if the runtime ends before.
    pub(super) fn have_awaited(
        &self,
        deadline: Option<Instant>,
        future: Running,
        span: Option<span::Entering>,
        end: impl FnOnce(settle::Returned) + Send + 'static,
    ) {
        let clock = self.shared.mill.inner.clock.clone();
        let returned = Guarded::new(Box::pin(until(clock, deadline, future, span)));
        match &self.runtime {
            Runtime::None => {}
            Runtime::Tokio(runtime) => {
                runtime.spawn(async move {
                    let end = end;
                    let returned = returned.await;
                    end(returned);
                });
            }
            #[cfg(feature = "testing")]
            Runtime::Inline => end(super::inline::block_on(returned)),
        }
    }
}

/// An attempt that goes on as a task. Dropped before it has ended, as the runtime ends, it gives its
/// job back without a failed attempt, and stops its pool, which could not run another one.
pub(super) struct Begun {
    pub(super) mill: crate::Mill,
    pub(super) id: JobId,
    /// Taken at the end.
    pub(super) claim: Option<Box<dyn Claim + Send>>,
    pub(super) context: Option<Context>,
    pub(super) _permit: Option<Permit<'static>>,
    pub(super) _kept: Option<Kept>,
    pub(super) task: Option<Task>,
    /// Taken at the end.
    pub(super) watched: Option<(figures::Begun, Arc<Cell>)>,
}

impl Begun {
    fn end(&mut self, options: &crate::KindOptions, returned: settle::Returned) {
        if let (Some(mut claim), Some((watched, cell))) = (self.claim.take(), self.watched.take()) {
            let ran = watched.end(&self.mill, &cell, &*claim);
            let followed = followed_by(self.context.take());
            settle::settle(
                &self.mill,
                &mut *claim,
                &self.id,
                options,
                returned,
                followed,
                &ran,
            );
        }
    }
}

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
pub(super) type Running = std::pin::Pin<Box<dyn Future<Output = settle::Returned> + Send>>;

/// Awaits a handler until its time is up.
pub(super) async fn until(
    clock: Clock,
    deadline: Option<Instant>,
    mut future: Running,
    span: Option<span::Entering>,
) -> settle::Returned {
    let future = match span {
        None => future,
        Some(span) => Box::pin(std::future::poll_fn(move |cx| {
            // Caught within the span: a subscriber that panics as well must not meet a panic.
            let polled = span.within(|| user_code::call(|| future.as_mut().poll(cx)));
            polled.unwrap_or_else(|panic| std::task::Poll::Ready(Err(crate::Failure::retry(panic))))
        })),
    };
    let future = Guarded::new(future);
    let Some(deadline) = deadline else {
        return future.await;
    };
    let returned = match clock.sleeps_until(deadline) {
        Some(until) => tokio::time::timeout_at(until.into(), future).await.ok(),
        None => clock.unless_reached(deadline, future).await,
    };
    returned.unwrap_or_else(|| Err(crate::Failure::retry(crate::context::TOO_LONG.to_owned())))
}

/// A future whose panics are failures, also those of its drop.
pub(super) struct Guarded(Option<Running>);

impl Guarded {
    pub(super) fn new(future: Running) -> Self {
        Self(Some(future))
    }
}

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

impl Drop for Guarded {
    fn drop(&mut self) {
        user_code::discard(self.0.take());
    }
}
