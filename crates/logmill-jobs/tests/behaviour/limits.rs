//! Limits: what they let through, and that a job which waits for one holds up no other.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use logmill_jobs::{
    Context, Job, JobResult, Limit, Mill, MillOptions, State, Status, WaitError, Workers, hours,
    rate_limited, snooze,
};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::common::{Note, PATIENCE, note, until, wait_for_end};

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "export", key = "tenant", max_retries = 3, backoff = logmill_jobs::Backoff::fixed(Duration::ZERO))]
pub(crate) struct Export {
    pub(crate) tenant: String,
    pub(crate) number: u32,
}

pub(crate) fn export(tenant: &str, number: u32) -> Export {
    Export {
        tenant: tenant.to_owned(),
        number,
    }
}

pub(crate) fn mill_with(limits: impl IntoIterator<Item = Limit>) -> (Mill, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let mill = open(&dir, limits);
    (mill, dir)
}

pub(crate) fn open(dir: &TempDir, limits: impl IntoIterator<Item = Limit>) -> Mill {
    let options = limits
        .into_iter()
        .fold(MillOptions::new(), MillOptions::limit);
    let builder = Mill::builder(dir.path().join("jobs"));
    builder.options(options).open().unwrap()
}

/// The numbers of jobs that were done, in that order.
type Numbers = Arc<Mutex<Vec<u32>>>;

/// What runs, by tenant, and what ran at most.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<HashMap<String, (u32, u32)>>>);

impl Seen {
    fn begin(&self, tenant: &str) {
        let mut seen = self.0.lock().unwrap();
        let (running, most) = seen.entry(tenant.to_owned()).or_default();
        *running += 1;
        *most = (*most).max(*running);
    }

    fn end(&self, tenant: &str) {
        self.0.lock().unwrap().get_mut(tenant).unwrap().0 -= 1;
    }

    fn most(&self, tenant: &str) -> u32 {
        self.0.lock().unwrap()[tenant].1
    }
}

#[test]
fn a_saturated_key_holds_up_no_other_and_takes_no_worker() {
    let (mill, _dir) = mill_with([Limit::on_kind("export").by_key().at_once(2)]);
    let leave = Arc::new(AtomicU32::new(0));
    let left = Arc::clone(&leave);
    let handler = move |job: Export, State(seen): State<Seen>, cx: Context| -> JobResult {
        assert_eq!(cx.attempt(), 1);
        seen.begin(&job.tenant);
        if job.tenant == "busy" {
            until("it may leave", || left.load(Ordering::SeqCst) == 1);
        }
        seen.end(&job.tenant);
        Ok(())
    };
    let seen = Seen::default();
    let pool = Workers::new(seen.clone())
        .on(handler)
        .threads(3)
        .start(&mill)
        .unwrap();
    let busy: Vec<_> = (0..50)
        .map(|n| mill.enqueue(export("busy", n)).unwrap())
        .collect();
    // Behind all of them, and one thread is free for it.
    mill.enqueue(export("calm", 0))
        .unwrap()
        .wait_timeout(PATIENCE)
        .unwrap();
    until("a job is known to wait", || {
        mill.why_waiting(busy[49].id()).is_some()
    });
    let why = mill.why_waiting(busy[49].id()).unwrap();
    assert_eq!(
        why,
        "the limit of the kind \"export\", of each key, 2 at once"
    );
    let queue = mill.queue("default").unwrap();
    until("the others are held", || queue.stats().unwrap().held == 48);
    let stats = queue.stats().unwrap();
    assert_eq!((stats.running, stats.ready, stats.left()), (2, 0, 50));
    leave.store(1, Ordering::SeqCst);
    for handle in &busy {
        handle.wait_timeout(PATIENCE).unwrap();
    }
    assert_eq!(seen.most("busy"), 2);
    assert_eq!(
        (queue.stats().unwrap().held, queue.stats().unwrap().running),
        (0, 0)
    );
    assert_eq!(mill.why_waiting(busy[49].id()), None);
    let _ = pool.shutdown(PATIENCE);
}

#[test]
fn every_way_in_which_an_attempt_ends_gives_its_place_back() {
    let limits = [
        Limit::on_kind("export").at_once(1),
        Limit::on_queue("default").by_key().at_once(1),
    ];
    let (mill, _dir) = mill_with(limits);
    let handler = |job: Export, State(seen): State<Seen>, cx: Context| -> JobResult {
        seen.begin("all");
        std::thread::yield_now();
        seen.end("all");
        match (job.number % 5, cx.attempt()) {
            (0, 1) => panic!("a bug"),
            (1, 1) => Err("failed")?,
            (2, 1) if job.number.is_multiple_of(2) => Err(logmill_jobs::discard("no use")),
            (3, 1) if cx.enqueued_at().elapsed().unwrap() < Duration::from_millis(5) => {
                Err(snooze(Duration::from_millis(6)))
            }
            _ => Ok(()),
        }
    };
    let seen = Seen::default();
    let pool = Workers::new(seen.clone())
        .on(handler)
        .threads(4)
        .start(&mill)
        .unwrap();
    let handles: Vec<_> = (0..400)
        .map(|n| {
            mill.enqueue(export(["a", "b", "c"][n as usize % 3], n))
                .unwrap()
        })
        .collect();
    for handle in &handles {
        match handle.wait_timeout(PATIENCE) {
            Ok(()) | Err(WaitError::Dead(_)) => {}
            Err(error) => panic!(
                "{}: {error}, {:?}",
                handle.id(),
                mill.why_waiting(handle.id())
            ),
        }
    }
    assert_eq!(seen.most("all"), 1);
    let _ = pool.shutdown(PATIENCE);
}

#[test]
fn a_rate_is_never_exceeded_and_jobs_come_by_themselves_when_it_allows() {
    let interval = Duration::from_millis(5);
    let limit = Limit::on_queue("notes").rate(1, interval).burst(3);
    let (mill, _dir) = mill_with([limit]);
    let begun: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let begins = Arc::clone(&begun);
    let handler = move |_: Note| -> JobResult {
        begins.lock().unwrap().push(Instant::now());
        Ok(())
    };
    let pool = Workers::new(())
        .on(handler)
        .threads(2)
        .start(&mill)
        .unwrap();
    // The handler of the first job may look at the clock late, as may that of any.
    let start = Instant::now();
    let handles: Vec<_> = (0..20).map(|_| mill.enqueue(note("x")).unwrap()).collect();
    for handle in handles {
        handle.wait_timeout(PATIENCE).unwrap();
    }
    let begun = begun.lock().unwrap();
    // Three at once, then one in each interval.
    let least = interval * (20 - 3);
    let took = *begun.iter().max().unwrap() - start;
    assert!(took >= least, "{took:?}");
    let _ = pool.shutdown(PATIENCE);
}

#[test]
fn a_job_that_waits_for_a_limit_can_be_cancelled_and_survives_a_restart() {
    let limits = || [Limit::on_queue("notes").at_once(1)];
    let (mill, dir) = mill_with(limits());
    let leave = Arc::new(AtomicU32::new(0));
    let left = Arc::clone(&leave);
    let handler = move |_: Note, cx: Context| -> JobResult {
        assert_eq!((cx.attempt(), cx.crashes()), (1, 0));
        until("it may leave", || left.load(Ordering::SeqCst) == 1);
        Ok(())
    };
    let pool = Workers::new(())
        .on(handler.clone())
        .threads(2)
        .start(&mill)
        .unwrap();
    let handles: Vec<_> = (0..4).map(|_| mill.enqueue(note("x")).unwrap()).collect();
    until("the last one waits", || {
        mill.why_waiting(handles[3].id()).is_some()
    });
    handles[1].cancel("not needed").unwrap();
    assert!(matches!(
        handles[1].wait_timeout(PATIENCE),
        Err(WaitError::Cancelled(_))
    ));
    leave.store(1, Ordering::SeqCst);
    handles[2].wait_timeout(PATIENCE).unwrap();
    handles[3].wait_timeout(PATIENCE).unwrap();

    // Another one waits when the mill is closed.
    leave.store(0, Ordering::SeqCst);
    let running = mill.enqueue(note("y")).unwrap();
    let waiting = mill.enqueue(note("z")).unwrap();
    until("it waits", || mill.why_waiting(waiting.id()).is_some());
    leave.store(1, Ordering::SeqCst);
    running.wait_timeout(PATIENCE).unwrap();
    let _ = pool.shutdown(PATIENCE);
    let id = waiting.id().clone();
    drop((handles, running, waiting));
    mill.close().unwrap();
    let mill = open(&dir, limits());
    let pool = Workers::new(()).on(handler).start(&mill).unwrap();
    wait_for_end(&mill.handle::<Note>(id));
    let _ = pool.shutdown(PATIENCE);
}

#[test]
fn cancels_at_any_moment_leave_the_limits_usable() {
    let limits = [
        Limit::on_kind("export").at_once(1),
        Limit::on_queue("default")
            .by_key()
            .rate(100_000, Duration::from_secs(1)),
    ];
    let (mill, _dir) = mill_with(limits);
    let handler = |_: Export| -> JobResult {
        std::thread::yield_now();
        Ok(())
    };
    let pool = Workers::new(())
        .on(handler)
        .threads(4)
        .start(&mill)
        .unwrap();
    for round in 0..20 {
        let handles: Vec<_> = (0..100)
            .map(|n| mill.enqueue(export(["a", "b"][n as usize % 2], n)).unwrap())
            .collect();
        std::thread::scope(|scope| {
            for from in 0..3 {
                let handles = &handles;
                scope.spawn(move || {
                    for handle in handles.iter().skip(from).step_by(3 + round % 3) {
                        handle.cancel("enough").unwrap();
                    }
                });
            }
        });
        for handle in &handles {
            match handle.wait_timeout(PATIENCE) {
                Ok(()) | Err(WaitError::Cancelled(_)) => {}
                Err(error) => panic!(
                    "{}: {error}, {:?}",
                    handle.id(),
                    mill.why_waiting(handle.id())
                ),
            }
        }
    }
    mill.enqueue(export("a", 0))
        .unwrap()
        .wait_timeout(PATIENCE)
        .unwrap();
    let _ = pool.shutdown(PATIENCE);
}

#[test]
fn a_job_without_a_handler_keeps_no_place_at_a_limit() {
    let (mill, _dir) = mill_with([Limit::on_queue("default").at_once(1)]);
    let leave = Arc::new(AtomicU32::new(0));
    let left = Arc::clone(&leave);
    let handler = move |_: Export| -> JobResult {
        until("it may leave", || left.load(Ordering::SeqCst) == 1);
        Ok(())
    };
    let pool = Workers::new(())
        .on(handler)
        .threads(2)
        .start(&mill)
        .unwrap();
    let running = mill.enqueue(export("a", 0)).unwrap();
    until("it runs", || {
        matches!(running.status().unwrap(), Status::Running { .. })
    });
    let waiting = mill.enqueue(export("a", 1)).unwrap();
    until("it waits", || mill.why_waiting(waiting.id()).is_some());
    let report = pool.shutdown(Duration::from_millis(10));
    assert_eq!(report.still_running, [running.id().clone()]);
    leave.store(1, Ordering::SeqCst);
    running.wait_timeout(PATIENCE).unwrap();

    // The place is kept for a job whose kind nobody handles now.
    let doubles = |job: crate::common::Double| JobResult::Ok(job.number * 2);
    let mut pool = Workers::new(()).on(doubles).start(&mill);
    let start = Instant::now();
    while pool.is_err() && start.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(1));
        pool = Workers::new(()).on(doubles).start(&mill);
    }
    let other = mill.enqueue(crate::common::Double { number: 4 }).unwrap();
    assert_eq!(other.wait_timeout(PATIENCE).unwrap(), 8);
    assert_eq!(mill.parked()[0].jobs, [waiting.id().clone()]);
    let _ = pool.unwrap().shutdown(PATIENCE);
}

/// Runs jobs of two keys, of which one gets a 429 at its first job until it is allowed; returns the
/// reasons for which its jobs wait.
fn hold_back(limits: Vec<Limit>, is_held: &str, goes_on: &str) -> Vec<String> {
    let (mill, _dir) = mill_with(limits);
    let calls = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&calls);
    let tenant = is_held.to_owned();
    let handler = move |job: Export, cx: Context| -> JobResult {
        assert_eq!(cx.attempt(), 1);
        if job.tenant == tenant {
            counted.fetch_add(1, Ordering::SeqCst);
            return Err(rate_limited(hours(1), "429"));
        }
        Ok(())
    };
    let pool = Workers::new(()).on(handler).start(&mill).unwrap();
    let first = mill.enqueue(export(is_held, 0)).unwrap();
    until("its key is held back", || {
        mill.why_waiting(first.id()).is_some()
    });
    let mut held: Vec<_> = (1..20)
        .map(|n| mill.enqueue(export(is_held, n)).unwrap())
        .collect();
    held.insert(0, first);
    if goes_on.is_empty() {
        held.push(mill.enqueue(export("other", 0)).unwrap());
    } else {
        let other = mill.enqueue(export(goes_on, 0)).unwrap();
        other.wait_timeout(PATIENCE).unwrap();
    }
    until("all of the key wait", || {
        held.iter().all(|one| mill.why_waiting(one.id()).is_some())
    });
    // One found out for all.
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    let reasons = held.iter().map(|one| mill.why_waiting(one.id()).unwrap());
    let reasons = reasons.collect();
    // What waits an hour holds up no shutdown, and can be cancelled.
    held[3].cancel("enough").unwrap();
    let cancelled = held[3].wait_timeout(PATIENCE);
    assert!(matches!(cancelled, Err(WaitError::Cancelled(_))));
    assert!(pool.shutdown(PATIENCE).finished_in_time);
    reasons
}

/// Celery: a limit is one of each worker, and the jobs that wait for it hold up the others.
#[test]
fn a_429_holds_back_its_key_alone_for_all_workers_and_spends_no_attempt() {
    let by_key = Limit::on_kind("export").by_key().at_once(5);
    let queue = Limit::on_queue("default").rate(1_000_000, Duration::from_secs(1));
    let reasons = hold_back(vec![queue, by_key.clone()], "busy", "calm");
    assert!(reasons.iter().all(|reason| *reason == by_key.to_string()));
}

#[test]
fn a_429_without_a_limit_by_key_holds_back_what_the_limit_counts() {
    let queue = Limit::on_queue("default").at_once(5);
    let reasons = hold_back(vec![queue.clone()], "busy", "");
    assert!(reasons.iter().all(|reason| *reason == queue.to_string()));
}

#[test]
fn a_429_without_any_limit_holds_back_the_key_within_the_kind() {
    let reasons = hold_back(Vec::new(), "busy", "calm");
    let told = "a handler that was told to slow down";
    assert!(reasons.iter().all(|reason| reason == told));
}

#[test]
fn jobs_that_were_let_through_at_the_end_of_a_hold_are_held_by_the_next() {
    let limits = [None, Some(Limit::on_kind("export").by_key().at_once(10))];
    for limit in limits {
        let (mill, _dir) = mill_with(limit);
        let calls = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&calls);
        let handler = move |_: Export| -> JobResult {
            match counted.fetch_add(1, Ordering::SeqCst) {
                0 => Err(rate_limited(Duration::from_millis(200), "429")),
                _ => Err(rate_limited(hours(1), "429 again")),
            }
        };
        let workers = Workers::new(()).on(handler).threads(1);
        let pool = workers.start(&mill).unwrap();
        let jobs: Vec<_> = (0..20)
            .map(|n| mill.enqueue(export("a", n)).unwrap())
            .collect();
        until("the second hold", || calls.load(Ordering::SeqCst) >= 2);
        until("all wait", || {
            jobs.iter().all(|one| mill.why_waiting(one.id()).is_some())
        });
        assert_eq!(calls.load(Ordering::SeqCst), 2);
        assert!(pool.shutdown(PATIENCE).finished_in_time);
    }
}

#[test]
fn jobs_that_a_second_hold_stops_keep_their_places() {
    let (mill, _dir) = mill_with([Limit::on_kind("export").by_key().at_once(10)]);
    let calls = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&calls);
    let handler = move |job: Export, State(done): State<Numbers>| -> JobResult {
        if counted.fetch_add(1, Ordering::SeqCst) < 3 {
            return Err(rate_limited(Duration::from_millis(50), "429"));
        }
        done.lock().unwrap().push(job.number);
        Ok(())
    };
    let done = Numbers::default();
    let workers = Workers::new(Arc::clone(&done)).on(handler).threads(1);
    let pool = workers.start(&mill).unwrap();
    let jobs: Vec<_> = (0..40)
        .map(|n| mill.enqueue(export("a", n)).unwrap())
        .collect();
    for job in jobs {
        job.wait_timeout(PATIENCE).unwrap();
    }
    assert_eq!(*done.lock().unwrap(), Vec::from_iter(0..40));
    assert!(pool.shutdown(PATIENCE).finished_in_time);
}

#[test]
fn a_key_that_was_held_back_goes_on_by_itself_never_early_and_with_the_same_job() {
    for limit in [
        None,
        Some(Limit::on_kind("export").by_key().at_once(1)),
        Some(
            Limit::on_queue("default")
                .rate(1000, Duration::from_secs(1))
                .burst(5),
        ),
    ] {
        let (mill, _dir) = mill_with(limit);
        let hold = Duration::from_millis(20);
        let told: Arc<Mutex<Option<Instant>>> = Arc::default();
        let begun: Arc<Mutex<Vec<u32>>> = Arc::default();
        let begins = Arc::clone(&begun);
        let handler = move |job: Export, cx: Context| -> JobResult {
            assert_eq!(cx.attempt(), 1);
            let mut told = told.lock().unwrap();
            match *told {
                None => {
                    *told = Some(Instant::now());
                    Err(rate_limited(hold, "429"))
                }
                Some(told) => {
                    assert!(told.elapsed() >= hold, "{:?}", told.elapsed());
                    begins.lock().unwrap().push(job.number);
                    Ok(())
                }
            }
        };
        let workers = Workers::new(()).on(handler).threads(1);
        let pool = workers.start(&mill).unwrap();
        let handles: Vec<_> = (0..10)
            .map(|n| mill.enqueue(export("a", n)).unwrap())
            .collect();
        for handle in &handles {
            handle.wait_timeout(PATIENCE).unwrap();
        }
        assert_eq!(begun.lock().unwrap().first(), Some(&0));
        let _ = pool.shutdown(PATIENCE);
    }
}

#[test]
fn a_job_takes_as_much_of_a_rate_as_it_costs() {
    #[derive(Serialize, Deserialize, Job)]
    #[job(kind = "embed", cost = 4)]
    struct Embed;
    let interval = Duration::from_millis(2);
    let limit = Limit::on_kind("embed").rate(1, interval).burst(8);
    let (mill, _dir) = mill_with([limit]);
    let begun: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let begins = Arc::clone(&begun);
    let handler = move |_: Embed| -> JobResult {
        begins.lock().unwrap().push(Instant::now());
        Ok(())
    };
    let pool = Workers::new(())
        .on(handler)
        .threads(2)
        .start(&mill)
        .unwrap();
    let start = Instant::now();
    let mut handles: Vec<_> = (0..5).map(|_| mill.enqueue(Embed).unwrap()).collect();
    // More than the burst: it is let through alone, rather than never.
    handles.push(mill.job(Embed).cost(20).enqueue().unwrap());
    handles.push(mill.enqueue(Embed).unwrap());
    for handle in handles {
        handle.wait_timeout(PATIENCE).unwrap();
    }
    let begun = begun.lock().unwrap();
    // 44 cells before the last one or two begin; 8 of them at once.
    let took = *begun.iter().max().unwrap() - start;
    let least = interval * (5 * 4 + 20 + 4 - 20 - 8);
    assert!(took >= least, "{took:?}");
    let _ = pool.shutdown(PATIENCE);
}
