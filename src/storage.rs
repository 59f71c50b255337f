//! Every file and directory operation of the crate, each with an error that says what was tried
//! on which path.
//!
//! This is the one seam between the log and the file system: mappings are made from the files
//! opened here, and flushes, renames, truncations and removals happen nowhere else.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use memmap2::MmapRaw;
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

/// What a flush of a file, or of a directory, says it tried.
const FLUSH: &str = "flush";
const FLUSH_DIRECTORY: &str = "flush the directory";

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
        [FLUSH, FLUSH_DIRECTORY].contains(&self.action)
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
    #[cfg(test)]
    if faults::is_full(path) {
        return Err(StorageError::new("allocate", path, Errno::NOSPC.into()));
    }
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
        .context("create", path)?;
    match allocate(&file, len) {
        Ok(()) => Ok(file),
        Err(error) => {
            // The reason for the failure matters more than what became of the empty file.
            let _ = fs::remove_file(path);
            Err(StorageError::new("allocate", path, error))
        }
    }
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
    #[cfg(test)]
    if faults::flush_fails(path) {
        return Err(StorageError::new(FLUSH, path, Errno::IO.into()));
    }
    loop {
        match map.flush() {
            // Interrupted before it had a result; any other failure is one.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result.context(FLUSH, path),
        }
    }
}

/// Flushes the names in a directory: a file created, renamed or removed in it is durably so
/// only after this.
pub(crate) fn flush_directory(path: &Path) -> Result<()> {
    #[cfg(test)]
    if faults::flush_fails(path) {
        return Err(StorageError::new(FLUSH_DIRECTORY, path, Errno::IO.into()));
    }
    File::open(path)
        .and_then(|dir| dir.sync_all())
        .context(FLUSH_DIRECTORY, path)
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
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .context("create", path)?;
    Ok(())
}

/// Gives a file another name, durable only with its directory.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).context("rename", from)
}

pub(crate) fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.context("remove", path),
    }
}

/// Shortens a file, if it exists.
pub(crate) fn truncate(path: &Path, len: u64) -> Result<()> {
    match OpenOptions::new().write(true).open(path) {
        Ok(file) => file.set_len(len).context("truncate", path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(StorageError::new("truncate", path, error)),
    }
}

/// Empties a file, if it exists, and makes that durable.
pub(crate) fn empty_durably(path: &Path) -> Result<()> {
    match OpenOptions::new().write(true).open(path) {
        Ok(file) => {
            file.set_len(0).context("truncate", path)?;
            file.sync_all().context(FLUSH, path)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(StorageError::new("truncate", path, error)),
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
    write_flushed(&temporary, bytes)
        .and_then(|()| fs::rename(&temporary, path).context("rename", &temporary))
        .inspect_err(|_| {
            // It may take up what is left of a full disk.
            let _ = fs::remove_file(&temporary);
        })?;
    flush_directory(parent_of(path))
}

fn write_flushed(path: &Path, bytes: &[u8]) -> Result<()> {
    #[cfg(test)]
    if faults::is_full(path) {
        return Err(StorageError::new("write", path, Errno::NOSPC.into()));
    }
    let mut file = File::create(path).context("create", path)?;
    file.write_all(bytes).context("write", path)?;
    file.sync_all().context(FLUSH, path)
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

/// Faults that unit tests inject, by path.
#[cfg(test)]
pub(crate) mod faults {
    use std::path::{Path, PathBuf};

    use parking_lot::Mutex;

    static FAILING: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
    static FULL: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

    /// Has flushes of a file or directory fail while the guard lives.
    pub(crate) fn fail_flushes(path: &Path) -> Fault {
        Fault::begin(&FAILING, path)
    }

    /// Has the disk be full for new files below a directory while the guard lives.
    pub(crate) fn fill_disk(dir: &Path) -> Fault {
        Fault::begin(&FULL, dir)
    }

    pub(super) fn flush_fails(path: &Path) -> bool {
        FAILING.lock().iter().any(|failing| failing == path)
    }

    pub(super) fn is_full(path: &Path) -> bool {
        FULL.lock().iter().any(|dir| path.starts_with(dir))
    }

    /// A fault, until dropped.
    #[must_use]
    pub(crate) struct Fault(&'static Mutex<Vec<PathBuf>>, PathBuf);

    impl Fault {
        fn begin(faults: &'static Mutex<Vec<PathBuf>>, path: &Path) -> Self {
            faults.lock().push(path.to_path_buf());
            Self(faults, path.to_path_buf())
        }
    }

    impl Drop for Fault {
        fn drop(&mut self) {
            self.0.lock().retain(|path| *path != self.1);
        }
    }
}
