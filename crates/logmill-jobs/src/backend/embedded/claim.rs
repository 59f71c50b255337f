//! Jobs of the engine that a consumer has, or that wait outside the queue's order.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use logmill::{Failure, Headers, HeldJob, Job, OwnedJob};

use super::Shared;
use super::errors::on_transaction;
use crate::backend::{BackendError, Claim, Held, Settlement};

/// A job that is borrowed from its consumer.
pub(super) struct Borrowed<'a> {
    /// Taken when it is settled.
    job: Option<Job<'a>>,
    headers: Present,
    shared: &'a Arc<Shared>,
}

/// A job that is on its own.
struct Owned {
    /// Taken when it is settled.
    job: Option<OwnedJob>,
    headers: Present,
    shared: Arc<Shared>,
}

/// By which bytes the keys of a job's headers begin: most jobs have no header or one, and several are
/// asked for.
#[derive(Clone, Copy)]
struct Present(u64);

impl Present {
    #[inline]
    fn of(headers: Headers<'_>) -> Self {
        Self(headers.fold(0, |bits, (key, _)| bits | Self::bit(key)))
    }

    /// Whether there may be a header of this key.
    #[inline]
    fn may_have(self, key: &str) -> bool {
        self.0 & Self::bit(key) != 0
    }

    #[inline]
    fn may_have_any(self) -> bool {
        self.0 != 0
    }

    fn bit(key: &str) -> u64 {
        // That of an empty key as well: then there is a header.
        let first = key.as_bytes().first().copied().unwrap_or_default();
        1 << (first % 64)
    }
}

impl<'a> Borrowed<'a> {
    #[inline]
    pub(super) fn new(job: Job<'a>, shared: &'a Arc<Shared>) -> Self {
        Self {
            headers: Present::of(job.headers()),
            job: Some(job),
            shared,
        }
    }
}

/// Both kinds of jobs have the same methods, and no trait in common.
macro_rules! claim {
    ($type:ty, hold: |$held:ident| $hold:expr, detach: |$detached:ident, $shared:ident| $detach:expr) => {
        impl Claim for $type {
            fn queue(&self) -> &str {
                self.job.as_ref().map_or("", |job| job.queue_name())
            }

            fn number(&self) -> u64 {
                self.job.as_ref().map_or(0, |job| job.id().get())
            }

            fn kind(&self) -> &str {
                let job = self.job.as_ref();
                job.and_then(|job| job.name()).unwrap_or_default()
            }

            fn payload(&self) -> &[u8] {
                self.job.as_ref().map_or(&[], |job| job.payload())
            }

            fn header(&self, key: &str) -> Option<&[u8]> {
                match self.headers.may_have(key) {
                    true => self.job.as_ref()?.headers().get(key),
                    false => None,
                }
            }

            fn may_have_headers(&self) -> bool {
                self.headers.may_have_any()
            }

            fn attempt(&self) -> u32 {
                self.job.as_ref().map_or(0, |job| job.attempts())
            }

            fn crashes(&self) -> u32 {
                self.job.as_ref().map_or(0, |job| job.crashes())
            }

            fn enqueued_at(&self) -> SystemTime {
                let job = self.job.as_ref();
                job.map_or(SystemTime::UNIX_EPOCH, |job| job.enqueued_at())
            }

            fn due_at(&self) -> Option<SystemTime> {
                self.job.as_ref()?.due_at()
            }

            fn is_cancelled(&self) -> bool {
                self.job.as_ref().is_some_and(|job| job.is_cancelled())
            }

            #[inline]
            fn settle(
                &mut self,
                settlement: Settlement<'_>,
            ) -> Result<Vec<Option<u64>>, BackendError> {
                let job = self.job.take().ok_or(BackendError::Lost)?;
                match settlement {
                    Settlement::Done(None) => job.ack(),
                    Settlement::Done(Some(changes)) => {
                        let transaction = self.shared.transaction(changes)?;
                        let committed = job.ack_with(transaction).map_err(on_transaction)?;
                        let numbers = committed.jobs.into_iter();
                        return Ok(numbers.map(|id| id.map(logmill::JobId::get)).collect());
                    }
                    Settlement::Retry { after, reason } => job.retry_after(after, reason),
                    Settlement::Snooze { after } => job.snooze(after),
                    Settlement::Dead { reason } => job.fail(Failure::dead_letter(reason)),
                }
                Ok(Vec::new())
            }

            fn hold(&mut self) -> Option<Box<dyn Held>> {
                let $held = self.job.take()?;
                let count = self.shared.held_of($held.queue_name());
                let job: HeldJob = $hold;
                // None if it was cancelled: then its end is told.
                job.id()?;
                count.fetch_add(1, Ordering::Relaxed);
                Some(Box::new(Counted { job, count }))
            }

            fn detach(&mut self) -> Option<Box<dyn Claim + Send>> {
                let ($detached, $shared) = (self.job.take()?, Arc::clone(&self.shared));
                Some(Box::new(Owned {
                    headers: self.headers,
                    job: Some($detach),
                    shared: $shared,
                }))
            }
        }
    };
}

claim!(Borrowed<'_>, hold: |job| job.hold(), detach: |job, shared| job.into_owned());
claim!(Owned, hold: |job| job.hold(), detach: |job, shared| job);

/// A job that is held, and counts as that.
struct Counted {
    job: HeldJob,
    count: Arc<AtomicU64>,
}

impl Held for Counted {
    fn payload(&self) -> &[u8] {
        self.job.payload()
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}
