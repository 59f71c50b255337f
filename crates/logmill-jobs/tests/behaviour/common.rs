//! Jobs and helpers that the tests share.

use std::time::{Duration, Instant};

use logmill_jobs::{Job, Mill};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

/// Far more than anything here takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A job that returns twice its number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Job)]
#[job(kind = "double", output = u64)]
pub(crate) struct Double {
    pub(crate) number: u64,
}

/// A job that returns nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Job)]
#[job(kind = "note", queue = "notes", max_retries = 2, backoff = logmill_jobs::Backoff::fixed(Duration::ZERO))]
pub(crate) struct Note {
    pub(crate) text: String,
}

pub(crate) fn note(text: &str) -> Note {
    Note {
        text: text.to_owned(),
    }
}

pub(crate) fn mill() -> (Mill, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let mill = Mill::open(dir.path().join("jobs")).unwrap();
    (mill, dir)
}

/// Waits until something is true.
pub(crate) fn until(what: &str, mut is_true: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_true() {
        assert!(start.elapsed() < PATIENCE, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A subscriber that calls a function with each event.
pub(crate) struct OnEvent<F>(pub(crate) F);

impl<F: Fn(&tracing::Metadata<'_>) + Send + Sync + 'static> tracing::Subscriber for OnEvent<F> {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        (self.0)(event.metadata());
    }

    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

/// Waits for a job without an output by a handle that was made from its id.
pub(crate) fn wait_for_end<J: Job<Output = ()>>(handle: &logmill_jobs::JobHandle<J>) {
    match handle.wait_timeout(PATIENCE) {
        // Nothing is kept of one that was done before.
        Ok(()) | Err(logmill_jobs::WaitError::NotKept) => {}
        Err(error) => panic!("{}: {error}", handle.id()),
    }
}
