//! The state that a `kill -9` would leave: copies of the files of an open queue.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

type Files = BTreeMap<PathBuf, Vec<u8>>;

/// Copies the files as they are at one moment, with nothing going on in the background.
///
/// Two collections in a row that agree are such a moment: what the background does to the files is
/// never undone by it.
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

/// Copies the files while the background is at work on them.
///
/// That takes time, so the copy may be of no one moment. It is one that could have been, all the
/// same: ack files come first, as an ack is the last step, taken when the job has gone elsewhere;
/// no file was deleted meanwhile, of which the rest might have gone to one copied before; and none
/// was cut off while it was read, whose seal says so but came after the header had been read.
///
/// `between` is called when the ack files are copied.
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
                // Deleted since it was listed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => panic!("{}: {error}", path.display()),
            }
        }
    }
    files
}

/// Reads a file that keeps its length meanwhile.
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

/// Empty ones, too: where one is missing, what was in it is.
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
