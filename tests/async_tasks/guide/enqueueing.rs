use logmill::{Durability, EnqueueError, EnqueueOptions, FlushError, JobId, Queue};
use std::time::Duration;

/// Resolves once the order survives a power cut.
async fn confirm_order(queue: &Queue, order: &str) -> Result<JobId, EnqueueError> {
    let options = EnqueueOptions::new()
        .durability(Durability::Sync)
        .wait(Duration::from_secs(2)); // for room, if the queue is full
    queue.enqueue_async(order.as_bytes(), options).await
}

/// Enqueues at once, and learns later that all of it is on the disk.
async fn import(queue: &Queue, rows: &[Vec<u8>]) -> Result<(), Box<dyn std::error::Error>> {
    let mut tickets = Vec::new();
    for row in rows {
        let (_job, ticket) = queue.enqueue_ticketed(row, EnqueueOptions::new())?;
        tickets.push(ticket);
    }
    for ticket in tickets {
        let flushed: Result<(), FlushError> = ticket.await;
        flushed?;
    }
    Ok(())
}
