//! A view: what another process sees of a queue while its owner works.
//!
//! ```text
//! cargo run --example view
//! ```
//!
//! Prints the jobs and the dead letters of a queue that is in use: as a tool would, from outside of
//! the process that has the queue open, and without disturbing it.

use std::path::Path;
use std::time::{Duration, SystemTime};

use logmill::{EnqueueOptions, Queue, View};

/// All that the tool knows is the path.
fn show(path: &Path) -> anyhow::Result<()> {
    let view = View::open(path)?;
    let stats = view.stats()?;
    println!("{} jobs, {} dead letters:", stats.jobs, stats.dead_letters);
    for job in view.jobs() {
        let job = job?;
        let due = job.due_at();
        let state = match due.and_then(|due| due.duration_since(SystemTime::now()).ok()) {
            _ if job.is_in_handler() => "in a handler".to_owned(),
            Some(left) => format!("due in {} min", left.as_secs().div_ceil(60)),
            None => "waits".to_owned(),
        };
        let payload = String::from_utf8_lossy(job.payload());
        println!("  {:<13} {payload:<10} {state}", job.name().unwrap_or("-"));
    }
    for letter in view.dead_letters() {
        let letter = letter?;
        let payload = String::from_utf8_lossy(letter.payload());
        let (name, reasons) = (letter.name().unwrap_or("-"), letter.reasons());
        println!("  {name:<13} {payload:<10} dead: {}", reasons[0].reason);
    }
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let (queue, _) = Queue::builder(dir.path()).stripes(1).open()?;
    let resize = EnqueueOptions::new().name("resize_image");
    queue.enqueue_with(b"notes.txt", resize)?;
    queue.enqueue_with(b"cat.jpg", resize)?;
    queue.enqueue_with(b"dog.jpg", resize)?;
    let remind = EnqueueOptions::new().name("remind");
    queue.enqueue_with(b"order 7", remind.delay(Duration::from_secs(3600)))?;

    let consumer = queue.consumer();
    consumer.next().expect("a job").dead_letter("not an image");
    let job = consumer.next().expect("a job");
    queue.flush()?; // writes the letter, as the maintenance thread does in a moment
    show(dir.path())?;
    job.ack();
    queue.close()?;
    Ok(())
}
