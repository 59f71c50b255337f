//! Tests of recovery, and the fixture that they share.

mod files;
mod records;
mod rows;

use std::fs;
use std::path::Path;

use rustix::io::Errno;

use super::*;
use crate::Timestamp;
use crate::log::ack::{self, AckFile};
use crate::log::mark;
use crate::log::meta::Meta;
use crate::log::record::{Header, KIND_JOB, NewRecord, RECORD_HEADER_BYTES};
use crate::log::run::Claim;
use crate::log::segment::{Append, Warm};
use crate::storage::Operation;
use crate::storage::faults::{self, Effect, Plan};
use crate::storage::mapped::MappedFile;

const SIZE: u64 = 16384;

/// A directory with one segment, as left by a process that died.
struct Fixture {
    dir: tempfile::TempDir,
    paths: Paths,
}

fn origin() -> Sequence {
    Sequence::first_of_stripe(2)
}

fn identity(base: u64) -> Identity {
    Identity {
        base: origin().plus_wide(base),
        segment_size: SIZE,
        created_at: Timestamp::from_nanos(7),
        salt: 0x5eed + base,
    }
}

fn new_segment(dir: &Path, base: u64, payloads: &[&[u8]]) -> Arc<Segment> {
    let segment = Segment::create(&Names::at(dir), identity(base), Warm::All).unwrap();
    for payload in payloads {
        let record = NewRecord {
            enqueued_at: Timestamp::from_nanos(9),
            due_at: Timestamp::ZERO,
            name: b"",
            meta: b"",
            payload,
        };
        assert!(matches!(segment.append(&record), Append::Done(_)));
    }
    segment
}

impl Fixture {
    /// A segment that is not sealed.
    fn open(payloads: &[&[u8]]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let paths = new_segment(dir.path(), 0, payloads).paths().clone();
        Self { dir, paths }
    }

    fn sealed(payloads: &[&[u8]]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let segment = new_segment(dir.path(), 0, payloads);
        segment.close_now();
        segment.seal().unwrap();
        let paths = segment.paths().clone();
        Self { dir, paths }
    }

    fn change(&self, path: impl AsRef<Path>, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = fs::read(&path).unwrap();
        change(&mut bytes);
        fs::write(path, bytes).unwrap();
    }

    fn change_segment(&self, change: impl FnOnce(&mut Vec<u8>)) {
        self.change(&self.paths.segment, change);
    }

    fn recover(&self) -> (RecoveredLog, RecoveryReport) {
        recover(self.dir.path())
    }

    fn quarantined_bytes(&self) -> Vec<Vec<u8>> {
        let Ok(copies) = fs::read_dir(self.dir.path().join("quarantine")) else {
            return Vec::new();
        };
        let mut paths: Vec<_> = copies.map(|copy| copy.unwrap().path()).collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "bin"));
        paths.sort();
        paths.iter().map(|path| fs::read(path).unwrap()).collect()
    }
}

fn directory(path: &Path) -> Directory {
    Directory::open(path).unwrap().unwrap()
}

fn recovery(queue: &Directory) -> Recovery<'_> {
    Recovery {
        segment_size: SIZE,
        queue,
        report: RecoveryReport::default(),
        progress: None,
        segments_seen: 0,
    }
}

fn recover(dir: &Path) -> (RecoveredLog, RecoveryReport) {
    let queue = directory(dir);
    let mut recovery = recovery(&queue);
    let log = recovery
        .recover_directory(&Names::at(dir), origin())
        .unwrap();
    (log, recovery.report)
}

/// The jobs that can be claimed, with their ordinals.
fn jobs(segment: &Arc<Segment>) -> Vec<(u32, Vec<u8>)> {
    let pinned = Pinned::to_claim(segment);
    let mut leases = Vec::new();
    loop {
        match pinned.claim_leases(1000, usize::MAX / 2, false, &mut leases) {
            Claim::Taken { .. } => {}
            Claim::Exhausted => break,
            Claim::Empty => panic!("a claim waits for appends to a segment that takes none"),
        }
    }
    leases
        .iter()
        .map(|lease| {
            let index = lease.sequence().offset_from(segment.base());
            (index, lease.record().payload().to_vec())
        })
        .collect()
}

fn job(index: u32, payload: &[u8]) -> (u32, Vec<u8>) {
    (index, payload.to_vec())
}

/// Offset of record `n`, counted from 0, if each payload has 1 to 8 bytes.
fn offset(n: usize) -> usize {
    header::FILE_HEADER_BYTES + n * (RECORD_HEADER_BYTES + 8)
}
