//! Functions as handlers, by the number of their arguments.

#[cfg(feature = "tokio")]
use super::AsyncHandler;
use super::{FromAttempt, Handler};
use crate::context::Attempt;
use crate::{Failure, Job};

macro_rules! handler {
    ($($extractor:ident),*) => {
        impl<F, J, S, E, $($extractor),*> Handler<J, S, (J, E, $($extractor),*)> for F
        where
            F: Fn(J, $($extractor),*) -> Result<J::Output, E> + Send + Sync + 'static,
            J: Job,
            E: Into<Failure>,
            $($extractor: FromAttempt<S>,)*
        {
            #[inline]
            #[allow(unused_variables)]
            fn call(&self, job: J, state: &S, attempt: &Attempt<'_>) -> Result<J::Output, Failure> {
                self(job, $($extractor::from_attempt(attempt, state)?),*).map_err(Into::into)
            }
        }

        #[cfg(feature = "tokio")]
        impl<F, U, J, S, E, $($extractor),*> AsyncHandler<J, S, (J, U, E, $($extractor),*)> for F
        where
            F: Fn(J, $($extractor),*) -> U + Send + Sync + 'static,
            U: Future<Output = Result<J::Output, E>> + Send + 'static,
            J: Job,
            E: Into<Failure>,
            $($extractor: FromAttempt<S>,)*
        {
            #[allow(unused_variables)]
            fn call(
                &self,
                job: J,
                state: &S,
                attempt: &Attempt<'_>,
            ) -> Result<impl Future<Output = Result<J::Output, Failure>> + Send + 'static, Failure>
            {
                let future = self(job, $($extractor::from_attempt(attempt, state)?),*);
                Ok(async move { future.await.map_err(Into::into) })
            }
        }
    };
}

handler!();
handler!(A);
handler!(A, B);
handler!(A, B, C);
handler!(A, B, C, D);
handler!(A, B, C, D, G);
handler!(A, B, C, D, G, H);
