//! Keys that share a limit and take turns.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use logmill_jobs::{JobResult, Limit, Mill, State, Workers, hours, rate_limited};

use crate::common::{OnEvent, PATIENCE, until};
use crate::limits::{Export, export, mill_with, open};

/// The tenants whose jobs have begun, in that order.
type Order = Arc<Mutex<Vec<String>>>;

/// Enqueues jobs of tenants, and lets them run once all wait for the limit but the first. Returns whose
/// have begun, without that one.
fn turns_of(mill: &Mill, jobs: &[(&str, u32)], wait_for: usize) -> Vec<String> {
    let order = Order::default();
    let may_go = Arc::new(AtomicU32::new(0));
    let going = Arc::clone(&may_go);
    let handler = move |job: Export, State(order): State<Order>| -> JobResult {
        order.lock().unwrap().push(job.tenant);
        until("it may go", || going.load(Ordering::SeqCst) == 1);
        Ok(())
    };
    let enqueue = |tenant: &str, number| mill.enqueue(export(tenant, number)).unwrap();
    enqueue("first", 0);
    let pool = Workers::new(Arc::clone(&order))
        .on(handler)
        .threads(2)
        .start(mill)
        .unwrap();
    until("one runs", || !order.lock().unwrap().is_empty());
    let numbers = jobs
        .iter()
        .flat_map(|(tenant, number)| (0..*number).map(move |n| (tenant, n)));
    let handles: Vec<_> = numbers
        .map(|(tenant, number)| enqueue(tenant, number))
        .collect();
    for handle in &handles {
        until("it waits", || mill.why_waiting(handle.id()).is_some());
    }
    may_go.store(1, Ordering::SeqCst);
    for handle in &handles[..wait_for] {
        handle.wait_timeout(PATIENCE).unwrap();
    }
    let _ = pool.shutdown(PATIENCE);
    let order = order.lock().unwrap();
    order[1..].to_vec()
}

#[test]
fn tenants_take_turns_however_many_jobs_one_of_them_has() {
    let (mill, _dir) = mill_with([Limit::on_kind("export").at_once(1).in_turn()]);
    let jobs = [("large", 500), ("small", 3), ("smaller", 1)];
    let order = turns_of(&mill, &jobs, 504);
    let expected = [
        "large", "small", "smaller", "large", "small", "large", "small",
    ];
    assert_eq!(order[..7], expected);
    assert!(order[7..].iter().all(|tenant| tenant == "large"));
    assert_eq!(order.len(), 504);
}

#[test]
fn a_tenant_with_a_weight_has_so_many_turns() {
    let limit = Limit::on_kind("export").at_once(1).in_turn();
    let (mill, _dir) = mill_with([limit.weight("gold", 3)]);
    let order = turns_of(&mill, &[("plain", 40), ("gold", 30)], 70);
    for four in order[..40].chunks(4) {
        assert_eq!(
            four.iter().filter(|tenant| *tenant == "gold").count(),
            3,
            "{order:?}"
        );
    }
}

#[test]
fn keys_share_a_rate_in_turn() {
    let rate = Limit::on_queue("default").rate(2_000, Duration::from_secs(1));
    let (mill, _dir) = mill_with([rate.in_turn()]);
    let order = Order::default();
    let handler = |job: Export, State(order): State<Order>| -> JobResult {
        order.lock().unwrap().push(job.tenant);
        Ok(())
    };
    for number in 0..300 {
        mill.enqueue(export("large", number)).unwrap();
    }
    let small: Vec<_> = (0..20)
        .map(|n| mill.enqueue(export("small", n)).unwrap())
        .collect();
    let workers = Workers::new(Arc::clone(&order)).on(handler).threads(1);
    let pool = workers.start(&mill).unwrap();
    for handle in small {
        handle.wait_timeout(PATIENCE).unwrap();
    }
    let before = order
        .lock()
        .unwrap()
        .iter()
        .filter(|tenant| *tenant == "large")
        .count();
    let _ = pool.shutdown(PATIENCE);
    // Some begin while the thread is still reading ahead.
    assert!(
        before < 200,
        "{before} of the large tenant's were before the last of the small one's"
    );
}

#[test]
fn a_tenant_that_is_told_to_slow_down_is_passed_over_by_those_it_takes_turns_with() {
    let (mill, _dir) = mill_with([Limit::on_kind("export").at_once(1).in_turn()]);
    let handler = |job: Export, State(order): State<Order>| -> JobResult {
        order.lock().unwrap().push(job.tenant.clone());
        match job.tenant.as_str() {
            "slow" => Err(rate_limited(hours(1), "429")),
            _ => Ok(()),
        }
    };
    let slow: Vec<_> = (0..20)
        .map(|n| mill.enqueue(export("slow", n)).unwrap())
        .collect();
    let calm: Vec<_> = (0..20)
        .map(|n| mill.enqueue(export("calm", n)).unwrap())
        .collect();
    let order = Order::default();
    let workers = Workers::new(Arc::clone(&order)).on(handler).threads(2);
    let pool = workers.start(&mill).unwrap();
    for handle in calm {
        handle.wait_timeout(PATIENCE).unwrap();
    }
    for handle in slow {
        until("it waits for its tenant", || {
            let why = mill.why_waiting(handle.id());
            why.is_some_and(|why| why == "a handler that was told to slow down")
        });
    }
    let order = order.lock().unwrap();
    assert_eq!(order.iter().filter(|tenant| *tenant == "slow").count(), 1);
    let _ = pool.shutdown(PATIENCE);
}

#[test]
fn turns_are_taken_by_what_a_restart_finds() {
    let limit = Limit::on_kind("export").at_once(1).in_turn();
    let dir = tempfile::tempdir().unwrap();
    {
        let mill = open(&dir, [limit.clone()]);
        for number in 0..100 {
            mill.enqueue(export("before", number)).unwrap();
        }
    }
    let mill = open(&dir, [limit]);
    let order = turns_of(&mill, &[("after", 10)], 10);
    let last = order.iter().rposition(|tenant| tenant == "after").unwrap();
    let before = order[..last].iter().filter(|tenant| *tenant == "before");
    assert!((9..=11).contains(&before.count()), "{order:?}");
}

#[test]
fn a_pool_that_is_too_small_for_turns_says_so() {
    let limit = Limit::on_kind("export").at_once(2);
    let cases = [
        (limit.clone().in_turn(), 2, 1),
        (limit.clone().in_turn(), 3, 0),
        (limit, 1, 0),
        (
            Limit::on_queue("default")
                .rate(1, Duration::from_secs(1))
                .in_turn(),
            1,
            0,
        ),
        (Limit::on_queue("other").at_once(2).in_turn(), 1, 0),
    ];
    for (limit, threads, expected) in cases {
        let (mill, _dir) = mill_with([limit.clone()]);
        let warnings = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&warnings);
        let subscriber = OnEvent(move |metadata: &tracing::Metadata<'_>| {
            let is_warning = *metadata.level() == tracing::Level::WARN;
            counted.fetch_add(u32::from(is_warning), Ordering::SeqCst);
        });
        let pool = tracing::subscriber::with_default(subscriber, || {
            let handler = |_: Export| JobResult::Ok(());
            Workers::new(())
                .on(handler)
                .threads(threads)
                .start(&mill)
                .unwrap()
        });
        assert_eq!(
            warnings.load(Ordering::SeqCst),
            expected,
            "{limit}, {threads}"
        );
        let _ = pool.shutdown(PATIENCE);
    }
}

#[test]
fn a_subscriber_that_panics_at_the_start_of_a_pool_leaves_its_queues_to_the_next() {
    let (mill, _dir) = mill_with([Limit::on_kind("export").at_once(2).in_turn()]);
    let start = || {
        let workers = Workers::new(()).on(|_: Export| JobResult::Ok(()));
        workers.threads(1).start(&mill)
    };
    let panics = OnEvent(|_: &tracing::Metadata<'_>| panic!("in a subscriber"));
    let started = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        tracing::subscriber::with_default(panics, start)
    }));
    assert!(started.is_err());
    let pool = start().unwrap();
    let _ = pool.shutdown(PATIENCE);
}
