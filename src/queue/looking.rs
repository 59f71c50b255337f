//! What a queue shows of the jobs in it.

use std::sync::Arc;

use super::Queue;
use crate::view::{JobCursor, View, ViewedJob};
use crate::{JobId, StorageError};

impl Queue {
    /// Iterates over the jobs that are neither acked nor dead, stripe after stripe, and in each
    /// stripe the oldest first.
    ///
    /// [`ViewedJob::state`] tells whether a job is ready, delayed, in flight or a suspect. A job
    /// whose last attempt has failed is included until its letter is written, and one that has
    /// expired until a consumer comes to it.
    ///
    /// This is a look at the files, as [`View::jobs`] of this queue's directory: producers, consumers
    /// and the queue's own threads go on, and wait for none of it. So it is not a picture of one
    /// moment: a job that waits during the whole iteration is seen once, and one that was acked
    /// before is not seen. The iterator does not keep the queue open.
    ///
    /// An iteration reads each segment file of the log once, those that are not sealed twice, and
    /// holds a copy of one segment in memory, and up to 40 bytes for each job seen. For a list in
    /// pages, go on with [`jobs_after`](Self::jobs_after); for figures, [`stats`](Self::stats) costs
    /// far less.
    ///
    /// ```
    /// use logmill::{EnqueueOptions, JobState, Queue};
    /// # use std::time::Duration;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let (queue, _) = Queue::builder(dir.path()).stripes(1).open()?;
    /// queue.enqueue(b"resize cat.jpg")?;
    /// let reminder = EnqueueOptions::new().delay(Duration::from_secs(3600));
    /// queue.enqueue_with(b"remind Ada", reminder)?;
    ///
    /// let consumer = queue.consumer();
    /// let job = consumer.next().expect("a job was enqueued");
    /// let mut states = Vec::new();
    /// for job in queue.jobs() {
    ///     states.push(job?.state());
    /// }
    /// assert_eq!(states, [JobState::InFlight, JobState::Delayed]);
    /// job.ack();
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [`View::jobs`]: a file that cannot be read yields an error, and the iteration goes
    /// on behind it.
    pub fn jobs(&self) -> impl Iterator<Item = Result<ViewedJob, Arc<StorageError>>> + use<> {
        View::of(&self.running).jobs()
    }

    /// Iterates over the jobs behind a cursor, in the order of [`jobs`](Self::jobs).
    ///
    /// For pages of a list. Segments before the one that the cursor points into are not read, except
    /// those that are not sealed: usually one or two in each stripe. A job that compaction has moved
    /// since the page before may be seen again.
    ///
    /// ```
    /// use logmill::{JobCursor, Queue, StorageError, ViewedJob};
    /// use std::sync::Arc;
    ///
    /// /// A page of the list, and the cursor of the next one.
    /// fn page(
    ///     queue: &Queue,
    ///     after: JobCursor,
    /// ) -> Result<(Vec<ViewedJob>, Option<JobCursor>), Arc<StorageError>> {
    ///     let jobs: Vec<_> = queue.jobs_after(after).take(50).collect::<Result<_, _>>()?;
    ///     let next = jobs.last().map(ViewedJob::cursor);
    ///     Ok((jobs, next))
    /// }
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let (queue, _) = Queue::builder(dir.path()).open()?;
    /// # for number in 0..120_u32 {
    /// #     queue.enqueue(&number.to_le_bytes())?;
    /// # }
    /// let (first, next) = page(&queue, JobCursor::START)?;
    /// # assert_eq!(first.len(), 50);
    /// let (second, _) = page(&queue, next.expect("there are more"))?;
    /// # assert_eq!(second.len(), 50);
    /// # assert!(second.iter().all(|job| !first.contains(job)));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As for [`jobs`](Self::jobs).
    pub fn jobs_after(
        &self,
        cursor: JobCursor,
    ) -> impl Iterator<Item = Result<ViewedJob, Arc<StorageError>>> + use<> {
        View::of(&self.running).jobs_after(cursor)
    }

    /// Whether a job has not ended: waits, backs off, or is with a handler.
    ///
    /// For a job that has not ended this is a look at its place in the log. For one that has, it
    /// looks whether compaction has moved the job: through later segments of its stripe that may hold
    /// such jobs. It does so for any job in the moments in which some are being moved. A job that
    /// has just died has ended: its letter is written first if it is not yet, which takes a flush. Only
    /// where the letter waits for the transaction that the job came by, a moment longer, is it there.
    ///
    /// ```
    /// # use logmill::Queue;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let (queue, _) = Queue::builder(dir.path()).open()?;
    /// let id = queue.enqueue(b"resize cat.jpg")?;
    /// assert!(queue.contains(id)?);
    /// queue.consumer().next().expect("a job was enqueued").ack();
    /// assert!(!queue.contains(id)?);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// A segment could not be read in which the job may be, or the job has died and its letter cannot
    /// be written.
    pub fn contains(&self, id: JobId) -> Result<bool, Arc<StorageError>> {
        self.running.contains(id.sequence())
    }

    /// Looks for one job; None if it is acked, dead or expired, or was never enqueued.
    ///
    /// This walks over the records before the job in its segment, a few nanoseconds for each, and
    /// copies the job; nobody waits for it. If the job is not there, compaction may have moved it: then
    /// it walks over the later segments of its stripe that may hold such jobs, so that it costs most to
    /// learn that a job is gone. It does so for any job in the moments in which some are being moved.
    /// For a job that has just died, its letter is written first, as by [`contains`](Self::contains).
    ///
    /// [`ViewedJob::state`] tells whether it is ready, delayed, in flight or a suspect. For a job
    /// that is dead, see [`dead_letters`](Self::dead_letters).
    ///
    /// ```
    /// # use logmill::{JobState, Queue};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let (queue, _) = Queue::builder(dir.path()).open()?;
    /// let id = queue.enqueue(b"resize cat.jpg")?;
    /// let job = queue.get(id)?.expect("it waits");
    /// assert_eq!((job.payload(), job.state()), (&b"resize cat.jpg"[..], JobState::Ready));
    ///
    /// queue.consumer().next().expect("a job was enqueued").ack();
    /// assert!(queue.get(id)?.is_none());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// A segment could not be read in which the job may be, or the job has died and its letter cannot
    /// be written.
    pub fn get(&self, id: JobId) -> Result<Option<ViewedJob>, Arc<StorageError>> {
        let found = self.running.find_alive(id.sequence())?;
        Ok(found.as_ref().map(ViewedJob::of_job))
    }
}
