//! Events: what the queue tells a `tracing` subscriber when attempts fail and jobs die.
//!
//! ```text
//! cargo run --example events
//! ```
//!
//! Prints each event with its level and fields: two failed attempts at level DEBUG, then the death
//! of the job at level WARN. A service would use the `tracing-subscriber` crate instead of the few
//! lines at the end of this file.

use std::time::Duration;

use logmill::{Queue, RetryPolicy};
use tracing::field::{Field, Visit};
use tracing::{Event, Metadata, Subscriber, span};

fn main() -> anyhow::Result<()> {
    tracing::subscriber::set_global_default(Print)?;
    let dir = tempfile::tempdir()?;
    let policy = RetryPolicy::fixed(Duration::from_millis(10)).max_attempts(2);
    let (queue, _) = Queue::builder(dir.path()).retry(policy).open()?;
    queue.enqueue(b"call the API")?;
    let consumer = queue.consumer();
    while let Some(job) = consumer.next_timeout(Duration::from_millis(100)) {
        let reason = format!("no answer to attempt {}", job.attempts());
        job.retry(reason);
    }
    drop(consumer);
    Ok(queue.close()?)
}

/// Prints events of the queue.
struct Print;

impl Subscriber for Print {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("logmill")
    }

    fn event(&self, event: &Event<'_>) {
        print!("{:5}", event.metadata().level());
        event.record(&mut Print);
        println!();
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

impl Visit for Print {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        print!(" {field}={value:?}");
    }
}
