//! An HTTP service that takes uploads, answers at once, and works on them in async tasks.
//!
//! ```text
//! cargo run -p uploads_async                                  # listens on 127.0.0.1:8080
//! curl --data-binary @README.md http://127.0.0.1:8080/uploads # 202, and the number of the job
//! curl http://127.0.0.1:8080/stats
//! ```
//!
//! The answer is given once the upload and its job are on stable storage. Ctrl-c or SIGTERM ends the
//! service: requests under way are answered, jobs that run get ten seconds, and the others wait for
//! the next start. Arguments: the address to listen on, and the folder for uploads, summaries and
//! the queue (`target/uploads_async`).

mod http;
mod work;

use std::env;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use logmill::{Queue, RetryPolicy};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use work::Pool;

/// Jobs that run at the same time.
const TASKS: usize = 4;
/// Uploads that may wait; further ones are answered with 503.
const MAX_WAITING: u64 = 10_000;
/// For how long jobs may go on after the service was told to end.
const GRACE: Duration = Duration::from_secs(10);

#[tokio::main]
async fn main() -> Result<()> {
    let mut args = env::args().skip(1);
    let address = args.next().unwrap_or("127.0.0.1:8080".to_owned());
    let folder = args.next().unwrap_or("target/uploads_async".to_owned());
    let listener = TcpListener::bind(&address)
        .await
        .with_context(|| format!("cannot listen on {address}"))?;
    println!("listening on http://{}", listener.local_addr()?);
    serve(listener, Path::new(&folder), until_told_to_end()?).await
}

/// Serves uploads until `end`, and shuts down.
async fn serve(
    listener: TcpListener,
    folder: &Path,
    end: impl Future<Output = ()> + Send + 'static,
) -> Result<()> {
    let inbox = folder.join("inbox");
    tokio::fs::create_dir_all(&inbox).await?;
    let queue = open(folder.join("queue")).await?;
    let pool = Pool::start(&queue, TASKS);

    axum::serve(listener, http::service(queue.clone(), inbox))
        .with_graceful_shutdown(end)
        .await?;

    println!("no more requests; jobs that run get {GRACE:?}");
    let left = pool.stop(GRACE).await;
    if left > 0 {
        println!("{left} tasks did not end in time; their jobs come again at the next start");
    }
    println!("{} uploads wait for the next start", queue.stats().depth());
    // It waits for the disk, so it gets a thread of its own.
    tokio::task::spawn_blocking(move || queue.close()).await??;
    Ok(())
}

/// Opens the queue on a thread that may wait for the disk.
async fn open(path: PathBuf) -> Result<Queue> {
    let open = move || {
        Queue::builder(path)
            .max_depth(MAX_WAITING)
            .retry(RetryPolicy::default().max_attempts(3))
            .wait_for_lock(GRACE)
            .open()
    };
    let (queue, report) = tokio::task::spawn_blocking(open).await??;
    println!("{} uploads left from an earlier run", report.jobs);
    Ok(queue)
}

/// Resolves at ctrl-c or SIGTERM.
fn until_told_to_end() -> Result<impl Future<Output = ()> + Send + 'static> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::sync::oneshot;

    use super::*;

    async fn ask(address: &str, request: String) -> String {
        let mut stream = TcpStream::connect(address).await.expect("connected");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("answered");
        answer
    }

    #[tokio::test]
    async fn an_upload_is_accepted_worked_on_and_survives_a_restart() {
        let folder = tempfile::tempdir().expect("a folder");
        for start in 1..=2 {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let address = listener.local_addr().expect("bound").to_string();
            let (end, ended) = oneshot::channel::<()>();
            let path = folder.path().to_path_buf();
            let service = tokio::spawn(async move {
                let end = async move { _ = ended.await };
                serve(listener, &path, end).await
            });
            let upload = "one two three";
            let answer = ask(
                &address,
                format!(
                    "POST /uploads HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\
                     Content-Length: {}\r\n\r\n{upload}",
                    upload.len()
                ),
            )
            .await;
            assert!(answer.starts_with("HTTP/1.1 202"), "{answer}");
            let stats = "GET /stats HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n";
            while !ask(&address, stats.to_owned()).await.contains("done 1\n") {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            end.send(()).expect("still running");
            service.await.expect("no panic").expect("ended well");
            let done = std::fs::read_dir(folder.path().join("inbox")).expect("an inbox");
            let names = done.map(|entry| entry.expect("an entry").file_name());
            let summaries = names.filter(|name| name.to_string_lossy().ends_with(".summary"));
            assert_eq!(summaries.count(), start);
        }
    }
}
