//! Queues in memory: nothing survives the process.

use std::hint::black_box;
use std::sync::{Mutex, PoisonError};

use anyhow::{Result, anyhow};
use crossbeam_channel::{Sender, unbounded};
use crossbeam_queue::SegQueue;
use crossbeam_utils::Backoff;

use super::{payload, timed_bursts};
use crate::contender::Jobs;
use crate::threads::{self, share};

pub const NOTHING: &str = "nothing survives the process";

/// `crossbeam_channel::unbounded`, each message a freshly allocated `Vec<u8>`, while nothing
/// receives.
pub fn channel_send(size: usize) -> Result<Jobs> {
    let (sender, receiver) = unbounded::<Vec<u8>>();
    let payload = payload(size);
    Ok(Box::new(move |jobs| {
        timed_bursts(
            jobs,
            |burst| {
                for _ in 0..burst {
                    sender.send(black_box(&payload).clone())?;
                }
                Ok(())
            },
            |burst| {
                for _ in 0..burst {
                    black_box(receiver.recv()?);
                }
                Ok(())
            },
        )
    }))
}

/// `crossbeam_queue::SegQueue`, each element a freshly allocated `Vec<u8>`, while nothing receives.
pub fn seg_queue_push(size: usize) -> Result<Jobs> {
    let queue = SegQueue::<Vec<u8>>::new();
    let payload = payload(size);
    Ok(Box::new(move |jobs| {
        timed_bursts(
            jobs,
            |burst| {
                for _ in 0..burst {
                    queue.push(black_box(&payload).clone());
                }
                Ok(())
            },
            |burst| {
                for _ in 0..burst {
                    black_box(queue.pop());
                }
                Ok(())
            },
        )
    }))
}

/// Send and receive, blocking.
pub fn channel_end_to_end(threads: usize, size: usize) -> Result<Jobs> {
    let payload = payload(size);
    Ok(Box::new(move |jobs| {
        let (sender, receiver) = unbounded::<Vec<u8>>();
        let senders: Vec<Mutex<Option<Sender<_>>>> = (0..threads)
            .map(|_| Mutex::new(Some(sender.clone())))
            .collect();
        drop(sender);
        threads::timed(
            threads,
            |thread| {
                let sender = senders[thread]
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .take()
                    .ok_or_else(|| anyhow!("the sender is gone"))?;
                for _ in 0..share(jobs, threads, thread) {
                    sender.send(black_box(&payload).clone())?;
                }
                Ok(())
            },
            |_, _| {
                // Ends when the last sender is dropped.
                for message in &receiver {
                    black_box(message[size - 1]);
                }
                Ok(())
            },
        )
    }))
}

/// Push and pop; a consumer that finds nothing spins, and then yields.
pub fn seg_queue_end_to_end(threads: usize, size: usize) -> Result<Jobs> {
    let queue = SegQueue::<Vec<u8>>::new();
    let payload = payload(size);
    Ok(Box::new(move |jobs| {
        threads::timed(
            threads,
            |thread| {
                for _ in 0..share(jobs, threads, thread) {
                    queue.push(black_box(&payload).clone());
                }
                Ok(())
            },
            |thread, _| {
                let backoff = Backoff::new();
                let mut left = share(jobs, threads, thread);
                while left > 0 {
                    match queue.pop() {
                        Some(message) => {
                            black_box(message[size - 1]);
                            left -= 1;
                            backoff.reset();
                        }
                        None => backoff.snooze(),
                    }
                }
                Ok(())
            },
        )
    }))
}
