//! Enqueueing a batch: all of its jobs, or none.

use std::time::Duration;

use super::Engine;
use super::enqueue::{Place, meta_of, new_record};
use crate::JobId;
use crate::error::EnqueueError;
use crate::log::record::RECORD_HEADER_BYTES;
use crate::log::segment::BatchRecords;
use crate::options::{Durability, EnqueueOptions};

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
        let template = new_record(&EnqueueOptions::new(), &[], &[]);
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
        self.check_batch_bytes(jobs.iter().map(|(_, options)| options.len()))?;
        let mut prepared = Vec::with_capacity(jobs.len());
        let mut durability = None;
        let mut wait = Duration::ZERO;
        for (payload, options) in jobs {
            options.validate()?;
            let payload = payload.as_ref();
            self.check_len(options.len() + payload.len())?;
            prepared.push((payload, meta_of(options)));
            let of_job = options.durability.unwrap_or(self.durability());
            durability = Some(durability.map_or(of_job, |others| of_job.stronger(others)));
            wait = wait.max(options.wait);
        }
        let records = jobs.iter().zip(&prepared);
        let records: Vec<_> = records
            .map(|((_, options), (payload, meta))| new_record(options, meta, payload))
            .collect();
        let durability = durability.unwrap_or(self.durability());
        self.append_batch(place, records.iter().copied(), durability, wait)
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
        let max = stripe.max_record_bytes() as u64;
        let batch = stripe.batch(records).map_err(|size| too_large(size, max))?;
        let jobs = batch.jobs();
        if jobs == 0 {
            return Ok(Vec::new());
        }
        self.check_batch_depth(jobs.into())?;
        self.check_poison(durability)?;
        let first = self.with_room(wait, || {
            self.take_room(jobs.into())?;
            place.append_batch(&batch).map_err(|error| {
                self.leave_room(jobs.into());
                error.into()
            })
        })?;
        self.dispatch().sleepers.notify(jobs as usize);
        let jobs: Vec<_> = (0..jobs).map(|at| JobId::of(first.plus(at))).collect();
        self.make_durable(stripe, durability, &jobs)?;
        Ok(jobs)
    }
}
