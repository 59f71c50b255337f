//! The HTTP side: takes an upload, enqueues its job, answers.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use logmill::{Durability, EnqueueOptions, Queue};
use tokio::io::AsyncWriteExt;

use crate::work;

const MAX_UPLOAD: usize = 64 * 1024 * 1024;
/// For how long a request waits for room in a queue that is full.
const PATIENCE: Duration = Duration::from_secs(1);

struct Service {
    queue: Queue,
    inbox: PathBuf,
    uploads: AtomicU64,
}

pub(crate) fn service(queue: Queue, inbox: PathBuf) -> Router {
    let service = Arc::new(Service {
        queue,
        inbox,
        uploads: AtomicU64::new(0),
    });
    Router::new()
        .route("/uploads", post(upload))
        .route("/stats", get(stats))
        .layer(DefaultBodyLimit::max(MAX_UPLOAD))
        .with_state(service)
}

async fn upload(State(service): State<Arc<Service>>, body: Bytes) -> Response {
    match accept(&service, &body).await {
        Ok(job) => (StatusCode::ACCEPTED, format!("job {job}\n")).into_response(),
        Err(error) if is_full(&error) => {
            let later = [(header::RETRY_AFTER, "5")];
            (StatusCode::SERVICE_UNAVAILABLE, later, format!("{error}\n")).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}\n")).into_response(),
    }
}

/// Large data belongs in files. The job names the file, and is enqueued once it is durable.
async fn accept(service: &Service, body: &[u8]) -> anyhow::Result<logmill::JobId> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
    let number = service.uploads.fetch_add(1, Ordering::Relaxed);
    let name = format!("{now}-{number}");
    let path = service.inbox.join(&name);
    let mut file = tokio::fs::File::create_new(&path).await?;
    file.write_all(body).await?;
    file.sync_all().await?;
    // Its name, too.
    tokio::fs::File::open(&service.inbox)
        .await?
        .sync_all()
        .await?;

    let path = path.to_string_lossy();
    let options = EnqueueOptions::new()
        .name(work::SUMMARIZE)
        .durability(Durability::Sync)
        .wait(PATIENCE);
    let enqueued = service.queue.enqueue_async(path.as_bytes(), options).await;
    if enqueued.is_err() {
        tokio::fs::remove_file(path.as_ref()).await?;
    }
    Ok(enqueued?)
}

fn is_full(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<logmill::EnqueueError>();
    error.is_some_and(logmill::EnqueueError::is_full)
}

async fn stats(State(service): State<Arc<Service>>) -> String {
    // Statistics may read from the disk.
    let queue = service.queue.clone();
    match tokio::task::spawn_blocking(move || queue.stats()).await {
        Ok(stats) => format!(
            "waiting {}\nat work {}\ndone {}\ndead {}\n",
            stats.ready + stats.delayed,
            stats.in_flight,
            stats.acked,
            stats.dead
        ),
        Err(error) => format!("{error}\n"),
    }
}
