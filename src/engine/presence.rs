//! Whether a job has not ended, and where it is, by its id.

use std::sync::Arc;

use super::Engine;
use crate::log::lookup::FoundJob;
use crate::{Sequence, StorageError};

impl Engine {
    /// See [`Queue::contains`](crate::Queue::contains).
    pub(crate) fn contains(&self, job: Sequence) -> Result<bool, Arc<StorageError>> {
        let dispatch = &self.dispatch;
        let Some(stripe) = dispatch.stripes().get(usize::from(job.stripe())) else {
            return Ok(false);
        };
        self.end_dying(job)?;
        if !dispatch.has_any_in_two_places() {
            // Asked before the done bit is read: a job that was cancelled is marked done before its
            // entry is dropped.
            let is_gone = dispatch.is_gone(job);
            if stripe.pin_live(job)?.is_some() {
                // At this place is the job, or another one that was moved here.
                return Ok(!is_gone);
            }
        }
        Ok(self.find_present(job)?.is_some())
    }

    /// The record of a job that has not ended.
    fn find_present(&self, job: Sequence) -> Result<Option<FoundJob>, Arc<StorageError>> {
        let dispatch = &self.dispatch;
        let Some(stripe) = dispatch.stripes().get(usize::from(job.stripe())) else {
            return Ok(None);
        };
        let mut before = None;
        loop {
            let found = match dispatch.has_any_in_two_places() {
                true => stripe.find_last(job)?,
                false => stripe.find_job(job)?,
            };
            let Some(found) = found else {
                return Ok(None);
            };
            let record = found.sequence();
            if dispatch.is_gone(record) {
                return Ok(None);
            }
            self.end_dying(record)?;
            if !found.is_done() {
                return Ok(Some(found));
            }
            // It has ended since, or was moved on, and then is found behind this place.
            if before == Some(record) {
                return Ok(None);
            }
            before = Some(record);
        }
    }

    /// See [`Queue::get`](crate::Queue::get). A job that was cancelled has ended, also while a
    /// handler has it.
    pub(crate) fn find_alive(&self, job: Sequence) -> Result<Option<FoundJob>, Arc<StorageError>> {
        let found = self.find_present(job)?;
        Ok(found.filter(|found| {
            // The done bit last: a cancelled job is marked done before its entry is dropped.
            !self
                .dispatch
                .cancels
                .is_decided(self.gate(), found.sequence())
                && !found.is_done()
        }))
    }

    /// Has the letter of a job written that has died: its death was told, so it is not there any
    /// more.
    fn end_dying(&self, record: Sequence) -> Result<(), Arc<StorageError>> {
        if self.dead.is_dying(record) {
            self.write_letters()?;
        }
        if self.dead.is_dying(record) {
            // Its letter waits until what the job came from is settled.
            self.flush()?;
            self.write_letters()?;
        }
        Ok(())
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::cell::RefCell;
    use std::path::Path;
    use std::rc::Rc;
    use std::time::Duration;

    use super::*;
    use crate::dispatch::source::Source;
    use crate::engine::Running;
    use crate::engine::enqueue::Place;
    use crate::options::Builder;
    use crate::storage::{Operation, faults};
    use crate::time::stopped;

    const START: Duration = Duration::from_secs(1_000_000);
    const MINUTE: Duration = Duration::from_secs(60);

    /// Stores the delay of a job that a handler has given back, whose copy is due and acked when it
    /// is about to be flushed. Returns the job, and whether it was found then.
    fn acked_while_it_is_moved(running: &Arc<Running>, flushes: bool) -> (Sequence, bool) {
        let place = Place::on(&running.dispatch().stripes()[0]);
        let job = running.enqueue(place, b"job").unwrap().sequence();
        let source = Source::new(Arc::clone(running));
        let take = move |running: &Running| running.begin(source.try_next()?);
        let (lease, attempt, delivery) = take(running).unwrap();
        running.release(lease, delivery, attempt, MINUTE);
        assert!(running.contains(job).unwrap());
        let found = Rc::new(RefCell::new(None));
        let (other, noted) = (Arc::clone(running), Rc::clone(&found));
        let observer = move |operation, path: &Path, _| {
            if operation == Operation::Flush && path.extension().is_some_and(|end| end == "seg") {
                if noted.borrow().is_none() {
                    assert!(other.contains(job).unwrap(), "it waits");
                    stopped::set(Some(START + MINUTE));
                    let (lease, attempt, delivery) = take(&other).expect("its copy is due");
                    assert_eq!(lease.job(), job);
                    other.ack(lease, delivery, attempt);
                    *noted.borrow_mut() = Some(other.contains(job).unwrap());
                }
                if !flushes {
                    return Err(rustix::io::Errno::IO.into());
                }
            }
            Ok(())
        };
        faults::observe(Some((running.path().to_path_buf(), Box::new(observer))));
        assert_eq!(running.keep_delays().is_ok(), flushes);
        faults::observe(None);
        (job, found.take().expect("flushed"))
    }

    #[test]
    fn a_job_that_has_died_is_not_there_though_its_letter_was_not_written_yet() {
        let dir = tempfile::tempdir().unwrap();
        let builder = Builder::new(dir.path()).stripes(1).segment_size(16 * 1024);
        let running = Arc::new(Running::open_idle(&builder).unwrap().0);
        let place = Place::on(&running.dispatch().stripes()[0]);
        let job = running.enqueue(place, b"job").unwrap().sequence();
        let consumer = crate::Consumer::new(Arc::clone(&running));
        consumer.try_next().unwrap().dead_letter("no use");
        let full = faults::fill_disk(&dir.path().join("dead"));
        assert!(running.contains(job).unwrap_err().is_full());
        drop(full);
        assert!(!running.contains(job).unwrap());
        assert_eq!(running.dead().log().stats().live, 1);
    }

    #[test]
    fn a_job_that_is_acked_where_it_is_moved_to_is_not_found_where_it_was() {
        for flushes in [true, false] {
            stopped::set(Some(START));
            let dir = tempfile::tempdir().unwrap();
            let builder = Builder::new(dir.path()).stripes(1).segment_size(16 * 1024);
            let running = Arc::new(Running::open_idle(&builder).unwrap().0);
            let (job, was_found) = acked_while_it_is_moved(&running, flushes);
            assert!(!was_found);
            assert!(!running.contains(job).unwrap());
            stopped::set(None);
        }
    }
}
