//! Allocation of disk space ahead of need: files whose every byte is backed by allocated blocks.

use std::fs::File;
use std::io::{self, BufReader, Seek};

use rustix::fs::{Advice, FallocateFlags, IFlags, OFlags, fstatfs, ioctl_setflags};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use super::error::{Context, Result};
use super::{Entry, Operation, Stream};
use crate::events::event;
use crate::storage::mapped;

/// Bytes of a write to a new file that is filled from its start to its end.
///
/// The page cache keeps the data of one write in one folio if it can, and a flush writes and
/// write-protects whole folios: the page that a producer writes to with all its neighbours. Beside
/// a flush each 10 ms, 20,000 enqueues of 1 KiB a second had a p99.9 of 34, 62, 138 and 741 us with
/// folios of 4, 16, 64 KiB and 1 MiB; 8 MiB took 6.7, 2.4, 1.2 and 1.2 ms to write (ext4, Linux
/// 6.18).
pub(super) const PIECE: usize = 16 * 1024;
/// The same of a file that is changed here and there, which is small.
pub(super) const SMALL_PIECE: usize = 4096;

/// Makes Btrfs write changes of a new, empty file in place, as other file systems do, and not to
/// new blocks, which a full disk does not have. This disables Btrfs's own checksums for the file.
fn write_in_place(file: &File) {
    const BTRFS: u32 = 0x9123_683e;
    let is_btrfs = fstatfs(file).is_ok_and(|system| system.f_type as u32 == BTRFS);
    if is_btrfs && let Err(error) = ioctl_setflags(file, IFlags::NOCOW) {
        event!(debug, %error, "a file is copied on write");
    }
}

impl Entry {
    /// Creates a file, which must not exist, with `len` zeroed bytes whose blocks are allocated, so
    /// that no later store to a mapping of it can find the disk full (which would be a SIGBUS). The
    /// first `cached` bytes are in the page cache afterwards, in folios of `piece` bytes.
    pub(crate) fn create_allocated(&self, len: u64, cached: u64, piece: usize) -> Result<File> {
        self.fits_file_size_limit(len)?;
        let file = self.create(OFlags::RDWR | OFlags::EXCL)?;
        write_in_place(&file);
        self.allocate(&file, FallocateFlags::empty(), len)
            // Zeros are written even if the blocks are allocated: filling the page cache page by
            // page, as the faults of a mapping do, takes about three times as long (measured on
            // ext4) as writes of many pages.
            .and_then(|is_allocated| {
                let written = if is_allocated { cached.min(len) } else { len };
                self.write_zeros(&file, written, piece)
            })
            .inspect_err(|_| {
                // The reason for the failure matters more than whether the file could be removed.
                let _ = self.remove();
            })?;
        Ok(file)
    }

    /// Allocates blocks of its own for the holes in the first `len` bytes of a file that is at
    /// least that long, and for the parts that it, as a copy, shares with another file. The
    /// contents stay the same.
    pub(crate) fn back_with_blocks(&self, len: u64) -> Result<()> {
        let file = self.open_read_write()?;
        // A full XFS refuses any allocation, even of blocks that are already there.
        if self.has_blocks_of_its_own(&file, len) {
            return Ok(());
        }
        let own = FallocateFlags::UNSHARE_RANGE | FallocateFlags::KEEP_SIZE;
        if !self.allocate(&file, own, len)? {
            // On a file system that cannot allocate ahead, the blocks were written.
            self.allocate(&file, FallocateFlags::KEEP_SIZE, len)?;
        }
        Ok(())
    }

    /// False if that is unknown.
    fn has_blocks_of_its_own(&self, file: &File, len: u64) -> bool {
        let look = || mapped::has_blocks_of_its_own(file, len);
        Operation::Inspect
            .attempt(self.path(), look)
            .unwrap_or(false)
    }

    /// Whether the process may create files of this length. Checked before any file is created,
    /// because exceeding the limit raises a signal that ends the process.
    pub(crate) fn fits_file_size_limit(&self, len: u64) -> Result<()> {
        match getrlimit(Resource::Fsize).current {
            Some(limit) if limit < len => {
                let too_large = Err(Errno::FBIG.into());
                too_large.context(Operation::Allocate.verb(), self.path())
            }
            _ => Ok(()),
        }
    }

    /// Allocates blocks. Returns false on file systems that cannot allocate ahead; there, written
    /// zeros are allocated blocks too.
    fn allocate(&self, file: &File, flags: FallocateFlags, len: u64) -> Result<bool> {
        let fallocate = || Ok(rustix::fs::fallocate(file, flags, 0, len)?);
        match Operation::Allocate.run(self.path(), fallocate) {
            Err(error) if error.io_error().kind() == io::ErrorKind::Unsupported => Ok(false),
            result => result.map(|()| true),
        }
    }

    fn write_zeros(&self, file: &File, len: u64, piece: usize) -> Result<()> {
        let zeros = vec![0u8; piece.min(usize::try_from(len).unwrap_or(piece))];
        let mut left = len;
        while left > 0 {
            let step = usize::try_from(left).map_or(zeros.len(), |left| left.min(zeros.len()));
            self.write_all(file, &zeros[..step])?;
            left -= step as u64;
        }
        Ok(())
    }

    /// Reads the bytes of a file from `offset` on into the page cache.
    ///
    /// Reads make the kernel load larger pieces than faults of a mapping do, two to five times as
    /// fast (measured on ext4).
    pub(crate) fn read_into_cache(&self, offset: u64) -> Result<()> {
        const PIECE: usize = 64 * 1024;
        let mut file = self.open(OFlags::RDONLY)?;
        // Read ahead, the data would be in folios of 128 KiB or more, see `PIECE`.
        let _ = rustix::fs::fadvise(&file, 0, None, Advice::Random);
        let read = file.seek(io::SeekFrom::Start(offset)).and_then(|_| {
            let mut stream = BufReader::with_capacity(PIECE, Stream(&file, self.path()));
            io::copy(&mut stream, &mut io::sink())
        });
        read.map(|_| ())
            .context(Operation::Read.verb(), self.path())
    }
}
