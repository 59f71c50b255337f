//! Every file and directory operation of the crate, each with an error that says what was tried
//! on which path.
//!
//! This is the one seam between the log and the file system: mappings are made from the files
//! opened here, and flushes, renames, truncations and removals happen nowhere else. Unit tests
//! watch these, and have them fail, through `storage/faults.rs`.

#[cfg(test)]
pub(crate) mod faults;

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use memmap2::MmapRaw;
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

/// What changes a file or directory, or makes it durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Create,
    Truncate,
    Rename,
    Remove,
    Flush,
    FlushDirectory,
}

impl Operation {
    const fn verb(self) -> &'static str {
        match self {
            Operation::Create => "create",
            Operation::Truncate => "truncate",
            Operation::Rename => "rename",
            Operation::Remove => "remove",
            Operation::Flush => "flush",
            Operation::FlushDirectory => "flush the directory",
        }
    }

    fn run<T>(self, path: &Path, run: impl FnOnce() -> io::Result<T>) -> Result<T> {
        #[cfg(test)]
        faults::before(self, path).context(self.verb(), path)?;
        let result = run().context(self.verb(), path);
        #[cfg(test)]
        faults::after(self, path);
        result
    }
}

/// A failed operation on a file or directory.
#[derive(Debug, thiserror::Error)]
#[error("could not {action} {}: {source}", path.display())]
pub struct StorageError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl StorageError {
    pub(crate) fn new(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self {
            action,
            path: path.to_path_buf(),
            source,
        }
    }

    /// What was tried, as a verb: "create", "flush", ...
    pub fn action(&self) -> &str {
        self.action
    }

    /// The file or directory it was tried on.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The operating system's error.
    pub fn io_error(&self) -> &io::Error {
        &self.source
    }

    /// Whether it was a flush that failed, of a file or of the names in a directory, so that what
    /// it was to make durable may be lost.
    pub(crate) fn is_failed_flush(&self) -> bool {
        [Operation::Flush.verb(), Operation::FlushDirectory.verb()].contains(&self.action)
    }

    /// Whether the device, quota or size limit is exhausted, so that freeing space helps.
    pub fn is_full(&self) -> bool {
        matches!(
            self.source.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
        )
    }
}

type Result<T> = std::result::Result<T, StorageError>;

/// Attaches what was tried, and on which path, to an [`io::Result`].
pub(crate) trait Context<T> {
    fn context(self, action: &'static str, path: &Path) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, action: &'static str, path: &Path) -> Result<T> {
        self.map_err(|error| StorageError::new(action, path, error.into()))
    }
}

/// Creates `path`, which must not exist, with `len` zeroed bytes whose blocks are allocated, so
/// that no later store to a mapping of it can find the disk full (which would be a SIGBUS).
pub(crate) fn create_allocated(path: &Path, len: u64) -> Result<File> {
    Operation::Create.run(path, || {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)?;
        match allocate(&file, len) {
            Ok(()) => Ok(file),
            Err(error) => {
                // The reason for the failure matters more than what became of the empty file.
                let _ = fs::remove_file(path);
                Err(error)
            }
        }
    })
}

fn allocate(file: &File, len: u64) -> io::Result<()> {
    loop {
        match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, len) {
            // Some file systems cannot allocate ahead; written zeros are allocated blocks too.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => break,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    // Where they are allocated already: page by page, as faults of a mapping come, the page cache
    // takes about three times as long to fill (measured on ext4) as in writes of many pages.
    write_zeros(file, len)
}

/// Has blocks allocated for the holes in the first `len` bytes of a file that is at least that
/// long. What is in it stays as it is.
pub(crate) fn back_with_blocks(path: &Path, len: u64) -> Result<()> {
    let file = open_read_write(path)?;
    loop {
        match rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, len) {
            // A file system that cannot allocate ahead has had its blocks written.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("allocate", path),
        }
    }
}

fn write_zeros(mut file: &File, len: u64) -> io::Result<()> {
    const CHUNK: usize = 1024 * 1024;
    let zeros = vec![0u8; CHUNK.min(usize::try_from(len).unwrap_or(CHUNK))];
    let mut left = len;
    while left > 0 {
        let step = usize::try_from(left).map_or(zeros.len(), |left| left.min(zeros.len()));
        file.write_all(&zeros[..step])?;
        left -= step as u64;
    }
    Ok(())
}

pub(crate) fn open_read_write(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .context("open", path)
}

/// Flushes the data of a mapped file, and what is needed to read it back.
pub(crate) fn flush_mapping(map: &MmapRaw, path: &Path) -> Result<()> {
    Operation::Flush.run(path, || {
        loop {
            match map.flush() {
                // Interrupted before it had a result; any other failure is one.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    })
}

/// Flushes the names in a directory: a file created, renamed or removed in it is durably so
/// only after this.
pub(crate) fn flush_directory(path: &Path) -> Result<()> {
    Operation::FlushDirectory.run(path, || File::open(path)?.sync_all())
}

/// Creates a directory, and those above it, unless it exists; each one's name is then durable.
pub(crate) fn create_directory(path: &Path) -> Result<()> {
    match fs::create_dir(path) {
        Ok(()) => flush_directory(parent_of(path)),
        Err(_) if path.is_dir() => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound && parent_of(path) != path => {
            create_directory(parent_of(path))?;
            create_directory(path)
        }
        Err(error) => Err(StorageError::new("create the directory", path, error)),
    }
}

/// The directory that a file or directory is in.
pub(crate) fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => path,
    }
}

/// Creates a file that is only a name; one that is there already stays.
pub(crate) fn create_empty(path: &Path) -> Result<()> {
    Operation::Create.run(path, || {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).open(path)
    })?;
    Ok(())
}

/// Gives a file another name, durable only with its directory.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<()> {
    Operation::Rename.run(from, || fs::rename(from, to))
}

pub(crate) fn remove_file(path: &Path) -> Result<()> {
    Operation::Remove.run(path, || match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    })
}

/// Shortens a file, if it exists.
pub(crate) fn truncate(path: &Path, len: u64) -> Result<()> {
    Operation::Truncate.run(path, || match OpenOptions::new().write(true).open(path) {
        Ok(file) => file.set_len(len),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    })
}

/// Empties a file, if it exists, and makes that durable.
pub(crate) fn empty_durably(path: &Path) -> Result<()> {
    truncate(path, 0)?;
    match OpenOptions::new().write(true).open(path) {
        Ok(file) => Operation::Flush.run(path, || file.sync_all()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(StorageError::new("open", path, error)),
    }
}

/// The first bytes of a file, `limit` at most, or None if it does not exist.
pub(crate) fn read_start(path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    match File::open(path) {
        Ok(file) => file
            .take(limit)
            .read_to_end(&mut bytes)
            .context("read", path)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StorageError::new("read", path, error)),
    };
    Ok(Some(bytes))
}

/// The whole of a small file, or None if it does not exist. Of a file too large to be one of
/// ours, only the start.
pub(crate) fn read_if_exists(path: &Path) -> Result<Option<Vec<u8>>> {
    const LARGEST_SMALL_FILE: u64 = 64 * 1024;
    read_start(path, LARGEST_SMALL_FILE)
}

/// The length of a file, or None if there is no regular file of that name.
pub(crate) fn file_len(path: &Path) -> Result<Option<u64>> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(metadata.is_file().then_some(metadata.len())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StorageError::new("inspect", path, error)),
    }
}

/// Replaces `path` by `bytes` in one step that a crash leaves either done or not: write a
/// temporary file, flush it, rename it over, flush the directory.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = path.with_extension("tmp");
    let write = || {
        let mut file = Operation::Create.run(&temporary, || File::create(&temporary))?;
        file.write_all(bytes).context("write", &temporary)?;
        Operation::Flush.run(&temporary, || file.sync_all())?;
        rename(&temporary, path)
    };
    write().inspect_err(|_| {
        // It may take up what is left of a full disk.
        let _ = fs::remove_file(&temporary);
    })?;
    flush_directory(parent_of(path))
}

/// Whether a file has exactly this content, and can be read.
pub(crate) fn has_content(path: &Path, bytes: &[u8]) -> bool {
    let Ok(file) = File::open(path) else {
        return false;
    };
    let mut file = BufReader::new(file);
    let mut rest = bytes;
    loop {
        match file.fill_buf() {
            Ok([]) => return rest.is_empty(),
            Ok(read) => match rest.strip_prefix(read) {
                Some(unread) => {
                    let len = read.len();
                    rest = unread;
                    file.consume(len);
                }
                None => return false,
            },
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
}

/// The names in a directory, sorted. Names that are not Unicode are none of ours and are left out.
pub(crate) fn list(path: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(path).context("list", path)? {
        if let Ok(name) = entry.context("list", path)?.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn missing_directories_are_created_and_existing_ones_are_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let deep = root.path().join("a/b/c");
        create_directory(&deep).unwrap();
        fs::write(deep.join("f"), b"x").unwrap();
        create_directory(&deep).unwrap();
        assert_eq!(list(&deep).unwrap(), ["f"]);
        let error = create_directory(&deep.join("f/d")).unwrap_err();
        assert_eq!(error.path(), deep.join("f/d"));
    }

    #[test]
    fn the_names_of_new_directories_are_flushed() {
        let root = tempfile::tempdir().unwrap();
        let fault = faults::fail_flushes(&root.path().join("a"));
        assert!(
            create_directory(&root.path().join("a/b"))
                .unwrap_err()
                .is_failed_flush()
        );
        drop(fault);
        assert!(create_directory(&root.path().join("a/b")).is_ok());
    }

    #[test]
    fn holes_are_filled_with_blocks_and_nothing_else_changes() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("f");
        let file = File::create(&path).unwrap();
        file.set_len(1 << 20).unwrap();
        drop(file);
        let mut expected = vec![0; 1 << 20];
        expected[..3].copy_from_slice(b"abc");
        let mut file = OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all(b"abc").unwrap();
        back_with_blocks(&path, 1 << 19).unwrap();
        assert!(fs::metadata(&path).unwrap().blocks() * 512 >= 1 << 19);
        assert_eq!(fs::read(&path).unwrap(), expected);
    }

    #[test]
    fn a_replacement_that_fails_leaves_the_old_file_and_no_other() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("f");
        replace(&path, b"old").unwrap();
        for fault in [
            faults::fill_disk(root.path()),
            faults::fail_flushes(&root.path().join("f.tmp")),
        ] {
            assert!(replace(&path, b"new").is_err());
            drop(fault);
        }
        assert_eq!(list(root.path()).unwrap(), ["f"]);
        assert!(has_content(&path, b"old"));
        replace(&path, b"new").unwrap();
        assert!(has_content(&path, b"new"));
        for other in [b"ne".as_slice(), b"new!", b"old", b""] {
            assert!(!has_content(&path, other));
        }
    }

    #[test]
    fn of_a_file_too_large_to_be_ours_only_the_start_is_read() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("f");
        assert_eq!(read_if_exists(&path).unwrap(), None);
        File::create(&path).unwrap().set_len(1 << 40).unwrap();
        assert_eq!(read_if_exists(&path).unwrap().unwrap().len(), 64 * 1024);
    }

    #[test]
    fn a_failure_says_what_was_tried_on_which_path_and_whether_the_disk_is_full() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("f");
        let _fault = faults::fill_disk(root.path());
        let error = create_allocated(&path, 10).unwrap_err();
        assert!(error.is_full() && !error.is_failed_flush());
        let text = error.to_string();
        assert!(
            text.starts_with(&format!("could not create {}", path.display())),
            "{text}"
        );
    }
}
