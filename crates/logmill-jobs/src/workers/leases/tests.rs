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
use crate::{
    Chunk, ChunkOptions, Context, Job, JobResult, MillOptions, State, StopCause, Workers, secs,
};

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
    /// How many claims were extended in one request, at most; None if each is by itself.
    together: Option<Arc<AtomicU32>>,
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

    fn extend(
        &self,
        leases: &[&dyn Lease],
        tell: &mut dyn FnMut(usize, Result<bool, BackendError>),
    ) {
        let Some(together) = &self.together else {
            return self.inner.extend(leases, tell);
        };
        let own = leases.iter().map(|lease| *lease as &dyn std::any::Any);
        let own: Vec<_> = own
            .map(|lease| lease.downcast_ref::<Seen>().unwrap())
            .collect();
        let extended = own[0].extended.fetch_add(1, Ordering::SeqCst);
        assert!(extended != 1, "a broken client");
        together.fetch_max(own.len().try_into().unwrap(), Ordering::SeqCst);
        let is_kept = !self.seen.is_taken_away.load(Ordering::SeqCst);
        (0..own.len()).rev().for_each(|at| tell(at, Ok(is_kept)));
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
        together: None,
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
fn claims_are_extended_in_one_request_by_a_backend_that_can() {
    let dir = tempfile::tempdir().unwrap();
    let queues = logmill::Queues::options(dir.path().join("jobs")).open();
    let (seen, together) = (Seen::default(), Arc::new(AtomicU32::new(0)));
    let backend = Leased {
        inner: Embedded::new(queues.unwrap(), logmill::Durability::Process),
        seen: seen.clone(),
        together: Some(Arc::clone(&together)),
    };
    // With an order, the backend is one around it.
    let options = MillOptions::new().order(crate::Order::on_queue("other"));
    let mill = Mill::with_backend(backend, options);
    let all = Arc::clone(&together);
    let handler = move |_: Long, State(seen): State<Seen>, cx: Context| -> JobResult {
        let start = Instant::now();
        while cx.stop_cause().is_none() {
            assert!(start.elapsed() < PATIENCE);
            let is_taken_away = all.load(Ordering::SeqCst) == 3;
            seen.is_taken_away.store(is_taken_away, Ordering::SeqCst);
            std::thread::yield_now();
        }
        assert_eq!(cx.stop_cause(), Some(StopCause::Lost));
        Ok(())
    };
    let workers = Workers::new(seen.clone()).on(handler).threads(3);
    let pool = workers.start(&mill).unwrap();
    let handles = mill.enqueue_all([Long, Long, Long]).unwrap();
    for handle in handles {
        handle.wait_timeout(PATIENCE).unwrap();
    }
    assert_eq!(together.load(Ordering::SeqCst), 3);
    assert!(pool.shutdown(PATIENCE).finished_in_time);
}

#[test]
fn a_claim_is_extended_while_its_job_waits_in_a_chunk_which_leaves_it_out_if_it_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let queues = logmill::Queues::options(dir.path().join("jobs")).open();
    let seen = Seen::default();
    let backend = Leased {
        inner: Embedded::new(queues.unwrap(), logmill::Durability::Process),
        seen: seen.clone(),
        together: None,
    };
    let mill = Mill::with_backend(backend, MillOptions::new());
    let sizes = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&sizes);
    let handler = move |chunk: Chunk<Long>| {
        noted.lock().push(chunk.len());
        JobResult::Ok(())
    };
    let chunks = ChunkOptions::up_to(2).within(Duration::MAX);
    let workers = Workers::new(()).on_chunk(handler, chunks).threads(1);
    let pool = workers.start(&mill).unwrap();
    let wait_until = |is_true: &dyn Fn() -> bool| {
        let start = Instant::now();
        while !is_true() {
            assert!(start.elapsed() < PATIENCE);
            std::thread::yield_now();
        }
    };
    let extended = || seen.extended.load(Ordering::SeqCst);
    let first = mill.enqueue(Long).unwrap();
    wait_until(&|| extended() > 5);
    let second = mill.enqueue(Long).unwrap();
    for handle in [&first, &second] {
        handle.wait_timeout(PATIENCE).unwrap();
    }
    assert_eq!(*sizes.lock(), [2]);

    let _lost = mill.enqueue(Long).unwrap();
    let before = extended();
    wait_until(&|| extended() > before);
    seen.is_taken_away.store(true, Ordering::SeqCst);
    // A claim that is lost is not extended any more.
    wait_until(&|| pool.shared.leases.state.lock().running.is_empty());
    seen.is_taken_away.store(false, Ordering::SeqCst);
    let other = mill.enqueue(Long).unwrap();
    other.wait_timeout(PATIENCE).unwrap();
    assert_eq!(sizes.lock()[1], 1);
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

struct Fixed(bool);

impl Lease for Fixed {
    fn extend(&self) -> Result<bool, BackendError> {
        Ok(self.0)
    }
}

#[test]
fn a_later_attempt_that_has_the_job_is_not_told_that_an_earlier_one_has_lost_it() {
    let dir = tempfile::tempdir().unwrap();
    let mill = Mill::open(dir.path().join("jobs")).unwrap();
    let leases = Leases::new(&mill);
    let id = JobId::new("default", 7);
    let _earlier = mill.inner.running.begin(&id, None);
    let later = mill.inner.running.begin(&id, None);
    for (number, is_kept) in [(1, false), (2, true)] {
        let lease = (id.clone(), Arc::new(Fixed(is_kept)) as Arc<dyn Lease>);
        leases.state.lock().running.insert(number, lease);
    }
    leases.extend(secs(1));
    assert!(!later.is_lost());
    assert_eq!(leases.state.lock().running.len(), 1);
}
