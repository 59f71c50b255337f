//! Figures: counts, histograms, the load of a queue.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use logmill_jobs::{JobResult, Workers, cancel, discard, hours, snooze};

use crate::common::{Double, Note, PATIENCE, mill, note, until, wait_for_end};

#[test]
fn how_jobs_end_and_how_long_they_take_is_counted_by_kind() {
    let (mill, _dir) = mill();
    let calls = AtomicU32::new(0);
    let handler = move |job: Note| -> JobResult {
        match job.text.as_str() {
            "slow" => std::thread::sleep(Duration::from_millis(20)),
            "fail" => Err("no")?,
            "discard" => return Err(discard("never")),
            "cancel" => return Err(cancel("nobody cares")),
            "snooze" if calls.fetch_add(1, Ordering::SeqCst) == 0 => {
                return Err(snooze(Duration::ZERO));
            }
            _ => {}
        }
        Ok(())
    };
    let doubles = |job: Double| JobResult::Ok(2 * job.number);
    let workers = Workers::new(()).on(handler).on(doubles).threads(2);
    let pool = workers.start(&mill).unwrap();
    for text in ["slow", "fail", "discard", "cancel", "snooze", "ok"] {
        let handle = mill.enqueue(note(text)).unwrap();
        let _ = handle.wait_timeout(PATIENCE);
    }
    let late = mill.job(note("ok")).after(Duration::from_millis(5));
    late.enqueue().unwrap().wait_timeout(PATIENCE).unwrap();
    let expiring = mill.job(note("late")).expires_after(Duration::ZERO);
    let _ = expiring.enqueue().unwrap().wait_timeout(PATIENCE);
    let waiting = mill.job(note("later")).after(hours(1)).enqueue().unwrap();
    waiting.cancel("not needed").unwrap();
    mill.enqueue(Double { number: 1 }).unwrap().wait().unwrap();

    let check = |stats: &logmill_jobs::KindStats| {
        assert_eq!((stats.done, stats.failed, stats.snoozed), (4, 4, 1));
        assert_eq!((stats.dead, stats.cancelled, stats.expired), (2, 2, 1));
        assert!(stats.ran.max >= Duration::from_millis(20), "{stats:?}");
        assert!(stats.ran.p50 <= stats.ran.p90 && stats.ran.p90 <= stats.ran.p99);
        assert!(stats.ran.p99 <= stats.ran.max);
        assert_eq!(stats.late.count, 1);
        assert!(stats.waited.count > stats.late.count);
    };
    check(&mill.kind_stats("note"));
    let by_kind = mill.stats_by_kind();
    let kinds: Vec<_> = by_kind.iter().map(|stats| &*stats.kind).collect();
    assert_eq!(kinds, ["double", "note"]);
    assert_eq!(by_kind[0].done, 1);
    let unknown = mill.kind_stats("unknown");
    assert_eq!(
        (&*unknown.kind, unknown.done, unknown.ran.count),
        ("unknown", 0, 0)
    );

    // The threads that counted are gone, and what they counted is not.
    assert!(pool.shutdown(PATIENCE).finished_in_time);
    check(&mill.kind_stats("note"));
}

#[test]
fn a_job_that_waits_for_a_worker_has_waited_and_one_that_was_delayed_only_since_it_was_due() {
    let (mill, _dir) = mill();
    let waits = Duration::from_millis(60);
    mill.job(note("delayed")).after(waits).enqueue().unwrap();
    std::thread::sleep(2 * waits);
    let handler = |_: Note| JobResult::Ok(());
    let pool = Workers::new(())
        .on(handler)
        .threads(1)
        .start(&mill)
        .unwrap();
    until("it is done", || mill.kind_stats("note").done == 1);
    let stats = mill.kind_stats("note");
    // Due for some 60 ms before there was a worker, and enqueued 120 ms before.
    assert!(stats.waited.max >= waits / 2, "{stats:?}");
    assert_eq!(stats.waited, stats.late);
    let _ = pool.shutdown(PATIENCE);
}

#[test]
fn the_load_of_a_queue_says_how_jobs_come_and_go() {
    let (mill, _dir) = mill();
    let queue = mill.queue("notes").unwrap();
    let load = queue.load().unwrap();
    assert_eq!((load.arrivals, load.ends, load.ready), (0.0, 0.0, 0));
    assert_eq!(load.time_to_drain, Some(Duration::ZERO));
    let handles = mill.enqueue_all((0..100).map(|_| note("x"))).unwrap();
    let load = queue.load().unwrap();
    assert!(load.arrivals > 0.0 && load.ends == 0.0 && load.over > Duration::ZERO);
    assert_eq!((load.ready, load.time_to_drain), (100, None));
    assert!(load.oldest_ready.is_some());
    let pool = Workers::new(())
        .on(|_: Note| JobResult::Ok(()))
        .start(&mill)
        .unwrap();
    handles.iter().for_each(wait_for_end);
    let load = queue.load().unwrap();
    assert!(load.ends > 0.0, "{load:?}");
    assert_eq!((load.ready, load.time_to_drain), (0, Some(Duration::ZERO)));
    let _ = pool.shutdown(PATIENCE);
}
