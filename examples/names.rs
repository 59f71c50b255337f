//! Names and headers: jobs of several kinds in one queue, with what a handler needs to know about
//! them beside the payload.
//!
//! ```text
//! cargo run --example names
//! ```
//!
//! Prints each job with the tenant that it belongs to. One has a name that no handler knows: it
//! becomes a dead letter, which has the name and the headers, too.

use std::thread::sleep;
use std::time::Duration;

use logmill::{EnqueueOptions, Failure, Job, Queue};

fn handler(job: &Job<'_>) -> Result<(), Failure> {
    let tenant = job.headers().get("tenant").unwrap_or_default();
    let tenant = String::from_utf8_lossy(tenant);
    let payload = String::from_utf8_lossy(job.payload());
    match job.name() {
        Some("resize_image") => println!("{tenant}: resizing {payload}"),
        Some("send_mail") => println!("{tenant}: mail to {payload}"),
        name => return Err(Failure::dead_letter(format!("no handler for {name:?}"))),
    }
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let (queue, _) = Queue::builder(dir.path()).open()?;
    let workers = queue.workers(1).run(handler)?;

    let headers: [(&str, &[u8]); 2] = [("tenant", b"acme"), ("trace", b"4bf92f3577b34da6")];
    let of_acme = EnqueueOptions::new().headers(&headers);
    queue.enqueue_with(b"cat.jpg", of_acme.name("resize_image"))?;
    queue.enqueue_with(b"ada@example.com", of_acme.name("send_mail"))?;
    queue.enqueue_with(b"cat.jpg", of_acme.name("turn_into_stone"))?;

    while queue.stats().depth() > 0 {
        sleep(Duration::from_millis(5));
    }
    for letter in queue.dead_letters().iter() {
        println!(
            "dead: {:?} with {:?}, because {}",
            letter.name(),
            letter.headers(),
            letter.reasons()[0].reason
        );
    }
    workers.shutdown(Duration::from_secs(5));
    queue.close()?;
    Ok(())
}
