//! persistent-queue: a queue for one consumer on an embedded database, sled or redb.
//!
//! sled 0.34.7 can stop for ever: a push has the lock of the log's segments and waits for a thread of
//! sled's pool, while all of those wait for the lock. Then nothing else of sled in the process goes on
//! either. Therefore each of its turns has a new process and a new directory, and is given up after a
//! minute. Starting the process and opening the database are not timed.

use std::hint::black_box;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use persistent_queue::{Builder, Consumer, Durability, Producer, RedbStore, SledStore, Store};
use tempfile::TempDir;

use super::payload;
use crate::contender::Jobs;
use crate::threads::{self, Others};

/// sled buffers what it is given and writes it every 500 ms, by default.
pub const SLED: &str = "kill -9 loses up to 500 ms (Durability::None)";
/// redb publishes a commit to the file only with the next one that is flushed, and there is none.
pub const REDB: &str = "kill -9 loses everything since the open (Durability::None)";
pub const SYNC: &str = "each step survives a power cut (Durability::Sync)";

/// A turn is made to take half a second.
const PATIENCE: Duration = Duration::from_secs(60);

/// The ends of a queue.
struct Open<S: Store> {
    producer: Producer<S>,
    consumer: Consumer<S>,
}

impl<S: Store> Open<S> {
    fn new(store: S, durability: Durability) -> Result<Self> {
        // Without a bound, as the others: a producer that waits for room would not notice that the
        // consumer has failed.
        let builder = Builder::new(store).capacity(usize::MAX);
        let (producer, consumer) = builder.durability(durability).open()?;
        Ok(Self { producer, consumer })
    }

    /// Pushes, reserves and acks each item. A counter in memory tells the consumer whether there is
    /// anything to reserve, so that a consumer without items costs the database nothing.
    fn end_to_end(&self, payload: &[u8], jobs: u64) -> Result<Duration> {
        let pushed = AtomicU64::new(0);
        let wait_for = |item: u64, others: &Others<'_>| -> Result<()> {
            while pushed.load(Ordering::Acquire) <= item {
                others.check()?;
                thread::yield_now();
            }
            Ok(())
        };
        threads::timed(
            1,
            |_| {
                for _ in 0..jobs {
                    self.producer.push(black_box(payload))?;
                    pushed.fetch_add(1, Ordering::Release);
                }
                Ok(())
            },
            |_, others| {
                for item in 0..jobs {
                    wait_for(item, others)?;
                    let reserved = self.consumer.reserve()?;
                    let reserved = reserved.ok_or_else(|| anyhow!("an item is missing"))?;
                    black_box(reserved[payload.len() - 1]);
                    reserved.ack()?;
                }
                Ok(())
            },
        )
    }
}

pub fn redb_end_to_end(dir: TempDir, size: usize, durability: Durability) -> Result<Jobs> {
    let open = Open::new(RedbStore::open(dir.path().join("queue"))?, durability)?;
    let payload = payload(size);
    Ok(Box::new(move |jobs| {
        // Removed after the database is closed.
        let _ = &dir;
        open.end_to_end(&payload, jobs)
    }))
}

/// A turn on sled, for the child.
#[derive(clap::Args)]
pub struct Turn {
    #[arg(long)]
    dir: PathBuf,
    #[arg(long)]
    jobs: u64,
    /// Bytes of a payload
    #[arg(long)]
    payload: usize,
    /// Flush each step
    #[arg(long)]
    flush: bool,
}

pub type Args = Turn;

/// Runs in the child: prints how many nanoseconds the turn took.
pub fn run(turn: &Args) -> Result<()> {
    let durability = match turn.flush {
        true => Durability::Sync,
        false => Durability::None,
    };
    let open = Open::new(SledStore::open(turn.dir.join("queue"))?, durability)?;
    let took = open.end_to_end(&payload(turn.payload), turn.jobs)?;
    println!("{}", took.as_nanos());
    // To close it takes seconds, and nothing of it is kept.
    std::mem::forget(open);
    Ok(())
}

pub fn sled_end_to_end(dir: TempDir, size: usize, durability: Durability) -> Result<Jobs> {
    let program = std::env::current_exe()?;
    Ok(Box::new(move |jobs| {
        let files = tempfile::tempdir_in(dir.path())?;
        let mut command = Command::new(&program);
        command.arg("sled").arg("--dir").arg(files.path());
        command.args(["--jobs", &jobs.to_string()]);
        command.args(["--payload", &size.to_string()]);
        if let Durability::Sync = durability {
            command.arg("--flush");
        }
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let said = output_of(child.context("starting the child")?, PATIENCE)?;
        Ok(Duration::from_nanos(said.trim().parse()?))
    }))
}

/// What a child prints, which is killed if it takes longer than this.
fn output_of(mut child: Child, patience: Duration) -> Result<String> {
    let start = Instant::now();
    while child.try_wait()?.is_none() {
        if start.elapsed() > patience {
            child.kill()?;
            child.wait()?;
            bail!("a turn did not end within {patience:?}");
        }
        thread::sleep(Duration::from_millis(10));
    }
    // A line: it fits into the pipe.
    let output = child.wait_with_output()?;
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout)?),
        false => bail!("the child failed ({})", output.status),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_items_are_received_in_each_turn() {
        for durability in [Durability::None, Durability::Sync] {
            let dir = tempfile::tempdir().unwrap();
            let mut redb = redb_end_to_end(dir, 64, durability).unwrap();
            let dir = tempfile::tempdir().unwrap();
            let store = SledStore::open(dir.path().join("queue")).unwrap();
            let sled = Open::new(store, durability).unwrap();
            for jobs in [1, 20] {
                redb(jobs).unwrap();
                sled.end_to_end(&payload(64), jobs).unwrap();
            }
        }
    }

    #[test]
    fn a_child_that_does_not_end_is_killed() {
        let child = |program: &str| {
            let mut command = Command::new(program);
            command.stdin(Stdio::piped()).stdout(Stdio::piped());
            command.spawn().unwrap()
        };
        // It waits for the end of its input.
        let stuck = output_of(child("cat"), Duration::from_millis(20));
        assert!(stuck.unwrap_err().to_string().contains("did not end"));
        let failed = output_of(child("false"), PATIENCE);
        assert!(failed.unwrap_err().to_string().contains("failed"));
        assert_eq!(output_of(child("true"), PATIENCE).unwrap(), "");
    }
}
