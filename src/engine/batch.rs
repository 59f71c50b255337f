//! Enqueueing a batch: all of its jobs, or none.

use std::time::Duration;

use super::Engine;
use super::enqueue::{Place, meta_of, new_record};
use crate::error::EnqueueError;
use crate::log::meta::MetaBytes;
use crate::log::record::{NewRecord, RECORD_HEADER_BYTES};
use crate::log::segment::{Batch, BatchRecords};
use crate::options::{Durability, EnqueueOptions};
use crate::time::Clock;
use crate::{JobId, Sequence};

fn too_large(size: u64, max: u64) -> EnqueueError {
    EnqueueError::BatchTooLarge {
        limit: "segment_size",
        size,
        max,
    }
}

impl Engine {
    /// Enqueues jobs with the queue's defaults.
    pub(crate) fn enqueue_batch<P: AsRef<[u8]>>(
        &self,
        place: Place<'_>,
        payloads: &[P],
    ) -> Result<Vec<JobId>, EnqueueError> {
        self.check_batch_bytes(payloads.iter().map(|_| 0))?;
        // `as_ref` is called once per payload: a payload that changed between two calls would not
        // fit its reservation.
        let payloads: Vec<&[u8]> = payloads.iter().map(AsRef::as_ref).collect();
        for payload in &payloads {
            self.check_len(payload.len())?;
        }
        let template = new_record(&EnqueueOptions::new(), &[], &[], &self.clock);
        let records = payloads
            .iter()
            .map(|payload| template.with_payload(payload));
        self.append_batch(place, records, self.durability(), Duration::ZERO)
    }

    /// Enqueues jobs with options for each. The strongest durability and the longest wait count.
    pub(crate) fn enqueue_batch_with<P: AsRef<[u8]>>(
        &self,
        place: Place<'_>,
        jobs: &[(P, EnqueueOptions<'_>)],
    ) -> Result<Vec<JobId>, EnqueueError> {
        let prepared = self.prepare_batch(jobs)?;
        let records = prepared.records(jobs, &self.clock);
        let records = records.iter().copied();
        self.append_batch(place, records, prepared.durability, prepared.wait)
    }

    /// Checks the jobs of a batch.
    pub(super) fn prepare_batch<'a, P: AsRef<[u8]>>(
        &self,
        jobs: &'a [(P, EnqueueOptions<'_>)],
    ) -> Result<PreparedBatch<'a>, EnqueueError> {
        self.check_batch_bytes(jobs.iter().map(|(_, options)| options.len()))?;
        let mut prepared = Vec::with_capacity(jobs.len());
        let mut durability = None;
        let mut wait = Duration::ZERO;
        for (payload, options) in jobs {
            options.validate()?;
            // Called once per payload, as above.
            let payload = payload.as_ref();
            self.check_len(options.len() + payload.len())?;
            prepared.push((payload, meta_of(options, &self.clock)));
            let of_job = options.durability.unwrap_or(self.durability());
            durability = Some(durability.map_or(of_job, |others| of_job.stronger(others)));
            wait = wait.max(options.wait);
        }
        Ok(PreparedBatch {
            jobs: prepared,
            durability: durability.unwrap_or(self.durability()),
            wait,
        })
    }

    /// Refuses a batch that is too large, given the fewest bytes of its jobs beside their headers,
    /// before anything is copied.
    fn check_batch_bytes(&self, jobs: impl Iterator<Item = usize>) -> Result<(), EnqueueError> {
        let max = self.dispatch().stripes()[0].max_record_bytes() as u64;
        let mut size = 0;
        for job in jobs {
            size += RECORD_HEADER_BYTES as u64 + job as u64;
            if size > max {
                return Err(too_large(size, max));
            }
        }
        Ok(())
    }

    fn append_batch<'r>(
        &self,
        mut place: Place<'_>,
        records: impl BatchRecords<'r>,
        durability: Durability,
        wait: Duration,
    ) -> Result<Vec<JobId>, EnqueueError> {
        let stripe = place.stripe();
        let batch = self.batch_of(records, durability)?;
        if batch.jobs() == 0 {
            return Ok(Vec::new());
        }
        let append = || self.append_batch_with_room(&mut place, &batch);
        let first = self.with_room(wait, append)?;
        let jobs = self.note_batch(first, batch.jobs());
        self.make_durable(stripe, durability, &jobs)?;
        Ok(jobs)
    }

    /// The records as a batch, if it can ever be enqueued with this durability.
    pub(super) fn batch_of<'r, I: BatchRecords<'r>>(
        &self,
        records: I,
        durability: Durability,
    ) -> Result<Batch<I>, EnqueueError> {
        let stripe = &self.dispatch().stripes()[0];
        let max = stripe.max_record_bytes() as u64;
        let batch = stripe.batch(records).map_err(|size| too_large(size, max))?;
        if batch.jobs() > 0 {
            self.check_batch_depth(batch.jobs().into())?;
            self.check_poison(durability)?;
        }
        Ok(batch)
    }

    /// Appends a batch if there is room for all of its jobs.
    pub(super) fn append_batch_with_room<'r>(
        &self,
        place: &mut Place<'_>,
        batch: &Batch<impl BatchRecords<'r>>,
    ) -> Result<Sequence, EnqueueError> {
        let jobs = batch.jobs().into();
        self.take_room(jobs)?;
        place.append_batch(batch).map_err(|error| {
            self.leave_room(jobs);
            error.into()
        })
    }

    /// Wakes consumers for the jobs of a batch, and returns their ids.
    pub(super) fn note_batch(&self, first: Sequence, jobs: u32) -> Vec<JobId> {
        self.dispatch().sleepers.notify(jobs as usize);
        (0..jobs).map(|at| JobId::of(first.plus(at))).collect()
    }
}

/// The jobs of a batch, checked.
pub(super) struct PreparedBatch<'a> {
    jobs: Vec<(&'a [u8], MetaBytes)>,
    /// The strongest of the jobs' durabilities.
    pub(super) durability: Durability,
    /// The longest of the jobs' waits.
    pub(super) wait: Duration,
}

impl PreparedBatch<'_> {
    /// The records of these jobs, which it was prepared from.
    pub(super) fn records<'r, P>(
        &'r self,
        jobs: &'r [(P, EnqueueOptions<'_>)],
        clock: &Clock,
    ) -> Vec<NewRecord<'r>> {
        let jobs = jobs.iter().zip(&self.jobs);
        jobs.map(|((_, options), (payload, meta))| new_record(options, meta, payload, clock))
            .collect()
    }
}
