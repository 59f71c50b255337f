//! An embedded, durable job queue: "do this later, and never lose it", in process, without a
//! broker.
//!
//! ```
//! use logmill::{Failure, Job, Queue};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path();
//! // Open, or create. The report says what a crash left behind.
//! let (queue, report) = Queue::builder(path).open()?;
//! assert!(report.is_clean());
//!
//! // When this returns, the job survives the process.
//! queue.enqueue(b"resize cat.jpg")?;
//!
//! // A pool of workers: Ok acks, an error is retried with backoff, then dead-lettered.
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
//! # How it works
//! Producers append records to a memory-mapped segment log, with one atomic add and one release
//! store. Consumers claim runs of records into work-stealing deques. An ack is one atomic add to
//! a bitmap in a second mapped file. What fails comes back after a backoff; what fails too often
//! goes to a dead letter log, to be [inspected, replayed or purged](DeadLetters).
//!
//! # Guarantees
//! - **At least once.** A job whose enqueue returned `Ok` is delivered until it is acked or dead.
//!   Which failures that holds for depends on the [`Durability`]: by default, the death of the process.
//! - **No poison.** That a handler has a job is written to the ack file before the handler runs, so a job
//!   that kills the process becomes a dead letter after a few [crashes](RetryPolicy::max_crashes), and jobs
//!   that ran beside it are delivered one at a time, to tell them from it.
//! - **No silent loss.** Damaged bytes are quarantined and [reported](RecoveryReport); dead
//!   letters stay until they are replayed or purged.
//! - **No needless duplicate.** Without a crash, a failure, a lease timeout, or a close while its handler
//!   runs, a job is delivered once, however long it was delayed.
//! - **Order.** Jobs of one [`Producer`] are claimed in the order they were enqueued, and so are
//!   all jobs of a queue with one stripe. With several consumers, or after a retry, jobs may
//!   complete in another order.
//!
//! The guarantees with their limits, the protocols and the file format are in `docs/DESIGN.md`. Linux only: the files are
//! allocated with `fallocate`, and their blocks stay allocated while they are mapped.
//!
//! The queue must not be used in a child process after `fork`, and nobody else may write to its
//! directory while it is open.

// The simulations are not part of it under loom, and use what nothing else does.
#![cfg_attr(all(test, loom), allow(dead_code))]

#[cfg(not(target_os = "linux"))]
compile_error!("logmill runs on Linux only; see docs/DESIGN.md");

mod consumer;
mod dead_letters;
mod dispatch;
mod engine;
mod error;
mod event_count;
mod events;
mod failure;
mod id;
mod job;
mod lasting;
mod log;
mod options;
mod producer;
mod queue;
mod retry;
mod sequence;
mod stats;
mod storage;
mod sync;
#[cfg(all(test, not(loom)))]
mod testing;
mod time;
mod turns;
mod user_code;
mod workers;

pub use consumer::Consumer;
pub use dead_letters::{DeadLetter, DeadLetters};
pub use error::{BatchError, DeadLetterError, EnqueueError, FlushError, OpenError};
pub use failure::{Failure, FailureError};
pub use id::{JobId, LetterId, ParseIdError};
pub use job::Job;
pub use log::record::FailureReason;
#[cfg(fuzzing)]
#[doc(hidden)]
pub use log::recovery::fuzzing;
pub use log::recovery::{Damage, Quarantined, RecoveryProgress, RecoveryReport, VerifyReport};
pub use options::{Builder, Durability, EnqueueOptions};
pub use producer::Producer;
pub use queue::Queue;
pub use retry::{Jitter, MAX_ATTEMPTS, MAX_CRASHES, RetryPolicy};
pub use stats::Stats;
pub use storage::StorageError;
pub use workers::{ShutdownReport, Workers, WorkersBuilder};

use sequence::Sequence;
use time::Timestamp;

/// The snippets of the README and of the guide, as doctests.
#[cfg(doctest)]
mod snippets {
    #[doc = include_str!("../README.md")]
    mod readme {}
    #[doc = include_str!("../docs/GUIDE.md")]
    mod guide {}
}
