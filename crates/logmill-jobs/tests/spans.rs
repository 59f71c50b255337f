//! The span of each attempt, with a subscriber for the whole process that panics when it is told to.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use logmill_jobs::{Chunk, ChunkOptions, Job, JobResult, Mill, Workers};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tracing::field::{Field, Visit};
use tracing::span;

const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "touch", queue = "touches")]
struct Touch;

/// Writes down spans and what is said in them.
#[derive(Clone, Default)]
struct Log(Arc<(Mutex<Vec<String>>, AtomicBool, AtomicU64)>);

impl Log {
    fn note(&self, line: String) {
        self.0.0.lock().push(line);
        assert!(!self.0.1.load(Ordering::SeqCst), "of the subscriber");
    }
}

struct Fields(String);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.0.push_str(&format!(" {field}={value:?}"));
    }
}

impl tracing::Subscriber for Log {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target().starts_with("logmill_jobs") || metadata.target() == "spans"
    }

    fn new_span(&self, span: &span::Attributes<'_>) -> span::Id {
        let mut fields = Fields(span.metadata().name().to_owned());
        span.record(&mut fields);
        self.note(fields.0);
        span::Id::from_u64(self.0.2.fetch_add(1, Ordering::SeqCst) + 1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {
        self.note("follows".to_owned());
    }

    fn event(&self, event: &tracing::Event<'_>) {
        if event.metadata().target() == "spans" {
            self.note("said".to_owned());
        }
    }

    fn enter(&self, _: &span::Id) {
        self.note("enter".to_owned());
    }

    fn exit(&self, _: &span::Id) {
        self.note("exit".to_owned());
    }

    fn try_close(&self, _: span::Id) -> bool {
        self.note("close".to_owned());
        true
    }
}

#[test]
fn each_attempt_runs_in_a_span_and_a_subscriber_that_panics_harms_nothing() {
    let log = Log::default();
    tracing::subscriber::set_global_default(log.clone()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mill = Mill::open(dir.path().join("jobs")).unwrap();
    let handler = |_: Touch| -> JobResult {
        tracing::info!(target: "spans", "said");
        Ok(())
    };
    let pool = Workers::new(())
        .on(handler)
        .threads(1)
        .start(&mill)
        .unwrap();
    let handle = mill.enqueue(Touch).unwrap();
    handle.wait_timeout(PATIENCE).unwrap();
    let expected = format!(
        "job kind=\"touch\" id={} queue=\"touches\" attempt=1",
        handle.id()
    );
    // The span is closed when the attempt is settled, which the handle may see before.
    assert_eq!(log.0.0.lock()[..4], [&*expected, "enter", "said", "exit"]);

    assert!(pool.shutdown(PATIENCE).finished_in_time);
    chunks_run_in_a_span_that_follows_from_those_of_their_jobs(&mill, &log);
    #[cfg(feature = "tokio")]
    chunks_are_polled_in_their_span_and_those_of_their_jobs_last_until_the_end(&mill, &log);

    let quiet = |_: Touch| JobResult::Ok(());
    log.0.1.store(true, Ordering::SeqCst);
    let pool = Workers::new(()).on(quiet).threads(1).start(&mill).unwrap();
    mill.enqueue(Touch).unwrap().wait_timeout(PATIENCE).unwrap();
    assert!(pool.shutdown(PATIENCE).finished_in_time);
    let quiet = |_: Chunk<Touch>| JobResult::Ok(());
    let chunks = Workers::new(()).on_chunk(quiet, ChunkOptions::up_to(1));
    let pool = chunks.threads(1).start(&mill).unwrap();
    mill.enqueue(Touch).unwrap().wait_timeout(PATIENCE).unwrap();
    assert_eq!(mill.kind_stats("touch").failed, 0);
    log.0.1.store(false, Ordering::SeqCst);
    assert!(pool.shutdown(PATIENCE).finished_in_time);
}

fn chunks_run_in_a_span_that_follows_from_those_of_their_jobs(mill: &Mill, log: &Log) {
    log.0.0.lock().clear();
    let handler = |_: Chunk<Touch>| -> JobResult {
        tracing::info!(target: "spans", "said");
        Ok(())
    };
    let chunks = ChunkOptions::up_to(2).within(Duration::MAX);
    let workers = Workers::new(()).on_chunk(handler, chunks);
    let pool = workers.threads(1).start(mill).unwrap();
    let handles = [mill.enqueue(Touch).unwrap(), mill.enqueue(Touch).unwrap()];
    for handle in handles {
        handle.wait_timeout(PATIENCE).unwrap();
    }
    assert!(pool.shutdown(PATIENCE).finished_in_time);
    let log = log.0.0.lock();
    assert!(
        log[..2]
            .iter()
            .all(|line| line.starts_with("job kind=\"touch\""))
    );
    let of_chunk = ["chunk kind=\"touch\" jobs=2", "follows", "follows"];
    assert_eq!(log[2..5], of_chunk);
    // Each job's own part is in its span; the call of the handler in that of the chunk.
    let entered = ["enter", "enter", "exit", "enter", "exit", "said", "exit"];
    assert_eq!(log[5..12], entered);
}

#[cfg(feature = "tokio")]
fn chunks_are_polled_in_their_span_and_those_of_their_jobs_last_until_the_end(
    mill: &Mill,
    log: &Log,
) {
    log.0.0.lock().clear();
    let runtime = tokio::runtime::Builder::new_multi_thread().build().unwrap();
    let is_in_span = || tracing::info!(target: "spans", "said");
    let handler = move |_: Chunk<Touch>| async move {
        is_in_span();
        tokio::task::yield_now().await;
        is_in_span();
        JobResult::Ok(())
    };
    let after = move |_: &logmill_jobs::Attempt<'_>| {
        Ok(logmill_jobs::After::call(move |result| {
            is_in_span();
            result
        }))
    };
    let chunks = ChunkOptions::up_to(2).within(Duration::MAX);
    let workers = Workers::new(()).on_chunk_async(handler, chunks).with(after);
    let pool = runtime.block_on(async { workers.threads(1).start(mill).unwrap() });
    let handles = [mill.enqueue(Touch).unwrap(), mill.enqueue(Touch).unwrap()];
    for handle in handles {
        handle.wait_timeout(PATIENCE).unwrap();
    }
    assert!(pool.shutdown(PATIENCE).finished_in_time);
    let log = log.0.0.lock();
    let of_chunk = ["chunk kind=\"touch\" jobs=2", "follows", "follows"];
    assert_eq!(log[2..5], of_chunk);
    let lines = log
        .iter()
        .filter(|line| ["said", "close"].contains(&&***line));
    let ends = [
        "said", "said", "close", // two polls, and the end of the chunk's span
        "said", "said", "close",
        "close", // what is called after each job, and the ends of theirs
    ];
    assert_eq!(lines.collect::<Vec<_>>(), ends);
}
