//! What `#[debug_handler]` has the compiler check of a function. No function here does anything: their
//! bounds are what counts, and the messages of those that are not met.
//!
//! Of use to the code that the macro writes, and to nobody else.

use super::{FromAttempt, FromRef, State};
use crate::{Failure, Job};

/// Checks an argument beside the job, for workers with this state.
pub fn argument<S, A: FromAttempt<S>>() {}

/// Checks what a handler returns for a job with this output.
pub fn handler<O, M, R>()
where
    R: Returned<M>,
    R::Output: IsOutput<O>,
    R::Error: IsFailure,
{
}

/// Checks the future that a function returns without naming its type.
pub fn future<O, F>(_: F)
where
    F: Future + Send + 'static,
    F::Output: Returned<Value>,
    <F::Output as Returned<Value>>::Output: IsOutput<O>,
    <F::Output as Returned<Value>>::Error: IsFailure,
{
}

/// Checks the jobs of a chunk.
pub fn chunk<J: Job + HasNoInputs>() {}

/// Checks an argument beside a chunk, for workers with this state.
pub fn argument_of_chunk<S, A: BesideChunk<S>>() {}

/// Checks what a handler of chunks returns.
pub fn handler_of_chunk<M, R>()
where
    R: Returned<M>,
    R::Output: IsNothing,
    R::Error: IsFailure,
{
}

/// Checks the future that a function of a chunk returns without naming its type.
pub fn future_of_chunk<F>(_: F)
where
    F: Future + Send + 'static,
    F::Output: Returned<Value>,
    <F::Output as Returned<Value>>::Output: IsNothing,
    <F::Output as Returned<Value>>::Error: IsFailure,
{
}

/// Checks that a future can be awaited by any thread of a runtime.
pub fn sent<F: Future + Send + 'static>(_: F) {}

/// A handler that returns, rather than its future.
#[derive(Debug)]
pub struct Value;

/// A handler whose future returns.
#[derive(Debug)]
pub struct Awaited;

/// What a function returns that is a handler.
#[diagnostic::on_unimplemented(
    message = "a handler does not return `{Self}`",
    label = "not a `Result`, nor a future of one that is `Send`",
    note = "a handler returns `JobResult`, or a `Result<T, E>` with the output of its job and any \
            error that can be displayed",
    note = "one that is awaited, an `async fn` or a function that returns a future which is `Send`, \
            does so too"
)]
pub trait Returned<M> {
    /// Of the job.
    type Output;
    /// Why the attempt has failed.
    type Error;
}

impl<T, E> Returned<Value> for Result<T, E> {
    type Output = T;
    type Error = E;
}

#[diagnostic::do_not_recommend]
impl<F, T, E> Returned<Awaited> for F
where
    F: Future<Output = Result<T, E>> + Send + 'static,
{
    type Output = T;
    type Error = E;
}

/// What no type returns.
#[derive(Debug)]
pub struct Nothing;

/// What no type implements.
pub trait Never {}

// If the future above were the only other one, the compiler would take a wrong type for one, and say
// that it is not a future.
#[diagnostic::do_not_recommend]
impl<R: Never> Returned<Nothing> for R {
    type Output = ();
    type Error = Failure;
}

/// The output of a job, which is a `T`.
#[diagnostic::on_unimplemented(
    message = "the handler returns `{Self}`, but the output of its job is `{T}`",
    label = "not the output of the job",
    note = "the output of a job is what `#[job(output = ...)]` says, and `()` without that"
)]
pub trait IsOutput<T> {}

impl<T> IsOutput<T> for T {}

/// What a handler of chunks returns of itself.
#[diagnostic::on_unimplemented(
    message = "a handler of chunks returns `Result<(), E>`, not one of `{Self}`",
    label = "not `()`",
    note = "the output of each job is said by `done_with` of that job in the chunk"
)]
pub trait IsNothing {}

impl IsNothing for () {}

/// A job that may come in a chunk.
#[diagnostic::on_unimplemented(
    message = "a handler of chunks does not take `{Self}`, which has inputs",
    label = "has inputs",
    note = "a job with `#[job(inputs = ...)]` is for a handler of single jobs"
)]
pub trait HasNoInputs {}

#[diagnostic::do_not_recommend]
impl<J: Job<Inputs = ()>> HasNoInputs for J {}

/// An argument beside a chunk.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an argument that a handler of chunks of an application with the state \
               `{S}` can take",
    label = "not a `State<T>`",
    note = "beside its chunk, a handler takes `State<T>`s, where T is the state or implements `FromRef` \
            for it; the context of an attempt is that of its job in the chunk, by `context()`",
    note = "if the state is another one, `#[debug_handler(state = App)]` says so"
)]
pub trait BesideChunk<S> {}

#[diagnostic::do_not_recommend]
impl<S, T: FromRef<S>> BesideChunk<S> for State<T> {}

/// The error of a handler.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an error that a handler can return",
    label = "cannot become a `Failure`",
    note = "the error of a handler is a `Failure`, or one that implements `Display`, such as any \
            `std::error::Error`, `anyhow::Error`, `Box<dyn Error>` and `String`"
)]
pub trait IsFailure {}

// Its own bound is not what a user would look for.
#[diagnostic::do_not_recommend]
impl<E: Into<Failure>> IsFailure for E {}
