//! The engine: the state and operations that all handles and threads of an open queue share.
//!
//! A job comes in through `enqueue.rs`, waits in a log until the dispatch leases it to a consumer,
//! and goes through `delivery.rs` to its end. A job that dies becomes a letter in `dead_log.rs`;
//! `letters.rs` shows letters, and `replay.rs` turns them into jobs again.

#[cfg(feature = "manual-clock")]
mod advances;
#[cfg(feature = "async")]
mod alarms;
mod batch;
mod cancel;
mod dead_log;
pub(crate) mod delivery;
mod depth;
pub(crate) mod enqueue;
#[cfg(feature = "async")]
pub(crate) mod enqueue_async;
mod failures;
mod figures;
#[cfg(feature = "async")]
mod flusher;
mod forwarding;
pub(crate) mod home;
pub(crate) mod letters;
pub(crate) mod maintenance;
mod manifest;
mod open;
mod pause;
mod presence;
mod release;
mod replay;
mod settling;
#[cfg(all(test, not(loom)))]
mod tests;
mod threads;
#[cfg(feature = "async")]
pub(crate) mod ticket;
pub(crate) mod transactions;
pub(crate) mod worker;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{OnceLock, Weak};

#[cfg(feature = "async")]
use self::alarms::Alarms;
use self::dead_log::DeadLog;
use self::depth::DepthLimit;
#[cfg(feature = "async")]
use self::flusher::Flusher;
use self::home::Home;
use self::maintenance::Signal;
pub(crate) use self::threads::Running;
use crate::StorageError;
use crate::dispatch::Dispatch;
use crate::dispatch::gate::Gate;
use crate::dispatch::lease_timeouts::Leases;
use crate::event_count::EventCount;
use crate::events::Mutex;
use crate::lasting::Lasting;
use crate::log::Log;
use crate::log::poison::Poison;
use crate::log::segment::Unsettled;
use crate::observer::Observing;
use crate::options::Durability;
use crate::time::Clock;

/// The state that the handles and threads of an open queue share.
pub(crate) struct Engine {
    /// Locked until the last handle is gone.
    pub(crate) home: Arc<Home>,
    /// That of the queue's directory.
    name: Box<str>,
    durability: Durability,
    /// Whether an enqueue with these options has nothing to do but to append a record.
    only_appends: bool,
    dispatch: Dispatch,
    leases: Option<Leases>,
    observer: Observing,
    /// Whether a first delivery has nothing to do but to be counted: there are neither lease
    /// timeouts nor an observer.
    only_counts: bool,
    dead: DeadLog,
    pub(crate) depth: Option<Arc<DepthLimit>>,
    /// Producers that wait for room.
    pub(crate) room: Arc<EventCount>,
    pub(crate) signal: Arc<Signal>,
    clock: Clock,
    max_payload: usize,
    poison: Arc<Poison>,
    /// Records that letters name, and that are settled but not durably so.
    unsettled: Mutex<Vec<Unsettled>>,
    /// Held while the queue is paused or resumed.
    pausing: Mutex<()>,
    /// Consumers that wait for the end of a pause.
    resumed: EventCount,
    /// Whether letters could not be written when a caller wanted to list them.
    pub(crate) unwritten_letters: Lasting,
    keeps_expired: bool,
    retried: AtomicU64,
    snoozed: AtomicU64,
    expired: AtomicU64,
    cancelled: AtomicU64,
    dead_lettered: AtomicU64,
    /// Jobs found at open.
    pub(crate) recovered: u64,
    /// The engine with its threads, for jobs that keep it open.
    running: OnceLock<Weak<Running>>,
    /// Flushes for those who hold tickets.
    #[cfg(feature = "async")]
    flusher: Arc<Flusher>,
    /// Wakes tasks that wait for room.
    #[cfg(feature = "async")]
    alarms: Alarms,
}

/// Event counts since the queue was opened.
pub(crate) struct Counters {
    pub(crate) retried: u64,
    pub(crate) snoozed: u64,
    pub(crate) expired: u64,
    pub(crate) cancelled: u64,
    /// Jobs that left the log for the dead letter log.
    pub(crate) dead_lettered: u64,
}

impl Engine {
    pub(crate) fn path(&self) -> &Path {
        self.home.directory().path()
    }

    /// The name of the queue's directory.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn home(&self) -> &Home {
        &self.home
    }

    pub(crate) fn durability(&self) -> Durability {
        self.durability
    }

    pub(crate) fn dispatch(&self) -> &Dispatch {
        &self.dispatch
    }

    pub(crate) fn dead(&self) -> &DeadLog {
        &self.dead
    }

    pub(crate) fn leases(&self) -> Option<&Leases> {
        self.leases.as_ref()
    }

    #[inline]
    pub(crate) fn is_closed(&self) -> bool {
        // Closing wakes the sleepers through a lock, and the log itself refuses appends.
        self.gate().has(Gate::CLOSED)
    }

    pub(crate) fn counters(&self) -> Counters {
        Counters {
            retried: self.retried.load(Ordering::Relaxed),
            snoozed: self.snoozed.load(Ordering::Relaxed),
            expired: self.expired.load(Ordering::Relaxed),
            cancelled: self.cancelled.load(Ordering::Relaxed),
            dead_lettered: self.dead_lettered.load(Ordering::Relaxed),
        }
    }

    /// The failed flush, if there was one. After it, the engine no longer promises that anything
    /// reaches the disk.
    pub(crate) fn poison(&self) -> Option<&Arc<StorageError>> {
        self.poison.get()
    }

    fn logs(&self) -> impl Iterator<Item = &Log> {
        self.dispatch.stripes().iter().chain([self.dead.log()])
    }

    /// Longest payload, in bytes.
    #[inline]
    pub(crate) fn max_payload(&self) -> usize {
        self.max_payload
    }

    /// Bytes of the stripes' segment files, and the part of them that counts towards the limit.
    #[cfg(test)]
    pub(crate) fn space(&self) -> (u64, u64) {
        let spaces = self.dispatch.stripes().iter().map(Log::space);
        let (has, counted): (Vec<_>, Vec<_>) = spaces.unzip();
        (has.iter().sum(), counted[0])
    }

    /// Moves waiting jobs out of segments that nothing else keeps; returns whether there were any.
    /// `is_short`: producers find no room.
    pub(crate) fn compact(&self, is_short: bool) -> Result<bool, Arc<StorageError>> {
        let moved = self.dispatch.compact(is_short);
        if is_short {
            // There is room in the reserve segment; more follows when the emptied segments are
            // freed.
            self.room.notify_all();
        }
        moved
    }
}
