//! Tests of operations on directories and files, also when calls fail or are cut short.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use rustix::io::Errno;

use super::faults::{Effect, Plan};
use super::*;

fn list(path: &Path) -> Vec<String> {
    let directory = Directory::open(path).unwrap();
    directory.unwrap().list().unwrap()
}

/// A directory, and the path and entry of a file in it that does not exist yet.
fn file() -> (tempfile::TempDir, PathBuf, Entry) {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("f");
    let entry = Entry::at(&path);
    (root, path, entry)
}

#[test]
fn missing_directories_are_created_and_existing_ones_are_left_alone() {
    let root = tempfile::tempdir().unwrap();
    let deep = root.path().join("a/b/c");
    create_directories(&deep, 0o600).unwrap();
    fs::write(deep.join("f"), b"x").unwrap();
    create_directories(&deep, 0o600).unwrap();
    assert_eq!(list(&deep), ["f"]);
    let error = create_directories(&deep.join("f/d"), 0o600).unwrap_err();
    assert_eq!(error.path(), deep.join("f/d"));
}

#[test]
fn a_symbolic_link_that_leads_nowhere_is_named() {
    let root = tempfile::tempdir().unwrap();
    let link = root.path().join("link");
    std::os::unix::fs::symlink(root.path().join("gone"), &link).unwrap();
    let error = create_directories(&link, 0o600).unwrap_err();
    let said = error.to_string();
    assert!(
        said.contains("link") && said.contains("leads nowhere"),
        "{said}"
    );
}

#[test]
fn a_directory_that_cannot_be_inspected_is_not_reported_as_being_in_the_way() {
    let root = tempfile::tempdir().unwrap();
    let plan = plan(Operation::Inspect, 1, Effect::Fail(Errno::IO));
    let _fault = faults::watch(root.path(), vec![plan]);
    let error = create_directories(root.path(), 0o600).unwrap_err();
    assert_eq!(error.action(), "inspect");
    assert_eq!(
        error.io_error().raw_os_error(),
        Some(Errno::IO.raw_os_error())
    );
    assert!(create_directories(root.path(), 0o600).is_ok());
}

#[test]
fn the_names_of_new_directories_are_flushed() {
    let root = tempfile::tempdir().unwrap();
    let fault = faults::fail_flushes(root.path().join("a"));
    assert!(
        create_directories(&root.path().join("a/b"), 0o600)
            .unwrap_err()
            .is_failed_flush()
    );
    drop(fault);
    assert!(create_directories(&root.path().join("a/b"), 0o600).is_ok());
}

#[test]
fn a_new_file_is_written_in_small_pieces() {
    let dir = tempfile::tempdir().unwrap();
    let watch = faults::watch(dir.path(), Vec::new());
    let entry = Entry::at(&dir.path().join("f"));
    entry.create_allocated(100_000, 50_000, 16 * 1024).unwrap();
    let calls = watch.take_calls();
    let writes = calls
        .iter()
        .filter(|call| call.operation == Operation::Write);
    assert_eq!(writes.count(), 50_000_usize.div_ceil(16 * 1024));
}

#[test]
fn holes_are_filled_with_blocks_and_nothing_else_changes() {
    let (_root, path, entry) = file();
    let file = File::create(&path).unwrap();
    file.set_len(1 << 20).unwrap();
    drop(file);
    let mut expected = vec![0; 1 << 20];
    expected[..3].copy_from_slice(b"abc");
    let mut file = OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all(b"abc").unwrap();
    entry.back_with_blocks(1 << 19).unwrap();
    assert!(fs::metadata(&path).unwrap().blocks() * 512 >= 1 << 19);
    assert_eq!(fs::read(&path).unwrap(), expected);
}

#[test]
fn a_replacement_that_fails_leaves_the_old_file_and_no_other() {
    let (root, _, entry) = file();
    entry.replace(b"old").unwrap();
    for fault in [
        faults::fill_disk(root.path()),
        faults::fail_flushes(root.path().join("f.tmp")),
    ] {
        assert!(entry.replace(b"new").is_err());
        drop(fault);
    }
    assert_eq!(list(root.path()), ["f"]);
    assert!(entry.has_content(b"old"));
    entry.replace(b"new").unwrap();
    assert!(entry.has_content(b"new"));
    for other in [b"ne".as_slice(), b"new!", b"old", b""] {
        assert!(!entry.has_content(other));
    }
}

/// A fault that applies to the first `calls` calls of an operation.
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
    let (root, _, entry) = file();
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
    create_directories(&root.path().join("d"), 0o600).unwrap();
    entry.create_allocated(4096, 4096, 4096).unwrap();
    entry.replace(b"new").unwrap();
    assert_eq!(entry.read_start(10).unwrap().unwrap(), b"new");
    assert_eq!(entry.file_len().unwrap(), Some(3));
    assert_eq!(list(root.path()), ["d", "f"]);
    entry.truncate(1).unwrap();
    entry.remove().unwrap();
    let calls = fault.take_calls();
    assert!(calls.iter().all(|call| call.path.starts_with(root.path())));
    for operation in operations {
        let mut of_it = calls.iter().filter(|call| call.operation == operation);
        assert_eq!(of_it.next().unwrap().effect, Some(interrupted));
        assert!(of_it.next().is_some(), "{operation:?} was not tried again");
    }
}

#[test]
fn short_reads_and_writes_are_continued() {
    let (root, path, entry) = file();
    let content = [7; 1000];
    let short = |operation| plan(operation, usize::MAX, Effect::Short);
    let plans = [Operation::Read, Operation::Write].map(short);
    let fault = faults::watch(&path.with_extension("tmp"), plans.clone().into());
    entry.replace(&content).unwrap();
    assert!(fault.take_calls().len() > 10);
    drop(fault);
    let fault = faults::watch(&path, plans.into());
    assert!(entry.has_content(&content));
    assert_eq!(entry.read_start(500).unwrap().unwrap(), content[..500]);
    assert!(fault.take_calls().len() > 10);
    // A disk that becomes full in the middle of a write is an error.
    let full = Plan {
        operation: Operation::Write,
        calls: 1..usize::MAX,
        effect: Effect::Fail(Errno::NOSPC),
    };
    let first = plan(Operation::Write, 1, Effect::Short);
    let _fault = faults::watch(root.path(), vec![first, full]);
    let error = entry.replace(&[8; 1000]).unwrap_err();
    assert!(error.is_full() && error.action() == "write", "{error}");
    assert!(entry.has_content(&content));
}

#[test]
fn nothing_is_left_of_a_file_whose_blocks_cannot_be_allocated() {
    for operation in [Operation::Create, Operation::Allocate, Operation::Write] {
        let (root, path, entry) = file();
        let plan = plan(operation, 1, Effect::Fail(Errno::DQUOT));
        let fault = faults::watch(root.path(), vec![plan]);
        let error = entry.create_allocated(4096, 4096, 4096).unwrap_err();
        assert_eq!((error.action(), error.path()), (operation.verb(), &*path));
        assert!(error.is_full() && !path.exists());
        fault.lift();
        entry.create_allocated(4096, 4096, 4096).unwrap();
    }
}

#[test]
fn a_file_system_that_cannot_allocate_ahead_is_written_to() {
    let (root, path, entry) = file();
    let unsupported = Effect::Fail(Errno::OPNOTSUPP);
    let plan = plan(Operation::Allocate, usize::MAX, unsupported);
    let _fault = faults::watch(root.path(), vec![plan]);
    entry.create_allocated(1 << 20, 0, 4096).unwrap();
    assert!(fs::metadata(&path).unwrap().blocks() * 512 >= 1 << 20);
    entry.back_with_blocks(1 << 20).unwrap();
}

#[test]
fn a_rename_that_fails_after_it_was_done_leaves_one_of_the_two_files() {
    let (root, _, entry) = file();
    entry.replace(b"old").unwrap();
    let plan = plan(Operation::Rename, 1, Effect::FailAfter(Errno::IO));
    let _fault = faults::watch(root.path(), vec![plan]);
    assert_eq!(entry.replace(b"new").unwrap_err().action(), "rename");
    assert!(entry.has_content(b"new"));
    assert_eq!(list(root.path()), ["f"]);
}

#[test]
fn a_flush_that_lacks_space_is_a_failed_flush_and_not_a_full_disk() {
    let root = tempfile::tempdir().unwrap();
    let full = Effect::Fail(Errno::NOSPC);
    let plan = plan(Operation::FlushDirectory, 1, full);
    let _fault = faults::watch(root.path(), vec![plan]);
    let directory = Directory::open(root.path()).unwrap().unwrap();
    let error = directory.flush().unwrap_err();
    assert!(error.is_failed_flush() && !error.is_full(), "{error}");
}

#[test]
fn only_the_start_of_a_file_is_read_that_is_too_large_to_belong_to_a_queue() {
    let (_root, path, entry) = file();
    assert_eq!(entry.read_if_exists().unwrap(), None);
    File::create(&path).unwrap().set_len(1 << 40).unwrap();
    assert_eq!(entry.read_if_exists().unwrap().unwrap().len(), 64 * 1024);
}

#[test]
fn a_failure_says_what_was_tried_on_which_path_and_whether_the_disk_is_full() {
    let (root, path, entry) = file();
    let _fault = faults::fill_disk(root.path());
    let error = entry.create_allocated(10, 10, 4096).unwrap_err();
    assert!(error.is_full() && !error.is_failed_flush());
    let text = error.to_string();
    assert!(
        text.starts_with(&format!("could not create {}", path.display())),
        "{text}"
    );
}
