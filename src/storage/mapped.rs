//! Mapped files, the only memory mappings of the crate: a file whose every byte is backed by
//! allocated blocks, accessed as atomics and as bytes.
//!
//! Everything that the log stores goes through here: words by atomics, payloads by
//! [`MappedFile::copy_in`]. The segment layer's protocol decides what may be read when (a commit
//! word is stored last, with Release). This file only ensures that an access lies inside the
//! mapping and is aligned.
//!
//! A mapping keeps no file descriptor: it keeps its file alive by itself, and a long backlog has
//! more segments than a process may have open files.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Range;
#[cfg(fuzzing)]
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

#[cfg(not(fuzzing))]
use memmap2::UncheckedAdvice;
use memmap2::{Advice, MmapOptions, MmapRaw};
use rustix::io::Errno;
use rustix::ioctl::{self, Opcode, Updater, opcode};

use crate::events::event;
use crate::storage::allocate::{PIECE, SMALL_PIECE};
use crate::storage::mappings::{Counted, Purpose};
use crate::storage::{Entry, Operation, StorageError, faults};

/// The smallest page size. The kernel, and the crate that calls it, round to larger ones.
const SMALLEST_PAGE: usize = 4096;
/// At the end of a range that is flushed, producers may still write to so many bytes.
const IN_USE: usize = 2 * SMALLEST_PAGE;
/// So little is not worth a system call.
const FEW: usize = 4 * SMALLEST_PAGE;

/// The header of a record in the mapping; the layout is in `log/record.rs`.
#[repr(C)]
pub(crate) struct RecordWords {
    pub(crate) len: AtomicU32,
    pub(crate) check: AtomicU32,
    pub(crate) identity: AtomicU64,
    pub(crate) enqueued_at: AtomicU64,
    pub(crate) due_at: AtomicU64,
}

/// A file mapped shared and writable.
pub(crate) struct MappedFile {
    map: MmapRaw,
    /// After `map`, so that the file is unmapped before it is no longer counted.
    _counted: Counted,
    entry: Entry,
    /// Whether a flush has covered the whole of it, since it was mapped.
    is_based: AtomicBool,
}

impl MappedFile {
    /// Creates a file with `len` allocated, zeroed bytes and maps it. The first store to each of
    /// the first `warm` bytes causes no page fault; stores to later bytes do until
    /// [`prefault_from`](Self::prefault_from).
    ///
    /// The file must not exist; nothing is left behind on failure.
    pub(crate) fn create(entry: Entry, len: u64, warm: u64) -> Result<Self, StorageError> {
        Self::create_in_pieces(entry, len, warm, PIECE)
    }

    /// Like [`create`](Self::create), for a small file in which bytes are changed here and there. A
    /// flush writes only the pages that have changed.
    pub(crate) fn create_small(entry: Entry, len: u64, warm: u64) -> Result<Self, StorageError> {
        Self::create_in_pieces(entry, len, warm, SMALL_PIECE)
    }

    fn create_in_pieces(
        entry: Entry,
        len: u64,
        warm: u64,
        piece: usize,
    ) -> Result<Self, StorageError> {
        let file = entry.create_allocated(len, warm, piece)?;
        Self::map(&file, entry.clone(), len, Purpose::Use)
            .and_then(|mapped| {
                let warm = usize::try_from(warm).unwrap_or(usize::MAX);
                let warm = 0..warm.min(mapped.len());
                if !mapped.prefault(warm.clone())? {
                    for page in warm.step_by(SMALLEST_PAGE) {
                        // All bytes are zero, and no other thread has seen them. (Compilers leave
                        // out a read-modify-write that changes nothing.)
                        mapped.word32(page).store(0, Ordering::Relaxed);
                    }
                }
                Ok(mapped)
            })
            .inspect_err(|_| {
                // The file is not in use yet; if it stays, the next open finds it.
                let _ = entry.remove();
            })
    }

    /// Maps the first `len` bytes of an existing file. The caller has checked that the file is at
    /// least that long, and has it [backed](Entry::back_with_blocks) before it writes.
    pub(crate) fn open(entry: Entry, len: u64, purpose: Purpose) -> Result<Self, StorageError> {
        Self::map(&entry.open_read_write()?, entry, len, purpose)
    }

    /// Bytes in memory in place of a file's.
    #[cfg(fuzzing)]
    pub(crate) fn in_memory(bytes: &[u8]) -> Self {
        let mut map = MmapOptions::new()
            .len(bytes.len())
            .map_anon()
            .expect("there is memory");
        map.copy_from_slice(bytes);
        Self {
            map: map.into(),
            _counted: Counted::unlimited(),
            entry: Entry::at(Path::new("/memory")),
            is_based: AtomicBool::new(false),
        }
    }

    fn map(file: &File, entry: Entry, len: u64, purpose: Purpose) -> Result<Self, StorageError> {
        let path = entry.path();
        let too_large = || io::Error::new(io::ErrorKind::InvalidInput, "exceeds the address space");
        let len = usize::try_from(len)
            .map_err(|_| StorageError::new(Operation::Map.verb(), path, too_large()))?;
        let (map, counted) = Operation::Map.run(path, || {
            let counted = Counted::new(purpose)?;
            Ok((MmapOptions::new().len(len).map_raw(file)?, counted))
        })?;
        Ok(Self {
            map,
            _counted: counted,
            entry,
            is_based: AtomicBool::new(false),
        })
    }

    /// How many bytes are mapped.
    pub(crate) fn len(&self) -> usize {
        self.map.len()
    }

    pub(crate) fn entry(&self) -> &Entry {
        &self.entry
    }

    /// Renames the file, replacing an existing file of that name.
    pub(crate) fn rename(&mut self, to: &Entry) -> Result<(), StorageError> {
        self.entry.rename(to)?;
        self.moved_to(to.clone());
        Ok(())
    }

    /// Records that the file was renamed.
    pub(crate) fn moved_to(&mut self, entry: Entry) {
        self.entry = entry;
    }

    /// Zeroes the bytes `[offset, offset + len)`.
    pub(crate) fn zero(&mut self, offset: usize, len: usize) {
        let pointer = self.pointer(offset, len, 1);
        // SAFETY: inside the mapping, and `self` is borrowed exclusively, so nobody has a reference
        // into it.
        unsafe { pointer.write_bytes(0, len) }
    }

    /// Makes everything stored so far durable, with the metadata needed to read it back.
    pub(crate) fn flush(&self) -> Result<(), StorageError> {
        Operation::Flush.run(self.entry.path(), || self.map.flush())?;
        // Release pairs with the Acquire in `flush_range`.
        self.is_based.store(true, Ordering::Release);
        Ok(())
    }

    /// Makes the pages of these bytes durable as they are, once a flush has covered the whole file;
    /// before that, flushes all of it. What was written of other pages stays as it is on the disk.
    ///
    /// A flush of a range makes durable what is needed to read these pages back, as `fdatasync`
    /// does. It also fails if the kernel has failed to write any other page of the file since the
    /// last flush.
    pub(crate) fn flush_range(&self, range: Range<usize>) -> Result<(), StorageError> {
        if !self.is_based.load(Ordering::Acquire) {
            self.release_pages();
            return self.flush();
        }
        let end = range.end.next_multiple_of(SMALLEST_PAGE).min(self.len());
        let start = (range.start / SMALLEST_PAGE * SMALLEST_PAGE).min(end);
        let left = start..end.saturating_sub(IN_USE).max(start);
        if left.len() > FEW {
            self.release(left);
        }
        let flush = || self.map.flush_range(start, end - start);
        faults::flushing(start..end, || {
            Operation::Flush.run(self.entry.path(), flush)
        })
    }

    /// Takes all pages out of the page table, to which the next access to each returns it: before a flush
    /// of many pages that nobody is about to write to. For each page that is in the table and dirty, a
    /// flush interrupts every core on which the process runs; this does so once for all of them.
    pub(crate) fn release_pages(&self) {
        self.release(0..self.len());
    }

    /// As [`release_pages`](Self::release_pages), for these bytes of whole pages.
    #[cfg_attr(fuzzing, expect(unused_variables))]
    fn release(&self, range: Range<usize>) {
        // What a fuzzer has in memory has no file to come back from.
        #[cfg(not(fuzzing))]
        {
            let advice = UncheckedAdvice::DontNeed;
            // SAFETY: the mapping is a shared one of a file, so its bytes stay in the page cache, dirty ones
            // too, and any access by any thread finds them there.
            let released = unsafe {
                self.map
                    .unchecked_advise_range(advice, range.start, range.len())
            };
            if let Err(error) = released {
                // The flush then just takes longer.
                event!(debug, %error, "the pages stay in the page table");
            }
        }
    }

    /// Makes the pages of these bytes writable again, which a flush has write-protected, while
    /// other threads may use them. On a kernel that cannot do this, they stay as they are.
    pub(crate) fn make_writable(&self, range: Range<usize>) -> Result<(), StorageError> {
        let end = range.end.min(self.len());
        let start = range.start / SMALLEST_PAGE * SMALLEST_PAGE;
        self.prefault(start..end)?;
        Ok(())
    }

    /// Makes the pages from `offset` on present and writable, while other threads may use them. On
    /// a kernel that cannot do this, they stay as they are.
    pub(crate) fn prefault_from(&self, offset: u64) -> Result<(), StorageError> {
        if let Err(error) = self.entry.read_into_cache(offset) {
            // The prefault then just takes longer.
            event!(debug, %error, "not read ahead of a prefault");
        }
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        self.prefault(offset.min(self.len())..self.len())?;
        Ok(())
    }

    /// Makes pages present and writable, so that the first store to each costs no page fault. The
    /// range starts on a page. Returns false if the kernel cannot (Linux before 5.14).
    fn prefault(&self, range: Range<usize>) -> Result<bool, StorageError> {
        if range.is_empty() {
            return Ok(true);
        }
        let operation = Operation::Prefault;
        let advise = || {
            let advice = Advice::PopulateWrite;
            self.map.advise_range(advice, range.start, range.len())
        };
        match operation.attempt(self.entry.path(), advise) {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(false),
            result => self.check_populated(operation, result).map(|()| true),
        }
    }

    /// Reads the pages of the first `len` bytes into memory, so that an unreadable sector is an
    /// error here rather than a signal later.
    pub(crate) fn read_in(&self, len: usize) -> Result<(), StorageError> {
        let advise = || self.map.advise_range(Advice::PopulateRead, 0, len);
        let operation = Operation::ReadIn;
        self.check_populated(operation, operation.attempt(self.entry.path(), advise))
    }

    fn check_populated(
        &self,
        operation: Operation,
        result: io::Result<()>,
    ) -> Result<(), StorageError> {
        match result {
            // An access to such a page would raise a signal.
            Err(error) if is_bad_page(&error) => Err(StorageError::new(
                operation.verb(),
                self.entry.path(),
                error,
            )),
            // The kernel does not know the call, or is short of memory: accesses fault as usual.
            Err(error) => {
                let path = self.entry.path().to_path_buf();
                event!(debug, path = %path.display(), ?operation, %error, "not populated");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    #[inline]
    fn pointer(&self, offset: usize, len: usize, align: usize) -> *mut u8 {
        assert!(
            offset
                .checked_add(len)
                .is_some_and(|end| end <= self.map.len())
                && offset.is_multiple_of(align),
            "access outside the mapping"
        );
        // The mapping starts on a page, so an aligned offset is an aligned address.
        self.map.as_mut_ptr().wrapping_add(offset)
    }

    #[inline]
    pub(crate) fn word32(&self, offset: usize) -> &AtomicU32 {
        let pointer = self.pointer(offset, 4, 4);
        // SAFETY: `pointer` is aligned and inside the mapping, which lives as long as `self`. The
        // segment layer reads these bytes as plain memory only when no store can happen (see
        // `bytes`), so there is no racing non-atomic access.
        unsafe { AtomicU32::from_ptr(pointer.cast()) }
    }

    #[inline]
    pub(crate) fn word64(&self, offset: usize) -> &AtomicU64 {
        let pointer = self.pointer(offset, 8, 8);
        // SAFETY: as in `word32`.
        unsafe { AtomicU64::from_ptr(pointer.cast()) }
    }

    /// The five words of a record's header, with one bounds check for all of them.
    #[inline]
    pub(crate) fn record_words(&self, offset: usize) -> &RecordWords {
        let pointer = self.pointer(offset, size_of::<RecordWords>(), align_of::<RecordWords>());
        // SAFETY: as in `word32`: atomics of these sizes, at these offsets.
        unsafe { &*pointer.cast::<RecordWords>() }
    }

    /// Whether all bytes from `offset`, a multiple of 8, are zero.
    pub(crate) fn is_zero_from(&self, offset: usize) -> bool {
        let len = self.len().saturating_sub(offset);
        let pointer = self.pointer(offset, len, align_of::<AtomicU64>());
        // SAFETY: as in `word64`, for each of them.
        let words = unsafe { std::slice::from_raw_parts(pointer.cast::<AtomicU64>(), len / 8) };
        words.iter().all(|word| word.load(Ordering::Relaxed) == 0)
            // This library's files end on a multiple of 4.
            && (len % 8 < 4 || self.word32(offset + len / 8 * 8).load(Ordering::Relaxed) == 0)
    }

    /// The bytes `[offset, offset + len)`.
    ///
    /// # Safety
    /// Nobody stores to these bytes while the slice lives: they belong to a committed record, or
    /// the caller is the only one that can reach the mapping.
    #[inline]
    pub(crate) unsafe fn bytes(&self, offset: usize, len: usize) -> &[u8] {
        let pointer = self.pointer(offset, len, 1);
        // SAFETY: inside the mapping, initialized (file backed), and unwritten by the contract.
        unsafe { std::slice::from_raw_parts(pointer, len) }
    }

    /// Copies `source` to `offset`.
    ///
    /// # Safety
    /// Nobody else reads or writes these bytes: they belong to a record that the caller has
    /// reserved and not yet committed, or the caller is the only one that can reach the mapping.
    #[inline]
    pub(crate) unsafe fn copy_in(&self, offset: usize, source: &[u8]) {
        let pointer = self.pointer(offset, source.len(), 1);
        // SAFETY: inside the mapping; a caller's slice cannot overlap a mapping to which only the
        // caller has access and of which it holds no slice.
        unsafe { std::ptr::copy_nonoverlapping(source.as_ptr(), pointer, source.len()) }
    }
}

/// Whether each of the first `len` bytes of a file has a block on the disk that no other file
/// shares, so that a store to a mapping of it needs no new block. An error if the file system does
/// not tell.
///
/// On a copy-on-write file system this guarantees nothing.
pub(crate) fn has_blocks_of_its_own(file: &File, len: u64) -> io::Result<bool> {
    /// `struct fiemap` of `linux/fiemap.h`, with room for some extents.
    #[repr(C)]
    struct Fiemap {
        start: u64,
        length: u64,
        flags: u32,
        mapped: u32,
        room: u32,
        reserved: u32,
        extents: [Extent; ROOM],
    }
    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    struct Extent {
        offset: u64,
        on_disk: u64,
        length: u64,
        reserved: [u64; 2],
        flags: u32,
        reserved_too: [u32; 3],
    }
    const ROOM: usize = 32;
    const LAST: u32 = 0x1;
    const SHARED: u32 = 0x2000;
    // The call number includes the size of the structure without extents.
    const CALL: Opcode = opcode::read_write::<[u8; 32]>(b'f', 11);
    let mut at = 0;
    while at < len {
        let mut map = Fiemap {
            start: at,
            length: len - at,
            flags: 0,
            mapped: 0,
            room: ROOM as u32,
            reserved: 0,
            extents: [Extent::default(); ROOM],
        };
        // SAFETY: the kernel reads the fields before the extents and writes at most `room` extents,
        // all of which are plain numbers; the structure has that many and outlives the call.
        unsafe { ioctl::ioctl(file, Updater::<CALL, Fiemap>::new(&mut map))? };
        let found = &map.extents[..ROOM.min(map.mapped as usize)];
        for extent in found {
            if extent.offset > at || extent.flags & SHARED != 0 {
                return Ok(false);
            }
            at = extent.offset + extent.length;
        }
        if found.last().is_none_or(|last| last.flags & LAST != 0) {
            break;
        }
    }
    Ok(at >= len)
}

/// Whether the error of populating a mapping means that a page is not there (past the file's end,
/// or unreadable), or is in memory that has failed.
fn is_bad_page(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::FAULT | Errno::HWPOISON)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::faults::{self, Effect, Plan};

    #[test]
    fn stores_reach_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let mapped = MappedFile::create(Entry::at(&path), 4096, 4096).unwrap();
        mapped.word64(8).store(0x0102_0304, Ordering::Relaxed);
        // SAFETY: only this test uses the mapping.
        unsafe { mapped.copy_in(100, b"payload") };
        let read = std::fs::read(&path).unwrap();
        assert_eq!(read.len(), 4096);
        assert_eq!(&read[8..12], &[4, 3, 2, 1]);
        assert_eq!(&read[100..107], b"payload");
    }

    #[test]
    fn pages_that_the_file_does_not_have_are_an_error_where_they_would_be_a_signal() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let mapped = MappedFile::create(Entry::at(&path), 8192, 8192).unwrap();
        assert!(mapped.read_in(8192).is_ok() && mapped.prefault_from(0).is_ok());
        Entry::at(&path).truncate(4096).unwrap();
        assert!(mapped.read_in(4096).is_ok());
        assert_eq!(mapped.read_in(8192).unwrap_err().action(), "read");
        assert_eq!(mapped.prefault_from(0).unwrap_err().action(), "prefault");
    }

    #[test]
    fn only_bad_pages_keep_a_mapping_from_being_used() {
        let dir = tempfile::tempdir().unwrap();
        let mapped = MappedFile::create(Entry::at(&dir.path().join("f")), 8192, 8192).unwrap();
        mapped.word64(4096).store(7, Ordering::Relaxed);
        for (errno, is_bad) in [
            (Errno::FAULT, true),
            (Errno::HWPOISON, true),
            // An older kernel, and a kernel that is short of memory.
            (Errno::INVAL, false),
            (Errno::NOMEM, false),
        ] {
            let plans = [Operation::Prefault, Operation::ReadIn].map(|operation| Plan {
                operation,
                calls: 0..1,
                effect: Effect::Fail(errno),
            });
            let _fault = faults::watch(dir.path(), plans.into());
            assert_eq!(mapped.prefault_from(0).is_err(), is_bad, "{errno}");
            assert_eq!(mapped.read_in(8192).is_err(), is_bad, "{errno}");
        }
        assert_eq!(mapped.word64(4096).load(Ordering::Relaxed), 7);
    }

    #[test]
    fn a_kernel_that_cannot_prefault_makes_files_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let plan = Plan {
            operation: Operation::Prefault,
            calls: 0..usize::MAX,
            effect: Effect::Fail(Errno::INVAL),
        };
        let _fault = faults::watch(dir.path(), vec![plan]);
        for warm in [1, 4096, u64::MAX] {
            let path = dir.path().join(warm.to_string());
            let mapped = MappedFile::create(Entry::at(&path), 8192 + 4, warm).unwrap();
            mapped.word32(8192).store(7, Ordering::Relaxed);
            mapped.prefault_from(4096).unwrap();
            let read = std::fs::read(&path).unwrap();
            assert!(read[..8192].iter().all(|&byte| byte == 0) && read[8192] == 7);
        }
    }

    #[test]
    fn what_is_zero_is_known_up_to_the_last_word() {
        let dir = tempfile::tempdir().unwrap();
        let mapped = MappedFile::create(Entry::at(&dir.path().join("f")), 4100, 4100).unwrap();
        assert!(mapped.is_zero_from(0) && mapped.is_zero_from(4096));
        for at in [0, 60, 64, 4092, 4096] {
            mapped.word32(at).store(1, Ordering::Relaxed);
            assert!(!mapped.is_zero_from(0));
            assert_eq!(mapped.is_zero_from(64), at < 64);
            mapped.word32(at).store(0, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_flush_of_a_range_covers_its_pages_once_the_whole_file_was_flushed() {
        let dir = tempfile::tempdir().unwrap();
        let len = 5 * 4096 + 100;
        let mapped = MappedFile::create(Entry::at(&dir.path().join("f")), len, len).unwrap();
        let watch = faults::watch(dir.path(), Vec::new());
        let covered = |range| {
            mapped.flush_range(range).unwrap();
            let calls = watch.take_calls();
            assert_eq!(calls.len(), 1);
            calls[0].range.clone()
        };
        assert_eq!(covered(0..64), None);
        assert_eq!(covered(0..64), Some(0..4096));
        assert_eq!(covered(4095..4096), Some(0..4096));
        assert_eq!(covered(4096..4097), Some(4096..8192));
        assert_eq!(covered(5000..5000), Some(4096..8192));
        assert_eq!(covered(8191..12_289), Some(4096..16_384));
        assert_eq!(covered(20_000..1 << 30), Some(16_384..len as usize));
        mapped.flush().unwrap();
        assert_eq!(watch.take_calls()[0].range, None);
    }

    #[test]
    fn after_a_flush_that_has_failed_a_range_is_not_enough() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let mapped = MappedFile::create(Entry::at(&path), 8192, 8192).unwrap();
        let failing = faults::fail_flushes(&path);
        assert!(mapped.flush_range(0..64).is_err());
        drop(failing);
        let watch = faults::watch(dir.path(), Vec::new());
        mapped.flush_range(0..64).unwrap();
        assert_eq!(watch.take_calls()[0].range, None);
    }

    /// How many page faults this thread has met that needed no disk.
    fn page_faults() -> u64 {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        // The name in brackets may have spaces; the count is the eighth field behind it.
        let (_, fields) = stat.rsplit_once(')').unwrap();
        fields.split_whitespace().nth(7).unwrap().parse().unwrap()
    }

    #[test]
    fn a_flush_of_many_pages_takes_those_out_of_the_page_table_that_were_left() {
        let dir = tempfile::tempdir().unwrap();
        let (pages, page) = (64, SMALLEST_PAGE);
        let len = (pages * page) as u64;
        let mapped = MappedFile::create(Entry::at(&dir.path().join("f")), len, len).unwrap();
        let read = |page: usize| mapped.word64(page * SMALLEST_PAGE).load(Ordering::Relaxed);
        // The first one is of the whole file.
        for _ in 0..2 {
            (0..pages).for_each(|at| mapped.word64(at * page).store(7, Ordering::Relaxed));
            mapped.flush_range(0..pages * page).unwrap();
            let before = page_faults();
            assert!((0..pages - 2).all(|page| read(page) == 7));
            assert!(page_faults() > before);
        }
    }

    #[test]
    fn what_was_stored_is_there_after_its_pages_were_released() {
        let dir = tempfile::tempdir().unwrap();
        let (path, len) = (dir.path().join("f"), 64 * 4096);
        let mapped = MappedFile::create(Entry::at(&path), len, len).unwrap();
        let words = (0..len as usize).step_by(4096);
        std::thread::scope(|scope| {
            let releases = scope.spawn(|| (0..200).for_each(|_| mapped.release_pages()));
            let mut round = 0;
            while !releases.is_finished() || round < 3 {
                for offset in words.clone() {
                    let word = mapped.word64(offset + 8);
                    assert_eq!(word.fetch_add(1, Ordering::Relaxed), round);
                }
                round += 1;
            }
            mapped.release_pages();
            let read = std::fs::read(&path).unwrap();
            for offset in words.clone() {
                assert_eq!(read[offset + 8..offset + 16], round.to_le_bytes());
                let word = mapped.word64(offset + 8);
                assert_eq!(word.load(Ordering::Relaxed), round);
            }
        });
    }

    #[test]
    fn pages_are_made_writable_as_far_as_there_are_any() {
        let dir = tempfile::tempdir().unwrap();
        let mapped = MappedFile::create(Entry::at(&dir.path().join("f")), 8192, 8192).unwrap();
        mapped.flush().unwrap();
        for range in [0..64, 100..5000, 4096..1 << 30, 8192..1 << 30] {
            mapped.make_writable(range).unwrap();
        }
    }

    #[test]
    fn a_mapping_keeps_no_file_descriptor() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let mapped = MappedFile::create(Entry::at(&path), 4096, 4096).unwrap();
        mapped.flush().unwrap();
        let open = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        let targets: Vec<_> = open
            .filter_map(|entry| std::fs::read_link(entry.path()).ok())
            .collect();
        assert!(!targets.is_empty() && !targets.contains(&path));
    }

    #[test]
    #[should_panic(expected = "outside the mapping")]
    fn an_access_past_the_end_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mapped = MappedFile::create(Entry::at(&dir.path().join("f")), 4096, 4096).unwrap();
        mapped.word64(4096);
    }
}
