//! The ticks of expressions beside a model, and the decisions about what is due.

mod cron;
mod plan;
#[cfg(feature = "embedded")]
mod ticker;

use jiff::Timestamp;

/// A time as it is written in a test.
fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}
