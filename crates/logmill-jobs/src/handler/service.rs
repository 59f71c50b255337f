//! Handlers that are services of the crate `tower`: an attempt clones the service, awaits that the
//! clone is ready, and calls it. Each of these steps is code of the user, whose panics end here.
//!
//! ```text
//!  clone ─▶ poll_ready ... ─▶ call ─▶ drop the clone ─▶ poll ... ─▶ drop the future ─▶ output or failure
//! ```

use std::future::poll_fn;
use std::task::Poll;

use tower_service::Service;

use super::AsyncHandler;
use crate::context::{Attempt, Context};
use crate::{Failure, Job, user_code};

/// What a service gets that is registered by [`Workers::on_service`](crate::Workers::on_service): a
/// job, and the attempt at it.
///
/// It is `Clone` if the job is, for layers that call a service more than once.
#[derive(Clone)]
#[non_exhaustive]
pub struct JobRequest<J> {
    /// The job.
    pub job: J,
    /// The context of the attempt.
    pub context: Context,
}

impl<J> std::fmt::Debug for JobRequest<J> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JobRequest")
            .field("context", &self.context)
            .finish_non_exhaustive()
    }
}

/// A service as a handler.
pub(crate) struct ServiceHandler<T>(pub(crate) T);

/// Tells services apart from functions.
#[derive(Debug)]
pub(crate) struct OfService;

impl<J, S, T> AsyncHandler<J, S, OfService> for ServiceHandler<T>
where
    J: Job,
    T: Service<JobRequest<J>, Response = J::Output> + Clone + Send + Sync + 'static,
    T::Error: Into<Failure>,
    T::Future: Send + 'static,
{
    fn call(
        &self,
        job: J,
        _: &S,
        attempt: &Attempt<'_>,
    ) -> Result<impl Future<Output = Result<J::Output, Failure>> + Send + 'static, Failure> {
        let context = attempt.context().clone();
        let request = Kept::new(JobRequest { job, context });
        let service = user_code::call(|| self.0.clone()).map_err(Failure::retry)?;
        Ok(answer(Kept::new(service), request))
    }
}

/// Calls a clone of the service once it is ready.
async fn answer<J, T>(
    mut service: Kept<T>,
    request: Kept<JobRequest<J>>,
) -> Result<J::Output, Failure>
where
    J: Job,
    T: Service<JobRequest<J>, Response = J::Output>,
    T::Error: Into<Failure>,
{
    poll_fn(|cx| service.poll(|service| service.poll_ready(cx))).await?;
    // What stands for readiness, such as a permit, is in this clone, so it is the one to call.
    let request = request.take();
    let mut future = Kept::new(service.with(|service| Box::pin(service.call(request)))?);
    service.end()?;
    let answered = poll_fn(|cx| future.poll(|future| future.as_mut().poll(cx))).await;
    let ended = future.end();
    // If both went wrong, the first is the reason.
    answered.and_then(|output| ended.map(|()| output))
}

/// A value of the user until it is dropped. A panic of its drop does not pass, also if the attempt is
/// dropped before it has ended.
struct Kept<T>(Option<T>);

impl<T> Kept<T> {
    fn new(value: T) -> Self {
        Self(Some(value))
    }

    fn take(mut self) -> T {
        self.0.take().expect("taken by value, so once")
    }

    /// Runs code of the user on the value. A panic is a failure.
    fn with<R>(&mut self, run: impl FnOnce(&mut T) -> R) -> Result<R, Failure> {
        let value = self.0.as_mut().expect("taken by value");
        user_code::call(|| run(value)).map_err(Failure::retry)
    }

    /// Polls something of the value.
    fn poll<R, E: Into<Failure>>(
        &mut self,
        poll: impl FnOnce(&mut T) -> Poll<Result<R, E>>,
    ) -> Poll<Result<R, Failure>> {
        self.with(|value| poll(value).map_err(Into::into))
            .unwrap_or_else(|failure| Poll::Ready(Err(failure)))
    }

    /// Drops the value. A panic is a failure.
    fn end(self) -> Result<(), Failure> {
        let value = self.take();
        user_code::call(|| drop(value)).map_err(Failure::retry)
    }
}

impl<T> Drop for Kept<T> {
    fn drop(&mut self) {
        user_code::discard(self.0.take());
    }
}
