//! A writer beside the measurement that fills the disk's queue, as a `dd` of gigabytes does.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::Serialize;

/// The bytes of one write.
const PIECE: u64 = MIB;
/// What the writer leaves free on the file system, for the queues and for other programs.
const SPARE: u64 = GIB;
/// The file's size in a smoke run.
pub const QUICK: u64 = 256 * MIB;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// Which sizes a file may have otherwise.
const LEAST: u64 = 4 * GIB;
const MOST: u64 = 16 * GIB;

/// How large the writer's file has to be here.
///
/// The kernel lets a program write at the speed of memory until a share of all memory is dirty, and
/// pages that are dirty already do not count again. So the file is half as large again as that
/// share: in a smaller one, the writer could go round in memory while the disk idles.
pub fn size() -> u64 {
    let statistics = fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let share = dirty_threshold(&statistics).unwrap_or(0) * rustix::param::page_size() as u64;
    (share + share / 2).clamp(LEAST, MOST)
}

/// In pages.
fn dirty_threshold(vmstat: &str) -> Option<u64> {
    let name = "nr_dirty_threshold ";
    let value = vmstat.lines().find_map(|line| line.strip_prefix(name))?;
    value.trim().parse().ok()
}

/// Whether a writer's file of this size has room beside the queues in this directory.
pub fn check_room(dir: &Path, size: u64) -> Result<()> {
    let free = rustix::fs::statvfs(dir).with_context(|| format!("asking for {}", dir.display()))?;
    let free = free.f_bavail.saturating_mul(free.f_frsize);
    ensure!(
        free >= size.saturating_add(SPARE),
        "the writer beside the measurement needs {} and {} to spare on the file system of {}, \
         which has {} free: choose another with --dir, or loads without a writer with --load",
        gibibytes(size),
        gibibytes(SPARE),
        dir.display(),
        gibibytes(free),
    );
    Ok(())
}

/// As in `4.0 GiB`.
pub fn gibibytes(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / GIB as f64)
}

/// What a writer wrote.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Written {
    pub bytes: u64,
    /// What of it the disk has to write: pages that were not dirty before. 0 if the kernel does not
    /// count them.
    pub to_disk: u64,
    pub took: Duration,
}

impl Written {
    /// Of these bytes.
    pub fn mebibytes_a_second(&self, bytes: u64) -> f64 {
        bytes as f64 / MIB as f64 / self.took.as_secs_f64()
    }
}

/// Bytes that the calling thread has given to the disk to write.
fn given_to_disk() -> u64 {
    let counters = fs::read_to_string("/proc/thread-self/io").unwrap_or_default();
    let value = counters
        .lines()
        .find_map(|line| line.strip_prefix("write_bytes: "));
    value.and_then(|value| value.parse().ok()).unwrap_or(0)
}

/// A thread that overwrites a file in a loop, buffered and without a sync. It ends when this is
/// dropped, at the latest.
///
/// The file has no name, so that the kernel removes it when the process ends, however it ends.
pub struct DiskWriter {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Written>>>,
}

impl DiskWriter {
    /// Returns when the file has been written once.
    pub fn start(dir: &Path, size: u64) -> Result<Self> {
        check_room(dir, size)?;
        let file = tempfile::tempfile_in(dir).context("making the writer's file")?;
        let stop = Arc::new(AtomicBool::new(false));
        let (filled, is_filled) = channel();
        let thread = {
            let stop = Arc::clone(&stop);
            thread::spawn(move || write(&file, size, &stop, &filled))
        };
        let writer = Self {
            stop,
            thread: Some(thread),
        };
        if is_filled.recv().is_err() {
            // It has ended, and says why.
            writer.stop()?;
            bail!("the writer beside the measurement ended by itself");
        }
        Ok(writer)
    }

    pub fn stop(mut self) -> Result<Written> {
        self.end()
            .unwrap_or_else(|| Err(anyhow!("the writer was stopped before")))
            .context("the writer beside the measurement failed")
    }

    fn end(&mut self) -> Option<Result<Written>> {
        // Relaxed: no other data depends on it.
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take()?;
        Some(
            thread
                .join()
                .unwrap_or_else(|_| Err(anyhow!("it panicked"))),
        )
    }
}

impl Drop for DiskWriter {
    fn drop(&mut self) {
        // The measurement has failed, and with what is reported.
        let _ = self.end();
    }
}

/// Writes until told to stop; counts from when the file has been written once.
fn write(file: &File, size: u64, stop: &AtomicBool, filled: &Sender<()>) -> Result<Written> {
    let piece = vec![7; PIECE as usize];
    let mut count: Option<Written> = None;
    loop {
        let (start, given, mut bytes) = (Instant::now(), given_to_disk(), 0);
        for at in (0..size).step_by(PIECE as usize) {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            file.write_all_at(&piece, at)
                .context("writing to its file")?;
            bytes += PIECE;
        }
        match &mut count {
            None => {
                // Nobody listens if the start was given up.
                let _ = filled.send(());
                count = Some(Written {
                    bytes: 0,
                    to_disk: 0,
                    took: Duration::ZERO,
                });
            }
            Some(written) => {
                written.bytes += bytes;
                written.to_disk += given_to_disk() - given;
                written.took += start.elapsed();
            }
        }
        if let (Some(written), true) = (count, stop.load(Ordering::Relaxed)) {
            return Ok(written);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_writes_until_it_is_stopped_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let writer = DiskWriter::start(dir.path(), 4 * PIECE).unwrap();
        thread::sleep(Duration::from_millis(50));
        let written = writer.stop().unwrap();
        assert!(written.bytes > 0 && written.mebibytes_a_second(written.bytes) > 0.0);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_system_without_room_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let error = check_room(dir.path(), u64::MAX / 2)
            .unwrap_err()
            .to_string();
        assert!(error.contains("to spare on the file system of"), "{error}");
        assert!(DiskWriter::start(dir.path(), u64::MAX / 2).is_err());
    }

    #[test]
    fn the_threshold_is_read_by_its_name() {
        let vmstat = "nr_dirty 8\nnr_dirty_threshold 1081553\nnr_dirty_background_threshold 5\n";
        assert_eq!(dirty_threshold(vmstat), Some(1_081_553));
        assert_eq!(dirty_threshold("nr_dirty 8\n"), None);
        assert!((LEAST..=MOST).contains(&size()));
    }
}
