//! Jobs of several kinds that are enqueued in one step: all or none.

use std::sync::{Arc, Mutex};

use logmill_jobs::{
    EnqueueError, EventKind, Job, JobResult, Mill, MillOptions, Priority, State, Status, Workers,
    hours, secs,
};
use serde::{Deserialize, Serialize};

use crate::common::PATIENCE;

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "charge", queue = "money")]
struct Charge {
    order: u64,
    note: String,
}

fn charge(note: &str) -> Charge {
    Charge {
        order: 1,
        note: note.to_owned(),
    }
}

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "receipt", key = "customer")]
struct Receipt {
    customer: String,
}

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "rebuild", unique = "shop")]
struct Rebuild {
    shop: u64,
}

fn receipt(customer: &str) -> Receipt {
    Receipt {
        customer: customer.to_owned(),
    }
}

fn ready(mill: &Mill, queue: &str) -> u64 {
    let stats = mill.queue(queue).unwrap().stats().unwrap();
    stats.ready + stats.delayed
}

#[test]
fn jobs_of_several_kinds_and_queues_keep_their_options_and_run() {
    let dir = tempfile::tempdir().unwrap();
    let mill = Mill::open(dir.path().join("jobs")).unwrap();
    let events = mill.events(16);
    let (charge, receipts, (late,)) = mill
        .enqueue_together((
            mill.job(charge("")).priority(Priority::Highest),
            vec![mill.job(receipt("Ada")), mill.job(receipt("Bob")).sync()],
            (mill
                .job(receipt("Cid"))
                .after(hours(1))
                .expires_after(hours(2)),),
        ))
        .unwrap();
    assert_eq!(charge.id().queue(), "money");
    assert!(matches!(late.status(), Ok(Status::Waiting { .. })));
    let told = std::iter::from_fn(|| events.recv_timeout(PATIENCE)).take(4);
    assert!(
        told.into_iter()
            .all(|event| event.what == EventKind::Enqueued)
    );

    let done = Arc::new(Mutex::new(Vec::new()));
    let pool = Workers::new(Arc::clone(&done))
        .on(
            |job: Charge, State(done): State<Arc<Mutex<Vec<String>>>>| -> JobResult {
                done.lock().unwrap().push(job.order.to_string());
                Ok(())
            },
        )
        .on(
            |job: Receipt, State(done): State<Arc<Mutex<Vec<String>>>>| -> JobResult {
                done.lock().unwrap().push(job.customer);
                Ok(())
            },
        )
        .threads(1)
        .start(&mill)
        .unwrap();
    charge.wait_timeout(PATIENCE).unwrap();
    for receipt in &receipts {
        receipt.wait_timeout(PATIENCE).unwrap();
    }
    let mut done = done.lock().unwrap().clone();
    done.sort();
    assert_eq!(done, ["1", "Ada", "Bob"]);
    let _ = pool.shutdown(secs(10));
}

#[test]
fn if_one_cannot_be_enqueued_none_is() {
    let dir = tempfile::tempdir().unwrap();
    let refuse = |job: &mut logmill_jobs::Enqueueing<'_>| match job.kind() {
        "charge" if job.payload().len() < 100 => Err("no money".to_owned()),
        _ => Ok(()),
    };
    let options = MillOptions::new().on_enqueue(refuse);
    let mill = Mill::builder(dir.path().join("jobs"))
        .options(options)
        .open()
        .unwrap();
    let both = (mill.job(receipt("Ada")), mill.job(charge("")));
    let refused = mill.enqueue_together(both);
    assert!(
        matches!(refused, Err(EnqueueError::Refused(_))),
        "{refused:?}"
    );
    let unique = (mill.job(receipt("Ada")), mill.job(Rebuild { shop: 1 }));
    let refused = mill.enqueue_together(unique);
    assert!(
        matches!(refused, Err(EnqueueError::Invalid(_))),
        "{refused:?}"
    );
    let large: Vec<_> = (0..3)
        .map(|_| mill.job(charge(&"x".repeat(1_000_000))))
        .collect();
    let refused = mill.enqueue_together(large);
    assert!(
        matches!(refused, Err(EnqueueError::Invalid(_))),
        "{refused:?}"
    );
    let other_dir = tempfile::tempdir().unwrap();
    let other = Mill::open(other_dir.path().join("jobs")).unwrap();
    let refused = mill.enqueue_together((mill.job(receipt("Ada")), other.job(receipt("Ada"))));
    assert!(
        matches!(refused, Err(EnqueueError::Invalid(_))),
        "{refused:?}"
    );
    assert_eq!((ready(&mill, "default"), ready(&mill, "money")), (0, 0));

    let large = vec![mill.job(charge(&"x".repeat(1_000_000)))];
    assert_eq!(mill.enqueue_together(large).unwrap().len(), 1);
    assert!(
        mill.enqueue_together(Vec::<logmill_jobs::Enqueue<'_, Receipt>>::new())
            .unwrap()
            .is_empty()
    );
    assert_eq!(ready(&mill, "money"), 1);
}

#[cfg(feature = "testing")]
#[test]
fn a_crash_leaves_all_of_a_step_or_none() {
    use logmill_jobs::testing::simulate;

    let simulated = simulate(3, |sim| {
        sim.call(|mill| {
            let both = (mill.job(receipt("Ada")), mill.job(charge("")));
            mill.enqueue_together(both).map(drop).unwrap();
        });
        sim.call(|mill| {
            let (receipts, charges) = (ready(mill, "default"), ready(mill, "money"));
            assert_eq!(receipts, charges);
        });
    });
    assert!(simulated.runs >= 3, "{simulated:?}");
}
