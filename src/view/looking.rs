//! Looking for one job, and going on where an earlier look ended.

use std::sync::Arc;

use super::{View, ViewedJob, each_once};
use crate::{JobId, Sequence, StorageError};

/// A place in the log of a queue, from [`ViewedJob::cursor`], to go on from with
/// [`Queue::jobs_after`](crate::Queue::jobs_after) or [`View::jobs_after`].
///
/// It stays valid when the job is gone, and across restarts: a number that can be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobCursor(u64);

impl JobCursor {
    /// The cursor before the first job.
    pub const START: Self = Self(0);

    /// The cursor behind a record.
    pub(super) fn behind(record: Sequence) -> Self {
        // Behind the last place of a stripe is the first one of the next.
        Self(record.get().saturating_add(1))
    }

    /// The cursor with this number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The cursor as a number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl View {
    /// Iterates over the jobs behind a cursor, in the order of [`jobs`](Self::jobs).
    ///
    /// For pages of a list. Segments before the one that the cursor points into are not read, except
    /// those that are not sealed. A job that compaction has moved since the page before may be seen
    /// again.
    ///
    /// # Errors
    /// As for [`jobs`](Self::jobs).
    pub fn jobs_after(
        &self,
        cursor: JobCursor,
    ) -> impl Iterator<Item = Result<ViewedJob, Arc<StorageError>>> + use<> {
        each_once(self.walk().starting_at(Sequence::new(cursor.get())))
    }

    /// Looks for one job; None if it is acked, dead or expired, or was never enqueued.
    ///
    /// Reads the segments of its stripe and of the dead letter log that are not sealed, and the
    /// segment in which it was enqueued. If the job is not there, it may have been moved by
    /// compaction: then all later segments of its stripe are read as well, so that it costs most to
    /// learn that a job is gone.
    ///
    /// # Errors
    /// A segment could not be read in which the job may be.
    pub fn get(&self, id: JobId) -> Result<Option<ViewedJob>, Arc<StorageError>> {
        let stripe = u32::from(id.sequence().stripe());
        if stripe >= self.files.stripes {
            return Ok(None);
        }
        let walk = self.walk().of_stripe(stripe).starting_at(id.sequence());
        let mut failed = None;
        for found in walk {
            match found {
                Ok(found) if found.job() == id.sequence() => return Ok(Some(ViewedJob::of(found))),
                Ok(_) => {}
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(None), Err)
    }
}
