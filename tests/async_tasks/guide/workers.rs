use logmill::{AsyncConsumer, Failure, OwnedJob, Queue};

async fn send_mail(job: &OwnedJob) -> Result<(), Failure> {
    let address = std::str::from_utf8(job.payload()).map_err(Failure::dead_letter)?;
    println!("mail to {address}"); // awaits a mailer, in a real service
    Ok(())
}

async fn work(mut consumer: AsyncConsumer) {
    while let Some(job) = consumer.next().await {
        match send_mail(&job).await {
            Ok(()) => job.ack(),
            Err(failure) => job.fail(failure),
        }
    }
    // The queue is closed.
}

/// Runs up to `at_once` jobs at the same time.
fn start(queue: &Queue, at_once: usize) {
    for _ in 0..at_once {
        tokio::spawn(work(queue.async_consumer()));
    }
}
