//! persistent-queue: a queue for one consumer on an embedded database, sled or redb.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Result, anyhow};
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

/// The ends of a queue, and its directory, which is removed after them.
struct Open<S: Store> {
    producer: Producer<S>,
    consumer: Consumer<S>,
    _dir: TempDir,
}

impl<S: Store> Open<S> {
    fn new(store: S, durability: Durability, dir: TempDir) -> Result<Self> {
        // Without a bound, as the others: a producer that waits for room would not notice that the
        // consumer has failed.
        let builder = Builder::new(store).capacity(usize::MAX);
        let (producer, consumer) = builder.durability(durability).open()?;
        Ok(Self {
            producer,
            consumer,
            _dir: dir,
        })
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

fn jobs<S: Store + 'static>(
    store: S,
    durability: Durability,
    dir: TempDir,
    size: usize,
) -> Result<Jobs> {
    let open = Open::new(store, durability, dir)?;
    let payload = payload(size);
    Ok(Box::new(move |jobs| open.end_to_end(&payload, jobs)))
}

pub fn sled_end_to_end(dir: TempDir, size: usize, durability: Durability) -> Result<Jobs> {
    let store = SledStore::open(dir.path().join("queue"))?;
    jobs(store, durability, dir, size)
}

pub fn redb_end_to_end(dir: TempDir, size: usize, durability: Durability) -> Result<Jobs> {
    let store = RedbStore::open(dir.path().join("queue"))?;
    jobs(store, durability, dir, size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_items_are_received_in_each_turn() {
        let dir = || tempfile::tempdir().unwrap();
        for durability in [Durability::None, Durability::Sync] {
            let stores = [
                sled_end_to_end(dir(), 64, durability),
                redb_end_to_end(dir(), 64, durability),
            ];
            for store in stores {
                let mut run = store.unwrap();
                run(1).unwrap();
                run(20).unwrap();
            }
        }
    }
}
