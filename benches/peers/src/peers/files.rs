//! Queues in files, without a server: yaque, queue-file, khata-rs.

use std::hint::black_box;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use queue_file::QueueFile;
use tempfile::TempDir;

use super::{logmill, payload, timed_bursts};
use crate::contender::{Figures, Jobs};
use crate::threads::{self, share};

pub const YAQUE: &str = "an element survives kill -9; what was received may come again";
pub const QUEUE_FILE: &str = "an element survives kill -9 (sync writes off)";
pub const QUEUE_FILE_SYNC: &str = "an element survives a power cut (sync writes on)";
pub const KHATA: &str = "a message survives kill -9; not checked (its default)";
pub const KHATA_CHECKED: &str = "a message survives kill -9; CRC-16";

/// The initial size of queue-file's file. With its default of 4 KiB, and growing while elements
/// come and go, version 2.0.0 sometimes failed here with "corrupted file", for an unknown reason.
const QUEUE_FILE_ROOM: u64 = 256 * 1024 * 1024;
/// The size of khata-rs's file for a cycle: its default. A file takes no more than that until time
/// moves on to another cycle.
const KHATA_FILE: usize = 64 * 1024 * 1024;
/// Bytes that khata-rs writes before each message, and at the start of a file.
const KHATA_HEADER: usize = 8;
const KHATA_FILE_HEADER: usize = 64;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic in another thread is reported where that thread is joined.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sends, while nothing receives.
pub fn yaque_send(dir: TempDir, size: usize) -> Result<Jobs> {
    let (mut sender, mut receiver) = yaque::channel(dir.path().join("queue"))?;
    let payload = payload(size);
    Ok(Box::new(move |jobs| {
        let _keep = &dir;
        timed_bursts(
            jobs,
            |burst| {
                for _ in 0..burst {
                    pollster::block_on(sender.send(black_box(&payload[..])))?;
                }
                Ok(())
            },
            |burst| pollster::block_on(yaque_drain(&mut receiver, burst)),
        )
    }))
}

async fn yaque_drain(receiver: &mut yaque::Receiver, elements: u64) -> Result<()> {
    receiver.recv_batch(elements as usize).await?.commit()?;
    Ok(())
}

/// Sends, receives and commits each element. yaque has one sender and one receiver.
pub fn yaque_end_to_end(dir: TempDir, size: usize) -> Result<Jobs> {
    let (sender, receiver) = yaque::channel(dir.path().join("queue"))?;
    let (sender, receiver) = (Mutex::new(sender), Mutex::new(receiver));
    let payload = payload(size);
    Ok(Box::new(move |jobs| {
        let _keep = &dir;
        threads::timed(
            1,
            |_| {
                let mut sender = lock(&sender);
                for _ in 0..jobs {
                    pollster::block_on(sender.send(black_box(&payload[..])))?;
                }
                Ok(())
            },
            |_, _| {
                let mut receiver = lock(&receiver);
                for _ in 0..jobs {
                    let element = pollster::block_on(receiver.recv())?;
                    black_box(element[size - 1]);
                    element.commit()?;
                }
                Ok(())
            },
        )
    }))
}

fn queue_file(dir: &TempDir, sync: bool) -> Result<QueueFile> {
    let mut queue = QueueFile::with_capacity(dir.path().join("queue"), QUEUE_FILE_ROOM)?;
    queue.set_sync_writes(sync);
    // Zeroing removed elements is for secrecy, not for safety.
    queue.set_overwrite_on_remove(false);
    Ok(queue)
}

/// Adds, while nothing removes.
pub fn queue_file_add(dir: TempDir, size: usize) -> Result<Jobs> {
    let mut queue = queue_file(&dir, false)?;
    let payload = payload(size);
    Ok(Box::new(move |jobs| {
        let _keep = &dir;
        // The adds and the drain use the queue in turn.
        let mut time = Duration::ZERO;
        let mut left = jobs;
        while left > 0 {
            let burst = left.min(super::BURST);
            let start = Instant::now();
            for _ in 0..burst {
                queue.add(black_box(&payload))?;
            }
            time += start.elapsed();
            queue.remove_n(burst as usize)?;
            left -= burst;
        }
        Ok(time)
    }))
}

/// Latency of a flushed add.
pub fn queue_file_sync_latency(dir: TempDir, size: usize, adds: usize) -> Result<Figures> {
    let mut queue = queue_file(&dir, true)?;
    let payload = payload(size);
    Ok(Box::new(move || {
        let _keep = &dir;
        let latencies = logmill::latencies(adds, || Ok(queue.add(&payload)?))?;
        queue.remove_n(adds)?;
        Ok(latencies)
    }))
}

/// Add, peek and remove, each behind a mutex as its documentation recommends. A counter in memory
/// tells consumers whether taking the lock is worthwhile.
pub fn queue_file_end_to_end(dir: TempDir, threads: usize, size: usize) -> Result<Jobs> {
    let queue = Mutex::new(queue_file(&dir, false)?);
    let payload = payload(size);
    Ok(Box::new(move |jobs| {
        let _keep = &dir;
        let (added, taken) = (AtomicU64::new(0), AtomicU64::new(0));
        threads::timed(
            threads,
            |thread| {
                for _ in 0..share(jobs, threads, thread) {
                    lock(&queue).add(black_box(&payload))?;
                    added.fetch_add(1, Ordering::Release);
                }
                Ok(())
            },
            |_, others| {
                let mut element = Vec::new();
                // Each ticket stands for one element.
                while taken.fetch_add(1, Ordering::Relaxed) < jobs {
                    loop {
                        others.check()?;
                        if added.load(Ordering::Acquire) == 0 {
                            thread::yield_now();
                            continue;
                        }
                        let mut queue = lock(&queue);
                        if queue.peek_into(&mut element)? {
                            black_box(element[size - 1]);
                            queue.remove()?;
                            added.fetch_sub(1, Ordering::AcqRel);
                            break;
                        }
                    }
                }
                Ok(())
            },
        )
    }))
}

/// The number of messages that khata-rs can write before its file is full.
pub fn khata_room(size: usize) -> u64 {
    ((KHATA_FILE - KHATA_FILE_HEADER) / (size + KHATA_HEADER) - 1) as u64
}

/// Writes to new files, since khata-rs never reuses one. Creating, flushing and removing them is
/// not timed.
pub fn khata_write(dir: TempDir, size: usize, checksums: bool) -> Result<Jobs> {
    let payload = payload(size);
    let room = khata_room(size);
    Ok(Box::new(move |jobs| {
        let mut time = Duration::ZERO;
        let mut left = jobs;
        while left > 0 {
            let messages = left.min(room);
            let path: PathBuf = dir.path().join("queue");
            let queue = khata_rs::Queue::new(&path)
                .block_size(KHATA_FILE)
                .checksums(checksums)
                .build()
                .map_err(|error| anyhow!("{error}"))?;
            let mut writer = queue.writer().map_err(|error| anyhow!("{error}"))?;
            let start = Instant::now();
            for _ in 0..messages {
                writer
                    .write(black_box(&payload))
                    .map_err(|error| anyhow!("{error}"))?;
            }
            time += start.elapsed();
            drop(writer);
            drop(queue);
            std::fs::remove_dir_all(&path)?;
            left -= messages;
        }
        Ok(time)
    }))
}
