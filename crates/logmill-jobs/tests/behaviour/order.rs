//! Strict order per key: one at a time, oldest first, through failures, restarts and operators.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use logmill_jobs::{
    Context, Job, JobHandle, JobResult, Limit, Mill, MillOptions, Order, Pool, Priority, State,
    Unique, WaitError, Workers, discard, hours, rate_limited, retry_in, snooze,
};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::common::{PATIENCE, until, wait_for_end};

#[derive(Clone, Serialize, Deserialize, Job)]
#[job(kind = "apply", queue = "ledger", key = "account", max_retries = 100, backoff = logmill_jobs::Backoff::fixed(Duration::ZERO))]
struct Apply {
    account: u32,
    number: u32,
}

fn apply(account: u32, number: u32) -> Apply {
    Apply { account, number }
}

/// What was done, by account, and what runs.
#[derive(Clone, Default)]
struct Book(Arc<Mutex<HashMap<u32, Account>>>);

#[derive(Default)]
struct Account {
    is_busy: bool,
    done: Vec<u32>,
}

impl Book {
    fn begin(&self, job: &Apply) {
        let mut book = self.0.lock().unwrap();
        let is_running = &mut book.entry(job.account).or_default().is_busy;
        assert!(
            !std::mem::replace(is_running, true),
            "two of a key at a time"
        );
    }

    fn end(&self, job: &Apply, is_done: bool) {
        let mut book = self.0.lock().unwrap();
        let account = book.get_mut(&job.account).unwrap();
        account.is_busy = false;
        if is_done {
            account.done.push(job.number);
        }
    }

    fn done(&self, account: u32) -> Vec<u32> {
        let book = self.0.lock().unwrap();
        book.get(&account)
            .map_or_else(Vec::new, |account| account.done.clone())
    }
}

fn open(dir: &TempDir, orders: impl IntoIterator<Item = Order>) -> Mill {
    let options = orders
        .into_iter()
        .fold(MillOptions::new(), MillOptions::order);
    let builder = Mill::builder(dir.path().join("jobs"));
    builder.options(options).open().unwrap()
}

fn ledger() -> (Mill, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let mill = open(&dir, [Order::on_queue("ledger")]);
    (mill, dir)
}

/// Runs each job by `handle`, and books it.
fn start(
    mill: &Mill,
    book: &Book,
    handle: impl Fn(&Apply, &Context) -> JobResult + Clone + Send + Sync + 'static,
) -> Pool {
    let handler = move |job: Apply, State(book): State<Book>, cx: Context| -> JobResult {
        book.begin(&job);
        std::thread::yield_now();
        let called = catch_unwind(AssertUnwindSafe(|| handle(&job, &cx)));
        book.end(&job, matches!(called, Ok(Ok(()))));
        called.unwrap_or_else(|panic| resume_unwind(panic))
    };
    let workers = Workers::new(book.clone()).on(handler).threads(6);
    workers.start(mill).unwrap()
}

fn wait_for_all(handles: &[JobHandle<Apply>]) {
    for handle in handles {
        if let Err(error) = handle.wait_timeout(PATIENCE) {
            let why = handle.id().to_string();
            panic!("{why}: {error}");
        }
    }
}

#[test]
fn jobs_of_a_key_run_one_at_a_time_in_the_order_of_their_enqueue() {
    let (mill, _dir) = ledger();
    let book = Book::default();
    // Failures, snoozes, told to slow down: nothing changes the order.
    let pool = start(&mill, &book, |job, cx| {
        match (job.number % 7, cx.attempt()) {
            (1, 1) => Err("failed")?,
            (2, 1) => panic!("a bug"),
            (3, _) if cx.enqueued_at().elapsed().unwrap() < Duration::from_millis(3) => {
                Err(snooze(Duration::from_millis(3)))
            }
            (4, _) if cx.enqueued_at().elapsed().unwrap() < Duration::from_millis(3) => {
                Err(rate_limited(Duration::from_millis(1), "slow down"))
            }
            _ => Ok(()),
        }
    });
    // Each account's next number is enqueued by whatever thread comes first, so that the order is one
    // of several producers.
    let next: Vec<Mutex<u32>> = (0..4).map(|_| Mutex::new(0)).collect();
    let handles = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for thread in 0..4_u32 {
            let (mill, next, handles) = (&mill, &next, &handles);
            scope.spawn(move || {
                for round in 0..200 {
                    let account = (thread + round) % 4;
                    let mut number = next[account as usize].lock().unwrap();
                    let job = mill.job(apply(account, *number));
                    let level = Priority::ALL[(round % 5) as usize];
                    let handle = job.priority(level).enqueue().unwrap();
                    *number += 1;
                    drop(number);
                    handles.lock().unwrap().push(handle);
                }
            });
        }
    });
    wait_for_all(&handles.into_inner().unwrap());
    for account in 0..4 {
        let all: Vec<u32> = (0..200).collect();
        assert_eq!(book.done(account), all);
    }
    assert!(mill.blocked_keys().is_empty());
    let _ = pool.shutdown(PATIENCE);
}

#[test]
fn a_failed_job_blocks_its_key_through_its_backoff_and_no_other_key() {
    let (mill, _dir) = ledger();
    let book = Book::default();
    let pool = start(&mill, &book, |job, _| match (job.account, job.number) {
        (1, 0) => Err(retry_in(hours(1), "the bank is closed")),
        _ => Ok(()),
    });
    let handles: Vec<_> = (0..3).map(|n| mill.enqueue(apply(1, n)).unwrap()).collect();
    let other = mill.enqueue(apply(2, 0)).unwrap();
    other.wait_timeout(PATIENCE).unwrap();
    until("the key is blocked and the others are held", || {
        mill.why_waiting(handles[1].id()).is_some()
            && mill.why_waiting(handles[2].id()).is_some()
            && mill.blocked_keys().len() == 1
    });
    let blocked = mill.blocked_keys().remove(0);
    assert_eq!((&*blocked.key, &blocked.head), ("[1]", handles[0].id()));
    assert_eq!(
        (blocked.is_dead, &*blocked.reason, blocked.behind),
        (false, "the bank is closed", 2)
    );
    let why = mill.why_waiting(handles[2].id()).unwrap();
    let expected = format!("the order of the queue \"ledger\", behind {}", blocked.head);
    assert_eq!(why, expected);
    assert!(book.done(1).is_empty());

    assert!(mill.unblock(&blocked).unwrap());
    wait_for_all(&handles[1..]);
    assert_eq!(book.done(1), [1, 2]);
    assert!(!mill.unblock(&blocked).unwrap());
    assert!(mill.blocked_keys().is_empty());
    let _ = pool.shutdown(PATIENCE);
}

/// A mill in which the first of three jobs of a key has died.
fn with_a_dead_head(
    healed: &Arc<AtomicBool>,
) -> (Mill, TempDir, Pool, Book, Vec<JobHandle<Apply>>) {
    let (mill, dir) = ledger();
    let book = Book::default();
    let pool = start_healing(&mill, &book, healed);
    let handles: Vec<_> = (0..3).map(|n| mill.enqueue(apply(1, n)).unwrap()).collect();
    let died = handles[0].wait_timeout(PATIENCE).unwrap_err();
    assert!(matches!(died, WaitError::Dead(_)), "{died}");
    until("the others are held", || {
        mill.why_waiting(handles[1].id()).is_some() && mill.why_waiting(handles[2].id()).is_some()
    });
    (mill, dir, pool, book, handles)
}

fn start_healing(mill: &Mill, book: &Book, healed: &Arc<AtomicBool>) -> Pool {
    let healed = Arc::clone(healed);
    start(mill, book, move |job, _| {
        match (job.number, healed.load(Ordering::SeqCst)) {
            (0, false) => Err(discard("no such account")),
            _ => Ok(()),
        }
    })
}

#[test]
fn a_dead_job_blocks_its_key_until_it_is_replayed_and_goes_first_then() {
    let healed = Arc::default();
    let (mill, dir, pool, book, handles) = with_a_dead_head(&healed);
    let blocked = mill.blocked_keys().remove(0);
    assert_eq!((blocked.is_dead, blocked.behind), (true, 2));
    assert_eq!(blocked.reason, "no such account");
    let _ = pool.shutdown(PATIENCE);
    let ids: Vec<_> = handles.iter().map(|handle| handle.id().clone()).collect();
    drop(handles);
    mill.close().unwrap();

    // Also after a restart.
    let mill = open(&dir, [Order::on_queue("ledger")]);
    let pool = start_healing(&mill, &book, &healed);
    let handle = |at: usize| mill.handle::<Apply>(ids[at].clone());
    let other = mill.enqueue(apply(2, 1)).unwrap();
    other.wait_timeout(PATIENCE).unwrap();
    until("the others are held", || {
        mill.why_waiting(&ids[1]).is_some() && mill.why_waiting(&ids[2]).is_some()
    });
    assert_eq!(mill.blocked_keys()[0].head, ids[0]);
    assert_eq!(mill.blocked_keys()[0].reason, "no such account");
    assert!(book.done(1).is_empty());

    healed.store(true, Ordering::SeqCst);
    let queue = mill.queue("ledger").unwrap();
    let dead = queue.dead_jobs().unwrap().remove(0);
    queue.replay(&dead).unwrap().unwrap();
    wait_for_end(&handle(1));
    wait_for_end(&handle(2));
    assert_eq!(book.done(1), [0, 1, 2]);
    assert!(mill.blocked_keys().is_empty());
    let _ = pool.shutdown(PATIENCE);
}

#[test]
fn a_dead_job_that_several_operators_replay_at_once_goes_on_blocking_its_key() {
    let healed = Arc::default();
    let (mill, _dir, pool, book, handles) = with_a_dead_head(&healed);
    let queue = mill.queue("ledger").unwrap();
    let next_dead = || {
        until("the first has died again", || {
            !queue.dead_jobs().unwrap().is_empty() || !book.done(1).is_empty()
        });
        queue.dead_jobs().unwrap().pop()
    };
    for _ in 0..100 {
        let Some(dead) = next_dead() else { break };
        // It dies again at once, and has another letter, before the last of them has replayed this one.
        std::thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| queue.replay(&dead).unwrap());
            }
        });
    }
    assert!(book.done(1).is_empty(), "{:?}", book.done(1));
    healed.store(true, Ordering::SeqCst);
    // Unless the last attempt comes after that.
    if let Some(dead) = next_dead() {
        queue.replay(&dead).unwrap();
    }
    wait_for_end(&handles[1]);
    wait_for_end(&handles[2]);
    assert_eq!(book.done(1), [0, 1, 2]);
    let _ = pool.shutdown(PATIENCE);
}

#[test]
fn a_dead_job_that_is_purged_or_skipped_blocks_its_key_no_longer() {
    let (mill, _dir, pool, book, handles) = with_a_dead_head(&Arc::default());
    let queue = mill.queue("ledger").unwrap();
    let dead = queue.dead_jobs().unwrap().remove(0);
    assert!(queue.purge(&dead).unwrap());
    wait_for_all(&handles[1..]);
    assert_eq!(book.done(1), [1, 2]);
    let _ = pool.shutdown(PATIENCE);

    let healed = Arc::default();
    let (mill, dir, pool, book, handles) = with_a_dead_head(&healed);
    let blocked = mill.blocked_keys().remove(0);
    assert!(mill.unblock(&blocked).unwrap());
    wait_for_all(&handles[1..]);
    assert!(mill.blocked_keys().is_empty());
    let _ = pool.shutdown(PATIENCE);
    drop(handles);
    mill.close().unwrap();

    // It is skipped after a restart as well, is still dead, and can be replayed.
    let mill = open(&dir, [Order::on_queue("ledger")]);
    assert!(mill.blocked_keys().is_empty());
    let pool = start_healing(&mill, &book, &healed);
    mill.enqueue(apply(1, 3))
        .unwrap()
        .wait_timeout(PATIENCE)
        .unwrap();
    assert_eq!(book.done(1), [1, 2, 3]);
    healed.store(true, Ordering::SeqCst);
    let queue = mill.queue("ledger").unwrap();
    let dead = queue.dead_jobs().unwrap().remove(0);
    let id = queue.replay(&dead).unwrap().unwrap();
    wait_for_end(&mill.handle::<Apply>(id));
    assert_eq!(book.done(1), [1, 2, 3, 0]);
    let _ = pool.shutdown(PATIENCE);
}

#[test]
fn a_job_that_is_cancelled_or_expires_blocks_nothing() {
    let (mill, _dir) = ledger();
    let book = Book::default();
    let pool = start(&mill, &book, |_, _| Ok(()));
    let later = |number| {
        mill.job(apply(1, number))
            .after(hours(1))
            .enqueue()
            .unwrap()
    };
    let first = later(0);
    let second = mill.enqueue(apply(1, 1)).unwrap();
    let third = mill.enqueue(apply(1, 2)).unwrap();
    until("those behind it are held", || {
        mill.why_waiting(second.id()).is_some() && mill.why_waiting(third.id()).is_some()
    });
    second.cancel("not needed").unwrap();
    let cancelled = second.wait_timeout(PATIENCE);
    assert!(matches!(cancelled, Err(WaitError::Cancelled(_))));
    first.cancel("not needed").unwrap();
    third.wait_timeout(PATIENCE).unwrap();
    assert_eq!(book.done(1), [2]);

    let short = mill.job(apply(1, 3)).expires_after(Duration::ZERO);
    let expired = short.enqueue().unwrap().wait_timeout(PATIENCE);
    assert!(matches!(expired, Err(WaitError::Expired)));
    mill.enqueue(apply(1, 4))
        .unwrap()
        .wait_timeout(PATIENCE)
        .unwrap();
    assert_eq!(book.done(1), [2, 4]);
    let _ = pool.shutdown(PATIENCE);
}

#[test]
fn every_way_to_enqueue_has_its_place_in_the_order() {
    #[derive(Serialize, Deserialize, Job)]
    #[job(kind = "open_account", queue = "ledger", key = "account")]
    struct OpenAccount {
        account: u32,
    }
    let (mill, _dir) = ledger();
    let book = Book::default();
    let apply_it = |job: Apply, State(book): State<Book>| -> JobResult {
        book.begin(&job);
        book.end(&job, true);
        Ok(())
    };
    let open_it = |job: OpenAccount, cx: Context| -> JobResult {
        // Behind all that were enqueued before it is done.
        cx.then(apply(job.account, 8))?;
        Ok(())
    };
    let mut handles = mill.enqueue_all((0..3).map(|n| apply(1, n))).unwrap();
    let unique = |n| mill.job(apply(1, n)).unique(Unique::by(n.to_string()));
    handles.push(unique(3).enqueue().unwrap());
    let opened = mill.enqueue(OpenAccount { account: 1 }).unwrap();
    handles.extend((4..8).map(|n| mill.enqueue(apply(1, n)).unwrap()));
    let workers = Workers::new(book.clone()).on(apply_it).on(open_it);
    let pool = workers.threads(4).start(&mill).unwrap();
    opened.wait_timeout(PATIENCE).unwrap();
    wait_for_all(&handles);
    until("the one that followed is done", || book.done(1).len() == 9);
    assert_eq!(book.done(1), (0..9).collect::<Vec<_>>());
    // Jobs that could not be enqueued leave no gap that others wait for.
    let huge = mill
        .job(apply(1, 9))
        .queue("ledger")
        .key("x".repeat(1 << 25));
    huge.enqueue().unwrap_err();
    mill.job(apply(1, 10))
        .enqueue()
        .unwrap()
        .wait_timeout(PATIENCE)
        .unwrap();
    let _ = pool.shutdown(PATIENCE);
}

#[test]
fn jobs_from_before_there_was_an_order_come_first_in_their_order() {
    let dir = tempfile::tempdir().unwrap();
    let mill = open(&dir, []);
    // The engine notes times to a few milliseconds.
    let apart = || std::thread::sleep(Duration::from_millis(15));
    for number in 0..20 {
        // Each thread has its own part of the log, whose numbers are not those of time.
        std::thread::scope(|scope| {
            scope.spawn(|| mill.enqueue(apply(1, number)).unwrap());
        });
        apart();
    }
    mill.close().unwrap();
    let mill = open(&dir, [Order::on_kind("apply")]);
    let book = Book::default();
    let last = mill.enqueue(apply(1, 20)).unwrap();
    let pool = start(&mill, &book, |_, _| Ok(()));
    last.wait_timeout(PATIENCE).unwrap();
    assert_eq!(book.done(1), (0..=20).collect::<Vec<_>>());
    let _ = pool.shutdown(PATIENCE);
}

/// BullMQ and others: a limiter, a retry and one big tenant break the order of jobs.
#[test]
fn limits_and_retries_keep_the_order_of_a_key_and_a_big_key_holds_up_no_small_one() {
    let dir = tempfile::tempdir().unwrap();
    let options = MillOptions::new()
        .order(Order::on_queue("ledger"))
        .limit(
            Limit::on_queue("ledger")
                .by_key()
                .rate(5000, Duration::from_secs(1)),
        )
        .limit(Limit::on_kind("apply").at_once(3));
    let builder = Mill::builder(dir.path().join("jobs"));
    let mill = builder.options(options).open().unwrap();
    let book = Book::default();
    let failures = Arc::new(AtomicU32::new(0));
    let failed = Arc::clone(&failures);
    let leave = Arc::new(AtomicBool::new(false));
    let left = Arc::clone(&leave);
    let pool = start(&mill, &book, move |job, _| {
        if job.account == 0 && job.number == 0 {
            until("the small keys are done", || left.load(Ordering::SeqCst));
        }
        match failed.fetch_add(1, Ordering::SeqCst) % 5 {
            0 => Err("again")?,
            _ => Ok(()),
        }
    });
    let mut big: Vec<_> = (0..300)
        .map(|n| mill.enqueue(apply(0, n)).unwrap())
        .collect();
    let small: Vec<_> = (0..40)
        .map(|n| mill.enqueue(apply(1 + n % 4, n)).unwrap())
        .collect();
    // While the first of the big key runs, and hundreds wait behind it.
    wait_for_all(&small);
    assert!(book.done(0).is_empty());
    leave.store(true, Ordering::SeqCst);
    big.extend((300..310).map(|n| mill.enqueue(apply(0, n)).unwrap()));
    wait_for_all(&big);
    assert_eq!(book.done(0), (0..310).collect::<Vec<_>>());
    for account in 1..5 {
        let expected: Vec<u32> = (0..40).filter(|n| 1 + n % 4 == account).collect();
        assert_eq!(book.done(account), expected);
    }
    let _ = pool.shutdown(PATIENCE);
}

#[test]
fn a_job_that_is_not_the_first_any_more_keeps_no_place_at_a_limit() {
    let dir = tempfile::tempdir().unwrap();
    let options = MillOptions::new()
        .order(Order::on_queue("ledger"))
        .limit(Limit::on_kind("apply").at_once(1));
    let builder = Mill::builder(dir.path().join("jobs"));
    let mill = builder.options(options).open().unwrap();
    let (book, leave, healed) = (Book::default(), Arc::default(), Arc::default());
    let (left, heals): (Arc<AtomicBool>, Arc<AtomicBool>) =
        (Arc::clone(&leave), Arc::clone(&healed));
    let pool = start(&mill, &book, move |job, _| {
        if job.account == 2 {
            until("it may leave", || left.load(Ordering::SeqCst));
        }
        match job.number == 0 && !heals.load(Ordering::SeqCst) {
            true => Err(discard("no such account")),
            false => Ok(()),
        }
    });
    let dead = mill.enqueue(apply(1, 0)).unwrap();
    dead.wait_timeout(PATIENCE).unwrap_err();
    assert!(mill.unblock(&mill.blocked_keys()[0]).unwrap());
    healed.store(true, Ordering::SeqCst);
    let other = mill.enqueue(apply(2, 1)).unwrap();
    until("it runs", || {
        matches!(other.status(), Ok(logmill_jobs::Status::Running { .. }))
    });
    let second = mill.enqueue(apply(1, 1)).unwrap();
    let is_limited = |id| {
        mill.why_waiting(id)
            .is_some_and(|why| why.contains("limit"))
    };
    until("it waits for a place", || is_limited(second.id()));
    // The one before it comes back, and waits for a place behind it.
    let queue = mill.queue("ledger").unwrap();
    let letter = queue.dead_jobs().unwrap().remove(0);
    let first = queue.replay(&letter).unwrap().unwrap();
    until("it waits for a place", || is_limited(&first));
    leave.store(true, Ordering::SeqCst);
    second.wait_timeout(PATIENCE).unwrap();
    assert_eq!(book.done(1), [0, 1]);
    let _ = pool.shutdown(PATIENCE);
}

/// Has changes of an account follow.
#[derive(Serialize, Deserialize, Job)]
#[job(kind = "split")]
struct Split {
    account: u32,
}

#[test]
fn jobs_that_follow_from_one_without_an_order_are_in_order_and_block_their_key() {
    let (mill, _dir) = ledger();
    let split = |job: Split, cx: Context| -> JobResult {
        for number in 0..2 {
            cx.then(apply(job.account, number))?;
        }
        Ok(())
    };
    let workers = Workers::new(())
        .on(|job: Apply| -> JobResult {
            match job.number {
                0 => Err(discard("told to die")),
                _ => Ok(()),
            }
        })
        .on(split);
    let pool = workers.threads(2).start(&mill).unwrap();
    mill.enqueue(Split { account: 7 }).unwrap();
    let blocks = || {
        mill.blocked_keys()
            .first()
            .is_some_and(|one| one.is_dead && one.behind == 1)
    };
    until("the first blocks its key", blocks);
    let _ = pool.shutdown(PATIENCE);
}
