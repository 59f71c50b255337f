//! What is left of a simulated disk after a power cut or the death of the process.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use fastrand::Rng;

use super::{Change, Disk, Entry, Inode, Names, Stored};

impl Disk {
    fn names_after_a_power_cut(&mut self) -> Names {
        let mut names = self.durable.clone();
        let some = self.random.usize(0..=self.changes.len());
        let is_in_order = self.random.u8(0..4) > 0;
        for (at, (_, change)) in self.changes.iter().enumerate() {
            let happened = if is_in_order {
                at < some
            } else {
                self.random.bool()
            };
            if happened {
                change.apply(&mut names);
            }
        }
        names
    }

    /// Writes the tree that a power cut leaves to `to`. Returns the disk below it, on which all of
    /// the tree is durable.
    pub(crate) fn leave_after_a_power_cut(&mut self, to: &Path) -> Self {
        self.look();
        for (path, entry) in self.names_after_a_power_cut() {
            let is_reachable = path.parent().is_none_or(|dir| to.join(dir).is_dir());
            if !is_reachable {
                continue;
            }
            if entry.is_dir {
                fs::create_dir(to.join(path)).expect("created");
                continue;
            }
            let written = self.written(entry.inode);
            let stored = self.stored.get(&entry.inode).cloned().unwrap_or_default();
            let len = if self.random.u8(0..3) == 0 {
                stored.bytes.len()
            } else {
                written.len()
            };
            let (sector, random) = (self.sector, &mut self.random);
            let content = match random.u8(0..6) {
                0 => cut(&stored.bytes, len),
                1 if stored.forgotten.is_none() => cut(&written, len),
                _ if self.has_whole_sectors => mix(&stored.bytes, &written, len, sector, random),
                2 | 3 => mix(&stored.bytes, &written, len, sector, random),
                _ => tear(&stored, &written, len, sector, random),
            };
            fs::write(to.join(path), content).expect("written");
        }
        Self::new(to, self.random.u64(..))
    }

    /// Writes the tree that the death of the process leaves to `to`, as it is in the page cache.
    /// Returns the disk below it: what was not durable before is not durable there either.
    pub(crate) fn leave_after_a_kill(&mut self, to: &Path) -> Self {
        self.look();
        for (path, entry) in &self.known {
            if entry.is_dir {
                fs::create_dir(to.join(path)).expect("created");
            } else {
                fs::copy(self.root.join(path), to.join(path)).expect("copied");
            }
        }
        let mut left = Self::new(to, self.random.u64(..));
        let copies: BTreeMap<Inode, Inode> = self
            .known
            .iter()
            .map(|(path, entry)| (entry.inode, left.known[path].inode))
            .collect();
        // Files that have no name any more may get it back in a power cut. Their inode numbers are
        // mapped to ones that no file has.
        let copy_of = |inode: Inode| *copies.get(&inode).unwrap_or(&(inode | 1 << 63));
        let copy = |entry: Entry| Entry {
            inode: copy_of(entry.inode),
            ..entry
        };
        let names = self.durable.iter();
        left.durable = names
            .map(|(path, entry)| (path.clone(), copy(*entry)))
            .collect();
        left.changes = self.changes.clone();
        left.next_change = self.next_change;
        for (_, change) in &mut left.changes {
            if let Change::Create(_, entry) = change {
                *entry = copy(*entry);
            }
        }
        let stored = self.stored.iter();
        left.stored = stored
            .map(|(&inode, stored)| (copy_of(inode), stored.clone()))
            .collect();
        let nameless = self.nameless.iter();
        left.nameless = nameless
            .filter(|(inode, _)| !copies.contains_key(inode))
            .map(|(&inode, bytes)| (copy_of(inode), bytes.clone()))
            .collect();
        left.sector = self.sector;
        left.has_failed = self.has_failed;
        left
    }
}

/// The first `len` bytes, padded with zeros.
pub(super) fn cut(bytes: &[u8], len: usize) -> Vec<u8> {
    let mut content = bytes[..len.min(bytes.len())].to_vec();
    content.resize(len, 0);
    content
}

/// Each sector from one of the two at random.
pub(super) fn mix(
    one: &[u8],
    other: &[u8],
    len: usize,
    sector: usize,
    random: &mut Rng,
) -> Vec<u8> {
    let mut content = cut(one, len);
    for at in (0..len).step_by(sector) {
        let to = (at + sector).min(len).min(other.len());
        if at < to && random.bool() {
            content[at..to].copy_from_slice(&other[at..to]);
        }
    }
    content
}

/// Each sector from the disk or from the page cache at random, and some of them torn.
fn tear(stored: &Stored, written: &[u8], len: usize, sector: usize, random: &mut Rng) -> Vec<u8> {
    let old = cut(&stored.bytes, len);
    let new = cut(written, len);
    let mut content = mix(&old, &new, len, sector, random);
    for at in (0..len).step_by(sector) {
        let to = (at + sector).min(len);
        if old[at..to] == new[at..to] || random.u8(0..4) > 0 {
            continue;
        }
        let torn = random.usize(at..to);
        for at in torn..to {
            if old[at] != new[at] || !stored.was_flushed {
                // Garbage must never be a valid delivery word. These have their highest bit set, so
                // it is cleared here: about one random word in half a million would pass the check.
                content[at] = random.u8(..) & if at % 4 == 3 { 0x7f } else { 0xff };
            }
        }
    }
    content
}
