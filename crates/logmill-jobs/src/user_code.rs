//! Calls of user code. No panic gets past them.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs user code; returns the message of its panic if it panics.
#[inline]
pub(crate) fn call<T>(code: impl FnOnce() -> T) -> Result<T, String> {
    // State that a panic leaves broken is the user's own.
    catch_unwind(AssertUnwindSafe(code)).map_err(message_of)
}

/// Drops a value that belongs to the user.
pub(crate) fn discard<T>(value: T) {
    // A drop has no result in which the message could be used.
    let _ = call(|| drop(value));
}

/// What a panic said.
#[cold]
pub(crate) fn message_of(panic: Box<dyn Any + Send>) -> String {
    let message = if let Some(message) = panic.downcast_ref::<&str>() {
        (*message).to_owned()
    } else if let Some(message) = panic.downcast_ref::<String>() {
        message.clone()
    } else {
        "a panic without a message".to_owned()
    };
    // To drop its value is user code as well, and the value of a panic there may panic again.
    if let Err(another) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
        std::mem::forget(another);
    }
    message
}
