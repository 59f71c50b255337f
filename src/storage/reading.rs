//! Reading a file that another process may write to, cut off, rename or remove meanwhile: into
//! buffers, never through a mapping, as an access to a page that was cut off would raise a signal.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{OFlags, fstat};

use super::directory::is_regular;
use super::error::{Result, if_exists};
use super::{Entry, Operation, StorageError, faults};

/// A regular file that is open for reading.
#[derive(Debug)]
pub(crate) struct ReadFile {
    file: File,
    entry: Entry,
    /// The device and the number of the file.
    id: (u64, u64),
}

impl ReadFile {
    /// Opens a file; None if the name does not exist.
    pub(crate) fn open(entry: Entry) -> Result<Option<Self>> {
        let Some(file) = if_exists(entry.open(OFlags::RDONLY))? else {
            return Ok(None);
        };
        let found = Operation::Inspect.run(entry.path(), || Ok(fstat(&file)?))?;
        if !is_regular(&found) {
            let other = io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file");
            return Err(StorageError::new(
                Operation::Read.verb(),
                entry.path(),
                other,
            ));
        }
        Ok(Some(Self {
            file,
            entry,
            id: (found.st_dev, found.st_ino),
        }))
    }

    /// How long the file is.
    pub(crate) fn len(&self) -> Result<u64> {
        let found = Operation::Inspect.run(self.entry.path(), || Ok(fstat(&self.file)?))?;
        Ok(u64::try_from(found.st_size).unwrap_or(0))
    }

    /// Whether the name still leads to this file.
    pub(crate) fn has_its_name(&self) -> Result<bool> {
        let found = self.entry.directory().inspect(&self.entry)?;
        Ok(found.is_some_and(|found| (found.st_dev, found.st_ino) == self.id))
    }

    /// Reads from `offset` on until the buffer is full or the file ends. Returns how many bytes
    /// were read.
    pub(crate) fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let mut read = 0;
        while read < buffer.len() {
            let path = self.entry.path();
            let len = faults::length(Operation::Read, path, buffer.len() - read);
            let part = &mut buffer[read..read + len];
            let at = offset + read as u64;
            match Operation::Read.run(path, || self.file.read_at(part, at))? {
                0 => break,
                more => read += more,
            }
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::faults::{Effect, Plan};

    #[test]
    fn a_file_is_read_as_far_as_it_goes_whatever_becomes_of_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        assert!(ReadFile::open(Entry::at(&path)).unwrap().is_none());
        std::fs::write(&path, b"0123456789").unwrap();
        let file = ReadFile::open(Entry::at(&path)).unwrap().unwrap();
        let plan = Plan {
            operation: Operation::Read,
            calls: 0..2,
            effect: Effect::Short,
        };
        let _short = faults::watch(dir.path(), vec![plan]);
        let mut buffer = [0; 8];
        assert_eq!(file.read_at(1, &mut buffer).unwrap(), 8);
        assert_eq!(&buffer, b"12345678");
        assert_eq!(file.read_at(7, &mut buffer).unwrap(), 3);
        assert!(file.has_its_name().unwrap() && file.len().unwrap() == 10);
        std::fs::rename(&path, dir.path().join("g")).unwrap();
        assert!(!file.has_its_name().unwrap());
        std::fs::write(&path, b"other").unwrap();
        assert!(!file.has_its_name().unwrap());
        assert_eq!(file.read_at(0, &mut buffer).unwrap(), 8);
        std::fs::write(dir.path().join("g"), b"").unwrap();
        assert_eq!(file.read_at(0, &mut buffer).unwrap(), 0);
    }

    #[test]
    fn what_is_not_a_regular_file_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("d")).unwrap();
        std::os::unix::fs::symlink("/dev/zero", dir.path().join("link")).unwrap();
        for name in ["d", "link"] {
            assert!(ReadFile::open(Entry::at(&dir.path().join(name))).is_err());
        }
    }
}
