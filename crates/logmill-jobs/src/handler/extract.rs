//! What a handler takes beside its job.

use crate::Failure;
use crate::context::Attempt;

/// A type that a handler can take as an argument beside the job.
///
/// Implement it for types of your own, such as a connection or a tenant that is found by the job's
/// key. A failure fails the attempt, and the handler is not called.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an argument that a handler of an application with the state `{S}` \
               can take",
    label = "not an extractor",
    note = "extractors are `State<T>`, where T is the state or implements `FromRef` for it, \
            `Context`, `Inputs<J>`, and types of your own that implement `FromAttempt`",
    note = "if the state is another one, `#[debug_handler(state = App)]` says so"
)]
pub trait FromAttempt<S>: Sized {
    /// Makes the argument for an attempt.
    ///
    /// # Errors
    /// The attempt fails.
    fn from_attempt(attempt: &Attempt<'_>, state: &S) -> Result<Self, Failure>;
}

/// The application's state, or a part of it, as an argument of a handler.
///
/// ```
/// use logmill_jobs::{FromRef, Job, JobResult, Mill, State, Workers};
/// use serde::{Deserialize, Serialize};
/// use std::sync::Arc;
///
/// #[derive(Clone)]
/// struct App {
///     mailer: Arc<Mailer>,
/// }
/// struct Mailer;
///
/// // A part of the state, for handlers that need no more.
/// impl FromRef<App> for Arc<Mailer> {
///     fn from_ref(app: &App) -> Self {
///         app.mailer.clone()
///     }
/// }
///
/// #[derive(Serialize, Deserialize, Job)]
/// #[job(kind = "welcome")]
/// struct Welcome;
///
/// fn welcome(_: Welcome, State(mailer): State<Arc<Mailer>>) -> JobResult {
///     let _: &Mailer = &mailer;
///     Ok(())
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let mill = Mill::open(dir.path().join("jobs"))?;
/// let app = App { mailer: Arc::new(Mailer) };
/// let workers = Workers::new(app).on(welcome).start(&mill)?;
/// # drop(workers);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State<T>(pub T);

/// A part of the application's state, made from the whole.
#[diagnostic::on_unimplemented(
    message = "the state of the workers is `{S}`, and `{Self}` is no part of it",
    label = "not the state, and not a part of it",
    note = "`State<T>` takes the state that `Workers::new` is given, or a T that implements \
            `FromRef` for it"
)]
pub trait FromRef<S> {
    /// Makes it, usually by a clone.
    fn from_ref(state: &S) -> Self;
}

impl<S: Clone> FromRef<S> for S {
    fn from_ref(state: &S) -> Self {
        state.clone()
    }
}

impl<S, T: FromRef<S>> FromAttempt<S> for State<T> {
    fn from_attempt(_: &Attempt<'_>, state: &S) -> Result<Self, Failure> {
        Ok(Self(T::from_ref(state)))
    }
}
