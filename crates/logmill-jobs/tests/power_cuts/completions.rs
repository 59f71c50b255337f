//! Completions with their results, what follows from them, steps, retries, jobs that are enqueued
//! together, and the order within a key.

use logmill_jobs::{
    Backoff, Context, Job, JobResult, Limit, MillOptions, Order, State, minutes, secs,
};
use serde::{Deserialize, Serialize};

use crate::{World, cut, enqueue, go_on, left, pass, workers};

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "charge", output = u64, backoff = Backoff::fixed(secs(10)))]
struct Charge {
    order: u64,
}

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "ship", queue = "parcels")]
struct Ship {
    order: u64,
}

/// Works in steps, and not at the first attempt.
fn charge(job: Charge, State(world): State<World>, cx: Context) -> JobResult<u64> {
    world.note(format!("charge {}", job.order), cx.id());
    let token: u64 = cx.step("reserve", || Ok(job.order * 10))?;
    if cx.attempt() == 1 && job.order == 1 {
        return Err("the bank is closed".into());
    }
    cx.then(Ship { order: job.order })?;
    Ok(token)
}

fn ship(job: Ship, State(world): State<World>, cx: Context) -> JobResult {
    world.note(format!("ship {}", job.order), cx.id());
    Ok(())
}

#[test]
fn a_completion_and_its_result_and_what_follows_happen_once() {
    cut(|sim| {
        let world = World::default();
        let state = world.clone();
        sim.workers(move || workers(&state).on(charge).on(ship));
        let orders = [1, 2];
        let ids = orders.map(|order| {
            let key = order.to_string();
            enqueue(sim, |mill| mill.job(Charge { order }), &key).0
        });
        pass(sim, minutes(1));
        for _ in 0..2 {
            for (id, order) in ids.iter().zip(orders) {
                let handle = sim.mill().handle::<Charge>(id.clone());
                assert_eq!(handle.try_result().unwrap(), Some(order * 10));
            }
            go_on(sim);
        }
        assert_eq!(world.done(), ["charge 1", "charge 2", "ship 1", "ship 2"]);
        assert_eq!(
            (left(sim, "default"), left(sim, "parcels")),
            ((0, 0, 0), (0, 0, 0))
        );
    });
}

#[test]
fn jobs_that_are_enqueued_together_are_all_there_or_none() {
    cut(|sim| {
        let world = World::default();
        let state = world.clone();
        sim.workers(move || workers(&state).on(charge).on(ship));
        let answer = sim.call_once(|mill| {
            let both = (mill.job(Charge { order: 2 }), mill.job(Ship { order: 7 }));
            mill.enqueue_together(both).map(drop).unwrap();
        });
        go_on(sim);
        pass(sim, minutes(1));
        let done = world.done();
        let all = ["charge 2", "ship 2", "ship 7"];
        assert!(
            done == all || done.is_empty() && answer.is_none(),
            "{done:?}"
        );
    });
}

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "book", queue = "ledger", key = "account", output = u64, backoff = Backoff::fixed(secs(10)))]
struct Book {
    account: u32,
    number: u64,
}

#[test]
fn an_order_within_a_key_and_limits_hold_across_power_cuts() {
    cut(|sim| {
        let world = World::default();
        let book = std::sync::Arc::<parking_lot::Mutex<Vec<(u32, u64)>>>::default();
        let (state, noted) = (world.clone(), book.clone());
        sim.options(|| {
            let limit = Limit::on_queue("ledger").rate(1, secs(5));
            MillOptions::new()
                .limit(limit)
                .order(Order::on_queue("ledger"))
        });
        sim.workers(move || {
            let noted = noted.clone();
            let handler = move |job: Book, State(world): State<World>, cx: Context| {
                world.note(format!("{} of {}", job.number, job.account), cx.id());
                if cx.attempt() == 1 && job.number == 0 {
                    return Err("once more".into());
                }
                let mut noted = noted.lock();
                let entry = (job.account, job.number);
                if !noted.contains(&entry) {
                    noted.push(entry);
                }
                JobResult::Ok(job.number)
            };
            workers(&state).on(handler)
        });
        for number in 0..3 {
            for account in 0..2 {
                let key = format!("{account} {number}");
                enqueue(sim, |mill| mill.job(Book { account, number }), &key);
            }
        }
        // Jobs that a rate has let through begin in time.
        sim.run_for(minutes(2));
        go_on(sim);
        for account in 0..2 {
            let booked = book.lock();
            let of_account = booked.iter().filter(|(of, _)| *of == account);
            let numbers: Vec<_> = of_account.map(|(_, number)| *number).collect();
            assert_eq!(numbers, [0, 1, 2]);
        }
        assert_eq!(world.done().len(), 6);
        assert_eq!(left(sim, "ledger"), (0, 0, 0));
    });
}
