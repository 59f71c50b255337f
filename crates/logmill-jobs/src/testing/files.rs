//! The files of a mill's process, and what its death, or a power cut, leaves of them for the next one.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Weak;
use std::sync::atomic::{AtomicU64, Ordering};

use logmill::SimulatedDisk;
use parking_lot::Mutex;
use tempfile::TempDir;

use super::storage::End;
use crate::backend::embedded::Embedded;

/// A file system in memory, where flushes cost nothing.
const IN_MEMORY: &str = "/dev/shm";
/// It is used if so many bytes are free, as those of containers may be small.
const ENOUGH: u64 = 512 * 1024 * 1024;

/// A directory for the processes of a test mill: in memory if there is room, else where the system has
/// temporary files.
///
/// No other has its path: a simulation makes the same random numbers again and again, and a thread may
/// still be about to close a mill of an earlier run.
pub(super) fn directory() -> io::Result<TempDir> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let prefix = format!("logmill-jobs-{}-{number}-", std::process::id());
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix);
    let free = rustix::fs::statvfs(IN_MEMORY);
    let free = free.map_or(0, |found| found.f_bavail.saturating_mul(found.f_frsize));
    if free >= ENOUGH
        && let Ok(directory) = builder.tempdir_in(IN_MEMORY)
    {
        return Ok(directory);
    }
    builder.tempdir()
}

/// The files of a process, and where the next one finds them.
pub(super) struct Files {
    pub(super) engine: Weak<Embedded>,
    pub(super) from: PathBuf,
    pub(super) to: PathBuf,
    /// What is below them, if power cuts are simulated: from the end of the process on, what is below
    /// those of the next one.
    pub(super) disk: Mutex<Option<SimulatedDisk>>,
}

impl Files {
    /// Has the engine do what its threads would do a moment later, so that each run finds the same.
    pub(super) fn rest(&self) {
        if let Some(engine) = self.engine.upgrade() {
            engine.rest();
        }
    }

    /// Has the process flush nothing any more, as it is killed a moment later.
    pub(super) fn ignore_flushes(&self) {
        if let Some(disk) = &*self.disk.lock() {
            disk.ignore_flushes();
        }
    }

    /// Leaves to the next process what this end of the process leaves.
    pub(super) fn end(&self, end: End) -> io::Result<()> {
        let mut disk = self.disk.lock();
        let left = match (&*disk, end) {
            // Its threads may not have come to what they had to do.
            (Some(disk), End::Kill) => disk.kill(&self.to)?,
            (Some(disk), End::PowerCut) => disk.cut_power(&self.to)?,
            (None, _) => {
                self.rest();
                return copy(&self.from, &self.to);
            }
        };
        *disk = Some(left);
        Ok(())
    }
}

/// Bytes that are read together. Those that are all zero are not written.
const BLOCK: usize = 64 * 1024;
/// How often a copy is begun again because files came or went meanwhile.
const TRIES: u32 = 100;

/// Copies a directory. No producer or worker may change it meanwhile; if the engine's own threads
/// make or remove a file, the copy begins again.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    for _ in 0..TRIES {
        let before = list(from);
        let copied = before.as_ref().map_err(|_| ()).and_then(|files| {
            let copied = files.keys().try_for_each(|file| copy_file(from, to, file));
            copied.map_err(|_| ())
        });
        match (before, list(from)) {
            (Ok(before), Ok(after)) if copied.is_ok() && before == after => return Ok(()),
            _ => _ = fs::remove_dir_all(to),
        }
    }
    Err(io::Error::other(format!(
        "the files in {} cannot be copied, or change all the time",
        from.display()
    )))
}

/// The files below a directory with their lengths; of directories, None.
fn list(root: &Path) -> io::Result<BTreeMap<PathBuf, Option<u64>>> {
    let mut found = BTreeMap::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(directory) = todo.pop() {
        for entry in fs::read_dir(root.join(&directory))? {
            let entry = entry?;
            let path = directory.join(entry.file_name());
            let metadata = entry.metadata()?;
            if metadata.is_dir() {
                todo.push(path.clone());
                found.insert(path, None);
            } else {
                found.insert(path, Some(metadata.len()));
            }
        }
        found.insert(directory, None);
    }
    Ok(found)
}

fn copy_file(from: &Path, to: &Path, file: &Path) -> io::Result<()> {
    let (from, to) = (from.join(file), to.join(file));
    if from.is_dir() {
        return fs::create_dir_all(to);
    }
    let (mut from, mut to) = (File::open(from)?, File::create(to)?);
    let (mut block, zeros) = (vec![0; BLOCK], vec![0; BLOCK]);
    loop {
        let len = from.read(&mut block)?;
        let read = &block[..len];
        if len == 0 {
            break;
        // Slices are compared fast without optimization as well.
        } else if read == &zeros[..len] {
            to.seek(SeekFrom::Current(i64::try_from(len).unwrap_or(0)))?;
        } else {
            to.write_all(read)?;
        }
    }
    let len = from.stream_position()?;
    to.set_len(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_has_the_same_bytes_also_where_they_are_zero() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir_all(from.join("deep/er")).unwrap();
        let mut bytes = vec![0; 5 * BLOCK + 17];
        bytes[2 * BLOCK] = 7;
        fs::write(from.join("deep/er/file"), &bytes).unwrap();
        fs::write(from.join("empty"), b"").unwrap();
        copy(&from, &to).unwrap();
        assert_eq!(fs::read(to.join("deep/er/file")).unwrap(), bytes);
        assert_eq!(fs::read(to.join("empty")).unwrap(), b"");
        assert!(copy(&from.join("none"), &to).is_err());
    }
}
