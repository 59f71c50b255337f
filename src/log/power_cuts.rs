//! Kills and power cuts between any two file operations of a log, against a model of what a disk
//! may have kept.
//!
//! A kill leaves the files as they are. A power cut leaves of each file, sector by sector, what
//! was written last or what was on the disk before: from the last flush, or from any writeback
//! since, which a kernel does when it likes and in any order. Of the changes of names since their
//! directory was flushed it leaves those up to some point, or any of them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fastrand::Rng;
use parking_lot::Mutex;

use super::lease::Lease;
use super::*;
use crate::storage::Operation;
use crate::storage::faults;

const SIZE: u64 = 16384;
/// Smaller than any real one, so that the small files here have many.
const SECTOR: usize = 64;

fn origin() -> Sequence {
    Sequence::first_of_stripe(2)
}

/// In memory if possible: what is durable is the model's affair here.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

fn open(root: &Path) -> (Stripe, RecoveryReport) {
    let quarantine = root.join("quarantine");
    let config = LogConfig {
        segment_size: SIZE,
        quarantine: quarantine.clone(),
        budget: Arc::new(SpaceBudget::new(None)),
        kick: Arc::new(|| ()),
        wake: Arc::new(|| ()),
    };
    let mut recovery = Recovery {
        segment_size: SIZE,
        quarantine: &quarantine,
        report: RecoveryReport::default(),
        progress: None,
        segments_seen: 0,
    };
    let (stripe, _) = Stripe::open(&root.join("log"), origin(), config, &mut recovery).unwrap();
    (stripe, recovery.report)
}

fn claim(stripe: &Stripe, max_jobs: u32, leases: &mut Vec<Lease>) -> bool {
    let mut runs = Vec::new();
    let claim = stripe.claim(max_jobs, 1 << 20, false, &mut runs);
    for run in runs {
        run.expand(|lease, _| leases.push(lease));
    }
    claim == Claim::Taken
}

/// What the log was told, and what it promised.
#[derive(Default)]
struct Truth {
    jobs: BTreeMap<Sequence, Job>,
}

struct Job {
    payload: Vec<u8>,
    /// A flush has returned since it was appended.
    is_flushed: bool,
    is_acked: bool,
    /// A flush of the acks has returned since it was acked.
    is_ack_flushed: bool,
}

/// A file, whatever its name.
type Inode = u64;

/// A change of names that may not be durable yet.
#[derive(Clone, Debug)]
enum Change {
    Create(String, Inode),
    Remove(String),
    Rename(String, String),
}

type Names = BTreeMap<String, Inode>;

/// What a disk may have kept.
struct Disk {
    dir: PathBuf,
    /// What is on the disk of each file.
    stored: BTreeMap<Inode, Vec<u8>>,
    /// What was last seen of each file that has no name any more.
    nameless: BTreeMap<Inode, Vec<u8>>,
    durable_names: Names,
    changes: Vec<Change>,
    before: Names,
}

impl Disk {
    fn names(&self) -> Names {
        let names = storage::list(&self.dir).unwrap();
        let inode = |name: &String| fs::metadata(self.dir.join(name)).unwrap().ino();
        names
            .into_iter()
            .map(|name| (name.clone(), inode(&name)))
            .collect()
    }

    /// What was written to a file last.
    fn written(&self, inode: Inode) -> Vec<u8> {
        let names = self.names();
        match names.iter().find(|(_, other)| **other == inode) {
            Some((name, _)) => fs::read(self.dir.join(name)).unwrap(),
            None => self.nameless.get(&inode).cloned().unwrap_or_default(),
        }
    }

    fn note(&mut self, operation: Operation, path: &Path, is_done: bool, random: &mut Rng) {
        if !is_done {
            self.before = self.names();
            let name = path.file_name().unwrap().to_str().unwrap();
            if let (Operation::Remove, Some(&inode)) = (operation, self.before.get(name)) {
                self.nameless.insert(inode, self.written(inode));
            }
            self.write_something_back(random);
            return;
        }
        let now = self.names();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        match operation {
            Operation::Create => {
                if let Some(&inode) = now.get(&name).filter(|_| !self.before.contains_key(&name)) {
                    // The kernel gives the numbers of files that are gone to new ones.
                    self.stored.remove(&inode);
                    self.changes.push(Change::Create(name, inode));
                }
            }
            Operation::Remove if self.before.contains_key(&name) => {
                self.changes.push(Change::Remove(name));
            }
            Operation::Rename => {
                let inode = self.before[&name];
                let new = now.iter().find(|(_, other)| **other == inode).unwrap().0;
                self.changes.push(Change::Rename(name, new.clone()));
            }
            Operation::Flush => {
                let inode = now[&name];
                self.stored.insert(inode, self.written(inode));
            }
            Operation::FlushDirectory if path == self.dir => {
                self.durable_names = now;
                self.changes.clear();
            }
            _ => {}
        }
    }

    fn write_something_back(&mut self, random: &mut Rng) {
        // Seldom, so that what was overwritten long ago may still be what is stored.
        if random.u8(0..10) > 0 {
            return;
        }
        for inode in self.names().into_values() {
            let written = self.written(inode);
            let stored = self.stored.remove(&inode).unwrap_or_default();
            self.stored
                .insert(inode, mix(&stored, &written, written.len(), random));
        }
    }

    fn names_after_a_power_cut(&self, random: &mut Rng) -> Names {
        let mut names = self.durable_names.clone();
        let some = random.usize(0..=self.changes.len());
        let is_in_order = random.bool();
        for (at, change) in self.changes.iter().enumerate() {
            if if is_in_order {
                at >= some
            } else {
                random.bool()
            } {
                continue;
            }
            match change {
                Change::Create(name, inode) => {
                    names.insert(name.clone(), *inode);
                }
                Change::Remove(name) => {
                    names.remove(name);
                }
                Change::Rename(from, to) => {
                    if let Some(inode) = names.remove(from) {
                        names.insert(to.clone(), inode);
                    }
                }
            }
        }
        names
    }

    fn leave_after_a_power_cut(&self, to: &Path, random: &mut Rng) {
        for (name, inode) in self.names_after_a_power_cut(random) {
            let written = self.written(inode);
            let nothing = Vec::new();
            let stored = self.stored.get(&inode).unwrap_or(&nothing);
            let len = if random.u8(0..3) == 0 {
                stored.len()
            } else {
                written.len()
            };
            let content = match random.u8(0..4) {
                0 => mix(stored, stored, len, random),
                1 => mix(&written, &written, len, random),
                _ => mix(stored, &written, len, random),
            };
            fs::write(to.join(name), content).unwrap();
        }
    }

    fn leave_after_a_kill(&self, to: &Path) {
        for name in self.names().keys() {
            fs::copy(self.dir.join(name), to.join(name)).unwrap();
        }
    }
}

/// Sectors from the one and from the other.
fn mix(one: &[u8], other: &[u8], len: usize, random: &mut Rng) -> Vec<u8> {
    let mut content = vec![0; len];
    for at in (0..len).step_by(SECTOR) {
        let to = (at + SECTOR).min(len);
        let from = if random.bool() { one } else { other };
        if let Some(from) = from.get(at..to.min(from.len())) {
            content[at..at + from.len()].copy_from_slice(from);
        }
    }
    content
}

/// Opens what a crash left, and checks it against what was promised.
fn check(root: &Path, truth: &Truth, is_power_cut: bool) {
    let (stripe, report) = open(root);
    let mut found = Vec::new();
    let mut leases = Vec::new();
    while claim(&stripe, 50, &mut leases) {}
    for lease in &leases {
        let job = &truth.jobs[&lease.sequence()];
        assert_eq!(lease.record().payload(), job.payload);
        let is_settled = job.is_acked && (job.is_ack_flushed || !is_power_cut);
        assert!(!is_settled, "an ack was lost (power cut: {is_power_cut})");
        found.push(lease.sequence());
    }
    assert!(
        found.is_sorted_by(|a, b| a < b),
        "delivered twice, or out of order"
    );
    for (sequence, job) in &truth.jobs {
        let is_promised = !job.is_acked && (job.is_flushed || !is_power_cut);
        assert!(
            !is_promised || found.contains(sequence),
            "{sequence} is lost (power cut: {is_power_cut}): {report:?}"
        );
    }
    if !is_power_cut {
        assert!(report.is_clean(), "{report:?}");
    }
    // These were sealed, and a seal proves its records.
    assert_eq!(stripe.damage(), []);
    let record = NewRecord {
        enqueued_at: Timestamp::ZERO,
        due_at: Timestamp::ZERO,
        meta: b"",
        payload: b"next",
    };
    let (next, _) = stripe.append_shared(&record).unwrap();
    let given = truth.jobs.keys().next_back();
    assert!(
        given.is_none_or(|&given| given < next),
        "{next} was given before"
    );
    // What is left can be worked off, to the last file.
    for lease in leases {
        lease.ack();
    }
    stripe.seal(true).unwrap();
    stripe.reclaim().unwrap();
    let stats = stripe.stats();
    assert_eq!((stats.live, stats.segments), (1, 1));
}

fn ack(truth: &Mutex<Truth>, lease: Lease) {
    if let Some(job) = truth.lock().jobs.get_mut(&lease.sequence()) {
        job.is_acked = true;
    }
    lease.ack();
}

/// Does random things to a log, and crashes it at each file operation. Returns how often.
fn run(seed: u64, steps: usize) -> usize {
    let root = scratch();
    let dir = root.path().join("log");
    fs::create_dir(&dir).unwrap();
    let truth = Arc::new(Mutex::new(Truth::default()));
    let crashes = Arc::new(Mutex::new(0));
    let mut disk = Disk {
        dir: dir.clone(),
        stored: BTreeMap::new(),
        nameless: BTreeMap::new(),
        durable_names: Names::new(),
        changes: Vec::new(),
        before: Names::new(),
    };
    let observer = {
        let (truth, crashes) = (Arc::clone(&truth), Arc::clone(&crashes));
        let mut random = Rng::with_seed(seed);
        move |operation, path: &Path, is_done| {
            disk.note(operation, path, is_done, &mut random);
            let crash = |is_power_cut, leave: &mut dyn FnMut(&Path)| {
                let root = scratch();
                fs::create_dir(root.path().join("log")).unwrap();
                leave(&root.path().join("log"));
                check(root.path(), &truth.lock(), is_power_cut);
                *crashes.lock() += 1;
            };
            if random.u8(0..4) == 0 {
                crash(false, &mut |to| disk.leave_after_a_kill(to));
            }
            for _ in 0..random.u8(0..4) {
                crash(true, &mut |to| {
                    disk.leave_after_a_power_cut(to, &mut random)
                });
            }
        }
    };
    faults::observe(&dir, Box::new(observer));
    let mut random = Rng::with_seed(seed);
    let mut stripe = open(root.path()).0;
    let mut leases: Vec<Lease> = Vec::new();
    for _ in 0..steps {
        match random.u8(0..24) {
            0..9 => {
                let mut payload = vec![0; random.usize(0..2000)];
                random.fill(&mut payload);
                let record = NewRecord {
                    enqueued_at: Timestamp::ZERO,
                    due_at: Timestamp::ZERO,
                    meta: b"",
                    payload: &payload,
                };
                let (sequence, _) = stripe.append_shared(&record).unwrap();
                let job = Job {
                    payload,
                    is_flushed: false,
                    is_acked: false,
                    is_ack_flushed: false,
                };
                assert!(truth.lock().jobs.insert(sequence, job).is_none());
            }
            9..12 => _ = claim(&stripe, random.u32(1..10), &mut leases),
            12..14 => {
                for _ in 0..random.usize(0..=leases.len()) {
                    ack(&truth, leases.swap_remove(random.usize(0..leases.len())));
                }
            }
            14..17 => {
                let acks_too = random.u8(0..3) == 0;
                stripe.flush(acks_too).unwrap();
                for job in truth.lock().jobs.values_mut() {
                    job.is_flushed = true;
                    job.is_ack_flushed |= acks_too && job.is_acked;
                }
            }
            17 => _ = stripe.reclaim().unwrap(),
            18 => _ = stripe.seal(random.u8(0..4) == 0).unwrap(),
            19 => _ = stripe.prepare(),
            20..23 => {
                while claim(&stripe, 100, &mut leases) {}
                leases.drain(..).for_each(|lease| ack(&truth, lease));
                stripe.reclaim().unwrap();
                // Mostly it goes on, in files that are used again. Else the queue is opened and
                // left alone, again and again.
                let opens = random.u8(0..20).saturating_sub(16);
                for _ in 0..opens {
                    stripe.reclaim().unwrap();
                    drop(stripe);
                    stripe = open(root.path()).0;
                }
            }
            _ => {
                if random.bool() {
                    stripe.close();
                    stripe.seal(true).unwrap();
                }
                leases.clear();
                drop(stripe);
                stripe = open(root.path()).0;
            }
        }
    }
    faults::stop_observing();
    *crashes.lock()
}

#[test]
fn no_job_is_lost_or_invented_and_no_sequence_given_twice_by_a_crash_at_any_operation() {
    let crashes: usize = (0..5).map(|seed| run(seed, 120)).sum();
    assert!(crashes > 500, "{crashes}");
}
