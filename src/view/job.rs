//! A job as a view shows it.

use std::fmt;
use std::time::SystemTime;

use super::looking::JobCursor;
use super::walk::Found;
use crate::log::headers::Headers;
use crate::log::lookup::FoundJob;
use crate::log::records::name_of;
use crate::{JobId, Sequence, Timestamp};

/// A copy of a job that waits or that a handler has, from [`View::jobs`](crate::View::jobs) or
/// [`Queue::jobs`](crate::Queue::jobs).
#[derive(Clone, PartialEq, Eq)]
pub struct ViewedJob {
    id: JobId,
    name: Vec<u8>,
    /// Encoded.
    headers: Vec<u8>,
    payload: Vec<u8>,
    enqueued_at: Timestamp,
    due_at: Timestamp,
    attempts: u32,
    crashes: u32,
    is_in_handler: bool,
    /// The place of its record.
    sequence: Sequence,
}

/// What a job waits for, from [`ViewedJob::state`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum JobState {
    /// It waits for a consumer, or for the end of a backoff.
    Ready,
    /// It waits for its due time.
    Delayed,
    /// A handler has it, or had it when the process of the owner died.
    InFlight,
    /// As `Ready`, and the process has died while a handler had it: such jobs are delivered one at a
    /// time.
    Suspect,
}

impl ViewedJob {
    /// A job of a queue that is open in this process.
    pub(crate) fn of_job(found: &FoundJob) -> Self {
        Self::of(Found::of_job(found))
    }

    pub(super) fn of(found: Found) -> Self {
        let deliveries = found.deliveries;
        let (attempts, crashes) = (deliveries.failed(), deliveries.crashes());
        Self {
            sequence: found.sequence,
            id: JobId::of(found.job()),
            enqueued_at: found.enqueued_at,
            due_at: found.due_at,
            attempts: found.meta.prior_attempts.saturating_add(attempts.into()),
            crashes: found.meta.prior_crashes.saturating_add(crashes.into()),
            is_in_handler: deliveries.is_running(),
            name: found.name,
            headers: found.headers,
            payload: found.payload,
        }
    }

    /// The job's id, as its enqueue returned it.
    pub fn id(&self) -> JobId {
        self.id
    }

    /// The job's name, if its producer [gave it one](crate::EnqueueOptions::name).
    pub fn name(&self) -> Option<&str> {
        name_of(&self.name)
    }

    /// The job's headers, which its producer [gave it](crate::EnqueueOptions::headers).
    pub fn headers(&self) -> Headers<'_> {
        Headers::of(&self.headers)
    }

    /// The bytes that were enqueued.
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// When the job was enqueued, or when its letter was replayed.
    ///
    /// Accurate to the kernel's clock tick (1 to 10 ms).
    pub fn enqueued_at(&self) -> SystemTime {
        self.enqueued_at.into()
    }

    /// Until when the job waits, or did wait; None if it was enqueued without a delay.
    ///
    /// The end of a backoff is in the memory of the owner only, unless compaction has moved the job
    /// since.
    pub fn due_at(&self) -> Option<SystemTime> {
        (self.due_at != Timestamp::ZERO).then(|| self.due_at.into())
    }

    /// How many attempts at the job have failed. The count may stop at 255.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// How often the process died while a handler had the job.
    ///
    /// A crash is counted when the queue is opened again, or when the job's segment is reached.
    pub fn crashes(&self) -> u32 {
        self.crashes
    }

    /// What the job waits for, by the wall clock.
    pub fn state(&self) -> JobState {
        if self.is_in_handler {
            JobState::InFlight
        } else if self.due_at > Timestamp::now() {
            JobState::Delayed
        } else if self.crashes > 0 {
            JobState::Suspect
        } else {
            JobState::Ready
        }
    }

    /// The place behind the job, to go on from there with
    /// [`Queue::jobs_after`](crate::Queue::jobs_after) or
    /// [`View::jobs_after`](crate::View::jobs_after).
    pub fn cursor(&self) -> JobCursor {
        JobCursor::behind(self.sequence)
    }

    /// Whether a handler has the job, or had it when the process of the owner died.
    ///
    /// With a [lease timeout](crate::Builder::lease_timeout), that may be a handler whose delivery
    /// has timed out.
    pub fn is_in_handler(&self) -> bool {
        self.is_in_handler
    }
}

impl fmt::Debug for ViewedJob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ViewedJob")
            .field("id", &self.id)
            .field("name", &self.name())
            .field("payload_len", &self.payload.len())
            .field("attempts", &self.attempts)
            .field("crashes", &self.crashes)
            .field("is_in_handler", &self.is_in_handler)
            .finish_non_exhaustive()
    }
}
