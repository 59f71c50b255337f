//! A job's completion, the jobs that follow from it and a key, all or nothing: an order is charged
//! once, and its two follow-ups are enqueued exactly once, whatever dies in between.
//!
//! Run with `cargo run --example transactions`.

use std::time::Duration;

use logmill::{Failure, Job, Keep, Queues, Transaction};

const DAY: Duration = Duration::from_secs(86_400);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let queues = Queues::open(dir.path().join("shop"))?;
    let orders = queues.queue("orders")?;
    let mails = queues.queue("mails")?;
    let parcels = queues.queue("parcels")?;

    // The shop's web handler may be called twice for one order: the key makes it one job.
    for _ in 0..2 {
        let mut transaction = queues.transaction();
        transaction
            .insert_new(b"order/17", b"placed", Keep::For(DAY))
            .enqueue(&orders, b"17");
        match transaction.commit() {
            Ok(committed) => println!(
                "order 17 is job {}",
                committed.jobs[0].expect("there is room")
            ),
            Err(error) => println!("order 17 is not placed again: {error}"),
        }
    }

    let handler = {
        let (queues, mails, parcels) = (queues.clone(), mails.clone(), parcels.clone());
        move |job: &Job<'_>| -> Result<Transaction, Failure> {
            let order = std::str::from_utf8(job.payload()).map_err(Failure::dead_letter)?;
            println!("charging order {order}");
            let mut next = queues.transaction();
            next.enqueue(&mails, format!("order {order} is on its way").as_bytes())
                .enqueue(&parcels, order.as_bytes())
                .put(
                    format!("order/{order}").as_bytes(),
                    b"charged",
                    Keep::For(DAY),
                );
            // The job is done, the mail and the parcel are there, and the key says so: all or nothing.
            Ok(next)
        }
    };
    let workers = orders.workers(1).run(handler)?;
    while parcels.stats().depth() == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    workers.shutdown(Duration::from_secs(5));

    println!("orders left: {}", orders.stats().depth());
    println!(
        "mails: {}, parcels: {}",
        mails.stats().depth(),
        parcels.stats().depth()
    );
    let state = queues.keys().get(b"order/17").expect("a value");
    println!("order/17: {}", String::from_utf8_lossy(state.as_bytes()));
    Ok(())
}
