//! A memory cgroup: limits the memory of a child process and the page cache that it fills.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process;

/// The mount points of memory cgroups and the names of their limit files: version 2 of cgroups,
/// then version 1.
const PLACES: [(&str, &str); 2] = [
    ("/sys/fs/cgroup", "memory.max"),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
];

/// A memory cgroup, removed when dropped. All its processes must have ended by then.
pub(crate) struct Bound {
    dir: PathBuf,
}

impl Bound {
    /// A cgroup with this limit in bytes; `None` where none can be made.
    pub(crate) fn new(limit: u64) -> Option<Self> {
        PLACES.iter().find_map(|(place, name)| {
            let dir = Path::new(place).join(format!("logmill-bench-{}", process::id()));
            fs::create_dir(&dir).ok()?;
            let bound = Self { dir };
            // The limit file is missing without the memory controller, and must not be created
            // then.
            let mut file = OpenOptions::new()
                .write(true)
                .open(bound.dir.join(name))
                .ok()?;
            file.write_all(limit.to_string().as_bytes()).ok()?;
            Some(bound)
        })
    }

    /// The file to which a process writes to join the cgroup.
    pub(crate) fn members(&self) -> PathBuf {
        self.dir.join("cgroup.procs")
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.dir) {
            eprintln!("cannot remove {}: {error}", self.dir.display());
        }
    }
}
