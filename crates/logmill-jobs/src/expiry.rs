//! Jobs that are not started any more once their time has passed. A job's header says when, and the
//! worker that comes to it looks: so its end is one step with all that belongs to it.

use std::time::{Duration, SystemTime};

use crate::JobId;
use crate::backend::Claim;
use crate::enqueue::header;
use crate::keys::Record;
use crate::mill::Mill;
use crate::settle;

/// The header of a job that expires after this time: nanoseconds since the epoch.
#[inline]
pub(crate) fn header_of(mill: &Mill, after: Option<Duration>) -> Option<[u8; 8]> {
    after.map(|after| nanos(mill.inner.clock.wall(), after).to_le_bytes())
}

fn nanos(now: SystemTime, after: Duration) -> u64 {
    // A time that overflows is one that never comes.
    let at = now.checked_add(after);
    let since = at.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
    since.map_or(u64::MAX, |since| {
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    })
}

/// Ends a job that has expired. Returns whether it had.
#[inline]
pub(crate) fn end_expired(mill: &Mill, id: &JobId, claim: &mut dyn Claim) -> bool {
    let Some(at) = claim.header(header::EXPIRES) else {
        return false;
    };
    // One that has begun in time goes on.
    let has_spent_one = claim.attempt() > 1 || claim.crashes() > 0;
    if has_spent_one && !mill.inner.refused.is_unbegun(id) {
        return false;
    }
    let at = at.try_into().map_or(u64::MAX, u64::from_le_bytes);
    if nanos(mill.inner.clock.wall(), Duration::ZERO) < at {
        return false;
    }
    settle::end_unbegun(mill, claim, id, Record::Expired);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The engine, whose completions fail until they are told not to.
    #[cfg(feature = "embedded")]
    mod full {
        use std::sync::Arc;
        use std::sync::atomic::{AtomicBool, Ordering};
        use std::time::Instant;

        use crate::backend::*;

        pub(super) struct Full {
            pub(super) inner: Embedded,
            pub(super) is_full: Arc<AtomicBool>,
        }

        impl Backend for Full {
            forward_backend!(inner: capabilities on_end queue queue_names wake_consumers get keys);
            forward_backend!(inner: each_key commit extend damage flush close);

            fn consumer(
                &self,
                queues: &[Served<'_>],
                choice: Choice,
            ) -> Result<Box<dyn Consumer>, BackendError> {
                Ok(Box::new(FullConsumer {
                    inner: self.inner.consumer(queues, choice)?,
                    is_full: Arc::clone(&self.is_full),
                }))
            }
        }

        struct FullConsumer {
            inner: Box<dyn Consumer>,
            is_full: Arc<AtomicBool>,
        }

        impl Consumer for FullConsumer {
            fn next(
                &mut self,
                until: Option<Instant>,
                stopped: &dyn Fn() -> bool,
                take: &mut dyn FnMut(&mut dyn Claim),
            ) -> Next {
                let is_full = &self.is_full;
                self.inner.next(until, stopped, &mut |claim| {
                    take(&mut FullClaim { claim, is_full });
                })
            }
        }

        struct FullClaim<'a> {
            claim: &'a mut dyn Claim,
            is_full: &'a AtomicBool,
        }

        impl Claim for FullClaim<'_> {
            forward_claim!(claim: queue number kind payload header attempt crashes);
            forward_claim!(claim: enqueued_at due_at is_cancelled lease);

            fn settle(
                &mut self,
                settlement: Settlement<'_>,
            ) -> Result<Vec<Option<u64>>, BackendError> {
                if self.is_full.load(Ordering::SeqCst) {
                    // The attempt has failed.
                    let (after, reason) = (crate::secs(0), "full");
                    self.claim.settle(Settlement::Retry { after, reason })?;
                    // Another worker comes to it before this one hears of that.
                    std::thread::sleep(std::time::Duration::from_millis(2));
                    return Err(BackendError::Full("the disk".to_owned()));
                }
                self.claim.settle(settlement)
            }

            fn hold(&mut self) -> Option<Box<dyn Held>> {
                self.claim.hold()
            }

            fn detach(&mut self) -> Option<Box<dyn Claim + Send>> {
                self.claim.detach()
            }
        }
    }

    #[cfg(feature = "embedded")]
    #[test]
    fn a_job_whose_expiry_could_not_be_stored_is_not_started() {
        use std::sync::Arc;
        use std::sync::atomic::{AtomicBool, Ordering};

        #[derive(serde::Serialize, serde::Deserialize)]
        struct Late;

        impl crate::Job for Late {
            type Output = ();
            type Inputs = ();
            const KIND: &'static str = "late";
        }

        let dir = tempfile::tempdir().unwrap();
        let queues = logmill::Queues::options(dir.path().join("jobs")).open();
        let is_full = Arc::new(AtomicBool::new(true));
        let backend = full::Full {
            inner: crate::backend::Embedded::new(queues.unwrap(), logmill::Durability::Process),
            is_full: Arc::clone(&is_full),
        };
        let mill = Mill::with_backend(backend, crate::MillOptions::new());
        let events = mill.events(100);
        let handler = |_: Late| -> crate::JobResult { panic!("it is late") };
        let job = mill.job(Late).expires_after(Duration::ZERO);
        let handle = job.enqueue().unwrap();
        let pool = crate::Workers::new(()).on(handler).start(&mill).unwrap();
        let patience = crate::secs(60);
        let failed = || mill.queue("default").unwrap().stats().unwrap().retried;
        let start = std::time::Instant::now();
        while failed() < 3 {
            assert!(start.elapsed() < patience);
            std::thread::yield_now();
        }
        is_full.store(false, Ordering::SeqCst);
        let ended = handle.wait_timeout(patience);
        assert!(matches!(ended, Err(crate::WaitError::Expired)), "{ended:?}");
        let _ = pool.shutdown(patience);
        mill.close().unwrap();
        let is_start = |what: &_| matches!(what, crate::EventKind::Started { .. });
        assert!(!events.into_iter().any(|event| is_start(&event.what)));
    }

    #[test]
    fn a_time_that_overflows_never_comes() {
        let now = SystemTime::now();
        assert_eq!(nanos(now, Duration::MAX), u64::MAX);
        assert_eq!(nanos(now, Duration::from_secs(u64::MAX / 2)), u64::MAX);
        assert!(nanos(now, Duration::ZERO) < nanos(now, Duration::from_nanos(1)));
    }
}
