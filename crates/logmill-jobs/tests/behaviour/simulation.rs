//! The simulation of crashes: it finds what a crash at the wrong moment breaks, passes what none does,
//! and is the same each time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use logmill_jobs::testing::{CrashPoint, Outside, Sim, simulate, simulate_one};
use logmill_jobs::{
    Backoff, Context, EnqueueError, Inputs, Job, JobResult, Limit, MillOptions, State, Status,
    Unique, WaitError, Workers, discard, hours, minutes, retry_in, secs,
};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "charge", unique = "order", output = u64)]
struct Charge {
    order: u64,
}

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "ship", queue = "parcels", output = u64)]
struct Ship {
    order: u64,
}

/// What is outside of the process.
#[derive(Clone, Default)]
struct World {
    /// Ships that ran, as the ids of their jobs.
    shipped: Arc<Mutex<Vec<String>>>,
    /// What happened, in its order.
    trace: Arc<Mutex<Vec<String>>>,
}

impl World {
    fn note(&self, what: impl Into<String>) {
        self.trace.lock().unwrap().push(what.into());
    }

    /// How many different jobs were shipped: what was enqueued once counts once, however often it ran.
    fn shipments(&self) -> usize {
        let mut shipped = self.shipped.lock().unwrap().clone();
        shipped.sort();
        shipped.dedup();
        shipped.len()
    }
}

fn ship(_: Ship, State(world): State<World>, cx: Context) -> JobResult<u64> {
    world.note(format!("ship {}", cx.attempt()));
    world.shipped.lock().unwrap().push(cx.id().to_string());
    Ok(1)
}

/// The planted mistake: what follows is enqueued before the job itself is done.
fn charge_and_enqueue(job: Charge, cx: Context) -> JobResult<u64> {
    cx.mill().enqueue(Ship { order: job.order })?;
    Ok(1)
}

/// The right form.
fn charge_and_then(job: Charge, cx: Context) -> JobResult<u64> {
    cx.then(Ship { order: job.order })?;
    Ok(1)
}

fn order(sim: &mut Sim, charge: fn(Charge, Context) -> JobResult<u64>) {
    let world = World::default();
    let state = world.clone();
    sim.workers(move || Workers::new(state.clone()).on(charge).on(ship));
    let enqueued = sim.call(|mill| mill.enqueue(Charge { order: 1 }).map(drop));
    enqueued.unwrap();
    sim.run_until_idle();
    assert_eq!(world.shipments(), 1, "parcels of one order");
}

/// The message of a simulation that fails.
fn failure_of(simulation: impl FnOnce()) -> String {
    let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(simulation));
    let panic = failed.expect_err("the mistake is found");
    panic.downcast_ref::<String>().cloned().unwrap_or_default()
}

#[test]
fn a_follow_up_that_is_enqueued_before_the_completion_is_found_and_can_be_repeated() {
    let message = failure_of(|| _ = simulate(7, |sim| order(sim, charge_and_enqueue)));
    assert!(message.contains("parcels of one order"), "{message}");
    assert!(
        message.contains("after call 2, which enqueues a job \"ship\""),
        "{message}"
    );
    let repeat = "repeat this run with: simulate_one(7, &[CrashPoint::After(2)], flow)";
    assert!(message.contains(repeat), "{message}");
    let point = [CrashPoint::After(2)];
    let repeated = failure_of(|| simulate_one(7, &point, |sim| order(sim, charge_and_enqueue)));
    assert_eq!(repeated, message);
}

#[test]
fn a_follow_up_that_is_enqueued_with_the_completion_survives_each_crash() {
    let simulated = simulate(7, |sim| order(sim, charge_and_then));
    // The enqueue, two completions; each before and after; and pairs.
    assert_eq!(simulated.calls, 3);
    assert_eq!(simulated.runs, 1 + 6 + 6);
    simulate_one(7, &[CrashPoint::After(2)], |sim| {
        order(sim, charge_and_then)
    });
}

#[test]
fn a_caller_that_repeats_an_enqueue_without_a_key_is_found() {
    let message = failure_of(|| {
        _ = simulate(1, |sim| {
            let world = World::default();
            let state = world.clone();
            sim.workers(move || Workers::new(state.clone()).on(ship));
            sim.call(|mill| mill.enqueue(Ship { order: 1 }).map(drop))
                .unwrap();
            sim.run_until_idle();
            assert_eq!(world.shipments(), 1, "parcels of one order");
        })
    });
    assert!(message.contains("&[CrashPoint::After(1)]"), "{message}");
}

#[test]
fn a_caller_that_gives_up_knows_that_it_does_not_know() {
    let (lost, kept) = (AtomicU64::new(0), AtomicU64::new(0));
    simulate(1, |sim| {
        let world = World::default();
        let state = world.clone();
        sim.workers(move || Workers::new(state.clone()).on(ship));
        let answer = sim.call_once(|mill| mill.enqueue(Ship { order: 1 }).map(drop));
        sim.run_until_idle();
        match (answer, world.shipments()) {
            (Some(Ok(())), 1) => {}
            (None, 0) => _ = lost.fetch_add(1, Ordering::Relaxed),
            (None, 1) => _ = kept.fetch_add(1, Ordering::Relaxed),
            (answer, shipments) => panic!("{answer:?}, and {shipments} shipments"),
        }
    });
    assert!(lost.into_inner() > 0 && kept.into_inner() > 0);
}

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "pay", max_retries = 3, backoff = Backoff::exponential(secs(10), minutes(5)))]
struct Pay {
    order: u64,
}

/// Fails at first, works in steps, and gives up in the end on every third order.
fn pay(job: Pay, State(world): State<World>, cx: Context) -> JobResult {
    world.note(format!("pay {}, attempt {}", job.order, cx.attempt()));
    if job.order.is_multiple_of(3) {
        return Err(discard("no such order"));
    }
    let token: u64 = cx.step("reserve", || {
        world.note(format!("reserve {}", job.order));
        Ok(job.order * 10)
    })?;
    if cx.attempt() < 3 {
        return Err("the bank is closed".into());
    }
    world.note(format!("paid {token}"));
    cx.then(Ship { order: job.order })?;
    Ok(())
}

/// Retries, steps, dead jobs, limits, delays and a cancellation.
fn shop(sim: &mut Sim) -> Vec<String> {
    let world = World::default();
    let state = world.clone();
    sim.options(|| {
        let limit = Limit::on_queue("parcels").rate(1, secs(30));
        MillOptions::new().limit(limit)
    });
    sim.workers(move || Workers::new(state.clone()).on(pay).on(ship));
    for number in 1..=3 {
        let enqueued = sim.call(|mill| {
            let key = Unique::by(number.to_string()).for_at_least(hours(24));
            mill.job(Pay { order: number })
                .unique(key)
                .enqueue()
                .map(drop)
        });
        enqueued.unwrap();
    }
    let late = sim.call(|mill| {
        let key = Unique::by("late").for_at_least(hours(24));
        let job = mill.job(Pay { order: 4 }).unique(key).after(hours(2));
        Ok::<_, EnqueueError>(job.enqueue()?.id().clone())
    });
    let late = late.unwrap();
    sim.run_for(hours(1));
    sim.call(|mill| mill.cancel(&late, "not wanted").map(drop))
        .unwrap();
    sim.advance(hours(2));
    sim.run_until_idle();
    assert_eq!(world.shipments(), 2);
    let mill = sim.mill();
    // A crash between the cancellation and its record leaves none.
    let cancelled = mill.status(&late).unwrap();
    assert!(
        matches!(cancelled, Status::Cancelled { .. } | Status::Unknown),
        "{cancelled:?}"
    );
    let queue = mill.queue("default").unwrap();
    assert_eq!(queue.dead_jobs().unwrap().len(), 1);
    let left = queue.stats().unwrap();
    assert_eq!((left.ready, left.delayed, left.running), (0, 0, 0));
    let trace = world.trace.lock().unwrap().clone();
    let reserved = trace
        .iter()
        .filter(|what| what.starts_with("reserve"))
        .count();
    // Each crash may have one step run again.
    assert!((2..=4).contains(&reserved), "{trace:?}");
    trace
}

#[test]
fn a_flow_with_retries_steps_limits_and_dead_jobs_survives_each_crash() {
    let simulated = simulate(11, |sim| _ = shop(sim));
    assert!(simulated.calls > 20, "{simulated:?}");
}

#[test]
fn a_run_is_the_same_each_time_and_depends_on_the_seed() {
    let traced = |seed, crashes: &[CrashPoint]| {
        let traces = Mutex::new(Vec::new());
        simulate_one(seed, crashes, |sim| {
            let trace = shop(sim);
            traces.lock().unwrap().push(trace);
        });
        traces.into_inner().unwrap()
    };
    let points = [CrashPoint::Before(9), CrashPoint::After(17)];
    let one = traced(5, &points);
    for _ in 0..5 {
        assert_eq!(traced(5, &points), one);
    }
    let others = (6..16).map(|seed| traced(seed, &[]));
    let others: std::collections::HashSet<_> = others.collect();
    assert!(others.len() > 1);
}

/// Catches whatever comes, and goes on.
fn stubborn(_: Charge, State(world): State<World>, cx: Context) -> JobResult<u64> {
    for order in 0..3 {
        let enqueue = || cx.mill().enqueue(Ship { order }).map(drop);
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(enqueue));
        world.note(format!("{}", matches!(caught, Ok(Ok(())))));
    }
    Err(retry_in(secs(1), "never done"))
}

#[test]
fn a_handler_that_catches_the_crash_stores_nothing_more() {
    simulate_one(1, &[CrashPoint::After(2)], |sim| {
        let world = World::default();
        let state = world.clone();
        sim.workers(move || Workers::new(state.clone()).on(stubborn).on(ship));
        sim.call(|mill| mill.enqueue(Charge { order: 1 }).map(drop))
            .unwrap();
        sim.run_until_idle();
        // One before the crash, three after it.
        assert_eq!(world.shipments(), 4);
        let trace = world.trace.lock().unwrap();
        assert_eq!(trace[..3], ["false"; 3].map(str::to_owned), "{trace:?}");
    });
}

/// A guard that enqueues when it is dropped, also by the unwinding of a crash.
struct AtLast(logmill_jobs::Mill);

impl Drop for AtLast {
    fn drop(&mut self) {
        let _ = self.0.enqueue(Ship { order: 9 });
    }
}

#[test]
fn a_drop_that_enqueues_while_a_crash_unwinds_is_refused_and_aborts_nothing() {
    let handler = |_: Charge, cx: Context| {
        let _guard = AtLast(cx.mill().clone());
        cx.mill().enqueue(Ship { order: 1 })?;
        JobResult::Ok(1)
    };
    simulate_one(1, &[CrashPoint::Before(2)], move |sim| {
        let world = World::default();
        let state = world.clone();
        sim.workers(move || Workers::new(state.clone()).on(handler).on(ship));
        sim.call(|mill| mill.enqueue(Charge { order: 1 }).map(drop))
            .unwrap();
        sim.run_until_idle();
        assert_eq!(world.shipments(), 2);
    });
}

#[test]
fn a_flow_that_panics_without_a_crash_is_told_so() {
    let message = failure_of(|| _ = simulate(1, |_| panic!("wrong from the start")));
    assert!(message.contains("also without a crash"), "{message}");
    assert!(message.contains("wrong from the start"), "{message}");
}

/// Tells the bank and the post, which are to agree in the end.
fn tell_both(job: Charge, State((world, outside)): State<(World, Outside)>) -> JobResult<u64> {
    world.note("bank");
    outside.moment("the bank knows");
    world.note("post");
    Ok(job.order)
}

#[test]
fn a_crash_between_two_services_is_tried_where_they_mark_it() {
    let message = failure_of(|| {
        _ = simulate(1, |sim| {
            let (world, outside) = (World::default(), sim.outside());
            let state = (world.clone(), outside);
            sim.workers(move || Workers::new(state.clone()).on(tell_both));
            sim.call(|mill| mill.enqueue(Charge { order: 1 }).map(drop))
                .unwrap();
            sim.run_until_idle();
            let told = |who: &str| {
                let trace = world.trace.lock().unwrap();
                trace.iter().filter(|one| *one == who).count()
            };
            assert_eq!(told("bank"), told("post"));
        })
    });
    assert!(message.contains("call 2, the bank knows"), "{message}");
}

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "part", output = u64)]
struct Part {
    number: u64,
}

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "whole", inputs = Vec<Part>, output = u64)]
struct Whole;

fn whole(_: Whole, Inputs(parts): Inputs<Whole>) -> JobResult<u64> {
    Ok(parts.into_iter().sum())
}

#[test]
fn a_flow_that_was_enqueued_ends_with_its_results_after_each_crash() {
    let simulated = simulate(3, |sim| {
        sim.workers(|| {
            let part = |job: Part| JobResult::Ok(job.number);
            Workers::new(()).on(part).on(whole)
        });
        let flows = Mutex::new(Vec::new());
        // A call that gets no answer may have stored its flow.
        let enqueued = sim.call_once(|mill| {
            let mut flow = mill.flow("numbers");
            let parts = [1, 2, 4].map(|number| flow.add(Part { number }));
            let whole = flow.join(Whole, &parts);
            flows.lock().unwrap().push((flow.id(), whole));
            flow.enqueue().map(drop)
        });
        // A job that was there at two crashes backs off.
        sim.run_for(minutes(10));
        for (id, whole) in flows.into_inner().unwrap() {
            let ended = sim.mill().flow_handle(id).result_timeout(&whole, secs(0));
            match ended {
                Ok(sum) => assert_eq!(sum, 7),
                Err(WaitError::NotKept) => assert!(enqueued.is_none()),
                Err(error) => panic!("{error}"),
            }
        }
        let left = sim.mill().queue("default").unwrap().stats().unwrap();
        assert_eq!((left.ready, left.running, left.dead), (0, 0, 0));
    });
    // The flow, and its four ends.
    assert!(simulated.calls >= 5, "{simulated:?}");
}
