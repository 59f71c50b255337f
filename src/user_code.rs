//! Calls of user code: handlers and their errors, backoff functions, subscribers, and the drops of
//! everything that they leave behind. No panic gets past these functions.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::runtime::outside;

/// Runs user code; returns the message of its panic if it panics.
#[inline]
pub(crate) fn call<T>(code: impl FnOnce() -> T) -> Result<T, String> {
    // State that a panic leaves broken is the user's own.
    catch_unwind(AssertUnwindSafe(|| outside(code))).map_err(message_of)
}

/// Runs code on a thread that serves no other queues meanwhile; returns the message of its panic.
#[inline]
pub(crate) fn call_here<T>(code: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(code)).map_err(message_of)
}

/// Drops a value that belongs to the user.
pub(crate) fn discard<T>(value: T) {
    // A drop has no result in which the message could be used.
    let _ = call(|| drop(value));
}

#[cold]
fn message_of(panic: Box<dyn Any + Send>) -> String {
    let message = if let Some(message) = panic.downcast_ref::<&str>() {
        (*message).to_owned()
    } else if let Some(message) = panic.downcast_ref::<String>() {
        message.clone()
    } else {
        "a panic without a message".to_owned()
    };
    // Dropping the panic's value is user code too. A panic there has a value that may panic again
    // when dropped, and so on, so that one is leaked.
    if let Err(another) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
        std::mem::forget(another);
    }
    message
}

#[cfg(test)]
mod tests {
    use std::panic::panic_any;

    use super::*;

    struct Bomb;

    impl Drop for Bomb {
        fn drop(&mut self) {
            panic_any(Self);
        }
    }

    #[test]
    fn a_panic_is_its_message_whatever_its_payload_does_when_dropped() {
        assert_eq!(call(|| 7), Ok(7));
        let panics: [(fn(), _); 3] = [
            (|| panic!("a text"), "a text"),
            (|| panic!("number {}", 7), "number 7"),
            (|| panic_any(Bomb), "a panic without a message"),
        ];
        for (code, message) in panics {
            assert_eq!(call(code), Err(message.to_owned()));
        }
        discard(Bomb);
    }
}
