//! Calls of code that is the user's: handlers and their errors, backoff functions, subscribers, and
//! the drops of all that they leave behind. No panic of theirs gets past here.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs code of the user's; the message of its panic if it panics.
#[inline]
pub(crate) fn call<T>(code: impl FnOnce() -> T) -> Result<T, String> {
    // What it leaves broken by a panic is the user's own.
    catch_unwind(AssertUnwindSafe(code)).map_err(message_of)
}

/// Drops what belongs to the user.
pub(crate) fn discard<T>(value: T) {
    // There is nothing that a message could be the reason of.
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
    // Dropping it is a call, too. What that throws may throw again when dropped, and so on.
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
