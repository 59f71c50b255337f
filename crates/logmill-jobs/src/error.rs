//! Errors of calls that are not a handler's.

use crate::backend::BackendError;
use crate::codec::CodecError;

/// A mill could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("the mill cannot be opened: {0}")]
pub struct OpenError(#[source] pub(crate) Box<dyn std::error::Error + Send + Sync>);

/// A job was not enqueued.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnqueueError {
    /// The arguments could not be encoded.
    #[error("the arguments cannot be encoded: {0}")]
    Encode(#[source] CodecError),
    /// The queue has as many jobs as it may have; workers make room.
    #[error("the queue {0} is full")]
    Full(String),
    /// The name of the queue, the size of the job or an option is not valid.
    #[error("{0}")]
    Invalid(String),
    /// A hook of the application refused it, see
    /// [`MillOptions::on_enqueue`](crate::MillOptions::on_enqueue).
    #[error("the job was refused: {0}")]
    Refused(String),
    /// The mill is closed.
    #[error("the mill is closed")]
    Closed,
    /// The job is stored, but may not survive a power cut.
    #[error("{0}")]
    NotDurable(#[source] BackendError),
    /// The storage failed.
    #[error(transparent)]
    Storage(BackendError),
}

impl From<CodecError> for EnqueueError {
    fn from(error: CodecError) -> Self {
        Self::Encode(error)
    }
}

impl From<BackendError> for EnqueueError {
    fn from(error: BackendError) -> Self {
        match error {
            BackendError::Full(queue) => Self::Full(queue),
            BackendError::Invalid(why) => Self::Invalid(why),
            BackendError::Closed => Self::Closed,
            error @ BackendError::NotDurable(_) => Self::NotDurable(error),
            error => Self::Storage(error),
        }
    }
}

/// Workers were not started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// Two handlers take the same kind.
    #[error("two handlers take the kind {0:?}")]
    DuplicateKind(String),
    /// No handler was registered.
    #[error("no handler was registered")]
    NoHandlers,
    /// The name of a queue is not valid.
    #[error("{0}")]
    InvalidQueue(String),
    /// Other workers of this mill serve the queue. Its jobs would come to those who have no handler
    /// for them.
    #[error(
        "other workers serve the queue {0:?}; register all handlers of a queue with the same workers"
    )]
    QueueServed(String),
    /// Another dynamic pool of this mill has the same name, under which its numbers are stored.
    #[error("another dynamic pool is named {0:?}; give each a name of its own")]
    PoolName(String),
    /// A stored schedule enqueues jobs of this kind in a queue that the workers serve, and they have no
    /// handler for it. Register one, or remove the schedule.
    #[cfg(feature = "schedules")]
    #[error(
        "no handler takes the kind {kind:?} of the schedule {schedule:?}; register one, or remove the schedule"
    )]
    UnhandledSchedule {
        /// The id of the schedule.
        schedule: String,
        /// The kind of its job.
        kind: String,
    },
    /// An async handler was registered outside a tokio runtime.
    #[error("async handlers need a tokio runtime: call start within one")]
    NoRuntime,
    /// A thread could not be started.
    #[error("could not start a thread: {0}")]
    Thread(#[source] std::io::Error),
    /// The storage failed.
    #[error(transparent)]
    Storage(#[from] BackendError),
}

/// The result of a job is not there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WaitError {
    /// The job is dead; this was its last failure.
    #[error("the job is dead: {0}")]
    Dead(String),
    /// The job was cancelled, for this reason.
    #[error("the job was cancelled: {0}")]
    Cancelled(String),
    /// The job expired before it began.
    #[error("the job expired before it began")]
    Expired,
    /// The job has ended, and what it returned is not kept any more; or it never was.
    #[error("the job has ended, and its result is not kept")]
    NotKept,
    /// The job has not ended in time. It goes on.
    #[error("the job has not ended in time")]
    TimedOut,
    /// The result could not be decoded.
    #[error("the result cannot be decoded: {0}")]
    Decode(#[source] CodecError),
    /// The mill was closed.
    #[error("the mill is closed")]
    Closed,
    /// The storage failed.
    #[error(transparent)]
    Storage(BackendError),
}

impl From<BackendError> for WaitError {
    fn from(error: BackendError) -> Self {
        match error {
            BackendError::Closed => Self::Closed,
            error => Self::Storage(error),
        }
    }
}
