//! Jobs in async tasks: enqueued, awaited until they are durable, and run by tasks, on any runtime.
//!
//! ```text
//! cargo run --features async --example async_tasks
//! ```
//!
//! Prints in which order two worker tasks on one thread run four jobs while they wait for a slow
//! service, and how the tasks end when the queue is closed.

use std::time::Duration;

use logmill::{AsyncConsumer, Durability, EnqueueError, EnqueueOptions, OwnedJob, Queue};
use tokio::time::sleep;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let (queue, _) = Queue::builder(dir.path()).open()?;
    // A consumer for each task.
    let workers = [1, 2].map(|number| tokio::spawn(work(number, queue.async_consumer())));

    // Each of these returns once its job survives a power cut. A thread of the queue flushes, so
    // other tasks go on meanwhile, and what they enqueue by then shares the flush.
    let orders = ["tea", "coffee", "cocoa"].map(|order| enqueue(&queue, order));
    for order in orders {
        println!("enqueued job {}", order.await?);
    }

    // Or enqueue at once, and wait later.
    let (job, ticket) = queue.enqueue_ticketed(b"milk", EnqueueOptions::new())?;
    println!("enqueued job {job}, durable: {}", ticket.is_durable());
    ticket.await?;
    println!("job {job} is durable");

    sleep(Duration::from_millis(500)).await;
    let stats = queue.stats();
    println!("acked {}, retried {}", stats.acked, stats.retried);

    // Ends the workers. It waits for the disk, so it gets a thread of its own.
    tokio::task::spawn_blocking(move || queue.close()).await??;
    for worker in workers {
        worker.await?;
    }
    Ok(())
}

async fn enqueue(queue: &Queue, order: &str) -> Result<logmill::JobId, EnqueueError> {
    let options = EnqueueOptions::new()
        .durability(Durability::Sync)
        .wait(Duration::from_secs(1)); // for room, if the queue is full
    queue.enqueue_async(order.as_bytes(), options).await
}

async fn work(number: u32, mut consumer: AsyncConsumer) {
    while let Some(job) = consumer.next().await {
        // An owned job can be held across an await. Dropped here, it would be retried.
        match brew(&job).await {
            Ok(()) => {
                println!("worker {number}: job {} done", job.id());
                job.ack();
            }
            Err(error) => job.fail(error),
        }
    }
    println!("worker {number}: the queue is closed");
}

async fn brew(job: &OwnedJob) -> Result<(), std::str::Utf8Error> {
    let order = std::str::from_utf8(job.payload())?;
    println!("brewing {order}");
    sleep(Duration::from_millis(50)).await;
    Ok(())
}
