//! walrus-rust: a write-ahead log with topics and readers, in a process of its own.
//!
//! walrus-rust keeps its directory, its schedule of flushes and its background threads for as long
//! as the process runs, so the two schedules cannot be measured in one. It does not remove files
//! within the time of a comparison either. Therefore each turn has a new process and a new
//! directory. Starting it is not timed.

use std::hint::black_box;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tempfile::TempDir;
use walrus_rust::{FsyncSchedule, ReadConsistency, Walrus};

use super::{payload, timed_bursts};
use crate::contender::Jobs;

pub const UNFLUSHED: &str = "an entry survives kill -9 (NoFsync, reads AtLeastOnce)";
pub const FLUSHED: &str = "an entry survives a power cut (SyncEach, reads AtLeastOnce)";

const TOPIC: &str = "jobs";
/// Entries that one read returns at most.
const ENTRIES_A_READ: usize = 2000;
/// Bytes that walrus-rust writes before each entry.
const PREFIX: usize = 64;

/// A turn, for the child.
#[derive(clap::Args)]
pub struct Turn {
    #[arg(long)]
    jobs: u64,
    /// Bytes of a payload
    #[arg(long)]
    payload: usize,
    /// Flush each entry
    #[arg(long)]
    flush: bool,
}

pub type Args = Turn;

/// Runs in the child: appends, and prints how many nanoseconds that took.
pub fn run(turn: &Args) -> Result<()> {
    // At least once is what a queue promises. The other mode, exactly once, writes and flushes an
    // index at each read, and only reads differ: they drain the log, which is not timed.
    let reads = ReadConsistency::AtLeastOnce {
        persist_every: ENTRIES_A_READ as u32,
    };
    let schedule = if turn.flush {
        FsyncSchedule::SyncEach
    } else {
        FsyncSchedule::NoFsync
    };
    let log = Walrus::with_consistency_and_schedule(reads, schedule)?;
    let payload = payload(turn.payload);
    // Makes the topic and its first block.
    log.append_for_topic(TOPIC, &payload)?;
    drain(&log, &payload, 1)?;
    let took = timed_bursts(
        turn.jobs,
        |burst| {
            for _ in 0..burst {
                log.append_for_topic(TOPIC, black_box(&payload))?;
            }
            Ok(())
        },
        |burst| drain(&log, &payload, burst),
    )?;
    println!("{}", took.as_nanos());
    Ok(())
}

/// Reads this many entries, which must be all that there are. walrus-rust does not report a write
/// that failed, so each entry is looked at.
fn drain(log: &Walrus, payload: &[u8], entries: u64) -> Result<()> {
    // Whole entries: a read that ends within one would go on with the next block.
    let bytes = ENTRIES_A_READ * (PREFIX + payload.len());
    let mut left = entries;
    loop {
        let read = log.batch_read_for_topic(TOPIC, bytes, true)?;
        if read.is_empty() {
            ensure!(left == 0, "{left} entries are missing");
            return Ok(());
        }
        for entry in &read {
            ensure!(entry.data == payload, "an entry has other bytes");
        }
        let read = read.len() as u64;
        left = left.checked_sub(read).context("an entry came twice")?;
    }
}

/// Appends, while nothing reads.
pub fn append(dir: TempDir, size: usize, flush: bool) -> Result<Jobs> {
    Ok(Box::new(move |jobs| {
        let files = tempfile::tempdir_in(dir.path())?;
        run_in_child(
            &files,
            &Turn {
                jobs,
                payload: size,
                flush,
            },
        )
    }))
}

fn run_in_child(files: &TempDir, turn: &Turn) -> Result<Duration> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg("walrus")
        .args(["--jobs", &turn.jobs.to_string()])
        .args(["--payload", &turn.payload.to_string()]);
    if turn.flush {
        command.arg("--flush");
    }
    let output = command
        // walrus-rust looks for a variable several times in each append, and prints a line if it
        // is not set. It finds it sooner among few.
        .env_clear()
        .env("WALRUS_QUIET", "1")
        .env("WALRUS_DATA_DIR", files.path())
        .stdin(Stdio::null())
        .output()
        .context("starting the child")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.lines().next().unwrap_or("it said nothing");
        bail!("the child failed ({}): {said}", output.status);
    }
    let nanoseconds = String::from_utf8(output.stdout)?;
    Ok(Duration::from_nanos(nanoseconds.trim().parse()?))
}
