//! Storage: every file and directory operation of the crate. Each error says what was tried on
//! which path.
//!
//! A queue works relative to directories that it holds open ([`Directory`]), and with the names of
//! files in them ([`Entry`]).
//!
//! This is the only seam between the log and the file system: every system call on a file or
//! directory is an [`Operation`]. Unit tests count and watch them and make them fail, through
//! `storage/faults.rs`; `storage/disk/` is a model of the disk below them, for simulated power cuts.

mod allocate;
mod directory;
// Unit tests use a part of these two, and a simulated disk another one.
#[cfg(any(test, feature = "simulated-disk"))]
#[cfg_attr(not(all(test, feature = "simulated-disk")), allow(dead_code))]
pub(crate) mod disk;
mod entry;
mod error;
#[cfg(any(test, feature = "simulated-disk"))]
#[cfg_attr(not(all(test, feature = "simulated-disk")), allow(dead_code))]
pub(crate) mod faults;
mod handle;
pub(crate) mod mapped;
pub(crate) mod mappings;
mod reading;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

pub(crate) use self::directory::{Directory, absolute, create_directories, in_the_way};
pub(crate) use self::entry::{Entry, Kind};
pub use self::error::StorageError;
use self::error::{Context, Result};
pub(crate) use self::reading::ReadFile;

/// A system call on a file or directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Operation {
    Create,
    CreateDirectory,
    Open,
    Lock,
    Inspect,
    List,
    Read,
    Write,
    Allocate,
    Truncate,
    Map,
    /// Makes the pages of a mapping present and writable.
    Prefault,
    /// Reads the pages of a mapping into memory.
    ReadIn,
    Rename,
    Remove,
    Flush,
    FlushDirectory,
    /// A store that commits a record of a batch: no call, but a moment to look at the files.
    #[cfg(any(test, feature = "simulated-disk"))]
    Commit,
}

impl Operation {
    pub(crate) const fn verb(self) -> &'static str {
        match self {
            Operation::Create => "create",
            Operation::CreateDirectory => "create the directory",
            Operation::Open => "open",
            Operation::Lock => "lock",
            Operation::Inspect => "inspect",
            Operation::List => "list",
            Operation::Read | Operation::ReadIn => "read",
            Operation::Write => "write",
            Operation::Allocate => "allocate",
            Operation::Truncate => "truncate",
            Operation::Map => "map",
            Operation::Prefault => "prefault",
            Operation::Rename => "rename",
            Operation::Remove => "remove",
            Operation::Flush => "flush",
            Operation::FlushDirectory => "flush the directory",
            #[cfg(any(test, feature = "simulated-disk"))]
            Operation::Commit => "commit a record in",
        }
    }

    /// Makes the call, and repeats it while signals interrupt it: an interrupted call has no
    /// result, not even a flush. Any other failure is final.
    pub(crate) fn attempt<T>(
        self,
        path: &Path,
        mut call: impl FnMut() -> io::Result<T>,
    ) -> io::Result<T> {
        loop {
            match faults::around(self, path, &mut call) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    /// Like [`attempt`](Self::attempt); the error says what was tried on which path.
    pub(crate) fn run<T>(self, path: &Path, call: impl FnMut() -> io::Result<T>) -> Result<T> {
        self.attempt(path, call).context(self.verb(), path)
    }
}

/// An open file as a stream of bytes.
pub(crate) struct Stream<'a>(pub(crate) &'a File, pub(crate) &'a Path);

impl Read for Stream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let &mut Self(mut file, path) = self;
        let len = faults::length(Operation::Read, path, buffer.len());
        Operation::Read.attempt(path, || file.read(&mut buffer[..len]))
    }
}

impl Write for Stream<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let &mut Self(mut file, path) = self;
        let len = faults::length(Operation::Write, path, bytes.len());
        Operation::Write.attempt(path, || file.write(&bytes[..len]))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Outside of tests, no faults are injected.
#[cfg(not(any(test, feature = "simulated-disk")))]
mod faults {
    use std::ops::Range;

    use super::{Operation, Path, io};

    #[inline]
    pub(super) fn around<T>(
        _: Operation,
        _: &Path,
        call: &mut impl FnMut() -> io::Result<T>,
    ) -> io::Result<T> {
        call()
    }

    #[inline]
    pub(super) fn flushing<T>(_: Range<usize>, call: impl FnOnce() -> T) -> T {
        call()
    }

    #[inline]
    pub(super) fn length(_: Operation, _: &Path, len: usize) -> usize {
        len
    }
}
