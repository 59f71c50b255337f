use logmill::{AsyncConsumer, OwnedJob};
use tokio::sync::watch;

/// The next job, unless the tasks are to stop.
async fn next(consumer: &mut AsyncConsumer, stop: &mut watch::Receiver<bool>) -> Option<OwnedJob> {
    tokio::select! {
        _ = stop.wait_for(|stop| *stop) => None,
        job = consumer.next() => job,
    }
}
