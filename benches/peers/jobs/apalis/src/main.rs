//! apalis-sqlite as producer and worker of the scenario `jobs`, in one process, as an embedded queue
//! is used: the hook that tells the worker of new rows works within a process.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use apalis::prelude::*;
use apalis_sqlite::{Config, SqliteStorage};
use futures::StreamExt as _;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// Jobs of a call with `bulk`.
const BULK: u64 = 1000;
/// How often the worker looks for jobs beside the hook, as in the crate's README.
const LOOK: Duration = Duration::from_millis(500);
/// Bytes of a job as JSON.
const SIZE: usize = 64;
/// Bytes that the worker appends for each job.
const RECORD: u64 = 24;

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Touch {
    number: u64,
    at: u64,
    text: String,
}

/// How jobs are enqueued.
enum How {
    OneByOne,
    Bulk,
    /// So many a second.
    Rate(u64),
}

type Storage = SqliteStorage<Touch>;

/// `logmill-peers-apalis DATABASE BATCH N FIRST [bulk | RATE]` enqueues N jobs from the number FIRST
/// on, and prints when it began and when the last call had returned.
///
/// BATCH is `-`, or how many jobs the worker takes at a time. The worker appends a record for each job
/// to the file `DONE`: its number, when it was enqueued and when it was begun. With a worker, the jobs
/// below FIRST are done before the clock starts, and the program runs until its input ends.
#[tokio::main]
async fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [database, batch, count, first, how @ ..] = &args[..] else {
        anyhow::bail!("DATABASE BATCH N FIRST [bulk | RATE]");
    };
    let (count, first) = (count.parse()?, first.parse()?);
    let how = match how.first().map(String::as_str) {
        None => How::OneByOne,
        Some("bulk") => How::Bulk,
        Some(rate) => How::Rate(rate.parse()?),
    };
    File::create(database).context("creating the database")?;
    let (pool, listener) = SqliteStorage::connect_with_callback(database)?;
    SqliteStorage::setup(&pool).await?;
    let mut config = Config::default().queue("touch");
    if batch != "-" {
        config = config.batch_size(batch.parse()?);
    }
    let mut storage = Storage::new(&pool).with_config(config.clone());
    if batch != "-" {
        let path = std::env::var("DONE").context("DONE is not set")?;
        let done = Arc::new(OpenOptions::new().append(true).open(&path)?);
        let strategy = Strategy::new()
            .stream(listener.ready_chunks(config.batch_size))
            .interval(LOOK);
        let worker = WorkerBuilder::new("worker")
            .backend(storage.clone().poll_with_strategy(strategy))
            .data(done)
            .build(touch);
        tokio::spawn(worker.run());
        produce(&mut storage, first, 0, &How::OneByOne).await?;
        while std::fs::metadata(&path)?.len() < first * RECORD {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    let (started, ended) = produce(&mut storage, count, first, &how).await?;
    let pending = "SELECT COUNT(*) FROM Jobs WHERE status = 'Pending'";
    let waiting: i64 = sqlx::query_scalar(pending).fetch_one(&pool).await?;
    println!("{{\"started\":{started},\"ended\":{ended},\"waiting\":{waiting}}}");
    if batch != "-" {
        tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await??;
    }
    // The worker is not asked to end.
    std::process::exit(0)
}

async fn produce(storage: &mut Storage, count: u64, first: u64, how: &How) -> Result<(u64, u64)> {
    let bare = Touch {
        number: 1_000_000,
        at: now(),
        text: String::new(),
    };
    let text = "x".repeat(SIZE.saturating_sub(serde_json::to_string(&bare)?.len()));
    let job = |sent: u64| Touch {
        number: first + sent,
        at: now(),
        text: text.clone(),
    };
    let started = now();
    match how {
        How::OneByOne => {
            for sent in 0..count {
                storage.push(job(sent)).await?;
            }
        }
        How::Bulk => {
            for sent in (0..count).step_by(BULK as usize) {
                let batch = (sent..count.min(sent + BULK)).map(job).collect();
                storage.push_bulk(batch).await?;
            }
        }
        How::Rate(rate) => {
            for sent in 0..count {
                let due = started + sent * 1_000_000_000 / rate;
                tokio::time::sleep(Duration::from_nanos(due.saturating_sub(now()))).await;
                storage.push(job(sent)).await?;
            }
        }
    }
    Ok((started, now()))
}

async fn touch(job: Touch, done: Data<Arc<File>>) -> Result<(), BoxDynError> {
    let mut record = [0; RECORD as usize];
    record[..8].copy_from_slice(&job.number.to_le_bytes());
    record[8..16].copy_from_slice(&job.at.to_le_bytes());
    record[16..].copy_from_slice(&now().to_le_bytes());
    (&**done).write_all(&record)?;
    Ok(())
}

/// Nanoseconds of the monotonic clock, which all processes share.
fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
