//! A job that is granted a place while it is being held comes back, and finds its place.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;

use super::{Limit, Limits, Permit};
use crate::JobId;
use crate::backend::{BackendError, Claim, Held, Lease, Settlement};
use crate::clock::Clock;

const PATIENCE: Duration = Duration::from_secs(60);
const JOBS: u64 = 300_000;
/// So many jobs are there at a time.
const ALIVE: u64 = 3;

/// The jobs that wait in their queue.
#[derive(Default)]
struct Ready(Mutex<VecDeque<u64>>);

struct Taken {
    number: u64,
    ready: Arc<Ready>,
}

/// Goes back to its queue when it is dropped.
struct Back(Taken);

impl Held for Back {
    fn payload(&self) -> &[u8] {
        b""
    }
}

impl Drop for Back {
    fn drop(&mut self) {
        self.0.ready.0.lock().push_back(self.0.number);
    }
}

impl Claim for Taken {
    fn queue(&self) -> &str {
        "queue"
    }

    fn number(&self) -> u64 {
        self.number
    }

    fn kind(&self) -> &str {
        "kind"
    }

    fn payload(&self) -> &[u8] {
        b""
    }

    fn header(&self, _: &str) -> Option<&[u8]> {
        None
    }

    fn attempt(&self) -> u32 {
        1
    }

    fn crashes(&self) -> u32 {
        0
    }

    fn enqueued_at(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH
    }

    fn due_at(&self) -> Option<SystemTime> {
        None
    }

    fn is_cancelled(&self) -> bool {
        false
    }

    fn lease(&self) -> Option<Box<dyn Lease>> {
        None
    }

    fn settle(&mut self, _: Settlement<'_>) -> Result<Vec<Option<u64>>, BackendError> {
        Ok(Vec::new())
    }

    fn hold(&mut self) -> Option<Box<dyn Held>> {
        let (number, ready) = (self.number, Arc::clone(&self.ready));
        Some(Box::new(Back(Self { number, ready })))
    }

    fn detach(&mut self) -> Option<Box<dyn Claim + Send>> {
        None
    }
}

fn work(limits: &Arc<Limits>, ready: &Arc<Ready>, done: &AtomicU64) {
    let begun = Instant::now();
    while done.load(Ordering::Relaxed) < JOBS {
        let next = ready.0.lock().pop_front();
        let Some(number) = next else {
            assert!(begun.elapsed() < PATIENCE, "{:?}", limits.counts());
            std::thread::yield_now();
            continue;
        };
        let ready = Arc::clone(ready);
        let (id, mut claim) = (JobId::new("queue", number), Taken { number, ready });
        let mut permit = Permit::none();
        if limits.admit(&id, 1, &mut claim, &mut permit) {
            permit.begin();
            std::thread::yield_now();
            drop(permit);
            // Few are there, so that often none is granted a place.
            if number + ALIVE < JOBS {
                claim.ready.0.lock().push_back(number + ALIVE);
            }
            done.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[test]
fn no_job_waits_for_a_place_that_is_kept_for_itself() {
    let limits = Limits::new(vec![Limit::on_queue("queue").at_once(1)], Clock::default());
    let ready = Arc::new(Ready(Mutex::new((0..ALIVE).collect())));
    let done = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| work(&limits, &ready, &done));
        }
    });
    assert_eq!(limits.counts(), super::Counts::default());
}
