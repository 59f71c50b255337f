//! Looking at jobs: a list in pages, and one job by its id.
//!
//! ```text
//! cargo run --example jobs
//! ```
//!
//! What an admin page of a service would show of the queue that it has open. Workers go on
//! meanwhile, and nobody waits.

use std::time::Duration;

use logmill::{EnqueueOptions, JobCursor, JobState, Queue, ViewedJob};

const PAGE: usize = 3;

/// Prints a page of the list; returns the cursor of the next one, if there may be one.
fn show_page(queue: &Queue, after: JobCursor) -> anyhow::Result<Option<JobCursor>> {
    let page = queue.jobs_after(after).take(PAGE);
    let page = page.collect::<Result<Vec<_>, _>>()?;
    for job in &page {
        let payload = String::from_utf8_lossy(job.payload());
        println!("  {}  {payload:<8} {:?}", job.id(), job.state());
    }
    let is_full = page.len() == PAGE;
    Ok(page.last().filter(|_| is_full).map(ViewedJob::cursor))
}

fn main() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let (queue, _) = Queue::builder(dir.path()).stripes(1).open()?;
    let first = queue.enqueue(b"cat.jpg")?;
    for picture in ["dog.jpg", "elk.jpg", "fox.jpg", "gnu.jpg", "hen.jpg"] {
        queue.enqueue(picture.as_bytes())?;
    }
    let tomorrow = EnqueueOptions::new().delay(Duration::from_secs(24 * 3600));
    queue.enqueue_with(b"report", tomorrow)?;

    let consumer = queue.consumer();
    let job = consumer.next().expect("a job");
    let mut cursor = Some(JobCursor::START);
    let mut number = 0;
    while let Some(after) = cursor {
        number += 1;
        println!("page {number}:");
        cursor = show_page(&queue, after)?;
    }

    // One job, for somebody who has its id.
    let found = queue.get(first)?.expect("a handler has it");
    assert_eq!(found.state(), JobState::InFlight);
    println!("{first}: {:?}", found.state());
    job.ack();
    assert!(queue.get(first)?.is_none());
    println!("{first}: done");
    queue.close()?;
    Ok(())
}
