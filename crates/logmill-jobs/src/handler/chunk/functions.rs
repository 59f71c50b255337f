//! Functions as handlers of chunks, by the number of their arguments.

use super::Chunk;
use crate::{Failure, FromRef, Job, State};

/// A function that runs chunks of jobs of type `J` in an application whose state is an `S`.
///
/// Implemented for functions and closures whose first argument is a [`Chunk`] and whose others, up to
/// four, are [`State`]s, and that return `Result<(), E>` for any error that becomes a [`Failure`].
/// The context of an attempt is that of its job, see [`ChunkJob::context`](super::ChunkJob::context).
/// `M` tells their shapes apart and is never written out.
#[diagnostic::on_unimplemented(
    message = "this function cannot run chunks of jobs",
    label = "not a handler of chunks",
    note = "the first argument of a handler of chunks is a `Chunk` of its job, a type with \
            `#[derive(Job)]`, by value",
    note = "each further argument is a `State<T>`",
    note = "it returns `Result<(), E>`, where E is any error that can be displayed",
    note = "an `async fn` is registered by `on_chunk_async`, any other function by `on_chunk`"
)]
pub trait ChunkHandler<J: Job, S, M>: Send + Sync + 'static {
    /// Runs a chunk.
    ///
    /// # Errors
    /// The attempts have not completed the jobs of which the handler has said nothing.
    fn call(&self, chunk: Chunk<J>, state: &S) -> Result<(), Failure>;
}

/// An async function that runs chunks of jobs of type `J`, see [`ChunkHandler`].
#[cfg(feature = "tokio")]
#[diagnostic::on_unimplemented(
    message = "this function cannot run chunks of jobs as an async handler",
    label = "not an async handler of chunks",
    note = "the first argument of a handler of chunks is a `Chunk` of its job, a type with \
            `#[derive(Job)]`, by value",
    note = "each further argument is a `State<T>`",
    note = "its future is `Send` and returns `Result<(), E>`, where E is any error that can be \
            displayed"
)]
pub trait AsyncChunkHandler<J: Job, S, M>: Send + Sync + 'static {
    /// Begins to run a chunk.
    fn call(
        &self,
        chunk: Chunk<J>,
        state: &S,
    ) -> impl Future<Output = Result<(), Failure>> + Send + 'static;
}

macro_rules! handler {
    ($($part:ident),*) => {
        impl<F, J, S, E, $($part),*> ChunkHandler<J, S, (J, E, $($part),*)> for F
        where
            F: Fn(Chunk<J>, $(State<$part>),*) -> Result<(), E> + Send + Sync + 'static,
            J: Job,
            E: Into<Failure>,
            $($part: FromRef<S>,)*
        {
            #[allow(unused_variables)]
            fn call(&self, chunk: Chunk<J>, state: &S) -> Result<(), Failure> {
                self(chunk, $(State($part::from_ref(state))),*).map_err(Into::into)
            }
        }

        #[cfg(feature = "tokio")]
        impl<F, U, J, S, E, $($part),*> AsyncChunkHandler<J, S, (J, U, E, $($part),*)> for F
        where
            F: Fn(Chunk<J>, $(State<$part>),*) -> U + Send + Sync + 'static,
            U: Future<Output = Result<(), E>> + Send + 'static,
            J: Job,
            E: Into<Failure>,
            $($part: FromRef<S>,)*
        {
            #[allow(unused_variables)]
            fn call(
                &self,
                chunk: Chunk<J>,
                state: &S,
            ) -> impl Future<Output = Result<(), Failure>> + Send + 'static {
                let future = self(chunk, $(State($part::from_ref(state))),*);
                async move { future.await.map_err(Into::into) }
            }
        }
    };
}

handler!();
handler!(A);
handler!(A, B);
handler!(A, B, C);
handler!(A, B, C, D);
