//! Claims on a backend that gives jobs out for a time: the engine, with that time around it.

use std::ops::DerefMut;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use serde::{Deserialize, Serialize};

use super::*;
use crate::backend::embedded::Embedded;
use crate::backend::{
    Backend, BackendError, Capabilities, Choice, Consumer, Held, Next, Served, Settlement,
    forward_backend, forward_claim,
};
use crate::{Context, Job, JobResult, MillOptions, State, StopCause, Workers, secs};

const PATIENCE: Duration = secs(60);

/// What the world sees of the claims.
#[derive(Clone, Default)]
struct Seen {
    extended: Arc<AtomicU32>,
    is_taken_away: Arc<AtomicBool>,
}

struct Leased {
    inner: Embedded,
    seen: Seen,
}

struct LeasedConsumer {
    inner: Box<dyn Consumer>,
    seen: Seen,
}

struct LeasedClaim<C> {
    claim: C,
    seen: Seen,
}

impl Backend for Leased {
    forward_backend!(inner: on_end queue queue_names wake_consumers get keys each_key commit);
    forward_backend!(inner: damage flush close);

    fn capabilities(&self) -> Capabilities {
        self.inner
            .capabilities()
            .with_lease(Duration::from_millis(15))
    }

    fn consumer(
        &self,
        queues: &[Served<'_>],
        choice: Choice,
    ) -> Result<Box<dyn Consumer>, BackendError> {
        Ok(Box::new(LeasedConsumer {
            inner: self.inner.consumer(queues, choice)?,
            seen: self.seen.clone(),
        }))
    }
}

impl Consumer for LeasedConsumer {
    fn next(
        &mut self,
        until: Option<Instant>,
        stopped: &dyn Fn() -> bool,
        take: &mut dyn FnMut(&mut dyn Claim),
    ) -> Next {
        let seen = &self.seen;
        self.inner.next(until, stopped, &mut |claim| {
            let seen = seen.clone();
            take(&mut LeasedClaim { claim, seen });
        })
    }
}

impl<C: DerefMut<Target: Claim>> Claim for LeasedClaim<C> {
    forward_claim!(claim: queue number kind payload header attempt crashes);
    forward_claim!(claim: enqueued_at due_at is_cancelled);

    fn lease(&self) -> Option<Box<dyn Lease>> {
        Some(Box::new(self.seen.clone()))
    }

    fn settle(&mut self, settlement: Settlement<'_>) -> Result<Vec<Option<u64>>, BackendError> {
        self.claim.settle(settlement)
    }

    fn hold(&mut self) -> Option<Box<dyn Held>> {
        self.claim.hold()
    }

    fn detach(&mut self) -> Option<Box<dyn Claim + Send>> {
        let claim = self.claim.detach()?;
        let seen = self.seen.clone();
        Some(Box::new(LeasedClaim { claim, seen }))
    }
}

impl Lease for Seen {
    fn extend(&self) -> Result<bool, BackendError> {
        match self.extended.fetch_add(1, Ordering::SeqCst) {
            // Each of these is tried again.
            1 => panic!("a broken client"),
            2 => Err(BackendError::Full(
                "a moment without a connection".to_owned(),
            )),
            _ => Ok(!self.is_taken_away.load(Ordering::SeqCst)),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Long;

impl Job for Long {
    type Output = ();
    type Inputs = ();
    const KIND: &'static str = "long";
}

fn long(_: Long, State(seen): State<Seen>, cx: Context) -> JobResult {
    let start = Instant::now();
    while cx.stop_cause().is_none() {
        assert!(start.elapsed() < PATIENCE);
        // It is extended for as long as the handler runs.
        let extended = seen.extended.load(Ordering::SeqCst);
        seen.is_taken_away.store(extended > 5, Ordering::SeqCst);
        std::thread::yield_now();
    }
    assert_eq!(cx.stop_cause(), Some(StopCause::Lost));
    assert!(cx.check().is_err());
    Ok(())
}

#[test]
fn a_claim_is_extended_while_its_handler_runs_which_is_told_if_it_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let queues = logmill::Queues::options(dir.path().join("jobs")).open();
    let seen = Seen::default();
    let backend = Leased {
        inner: Embedded::new(queues.unwrap(), logmill::Durability::Process),
        seen: seen.clone(),
    };
    let mill = Mill::with_backend(backend, MillOptions::new());
    let workers = Workers::new(seen.clone()).on(long).threads(1);
    let pool = workers.start(&mill).unwrap();
    let handle = mill.enqueue(Long).unwrap();
    handle.wait_timeout(PATIENCE).unwrap();
    assert!(seen.extended.load(Ordering::SeqCst) > 5);
    assert!(pool.shutdown(PATIENCE).finished_in_time);
}

#[test]
fn without_leases_there_is_no_thread_and_nothing_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let mill = Mill::open(dir.path().join("jobs")).unwrap();
    let leases = Arc::new(Leases::new(&mill));
    leases.start("jobs").unwrap();
    assert_eq!((leases.every, Arc::strong_count(&leases)), (None, 1));
}
