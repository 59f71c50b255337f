//! What connects a delivered job to its engine.

use std::ops::Deref;
#[cfg(feature = "async")]
use std::sync::Arc;

use super::Engine;
#[cfg(feature = "async")]
use super::Running;

/// The engine of a delivered job.
pub(crate) enum Handle<'a> {
    /// Something else that the job borrows keeps the queue open.
    Borrowed(&'a Engine),
    /// The job itself keeps the queue open.
    #[cfg(feature = "async")]
    Owned(Arc<Running>),
}

impl Deref for Handle<'_> {
    type Target = Engine;

    #[inline(always)]
    fn deref(&self) -> &Engine {
        match self {
            Self::Borrowed(engine) => engine,
            #[cfg(feature = "async")]
            Self::Owned(running) => running,
        }
    }
}

#[cfg(feature = "async")]
impl Handle<'_> {
    /// A handle that keeps the queue open itself.
    pub(crate) fn to_owned(&self) -> Handle<'static> {
        let running = match self {
            Self::Borrowed(engine) => engine.running.get().and_then(std::sync::Weak::upgrade),
            Self::Owned(running) => Some(Arc::clone(running)),
        };
        Handle::Owned(running.expect("what the job borrows keeps the queue open"))
    }
}
