//! An embedded, durable job queue: your process enqueues work, and worker threads in the same
//! process run it, with no broker in between.
//!
//! A job is a slice of bytes. It stays on disk until a handler has completed it or it has become a
//! dead letter, even if the process dies on the way.
//!
//! ```
//! use logmill::{Failure, Job, Queue};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path();
//! // Open the queue, or create it. The report lists what recovery found.
//! let (queue, report) = Queue::builder(path).open()?;
//! assert!(report.is_clean());
//!
//! // Once this returns, the job survives the death of the process.
//! queue.enqueue(b"resize cat.jpg")?;
//!
//! // A pool of workers: Ok acks the job; an error retries it with backoff, then dead-letters it.
//! let workers = queue.workers(2).run(|job: &Job<'_>| {
//!     let text = std::str::from_utf8(job.payload()).map_err(Failure::dead_letter)?;
//!     println!("{text}, attempt {}", job.attempts());
//!     Ok::<(), Failure>(())
//! })?;
//!
//! # while queue.stats().depth() > 0 { std::thread::yield_now(); }
//! workers.shutdown(std::time::Duration::from_secs(5));
//! queue.close()?;
//! # Ok(())
//! # }
//! ```
//!
//! # Where to start
//! - [`Queue`] opens a queue ([`Builder`] has its options), enqueues jobs, and hands out everything
//!   else.
//! - [`Queues`] is a directory of many queues under one lock.
//! - [`Workers`] run a handler for each [`Job`]; a [`Consumer`] takes jobs on threads of your own.
//! - [`Failure`] says why an attempt failed and whether to retry it; [`RetryPolicy`] sets the
//!   limits and the backoff.
//! - [`Durability`] decides what a returned enqueue survives; [`EnqueueOptions`] delays a job, or
//!   waits for room.
//! - [`DeadLetters`] holds the jobs that failed for good; [`Stats`] has the figures to monitor.
//! - [`Queue::jobs`] and [`Queue::get`] look at the jobs of an open queue; a [`View`] shows a queue to
//!   a process that does not have it open.
//!
//! # Features
//! - `async`: for async tasks on any runtime. `AsyncConsumer` awaits jobs, `Queue::enqueue_async`
//!   awaits room and flushes, and a `Ticket` tells when a job is on stable storage.
//! - `serde`: ids of jobs and letters as strings.
//! - `manual-clock`: `ManualClock`, a clock for tests that stands still until it is advanced.
//! - `simulated-disk`: `SimulatedDisk`, a model of the disk for tests, which decides what a power cut
//!   leaves.
//!
//! # How it works
//! Producers append records to a memory-mapped segment log, with one atomic add and one release
//! store. Consumers claim runs of records into work-stealing deques. An ack is one atomic add to a
//! bitmap in a second mapped file. A failed job comes back after a backoff; a job that fails too
//! often moves to the dead letter log, where it can be [inspected, replayed or
//! purged](DeadLetters).
//!
//! # Guarantees
//! - **At least once.** A job whose enqueue returned `Ok` is delivered until it is acked or dead.
//!   The [`Durability`] decides which failures this covers: by default, the death of the process.
//! - **No poison.** The start of a delivery is written to the ack file before the handler runs. A
//!   job that kills the process therefore becomes a dead letter after a few
//!   [crashes](RetryPolicy::max_crashes). Jobs that were running beside it are then delivered one
//!   at a time, which tells them from the culprit.
//! - **No silent loss.** Damaged bytes are quarantined and [reported](RecoveryReport). Dead letters
//!   stay until they are replayed or purged.
//! - **No needless duplicate.** A job is delivered once, however long it was delayed, unless there
//!   is a crash, a failure, a lease timeout, or a close while its handler runs.
//! - **Order.** Jobs of one [`Producer`] are claimed in the order in which they were enqueued, and
//!   so are all jobs of a queue with one stripe. With several consumers, or after a retry, jobs may
//!   complete in another order.
//!
//! `docs/DESIGN.md` describes the guarantees with their limits, the protocols and the file format.
//!
//! # Limitations
//! logmill runs on Linux only: files are allocated with `fallocate`, and their blocks stay
//! allocated while they are mapped.
//!
//! Do not use a queue in a child process after `fork`, and let nothing else write to its directory
//! while it is open.

// Under loom the crash simulations are not built, which leaves code that only they use.
#![cfg_attr(all(test, loom), allow(dead_code))]

#[cfg(not(target_os = "linux"))]
compile_error!("logmill runs on Linux only; see docs/DESIGN.md");

#[cfg(feature = "async")]
mod async_consumer;
mod consumer;
mod dead_letters;
mod dispatch;
mod engine;
mod error;
mod event_count;
mod events;
mod failure;
mod id;
mod identity;
mod job;
mod keys;
mod lasting;
mod lock;
mod log;
#[cfg(feature = "manual-clock")]
mod manual_clock;
mod observer;
mod options;
mod planned_flush;
mod producer;
mod queue;
mod queue_set;
mod queues;
mod retry;
mod runtime;
mod sequence;
mod several;
#[cfg(feature = "simulated-disk")]
mod simulated_disk;
mod state;
mod stats;
mod storage;
mod sync;
#[cfg(all(test, not(loom)))]
mod testing;
mod time;
mod transaction;
mod tree;
mod turns;
mod user_code;
mod view;
mod workers;

#[cfg(feature = "async")]
pub use async_consumer::AsyncConsumer;
pub use consumer::Consumer;
pub use dead_letters::{DeadLetter, DeadLetters};
#[cfg(feature = "async")]
pub use engine::ticket::Ticket;
pub use error::{
    CancelError, Cancelled, DeadLetterError, EnqueueError, FlushError, OpenError, TransactionError,
};
pub use failure::{Failure, FailureError};
pub use id::{JobId, LetterId, ParseIdError};
#[cfg(feature = "async")]
pub use job::OwnedJob;
pub use job::{HeldJob, Job};
pub use keys::{Keys, Value};
pub use log::headers::Headers;
pub use log::meta::FailureReason;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing {
    //! Entry points for the fuzz targets, not part of the API.

    pub use crate::log::recovery::fuzzing::*;
    pub use crate::state::fuzzing::*;
}
pub use log::recovery::{Damage, Quarantined, RecoveryProgress, RecoveryReport, VerifyReport};
#[cfg(feature = "manual-clock")]
pub use manual_clock::{ClockSubscription, ManualClock};
pub use observer::{JobEvent, JobEvents, ObservedJob, Observer, job_events};
pub use options::{Builder, Durability, EnqueueOptions, WaitStrategy};
pub use producer::Producer;
pub use queue::Queue;
pub use queue_set::{QueueSet, SetConsumer};
pub use queues::{Queues, QueuesBuilder};
pub use retry::{Jitter, MAX_ATTEMPTS, MAX_CRASHES, RetryPolicy};
#[cfg(feature = "simulated-disk")]
pub use simulated_disk::SimulatedDisk;
pub use stats::Stats;
pub use storage::StorageError;
pub use transaction::{Committed, Completion, Keep, Transaction};
pub use view::{JobCursor, JobState, View, ViewStats, ViewedJob};
pub use workers::{ShutdownReport, Workers, WorkersBuilder};

use sequence::Sequence;
use time::Timestamp;

/// Compiles the snippets of the README and of the guide as doctests.
#[cfg(doctest)]
mod snippets {
    #[doc = include_str!("../README.md")]
    mod readme {}
    #[doc = include_str!("../docs/GUIDE.md")]
    mod guide {}
}
