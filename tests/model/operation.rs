//! What a case does to a queue, and how the queue is set up.
//!
//! An operation that picks a held job or a letter does it by a number, taken modulo how many there
//! are, so that every sequence of operations means something.

use std::time::Duration;

use logmill::Durability;

/// How the queue of a case is opened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    pub stripes: usize,
    pub durability: Durability,
    /// With a lease timeout, though one that nobody reaches: leases are then kept differently.
    pub lease_timeout: bool,
    /// With the least `max_bytes` there can be, so that enqueueing is refused now and then.
    pub max_bytes: bool,
    pub max_depth: Option<u64>,
    /// How long "far" is, if a case is to wait for it.
    pub far: Option<Duration>,
}

/// How long a payload is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Size {
    Bytes(u8),
    /// In 255ths of the longest payload.
    Part(u8),
    TooLarge,
}

/// When a job is due.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Due {
    AtOnce,
    /// At a time that has passed.
    Past,
    Soon(Duration),
    /// Not within any test, unless [`Setup::far`] says otherwise.
    Far,
}

/// How often a job may be delivered.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Limit {
    /// As often as the queue's policy says, see [`POLICY_LIMIT`].
    Policy,
    Of(u8),
    None,
}

/// Attempts of a job under the retry policy of the model's queues.
pub(crate) const POLICY_LIMIT: u8 = 3;

/// What becomes of a held job.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Outcome {
    Ack,
    Retry,
    RetryAfter(Due),
    Drop,
    DeadLetter,
}

/// What is done with the jobs that are held when a queue is closed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Held {
    DropBefore,
    DropAfter,
    AckAfter,
}

#[derive(Clone, Debug)]
pub(crate) enum Operation {
    Enqueue {
        size: Size,
        due: Due,
        limit: Limit,
        /// Through the case's `Producer` rather than the queue.
        by_producer: bool,
    },
    EnqueueBatch {
        sizes: Vec<Size>,
        due: Due,
        limit: Limit,
        by_producer: bool,
    },
    Claim,
    ClaimBatch(u8),
    Settle {
        which: u8,
        outcome: Outcome,
    },
    SettleAll(Outcome),
    /// Another consumer takes the place of the one so far.
    NewConsumer,
    Replay(u8),
    ReplayAll,
    Purge(u8),
    PurgeAll,
    CheckStats,
    CheckLetters,
    Verify,
    Flush,
    /// Time for what the queue does every second.
    Pause,
    Reopen(Held),
    /// The process dies once nothing goes on in the background.
    CrashWhenQuiet,
    /// The process dies at once, whatever goes on in the background.
    CrashAtOnce,
    /// The process dies when the letters of all dead jobs are written, and none of these jobs is
    /// marked done.
    CrashBetweenLettersAndAcks,
}
