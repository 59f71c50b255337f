//! The only memory mappings of the crate: a file whose every byte is backed by allocated blocks,
//! seen as atomics and as bytes.
//!
//! Everything that the log stores goes through here: words by atomics, payloads by
//! [`MappedFile::copy_in`]. What may be read when is the segment layer's protocol (a commit word
//! is stored last, with Release); this file only upholds that an access lies inside the mapping
//! and is aligned.

#![allow(unsafe_code)]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64};

use memmap2::{Advice, MmapOptions, MmapRaw};

use crate::storage::{self, StorageError};

/// A file mapped shared and writable, with its descriptor for flushing.
pub(crate) struct MappedFile {
    map: MmapRaw,
    file: File,
    path: PathBuf,
}

impl MappedFile {
    /// Creates `path` with `len` allocated, zeroed bytes and maps it.
    ///
    /// The file must not exist; nothing is left behind on failure.
    pub(crate) fn create(path: &Path, len: u64) -> Result<Self, StorageError> {
        let file = storage::create_allocated(path, len)?;
        Self::map(file, path, len).inspect_err(|_| {
            // Nobody has seen the file yet; a failure to remove it is found at the next open.
            let _ = storage::remove_file(path);
        })
    }

    /// Maps the first `len` bytes of an existing file. The caller has checked that the file is at
    /// least that long.
    pub(crate) fn open(path: &Path, len: u64) -> Result<Self, StorageError> {
        let file = storage::open_read_write(path)?;
        Self::map(file, path, len)
    }

    fn map(file: File, path: &Path, len: u64) -> Result<Self, StorageError> {
        let len =
            usize::try_from(len).map_err(|_| StorageError::new("map", path, too_large_to_map()))?;
        let map = MmapOptions::new()
            .len(len)
            .map_raw(&file)
            .map_err(|error| StorageError::new("map", path, error))?;
        Ok(Self {
            map,
            file,
            path: path.to_path_buf(),
        })
    }

    /// Bytes mapped.
    pub(crate) fn len(&self) -> usize {
        self.map.len()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Makes the pages of `[offset, offset + len)` present and writable, so that the first store
    /// to each costs no page fault. Best effort: kernels before 5.14 lack the call, and then the
    /// stores fault as they always would.
    pub(crate) fn prefault(&self, offset: usize, len: usize) {
        if let Err(error) = self.map.advise_range(Advice::PopulateWrite, offset, len) {
            tracing::debug!(path = %self.path.display(), %error, "prefault not possible");
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
    pub(crate) fn word16(&self, offset: usize) -> &AtomicU16 {
        let pointer = self.pointer(offset, 2, 2);
        // SAFETY: `pointer` is aligned and inside the mapping, which lives as long as `self`. The
        // segment layer reads these bytes as plain memory only when no store can happen (see
        // `bytes`), so there is no racing non-atomic access.
        unsafe { AtomicU16::from_ptr(pointer.cast()) }
    }

    #[inline]
    pub(crate) fn word32(&self, offset: usize) -> &AtomicU32 {
        let pointer = self.pointer(offset, 4, 4);
        // SAFETY: as in `word16`.
        unsafe { AtomicU32::from_ptr(pointer.cast()) }
    }

    #[inline]
    pub(crate) fn word64(&self, offset: usize) -> &AtomicU64 {
        let pointer = self.pointer(offset, 8, 8);
        // SAFETY: as in `word16`.
        unsafe { AtomicU64::from_ptr(pointer.cast()) }
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

fn too_large_to_map() -> std::io::Error {
    std::io::Error::new(
        std::io::ErrorKind::InvalidInput,
        "larger than the address space",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    #[test]
    fn stores_reach_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let mapped = MappedFile::create(&path, 4096).unwrap();
        mapped.prefault(0, 4096);
        mapped.word64(8).store(0x0102_0304, Ordering::Relaxed);
        // SAFETY: this test is alone with the mapping.
        unsafe { mapped.copy_in(100, b"payload") };
        let read = std::fs::read(&path).unwrap();
        assert_eq!(read.len(), 4096);
        assert_eq!(&read[8..12], &[4, 3, 2, 1]);
        assert_eq!(&read[100..107], b"payload");
    }

    #[test]
    #[should_panic(expected = "outside the mapping")]
    fn an_access_past_the_end_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mapped = MappedFile::create(&dir.path().join("f"), 4096).unwrap();
        mapped.word64(4096);
    }
}
