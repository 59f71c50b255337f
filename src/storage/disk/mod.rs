//! A model of the disk below a directory tree, which decides what a power cut leaves of it.
//!
//! The files themselves are real and have the content that the page cache would have. Besides, the
//! model keeps for each file what has reached the disk, and which names have. After a power cut,
//! each sector written since the last flush of its file is the old one, the new one, or torn:
//! garbage from some byte on. Each creation, renaming and removal since the last flush of its
//! directory has happened or not: in most cuts all of them up to some point have happened, in the
//! others any subset.
//!
//! A flush of a range covers the bytes of that range, which the mapping has rounded to pages, and
//! the length of the file; nothing else of the file is more durable after it than before.
//!
//! The model assumes one thing of a disk, as SQLite does ("powersafe overwrite"): bytes that are
//! overwritten with the same content are not torn. Records share sectors with others that were
//! flushed before. In a file that was never flushed, anything may be torn.

mod left;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::os::unix::fs::DirEntryExt;
use std::path::{Path, PathBuf};
use std::thread::{self, ThreadId};

use fastrand::Rng;
use rustix::io::Errno;

use self::left::{cut, mix};
use super::Operation;
use super::faults::{self, Moment};

/// Identifies a file or directory under whatever name.
type Inode = u64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    inode: Inode,
    is_dir: bool,
}

/// All files and directories by their path relative to the root. A directory comes before what is
/// in it.
type Names = BTreeMap<PathBuf, Entry>;

/// A change of names that may not be durable yet.
#[derive(Clone, Debug)]
enum Change {
    Create(PathBuf, Entry),
    Remove(PathBuf),
    Rename(PathBuf, PathBuf),
}

impl Change {
    /// The directory whose flush makes the change durable.
    fn dir(&self) -> Option<&Path> {
        match self {
            Change::Create(path, _) | Change::Remove(path) | Change::Rename(_, path) => {
                path.parent()
            }
        }
    }

    fn apply(&self, names: &mut Names) {
        match self {
            Change::Create(path, entry) => {
                names.insert(path.clone(), *entry);
            }
            Change::Remove(path) => {
                names.remove(path);
            }
            Change::Rename(from, to) => {
                if let Some(entry) = names.remove(from) {
                    names.insert(to.clone(), entry);
                }
            }
        }
    }
}

/// What the disk has of a file.
#[derive(Clone, Default)]
struct Stored {
    bytes: Vec<u8>,
    was_flushed: bool,
    /// The content at the time of a failed flush, which the kernel regards as written and does not
    /// write again.
    forgotten: Option<Vec<u8>>,
}

/// The disk that holds the files below `root`.
pub(crate) struct Disk {
    root: PathBuf,
    sector: usize,
    random: Rng,
    known: Names,
    durable: Names,
    /// With their numbers, which grow.
    changes: Vec<(u64, Change)>,
    next_change: u64,
    stored: BTreeMap<Inode, Stored>,
    /// The last content of each file that has no name any more.
    nameless: BTreeMap<Inode, Vec<u8>>,
    /// The content of the file at the start of the flush that the thread is in.
    flushing: HashMap<ThreadId, Vec<u8>>,
    /// The changes that were there at the start of the directory flush that the thread is in, by their
    /// numbers. It may not cover later ones.
    changes_before: HashMap<ThreadId, u64>,
    /// How many more flushes succeed before one fails.
    fails_after: Option<usize>,
    has_failed: bool,
    /// Whether the disk has no room for new files in the stripes' logs.
    is_full: bool,
    /// Whether files get and lose names only by operations that it is told of, so that it need not look at
    /// all directories each time.
    is_told_of_all: bool,
    /// Whether sectors are written as a whole or not at all.
    has_whole_sectors: bool,
    /// Whether flushes have no effect any more.
    ignores_flushes: bool,
}

impl Disk {
    /// A disk on which everything below `root` is durable.
    pub(crate) fn new(root: &Path, seed: u64) -> Self {
        let mut random = Rng::with_seed(seed);
        let mut disk = Self {
            root: root.to_path_buf(),
            // No disk has sectors of 64 bytes, but they split small files into more of them.
            sector: *random.choice(&[64, 512]).unwrap_or(&512),
            random,
            known: Names::new(),
            durable: Names::new(),
            changes: Vec::new(),
            next_change: 0,
            stored: BTreeMap::new(),
            nameless: BTreeMap::new(),
            flushing: HashMap::new(),
            changes_before: HashMap::new(),
            fails_after: None,
            has_failed: false,
            is_full: false,
            is_told_of_all: false,
            has_whole_sectors: false,
            ignores_flushes: false,
        };
        disk.known = disk.names();
        disk.durable = disk.known.clone();
        for entry in disk.known.values().filter(|entry| !entry.is_dir) {
            let stored = Stored {
                bytes: disk.written(entry.inode),
                was_flushed: true,
                forgotten: None,
            };
            disk.stored.insert(entry.inode, stored);
        }
        disk
    }

    /// Makes one flush, of whatever file or directory, fail after `after` flushes that succeed.
    pub(crate) fn fail_a_flush(&mut self, after: Option<usize>) {
        self.fails_after = after;
    }

    /// Sets whether the disk is full. A full disk has no room for new files in the stripes' logs and
    /// in the state log. (Other files always have room: their errors are tested elsewhere and leave little to crash.)
    pub(crate) fn fill(&mut self, is_full: bool) {
        self.is_full = is_full;
    }

    pub(crate) fn is_full(&self) -> bool {
        self.is_full
    }

    /// A number that depends on the seed and on what has happened.
    pub(crate) fn random_number(&mut self) -> u64 {
        self.random.u64(..)
    }

    fn fails_now(&mut self) -> bool {
        let fails = self.fails_after == Some(0);
        self.fails_after = self.fails_after.and_then(|after| after.checked_sub(1));
        self.has_failed |= fails;
        fails
    }

    /// Whether a flush has failed, so that the disk may hold less than the files show.
    pub(crate) fn has_failed(&self) -> bool {
        self.has_failed
    }

    /// The files whose names end in `suffix`, with their contents.
    pub(crate) fn files_that_end_in(&self, suffix: &str) -> Vec<(PathBuf, Vec<u8>)> {
        let names = self.names();
        let files = names
            .keys()
            .filter(|path| path.to_string_lossy().ends_with(suffix));
        files
            .map(|path| (path.clone(), fs::read(self.root.join(path)).expect("read")))
            .collect()
    }

    /// Relies on being told of each operation by which a file gets or loses a name.
    pub(crate) fn trust_operations(&mut self) {
        self.is_told_of_all = true;
    }

    /// Writes each sector as a whole or not at all.
    pub(crate) fn keep_sectors_whole(&mut self) {
        self.has_whole_sectors = true;
    }

    /// Makes nothing durable any more by a flush.
    pub(crate) fn ignore_flushes(&mut self) {
        self.ignores_flushes = true;
    }

    fn names(&self) -> Names {
        let mut names = Names::new();
        let mut dirs = vec![PathBuf::new()];
        while let Some(dir) = dirs.pop() {
            let found = self.names_in(&dir);
            let found_dirs = found.iter().filter(|(_, entry)| entry.is_dir);
            dirs.extend(found_dirs.map(|(path, _)| path.clone()));
            names.extend(found);
        }
        names
    }

    /// What is in a directory itself.
    fn names_in(&self, dir: &Path) -> Vec<(PathBuf, Entry)> {
        let entries = match fs::read_dir(self.root.join(dir)) {
            Ok(entries) => entries,
            // Another thread has just removed it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
            Err(error) => panic!("a directory of a simulated disk: {error}"),
        };
        let entry_of = |entry: fs::DirEntry| {
            let inode = entry.ino();
            let is_dir = entry.file_type().expect("a type").is_dir();
            (dir.join(entry.file_name()), Entry { inode, is_dir })
        };
        let entries = entries.map(|entry| entry_of(entry.expect("an entry")));
        entries.collect()
    }

    /// The content of a file in the page cache.
    fn written(&self, inode: Inode) -> Vec<u8> {
        let known = self.known.iter().find(|(_, entry)| entry.inode == inode);
        let read = known.map(|(path, _)| fs::read(self.root.join(path)));
        match read {
            Some(Ok(bytes)) => bytes,
            // Another thread has just removed or renamed it.
            Some(Err(error)) if error.kind() != io::ErrorKind::NotFound => {
                panic!("a file of a simulated disk: {error}")
            }
            _ => self.nameless.get(&inode).cloned().unwrap_or_default(),
        }
    }

    /// Records the names created, changed and removed since the last call.
    fn look(&mut self) {
        let now = self.names();
        self.look_at(now);
    }

    /// As `look`, as far as an operation on this path may have changed names.
    fn look_around(&mut self, operation: Operation, path: &Path) {
        let dir = match operation {
            Operation::FlushDirectory => Some(path),
            _ => path.parent(),
        };
        let is_known = |dir: &&Path| *dir == Path::new("") || self.known.contains_key(*dir);
        let Some(dir) = dir.filter(is_known).filter(|_| self.is_told_of_all) else {
            return self.look();
        };
        let mut found = self.names_in(dir);
        found.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        let below = self.known.range(dir.to_path_buf()..);
        let below = below.take_while(|(path, _)| path.starts_with(dir));
        let known = below.filter(|(path, _)| path.parent() == Some(dir));
        let known: Vec<_> = known.map(|(path, entry)| (path.clone(), *entry)).collect();
        if found == known {
            return;
        }
        let dirs = |names: &[(PathBuf, Entry)]| -> Vec<Inode> {
            let dirs = names.iter().filter(|(_, entry)| entry.is_dir);
            dirs.map(|(_, entry)| entry.inode).collect()
        };
        if dirs(&found) != dirs(&known) {
            // With what is in them.
            return self.look();
        }
        let mut now = self.known.clone();
        now.retain(|path, _| path.parent() != Some(dir));
        now.extend(found);
        self.look_at(now);
    }

    fn look_at(&mut self, now: Names) {
        let old_paths: BTreeMap<Inode, PathBuf> = self
            .known
            .iter()
            .filter(|(path, entry)| now.get(*path) != Some(entry))
            .map(|(path, entry)| (entry.inode, path.clone()))
            .collect();
        let mut renamed = BTreeSet::new();
        let mut changes = Vec::new();
        for (path, entry) in &now {
            if self.known.get(path) == Some(entry) {
                continue;
            }
            match old_paths.get(&entry.inode) {
                Some(old) => {
                    renamed.insert(old.clone());
                    changes.push(Change::Rename(old.clone(), path.clone()));
                }
                None => {
                    // The kernel reuses the inode numbers of deleted files.
                    self.stored.remove(&entry.inode);
                    self.nameless.remove(&entry.inode);
                    changes.push(Change::Create(path.clone(), *entry));
                }
            }
        }
        for path in self.known.keys() {
            if !now.contains_key(path) && !renamed.contains(path) {
                changes.push(Change::Remove(path.clone()));
            }
        }
        for change in changes {
            self.changes.push((self.next_change, change));
            self.next_change += 1;
        }
        self.known = now;
    }

    /// Records an operation. An error is the one that the operation has to fail with.
    pub(crate) fn note(
        &mut self,
        operation: Operation,
        path: &Path,
        moment: Moment,
    ) -> io::Result<()> {
        let path = path.strip_prefix(&self.root).unwrap_or(path).to_path_buf();
        if operation != Operation::Flush {
            self.look_around(operation, &path);
        }
        match moment {
            Moment::Before => self.note_before(operation, &path),
            Moment::After => {
                self.note_after(operation, &path);
                Ok(())
            }
        }
    }

    fn note_before(&mut self, operation: Operation, path: &Path) -> io::Result<()> {
        self.write_something_back();
        let inode = self.known.get(path).map(|entry| entry.inode);
        match operation {
            Operation::Remove | Operation::Rename => {
                // A rename may also remove the file that it replaces.
                let goes = |other: &Path| {
                    (other.parent(), other.file_stem()) == (path.parent(), path.file_stem())
                };
                let known = self.known.iter().filter(|(other, _)| goes(other));
                let inodes: Vec<_> = known.map(|(_, entry)| entry.inode).collect();
                for inode in inodes {
                    let written = self.written(inode);
                    self.nameless.insert(inode, written);
                }
            }
            Operation::Flush => {
                let written = inode.map(|inode| self.written(inode)).unwrap_or_default();
                if self.fails_now() {
                    if let Some(inode) = inode {
                        self.fail_flush(inode, &written);
                    }
                    return Err(Errno::IO.into());
                }
                self.flushing.insert(thread::current().id(), written);
            }
            Operation::Create if self.is_full && is_in_log(path) => {
                return Err(Errno::NOSPC.into());
            }
            Operation::FlushDirectory => {
                if self.fails_now() {
                    return Err(Errno::IO.into());
                }
                self.changes_before
                    .insert(thread::current().id(), self.next_change);
            }
            _ => {}
        }
        Ok(())
    }

    fn note_after(&mut self, operation: Operation, path: &Path) {
        match operation {
            _ if self.ignores_flushes => {}
            Operation::Flush => {
                let flushed = self.flushing.remove(&thread::current().id());
                let (Some(entry), Some(flushed)) = (self.known.get(path), flushed) else {
                    return;
                };
                let inode = entry.inode;
                // Bytes that were written during the flush may have reached the disk, too.
                let now = self.written(inode);
                let mut bytes = mix(&flushed, &now, now.len(), self.sector, &mut self.random);
                let stored = self.stored.entry(inode).or_default();
                let range = faults::flushed_range();
                if let Some(range) = &range {
                    let mut kept = cut(&stored.bytes, now.len());
                    let covered = range.start.min(now.len())..range.end.min(now.len());
                    kept[covered.clone()].copy_from_slice(&bytes[covered]);
                    bytes = kept;
                }
                if let Some(forgotten) = &stored.forgotten {
                    // After a failed flush, only bytes that have changed since are written.
                    for (at, byte) in bytes.iter_mut().enumerate() {
                        if forgotten.get(at) == Some(byte) {
                            *byte = stored.bytes.get(at).copied().unwrap_or(0);
                        }
                    }
                }
                stored.bytes = bytes;
                // Until all of it was, anything of it may be torn.
                stored.was_flushed |= range.is_none();
            }
            Operation::FlushDirectory => {
                let mut durable = std::mem::take(&mut self.durable);
                let before = self.changes_before.remove(&thread::current().id());
                let before = before.unwrap_or(0);
                self.changes.retain(|(number, change)| {
                    let is_flushed = *number < before && change.dir() == Some(path);
                    if is_flushed {
                        change.apply(&mut durable);
                    }
                    !is_flushed
                });
                self.durable = durable;
            }
            _ => {}
        }
    }

    /// Models what Linux does when a flush fails: some sectors have reached the disk, and the
    /// kernel regards all of them as written.
    fn fail_flush(&mut self, inode: Inode, written: &[u8]) {
        let stored = self.stored.entry(inode).or_default();
        stored.bytes = mix(
            &stored.bytes,
            written,
            written.len(),
            self.sector,
            &mut self.random,
        );
        stored.forgotten = Some(written.to_vec());
    }

    fn write_something_back(&mut self) {
        // Rarely, so that the disk may still have content that was overwritten long ago.
        if self.random.u8(0..25) > 0 {
            return;
        }
        let inodes: Vec<_> = self.known.values().filter(|entry| !entry.is_dir).collect();
        for inode in inodes.into_iter().map(|entry| entry.inode) {
            let written = self.written(inode);
            let stored = self.stored.entry(inode).or_default();
            if stored.forgotten.is_none() {
                stored.bytes = mix(
                    &stored.bytes,
                    &written,
                    written.len(),
                    self.sector,
                    &mut self.random,
                );
            }
        }
    }
}

/// Whether a file is in the log of a stripe, or in a state log.
fn is_in_log(path: &Path) -> bool {
    path.iter().any(|name| name == "log")
}
