//! The limits of the machine: bare loops that do only what cannot be left out.

use std::fs::{File, OpenOptions};
use std::hint::black_box;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use crossbeam_utils::CachePadded;
use memmap2::MmapMut;
use tempfile::TempDir;

use super::{BURST, logmill, payload};
use crate::contender::{Figures, Jobs};
use crate::threads;

pub const ANONYMOUS: &str = "nothing survives the process";
pub const FLUSHED: &str = "bytes survive a power cut";

/// As large as the three segments of default size that a stripe uses while consumers keep up.
pub const REGION: usize = 3 * 8 * 1024 * 1024;
/// Bytes of a record's header.
const HEADER: usize = 32;
/// Buffer for reading files.
const READ_BUFFER: usize = 256 * 1024;

/// The length of a record in logmill's log.
pub fn record_bytes(size: usize) -> usize {
    (HEADER + size).next_multiple_of(8)
}

/// The least that a checked append to memory can do: reserve, write a header, copy, compute the
/// check, commit.
///
/// One thread writes round and round in mapped memory that was touched before. The memory is
/// anonymous, which spares it the kernel's write-back, since `MmapMut` of a file needs `unsafe`.
pub fn append(size: usize) -> Result<Jobs> {
    let mut log = Log::new(size, REGION)?;
    let payload = payload(size);
    Ok(Box::new(move |jobs| {
        let start = Instant::now();
        for _ in 0..jobs {
            log.append(black_box(&payload));
        }
        let took = start.elapsed();
        black_box(&log.region[..]);
        Ok(took)
    }))
}

/// The same by two threads, each in as much memory as its burst of jobs takes, as nothing is acked during
/// one. Each zeroes its memory piece by piece before it writes there: whoever zeroes that of a log, it takes
/// one of two cores.
pub fn append_by_two(size: usize) -> Result<Jobs> {
    let room = BURST as usize * record_bytes(size);
    let mut logs = [Log::new(size, room)?, Log::new(size, room)?];
    let payload = payload(size);
    let in_piece = (ZEROED_AT_ONCE / record_bytes(size)) as u64;
    Ok(Box::new(move |jobs| {
        threads::timed_two(&mut logs, |log, thread| {
            for job in 0..threads::share(jobs, 2, thread) {
                if job % in_piece == 0 {
                    log.zero(in_piece);
                }
                log.append(black_box(&payload));
            }
            black_box(&log.region[..]);
            Ok(())
        })
    }))
}

/// Bytes that are zeroed before they are written.
const ZEROED_AT_ONCE: usize = 256 * 1024;

/// Records in anonymous memory, written round and round.
struct Log {
    region: MmapMut,
    record: usize,
    /// How many there is room for.
    records: u64,
    place: u64,
    tail: CachePadded<AtomicU64>,
    committed: CachePadded<AtomicU64>,
}

impl Log {
    fn new(size: usize, bytes: usize) -> Result<Self> {
        let mut region = MmapMut::map_anon(bytes)?;
        region.fill(1);
        let record = record_bytes(size);
        Ok(Self {
            region,
            record,
            records: (bytes / record) as u64,
            place: 0,
            tail: CachePadded::default(),
            committed: CachePadded::default(),
        })
    }

    #[inline]
    fn append(&mut self, payload: &[u8]) {
        let index = self.tail.fetch_add(1, Ordering::Relaxed);
        if self.place == self.records {
            self.place = 0;
        }
        let at = self.place as usize * self.record;
        self.place += 1;
        let check = crc32fast::hash(payload) ^ index as u32;
        let bytes = &mut self.region[at..at + self.record];
        bytes[4..8].copy_from_slice(&check.to_le_bytes());
        bytes[8..16].copy_from_slice(&index.to_le_bytes());
        bytes[16..24].copy_from_slice(&(payload.len() as u64).to_le_bytes());
        bytes[24..32].copy_from_slice(&0u64.to_le_bytes());
        bytes[HEADER..HEADER + payload.len()].copy_from_slice(payload);
        bytes[0..4].copy_from_slice(&(self.record as u32).to_le_bytes());
        self.committed.store(index + 1, Ordering::Release);
    }

    /// Zeroes the memory of the next records.
    fn zero(&mut self, records: u64) {
        let place = self.place % self.records;
        let end = self.records.min(place + records);
        self.region[place as usize * self.record..end as usize * self.record].fill(0);
    }
}

/// A file of one region, written and flushed in advance, so that a flush has no metadata to write.
pub struct Preallocated {
    file: File,
    at: u64,
    _dir: TempDir,
}

impl Preallocated {
    pub fn new(dir: TempDir) -> Result<Self> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .open(dir.path().join("log"))?;
        file.write_all_at(&vec![1; REGION], 0)?;
        file.sync_all()?;
        Ok(Self {
            file,
            at: 0,
            _dir: dir,
        })
    }

    pub fn write_and_flush(&mut self, bytes: &[u8]) -> Result<()> {
        if self.at + bytes.len() as u64 > REGION as u64 {
            self.at = 0;
        }
        self.file.write_all_at(bytes, self.at)?;
        self.at += bytes.len() as u64;
        Ok(self.file.sync_data()?)
    }
}

/// One thread that writes this many records at a time and then flushes them.
pub fn write_and_flush(dir: TempDir, size: usize, records: usize) -> Result<Jobs> {
    let mut log = Preallocated::new(dir)?;
    let batch = vec![7; records * record_bytes(size)];
    Ok(Box::new(move |jobs| {
        let batches = jobs.div_ceil(records as u64);
        let start = Instant::now();
        for _ in 0..batches {
            log.write_and_flush(&batch)?;
        }
        // Scaled to the jobs asked for, since the last batch may have more.
        let share = jobs as f64 / (batches * records as u64) as f64;
        Ok(start.elapsed().mul_f64(share))
    }))
}

/// Latency of writing one record and flushing it.
pub fn write_and_flush_latency(dir: TempDir, size: usize, writes: usize) -> Result<Figures> {
    let mut log = Preallocated::new(dir)?;
    let record = vec![7; record_bytes(size)];
    Ok(Box::new(move || {
        logmill::latencies(writes, || log.write_and_flush(&record))
    }))
}

/// Reads a file from start to end.
pub fn timed_read(path: &Path) -> Result<Duration> {
    let mut file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let mut buffer = vec![0; READ_BUFFER];
    let start = Instant::now();
    while file.read(&mut buffer)? > 0 {
        black_box(&buffer);
    }
    Ok(start.elapsed())
}
