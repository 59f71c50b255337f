//! Every file and directory operation of the crate, each with an error that says what was tried
//! on which path.
//!
//! This is the one seam between the log and the file system: every system call on a file or
//! directory is an [`Operation`]. Unit tests count them, watch them, and have them fail, through
//! `storage/faults.rs`.

#[cfg(test)]
pub(crate) mod faults;

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, Write};
use std::path::{Path, PathBuf};

use memmap2::MmapRaw;
use rustix::fs::FallocateFlags;

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
    /// Reads the pages of a mapping in.
    ReadIn,
    Rename,
    Remove,
    Flush,
    FlushDirectory,
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
        }
    }

    /// Makes the call, and makes it again if a signal interrupted it: it has no result then, not
    /// even that of a flush. Any other failure is one.
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

    /// As [`attempt`](Self::attempt); the error says what was tried on which path.
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

    /// The same failure, for somebody else to be told of.
    pub(crate) fn retold(&self) -> Self {
        let source = match self.source.raw_os_error() {
            Some(code) => io::Error::from_raw_os_error(code),
            None => io::Error::new(self.source.kind(), self.source.to_string()),
        };
        Self::new(self.action, &self.path, source)
    }

    /// Whether it was a flush that failed, of a file or of the names in a directory, so that what
    /// it was to make durable may be lost.
    pub(crate) fn is_failed_flush(&self) -> bool {
        [Operation::Flush.verb(), Operation::FlushDirectory.verb()].contains(&self.action)
    }

    /// Whether the device, quota or size limit is exhausted, so that freeing space helps. A flush
    /// that failed for lack of space is not helped by it.
    pub fn is_full(&self) -> bool {
        let is_space = matches!(
            self.source.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
        );
        is_space && !self.is_failed_flush()
    }
}

type Result<T> = std::result::Result<T, StorageError>;

/// Attaches what was tried, and on which path, to an [`io::Result`].
trait Context<T> {
    fn context(self, action: &'static str, path: &Path) -> Result<T>;
}

impl<T> Context<T> for io::Result<T> {
    fn context(self, action: &'static str, path: &Path) -> Result<T> {
        self.map_err(|error| StorageError::new(action, path, error))
    }
}

/// None for what does not exist.
fn if_exists<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Creates `path`, which must not exist, with `len` zeroed bytes whose blocks are allocated, so
/// that no later store to a mapping of it can find the disk full (which would be a SIGBUS). The
/// first `cached` bytes are in the page cache afterwards.
pub(crate) fn create_allocated(path: &Path, len: u64, cached: u64) -> Result<File> {
    let file = Operation::Create.run(path, || {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).open(path)
    })?;
    allocate(&file, path, FallocateFlags::empty(), len)
        // Where they are allocated already: page by page, as faults of a mapping come, the page
        // cache takes about three times as long to fill (measured on ext4) as in writes of many
        // pages.
        .and_then(|is_allocated| {
            let written = if is_allocated { cached.min(len) } else { len };
            write_zeros(&file, path, written)
        })
        .inspect_err(|_| {
            // The reason for the failure matters more than what became of the file.
            let _ = remove_file(path);
        })?;
    Ok(file)
}

/// Has blocks allocated for the holes in the first `len` bytes of a file that is at least that
/// long. What is in it stays as it is.
pub(crate) fn back_with_blocks(path: &Path, len: u64) -> Result<()> {
    // A file system that cannot allocate ahead has had its blocks written.
    let file = open_read_write(path)?;
    allocate(&file, path, FallocateFlags::KEEP_SIZE, len).map(|_| ())
}

/// Returns false on file systems that cannot allocate ahead; written zeros are allocated blocks
/// too.
fn allocate(file: &File, path: &Path, flags: FallocateFlags, len: u64) -> Result<bool> {
    let fallocate = || Ok(rustix::fs::fallocate(file, flags, 0, len)?);
    match Operation::Allocate.run(path, fallocate) {
        Err(error) if error.source.kind() == io::ErrorKind::Unsupported => Ok(false),
        result => result.map(|()| true),
    }
}

fn write_zeros(file: &File, path: &Path, len: u64) -> Result<()> {
    // The page cache keeps what one write brings as one folio if it can, and writes a folio back as
    // a whole: with chunks of 1 MiB, each flush of a few records wrote 1 MiB (ext4, Linux 6.18) and
    // took up to twice as long as with these. Smaller ones make no flush faster and new files slower.
    const CHUNK: usize = 64 * 1024;
    let zeros = vec![0u8; CHUNK.min(usize::try_from(len).unwrap_or(CHUNK))];
    let mut left = len;
    while left > 0 {
        let step = usize::try_from(left).map_or(zeros.len(), |left| left.min(zeros.len()));
        write_all(file, path, &zeros[..step])?;
        left -= step as u64;
    }
    Ok(())
}

fn write_all(file: &File, path: &Path, bytes: &[u8]) -> Result<()> {
    let written = Stream(file, path).write_all(bytes);
    written.context(Operation::Write.verb(), path)
}

fn open(path: &Path, options: &OpenOptions) -> Result<File> {
    Operation::Open.run(path, || options.open(path))
}

pub(crate) fn open_read_write(path: &Path) -> Result<File> {
    open(path, OpenOptions::new().read(true).write(true))
}

/// Has the bytes of a file from `offset` on in the page cache.
///
/// Read one after the other, the kernel takes them up in larger pieces than it does when a mapping
/// faults for them, and two to five times as fast (measured on ext4).
pub(crate) fn read_into_cache(path: &Path, offset: u64) -> Result<()> {
    const PIECE: usize = 64 * 1024;
    let mut file = open(path, OpenOptions::new().read(true))?;
    let read = file.seek(io::SeekFrom::Start(offset)).and_then(|_| {
        let mut stream = BufReader::with_capacity(PIECE, Stream(&file, path));
        io::copy(&mut stream, &mut io::sink())
    });
    read.map(|_| ()).context(Operation::Read.verb(), path)
}

/// Flushes the data of a mapped file, and what is needed to read it back.
pub(crate) fn flush_mapping(map: &MmapRaw, path: &Path) -> Result<()> {
    Operation::Flush.run(path, || map.flush())
}

/// Flushes the names in a directory: a file created, renamed or removed in it is durably so
/// only after this.
pub(crate) fn flush_directory(path: &Path) -> Result<()> {
    // One that cannot be opened cannot be flushed.
    let opened = Operation::Open.attempt(path, || File::open(path));
    let directory = opened.context(Operation::FlushDirectory.verb(), path)?;
    Operation::FlushDirectory.run(path, || directory.sync_all())
}

/// Creates a directory, and those above it, unless it exists; each one's name is then durable.
pub(crate) fn create_directory(path: &Path) -> Result<()> {
    let Err(error) = Operation::CreateDirectory.run(path, || fs::create_dir(path)) else {
        return flush_directory(parent_of(path));
    };
    let found = Operation::Inspect.run(path, || fs::metadata(path));
    match (error.source.kind(), found) {
        (_, Ok(found)) if found.is_dir() => Ok(()),
        (io::ErrorKind::NotFound, _) if parent_of(path) != path => {
            create_directory(parent_of(path))?;
            create_directory(path)
        }
        // What is wrong is that it cannot be looked at.
        (io::ErrorKind::AlreadyExists, Err(unknown)) => Err(unknown),
        _ => Err(error),
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

/// Removes a file, if it exists.
pub(crate) fn remove_file(path: &Path) -> Result<()> {
    if_exists(Operation::Remove.run(path, || fs::remove_file(path)))?;
    Ok(())
}

fn open_to_write(path: &Path) -> Result<Option<File>> {
    if_exists(open(path, OpenOptions::new().write(true)))
}

/// Shortens a file, if it exists.
pub(crate) fn truncate(path: &Path, len: u64) -> Result<()> {
    match open_to_write(path)? {
        Some(file) => Operation::Truncate.run(path, || file.set_len(len)),
        None => Ok(()),
    }
}

/// Empties a file, if it exists, and makes that durable.
pub(crate) fn empty_durably(path: &Path) -> Result<()> {
    let Some(file) = open_to_write(path)? else {
        return Ok(());
    };
    Operation::Truncate.run(path, || file.set_len(0))?;
    Operation::Flush.run(path, || file.sync_all())
}

/// The first bytes of a file, `limit` at most, or None if it does not exist.
pub(crate) fn read_start(path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    let Some(file) = if_exists(open(path, OpenOptions::new().read(true)))? else {
        return Ok(None);
    };
    let mut bytes = Vec::new();
    let read = Stream(&file, path).take(limit).read_to_end(&mut bytes);
    read.context(Operation::Read.verb(), path)?;
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
    let found = if_exists(Operation::Inspect.run(path, || fs::symlink_metadata(path)))?;
    Ok(found.filter(fs::Metadata::is_file).map(|found| found.len()))
}

/// Whether there is anything of that name.
pub(crate) fn exists(path: &Path) -> Result<bool> {
    let found = if_exists(Operation::Inspect.run(path, || fs::symlink_metadata(path)))?;
    Ok(found.is_some())
}

/// Replaces `path` by `bytes` in one step that a crash leaves either done or not: write a
/// temporary file, flush it, rename it over, flush the directory.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = path.with_extension("tmp");
    let write = || {
        let file = Operation::Create.run(&temporary, || File::create(&temporary))?;
        write_all(&file, &temporary, bytes)?;
        Operation::Flush.run(&temporary, || file.sync_all())?;
        rename(&temporary, path)
    };
    write().inspect_err(|_| {
        // It may take up what is left of a full disk.
        let _ = remove_file(&temporary);
    })?;
    flush_directory(parent_of(path))
}

/// Whether a file has exactly this content, and can be read.
pub(crate) fn has_content(path: &Path, bytes: &[u8]) -> bool {
    let Ok(file) = open(path, OpenOptions::new().read(true)) else {
        return false;
    };
    let mut file = BufReader::new(Stream(&file, path));
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
            Err(_) => return false,
        }
    }
}

/// The names in a directory, sorted. Names that are not Unicode are none of ours and are left out.
pub(crate) fn list(path: &Path) -> Result<Vec<String>> {
    let mut names = Operation::List.run(path, || {
        fs::read_dir(path)?
            .filter_map(|entry| match entry {
                Ok(entry) => entry.file_name().into_string().ok().map(Ok),
                Err(error) => Some(Err(error)),
            })
            .collect::<io::Result<Vec<_>>>()
    })?;
    names.sort_unstable();
    Ok(names)
}

/// Outside of unit tests nothing is done to calls.
#[cfg(not(test))]
mod faults {
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
    pub(super) fn length(_: Operation, _: &Path, len: usize) -> usize {
        len
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use rustix::io::Errno;

    use super::faults::{Effect, Plan};
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
    fn a_directory_that_cannot_be_looked_at_is_not_said_to_be_in_the_way() {
        let root = tempfile::tempdir().unwrap();
        let plan = plan(Operation::Inspect, 1, Effect::Fail(Errno::IO));
        let _fault = faults::watch(root.path(), vec![plan]);
        let error = create_directory(root.path()).unwrap_err();
        assert_eq!(error.action(), "inspect");
        assert_eq!(
            error.io_error().raw_os_error(),
            Some(Errno::IO.raw_os_error())
        );
        assert!(create_directory(root.path()).is_ok());
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

    /// What is done to each of an operation's calls, or to the first one only.
    fn plan(operation: Operation, calls: usize, effect: Effect) -> Plan {
        let calls = 0..calls;
        Plan {
            operation,
            calls,
            effect,
        }
    }

    #[test]
    fn calls_that_a_signal_interrupts_are_made_again() {
        use Operation::*;
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("f");
        let operations = [
            CreateDirectory,
            Create,
            Allocate,
            Write,
            Flush,
            Rename,
            Open,
            FlushDirectory,
            Read,
            Inspect,
            List,
            Truncate,
            Remove,
        ];
        let interrupted = Effect::Fail(Errno::INTR);
        let plans = operations.map(|operation| plan(operation, 1, interrupted));
        let fault = faults::watch(root.path(), plans.into());
        create_directory(&root.path().join("d")).unwrap();
        create_allocated(&path, 4096, 4096).unwrap();
        replace(&path, b"new").unwrap();
        assert_eq!(read_start(&path, 10).unwrap().unwrap(), b"new");
        assert_eq!(file_len(&path).unwrap(), Some(3));
        assert_eq!(list(root.path()).unwrap(), ["d", "f"]);
        truncate(&path, 1).unwrap();
        remove_file(&path).unwrap();
        let calls = fault.take_calls();
        assert!(calls.iter().all(|call| call.path.starts_with(root.path())));
        for operation in operations {
            let mut of_it = calls.iter().filter(|call| call.operation == operation);
            assert_eq!(of_it.next().unwrap().effect, Some(interrupted));
            assert!(of_it.next().is_some(), "{operation:?} was given up");
        }
    }

    #[test]
    fn short_reads_and_writes_are_gone_on_with() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("f");
        let content = [7; 1000];
        let short = |operation| plan(operation, usize::MAX, Effect::Short);
        let plans = [Operation::Read, Operation::Write].map(short);
        let fault = faults::watch(&path.with_extension("tmp"), plans.clone().into());
        replace(&path, &content).unwrap();
        assert!(fault.take_calls().len() > 10);
        drop(fault);
        let fault = faults::watch(&path, plans.into());
        assert!(has_content(&path, &content));
        assert_eq!(read_start(&path, 500).unwrap().unwrap(), content[..500]);
        assert!(fault.take_calls().len() > 10);
        // Nor is a disk that becomes full in the middle of a write taken for one that did not.
        let full = Plan {
            operation: Operation::Write,
            calls: 1..usize::MAX,
            effect: Effect::Fail(Errno::NOSPC),
        };
        let first = plan(Operation::Write, 1, Effect::Short);
        let _fault = faults::watch(root.path(), vec![first, full]);
        let error = replace(&path, &[8; 1000]).unwrap_err();
        assert!(error.is_full() && error.action() == "write", "{error}");
        assert!(has_content(&path, &content));
    }

    #[test]
    fn nothing_stays_of_a_file_without_its_blocks() {
        for operation in [Operation::Create, Operation::Allocate, Operation::Write] {
            let root = tempfile::tempdir().unwrap();
            let path = root.path().join("f");
            let plan = plan(operation, 1, Effect::Fail(Errno::DQUOT));
            let fault = faults::watch(root.path(), vec![plan]);
            let error = create_allocated(&path, 4096, 4096).unwrap_err();
            assert_eq!((error.action(), error.path()), (operation.verb(), &*path));
            assert!(error.is_full() && !path.exists());
            fault.lift();
            create_allocated(&path, 4096, 4096).unwrap();
        }
    }

    #[test]
    fn a_file_system_that_cannot_allocate_ahead_is_written_to() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("f");
        let unsupported = Effect::Fail(Errno::OPNOTSUPP);
        let plan = plan(Operation::Allocate, usize::MAX, unsupported);
        let _fault = faults::watch(root.path(), vec![plan]);
        create_allocated(&path, 1 << 20, 0).unwrap();
        assert!(fs::metadata(&path).unwrap().blocks() * 512 >= 1 << 20);
        back_with_blocks(&path, 1 << 20).unwrap();
    }

    #[test]
    fn a_rename_that_fails_after_it_was_done_leaves_one_of_the_two_files() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("f");
        replace(&path, b"old").unwrap();
        let plan = plan(Operation::Rename, 1, Effect::FailAfter(Errno::IO));
        let _fault = faults::watch(root.path(), vec![plan]);
        assert_eq!(replace(&path, b"new").unwrap_err().action(), "rename");
        assert!(has_content(&path, b"new"));
        assert_eq!(list(root.path()).unwrap(), ["f"]);
    }

    #[test]
    fn a_flush_that_lacks_space_is_a_failed_flush_and_no_full_disk() {
        let root = tempfile::tempdir().unwrap();
        let full = Effect::Fail(Errno::NOSPC);
        let plan = plan(Operation::FlushDirectory, 1, full);
        let _fault = faults::watch(root.path(), vec![plan]);
        let error = flush_directory(root.path()).unwrap_err();
        assert!(error.is_failed_flush() && !error.is_full(), "{error}");
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
        let error = create_allocated(&path, 10, 10).unwrap_err();
        assert!(error.is_full() && !error.is_failed_flush());
        let text = error.to_string();
        assert!(
            text.starts_with(&format!("could not create {}", path.display())),
            "{text}"
        );
    }
}
