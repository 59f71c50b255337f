//! raft-engine: the log of TiKV's Raft groups, in which writers share flushes.

use std::slice;

use anyhow::{Context as _, Result, ensure};
use protobuf::well_known_types::BytesValue;
use raft_engine::{Config, Engine, LogBatch, MessageExt, ReadableSize};
use tempfile::TempDir;

use super::payload;
use crate::contender::Jobs;
use crate::threads::{self, share};

pub const SYNC: &str = "an entry survives a power cut (write with sync)";

/// As large as logmill's segments.
const FILE_BYTES: u64 = 8 * 1024 * 1024;
/// Files are recycled once there are more of them. The engine keeps half as many again in reserve:
/// a turn does not fill them.
const FILES: u64 = 16;
/// The bytes of an entry that hold its index.
const INDEX_BYTES: usize = size_of::<u64>();

/// An entry is Protobuf's own message of bytes, which spares this program a generated one. It has
/// no field for the index that the engine asks for, so the index is at the start of the bytes.
struct Indexed;

impl MessageExt for Indexed {
    type Entry = BytesValue;

    fn index(entry: &BytesValue) -> u64 {
        let index = entry.value.first_chunk::<INDEX_BYTES>();
        index.copied().map_or(0, u64::from_le_bytes)
    }
}

fn indexed(entry: &mut BytesValue, index: u64) {
    entry.value[..INDEX_BYTES].copy_from_slice(&index.to_le_bytes());
}

/// An engine, and its directory, which is removed after it.
struct Open {
    engine: Engine,
    _dir: TempDir,
}

impl Open {
    /// Files are written in advance and recycled, as logmill's are: with a file that grows, each
    /// flush would have to write metadata.
    fn new(dir: TempDir) -> Result<Self> {
        let limit = ReadableSize(FILES * FILE_BYTES);
        let config = Config {
            dir: dir.path().to_str().context("a path in UTF-8")?.to_owned(),
            target_file_size: ReadableSize(FILE_BYTES),
            purge_threshold: limit,
            prefill_for_recycle: true,
            prefill_limit: Some(limit),
            ..Config::default()
        };
        let engine = Engine::open(config)?;
        Ok(Self { engine, _dir: dir })
    }

    /// Writes entries after the last one of this group, and waits for the flush of each.
    fn write(
        &self,
        group: u64,
        last: &mut u64,
        entries: u64,
        entry: &mut BytesValue,
    ) -> Result<()> {
        let mut batch = LogBatch::with_capacity(1);
        for _ in 0..entries {
            *last += 1;
            indexed(entry, *last);
            batch.add_entries::<Indexed>(group, slice::from_ref(entry))?;
            self.engine.write(&mut batch, true)?;
        }
        Ok(())
    }

    /// Reads the group's entries, which must be these, and removes them.
    fn drain(&self, group: u64, last: u64, entries: u64, entry: &mut BytesValue) -> Result<()> {
        let (first, end) = (last + 1 - entries, last + 1);
        let mut read = Vec::new();
        self.engine
            .fetch_entries_to::<Indexed>(group, first, end, None, &mut read)?;
        ensure!(read.len() as u64 == entries, "an entry is missing");
        for (index, found) in (first..).zip(&read) {
            indexed(entry, index);
            ensure!(found.value == entry.value, "an entry has other bytes");
        }
        self.engine.compact_to(group, end);
        Ok(())
    }
}

/// This many threads, each of which waits for the flush of each of its entries. Each has a Raft
/// group of its own, since the indexes of a group have no gaps.
pub fn group_commit(dir: TempDir, size: usize, producers: usize) -> Result<Jobs> {
    let open = Open::new(dir)?;
    let mut entry = BytesValue::new();
    entry.set_value(payload(size));
    let mut last = vec![0; producers];
    Ok(Box::new(move |jobs| {
        let group = |thread: usize| thread as u64 + 1;
        let took = threads::timed_each(last.iter_mut(), |thread, last| {
            let entries = share(jobs, producers, thread);
            open.write(group(thread), last, entries, &mut entry.clone())
        })?;
        for (thread, last) in last.iter().enumerate() {
            let entries = share(jobs, producers, thread);
            if entries > 0 {
                open.drain(group(thread), *last, entries, &mut entry)?;
            }
        }
        open.engine
            .purge_expired_files()
            .context("recycling files")?;
        Ok(took)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_entries_are_read_back_in_each_turn() {
        let dir = tempfile::tempdir().unwrap();
        let mut run = group_commit(dir, 64, 4).unwrap();
        // Fewer than there are writers, then more.
        for jobs in [1, 30, 50] {
            run(jobs).unwrap();
        }
    }

    #[test]
    fn files_are_recycled() {
        let open = Open::new(tempfile::tempdir().unwrap()).unwrap();
        let mut entry = BytesValue::new();
        entry.set_value(payload(1 << 20));
        let mut last = 0;
        for _ in 0..2 * FILES {
            let mut batch = LogBatch::with_capacity(8);
            for _ in 0..8 {
                last += 1;
                indexed(&mut entry, last);
                batch
                    .add_entries::<Indexed>(1, slice::from_ref(&entry))
                    .unwrap();
            }
            open.engine.write(&mut batch, false).unwrap();
            open.drain(1, last, 8, &mut entry).unwrap();
            open.engine.purge_expired_files().unwrap();
        }
        let most = (FILES + 2) * FILE_BYTES;
        assert!(open.engine.get_used_size() as u64 <= most);
    }
}
