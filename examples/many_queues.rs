//! Many queues in one directory, under one lock and with shared background threads, and workers
//! that serve several of them.
//!
//! ```text
//! cargo run --example many_queues
//! ```
//!
//! Mails get three of four deliveries while images wait, too. Alarms come before both.

use std::time::Duration;

use logmill::{Failure, Job, QueueSet, Queues};

fn main() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let queues = Queues::open(dir.path())?;
    let mails = queues.queue("mails")?;
    // Options are given where a queue is opened first. This is the smallest queue there is.
    let small = |name| queues.builder(name).stripes(1).segment_size(16 * 1024);
    let (images, _) = small("images").open()?;
    let (alarms, _) = small("alarms").open()?;
    println!("queues: {}", queues.names()?.join(", "));

    for number in 1..=6 {
        mails.enqueue(format!("mail {number}").as_bytes())?;
        images.enqueue(format!("image {number}").as_bytes())?;
    }

    let show = |job: &Job<'_>| {
        let payload = String::from_utf8_lossy(job.payload());
        println!("{:>7}: {payload}", job.queue_name());
    };
    let consumer = QueueSet::by_weight(&[(&mails, 3), (&images, 1)]).consumer();
    for _ in 0..4 {
        if let Some(job) = consumer.next() {
            show(&job);
            job.ack();
        }
    }
    drop(consumer);

    alarms.enqueue(b"disk is full")?;
    let by_priority = QueueSet::by_priority(&[&alarms, &mails, &images]);
    let workers = by_priority.workers(1).run(move |job: &Job<'_>| {
        show(job);
        Ok::<(), Failure>(())
    })?;
    let all = [&alarms, &mails, &images];
    while all.iter().any(|queue| queue.stats().depth() > 0) {
        std::thread::sleep(Duration::from_millis(5));
    }
    workers.shutdown(Duration::from_secs(5));
    Ok(())
}
