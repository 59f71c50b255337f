//! The engine's errors as those of a backend.

use std::error::Error;

use logmill::{EnqueueError, OpenError, TransactionError};

use crate::backend::BackendError;

pub(super) fn on_open(error: OpenError) -> BackendError {
    match error {
        OpenError::InvalidName { .. } => BackendError::Invalid(error.to_string()),
        error => on_storage(error),
    }
}

pub(super) fn on_storage(error: impl Error + Send + Sync + 'static) -> BackendError {
    BackendError::Storage(Box::new(error))
}

pub(super) fn on_enqueue(error: EnqueueError, queue: &str) -> BackendError {
    match error {
        EnqueueError::Full { .. } | EnqueueError::WaitInHandler { .. } => {
            BackendError::Full(queue.to_owned())
        }
        EnqueueError::PayloadTooLarge { .. }
        | EnqueueError::BatchTooLarge { .. }
        | EnqueueError::InvalidOption { .. } => BackendError::Invalid(error.to_string()),
        EnqueueError::Closed => BackendError::Closed,
        EnqueueError::NotDurable { .. } => BackendError::NotDurable(Box::new(error)),
        error => on_storage(error),
    }
}

pub(super) fn on_transaction(error: TransactionError) -> BackendError {
    match error {
        TransactionError::Conflict { key } => {
            BackendError::Conflict(String::from_utf8_lossy(&key).into_owned())
        }
        TransactionError::InvalidKey { .. } | TransactionError::TooLarge { .. } => {
            BackendError::Invalid(error.to_string())
        }
        TransactionError::Enqueue(error) => on_enqueue(error, "of a job that was to follow"),
        TransactionError::LeaseLost => BackendError::Lost,
        TransactionError::Closed => BackendError::Closed,
        TransactionError::NotDurable(_) => BackendError::NotDurable(Box::new(error)),
        error => on_storage(error),
    }
}
