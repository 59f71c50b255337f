//! Queue directories with a backlog, as a close or a kill leaves them, and copies to work on.

use std::fs::{self, File};
use std::path::Path;

use logmill::Queue;
use rustix::fs::{Advice, fadvise};
use tempfile::TempDir;

use crate::child;
use crate::common::scratch;

/// The default segment size. A shorter segment file is a sealed one.
const SEGMENT_SIZE: u64 = 8 * 1024 * 1024;

/// How the process that made the backlog ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Closed,
    Killed,
}

/// A queue directory that is never changed.
pub(crate) struct Backlog(TempDir);

impl Backlog {
    /// Starts a child process that enqueues these jobs, and then closes the queue or is killed.
    pub(crate) fn new(jobs: u64, payload: usize, end: End) -> Self {
        let dir = scratch();
        child::fill(dir.path(), jobs, payload, end);
        Self(dir)
    }

    /// Describes what an open of the backlog finds.
    pub(crate) fn describe(&self) -> String {
        let copy = Copy::of(self);
        let (_queue, report) = Queue::builder(copy.path()).open().expect("a queue");
        let mib = report.bytes_scanned as f64 / 1024.0 / 1024.0;
        format!(
            "{} jobs in {} segments, {} of them to be scanned, {mib:.1} MiB",
            report.jobs, report.segments, report.scanned
        )
    }
}

/// A copy of a backlog to work on. It shares the files of sealed segments, which are only read, and
/// deleted when they are done.
pub(crate) struct Copy(TempDir);

impl Copy {
    pub(crate) fn of(backlog: &Backlog) -> Self {
        let copy = scratch();
        // This directory has no files to copy, but a missing one is reported as lost.
        fs::create_dir(copy.path().join("dead")).expect("created");
        for_each_file(backlog.0.path(), Path::new(""), &mut |relative| {
            let (from, to) = (backlog.0.path().join(relative), copy.path().join(relative));
            fs::create_dir_all(to.parent().expect("it is below the copy")).expect("created");
            let len = from.metadata().expect("there").len();
            if has_extension(relative, "seg") && len < SEGMENT_SIZE {
                fs::hard_link(from, to).expect("linked");
            } else {
                fs::copy(from, to).expect("copied");
            }
        });
        Self(copy)
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes dirty pages back first, since those cannot be dropped.
    pub(crate) fn drop_from_page_cache(&self) {
        for_each_file(self.path(), Path::new(""), &mut |relative| {
            let file = File::open(self.path().join(relative)).expect("readable");
            file.sync_all().expect("flushed");
            fadvise(&file, 0, None, Advice::DontNeed).expect("advised");
        });
    }
}

/// The segment files below a queue's directory, opened for reading.
pub(crate) fn segment_files(dir: &Path) -> Vec<File> {
    let mut files = Vec::new();
    for_each_file(dir, Path::new(""), &mut |relative| {
        if has_extension(relative, "seg") {
            files.push(File::open(dir.join(relative)).expect("readable"));
        }
    });
    files
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found == extension)
}

/// Calls `each` with the path of every file below `root`/`relative`, given relative to `root`.
fn for_each_file(root: &Path, relative: &Path, each: &mut impl FnMut(&Path)) {
    for entry in fs::read_dir(root.join(relative)).expect("listed") {
        let entry = entry.expect("an entry");
        let relative = relative.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            for_each_file(root, &relative, each);
        } else {
            each(&relative);
        }
    }
}
