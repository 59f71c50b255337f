//! What a case does to a queue, and how the queue is set up.
//!
//! An operation picks a held job or a letter by a number, modulo how many there are, so that every
//! sequence of operations is valid.

use std::time::Duration;

use logmill::Durability;

/// How the queue of a case is opened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    pub stripes: usize,
    pub durability: Durability,
    /// Sets a lease timeout that no test reaches, since leases are then kept in a different way.
    pub lease_timeout: bool,
    /// Sets the smallest possible `max_bytes`, so that enqueues are refused now and then.
    pub max_bytes: bool,
    pub max_depth: Option<u64>,
    /// How long a "far" delay is, if the case is to wait for its end.
    pub far: Option<Duration>,
}

/// How long a payload is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Size {
    Bytes(u8),
    /// A part of the longest payload, in 255ths.
    Part(u8),
    TooLarge,
}

/// When a job is due.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Due {
    AtOnce,
    /// A due time in the past.
    Past,
    Soon(Duration),
    /// Later than the end of any test, unless [`Setup::far`] is set.
    Far,
}

/// How often a job may be delivered.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Limit {
    /// The limit of the queue's retry policy, see [`POLICY_LIMIT`].
    Policy,
    Of(u8),
    None,
}

/// Attempts of a job under the retry policy of the model's queues.
pub(crate) const POLICY_LIMIT: u8 = 3;

/// How a held job ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Outcome {
    Ack,
    Retry,
    RetryAfter(Due),
    Drop,
    DeadLetter,
}

/// What happens to the held jobs when the queue is closed.
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
        /// Through the `Producer` of the case rather than through the queue.
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
    /// Drops the consumer and makes another one.
    NewConsumer,
    /// Cancels a job, wherever it is.
    Cancel(u8),
    Replay(u8),
    ReplayAll,
    Purge(u8),
    PurgeAll,
    CheckStats,
    CheckLetters,
    Verify,
    Flush,
    /// Waits long enough for the work that the queue does every second.
    Pause,
    Reopen(Held),
    /// The process dies when no background work is in progress.
    CrashWhenQuiet,
    /// The process dies at once, whatever background work is in progress.
    CrashAtOnce,
    /// The process dies when the letters of all dead jobs are written, but none of these jobs is
    /// marked done.
    CrashBetweenLettersAndAcks,
}
