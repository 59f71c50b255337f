//! The contenders, by kind.

pub mod databases;
pub mod files;
pub mod group;
pub mod limit;
pub mod logmill;
pub mod memory;
pub mod persistent_queue;
pub mod raft_engine;
pub mod ring;
pub mod servers;
pub mod walrus;

use std::time::{Duration, Instant};

use anyhow::Result;

/// Jobs that are enqueued before an untimed drain, so that no backlog grows without bound. Over a
/// few bursts, every segment boundary falls into the timed part.
pub const BURST: u64 = 50_000;

/// All payloads of a comparison have the same size, and are made before the clock starts.
pub fn payload(size: usize) -> Vec<u8> {
    vec![7u8; size]
}

/// Times `send`, which sends this many jobs, in bursts, each followed by an untimed drain.
pub fn timed_bursts(
    jobs: u64,
    mut send: impl FnMut(u64) -> Result<()>,
    mut drain: impl FnMut(u64) -> Result<()>,
) -> Result<Duration> {
    let mut time = Duration::ZERO;
    let mut left = jobs;
    while left > 0 {
        let burst = left.min(BURST);
        let start = Instant::now();
        send(burst)?;
        time += start.elapsed();
        drain(burst)?;
        left -= burst;
    }
    Ok(time)
}
