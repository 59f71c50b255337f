//! The workers: as many tasks as jobs may run at the same time.

use std::path::Path;
use std::time::Duration;

use logmill::{AsyncConsumer, Failure, OwnedJob, Queue};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// The name of the jobs that summarize an upload.
pub(crate) const SUMMARIZE: &str = "summarize/1";

/// Tasks that run jobs, until they are stopped.
pub(crate) struct Pool {
    tasks: JoinSet<()>,
    stop: watch::Sender<bool>,
}

impl Pool {
    pub(crate) fn start(queue: &Queue, tasks: usize) -> Self {
        let (stop, stopped) = watch::channel(false);
        let mut pool = JoinSet::new();
        for _ in 0..tasks {
            pool.spawn(work(queue.async_consumer(), stopped.clone()));
        }
        Self { tasks: pool, stop }
    }

    /// Lets the tasks end after the job that each of them has. Aborts those that take longer than
    /// `grace`, and returns how many they are: their jobs fail, and come again.
    pub(crate) async fn stop(mut self, grace: Duration) -> usize {
        self.stop.send_replace(true);
        let all_ended = async { while self.tasks.join_next().await.is_some() {} };
        let _ = timeout(grace, all_ended).await;
        let left = self.tasks.len();
        self.tasks.shutdown().await;
        left
    }
}

async fn work(mut consumer: AsyncConsumer, mut stopped: watch::Receiver<bool>) {
    loop {
        // A wait that is given up here loses no job: another consumer is woken instead.
        let job = tokio::select! {
            biased;
            _ = stopped.wait_for(|stopped| *stopped) => break,
            job = consumer.next() => job,
        };
        let Some(job) = job else {
            break; // The queue is closed.
        };
        match run(&job).await {
            Ok(()) => job.ack(),
            Err(failure) => job.fail(failure),
        }
    }
}

async fn run(job: &OwnedJob) -> Result<(), Failure> {
    match job.name() {
        Some(SUMMARIZE) => {
            let path = std::str::from_utf8(job.payload()).map_err(Failure::dead_letter)?;
            summarize(Path::new(path)).await
        }
        name => Err(Failure::dead_letter(format!("no handler for {name:?}"))),
    }
}

/// Writes what is in an upload beside it. Running it twice has the same effect as running it once.
async fn summarize(upload: &Path) -> Result<(), Failure> {
    let content = tokio::fs::read(upload).await?;
    // Work for the processor does not belong on the threads that drive the tasks.
    let count = move || {
        let words = content.split(u8::is_ascii_whitespace);
        let words = words.filter(|word| !word.is_empty()).count();
        format!("{} bytes, {words} words\n", content.len())
    };
    let summary = tokio::task::spawn_blocking(count).await?;
    let draft = upload.with_extension("draft");
    tokio::fs::write(&draft, summary).await?;
    tokio::fs::rename(&draft, upload.with_extension("summary")).await?;
    Ok(())
}
