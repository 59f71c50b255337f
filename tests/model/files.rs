//! Copies the files of an open queue, as a `kill -9` would leave them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

type Files = BTreeMap<PathBuf, Vec<u8>>;

/// Copies the files at a moment when no background work is going on.
///
/// Two reads in a row that agree prove such a moment, since background work never returns the files
/// to an earlier state.
pub(crate) fn copy_when_quiet(from: &Path, to: &Path) {
    let mut last = collect(from, |_| true);
    loop {
        let again = collect(from, |_| true);
        if last == again {
            make_directories(from, to);
            return write(&last, to);
        }
        last = again;
    }
}

/// Copies the files while background work may change them.
///
/// Copying takes time, so the files may be from different moments. The copy is still a state that a
/// process could have left:
///
/// - Ack files are copied first. An ack is the last step, after the job has been moved elsewhere.
/// - The copy is repeated if a file was deleted in the meantime, since its content might have moved
///   to a file that was copied before.
/// - A file that was cut off while it was read is read again: it would lack the seal, which is
///   written after the header was read.
///
/// `between` is called when the ack files have been copied.
pub(crate) fn copy_at_once(from: &Path, to: &Path, between: impl Fn()) {
    let is_ack = |path: &Path| path.extension().is_some_and(|extension| extension == "ack");
    loop {
        let before = list(from);
        let mut files = collect(from, is_ack);
        between();
        files.extend(collect(from, |path| !is_ack(path)));
        let after = list(from);
        if before.iter().all(|path| after.contains(path)) {
            make_directories(from, to);
            return write(&files, to);
        }
    }
}

fn collect(root: &Path, wanted: impl Fn(&Path) -> bool) -> Files {
    let mut files = Files::new();
    for path in list(root) {
        if wanted(&path) {
            match read(&path) {
                Ok(bytes) => {
                    let name = path.strip_prefix(root).unwrap().to_path_buf();
                    files.insert(name, bytes);
                }
                // The file was deleted after it was listed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => panic!("{}: {error}", path.display()),
            }
        }
    }
    files
}

/// Reads a file, and again if its length changed meanwhile.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    loop {
        let len = fs::metadata(path)?.len();
        let bytes = fs::read(path)?;
        if bytes.len() as u64 == len {
            return Ok(bytes);
        }
    }
}

fn list(root: &Path) -> BTreeSet<PathBuf> {
    let mut files = BTreeSet::new();
    let mut directories = vec![root.to_path_buf()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else {
                files.insert(path);
            }
        }
    }
    files
}

/// Creates empty directories, too: a missing directory is reported as lost.
fn make_directories(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            make_directories(&path, &to.join(path.file_name().unwrap()));
        }
    }
}

fn write(files: &Files, to: &Path) {
    for (name, bytes) in files {
        fs::write(to.join(name), bytes).unwrap();
    }
}
