//! A bound on the memory of a child process and on the page cache it fills: a memory cgroup.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process;

/// Where memory groups are and what their limit is called: version 2 of cgroups, then version 1.
const PLACES: [(&str, &str); 2] = [
    ("/sys/fs/cgroup", "memory.max"),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
];

/// A memory cgroup, removed when dropped. Nobody may be in it by then.
pub(crate) struct Bound {
    dir: PathBuf,
}

impl Bound {
    /// A group with this limit, in bytes; None where none can be made.
    pub(crate) fn new(limit: u64) -> Option<Self> {
        PLACES.iter().find_map(|(place, name)| {
            let dir = Path::new(place).join(format!("logmill-bench-{}", process::id()));
            fs::create_dir(&dir).ok()?;
            let bound = Self { dir };
            // Without this controller there is no such file, and none is to be made.
            let mut file = OpenOptions::new()
                .write(true)
                .open(bound.dir.join(name))
                .ok()?;
            file.write_all(limit.to_string().as_bytes()).ok()?;
            Some(bound)
        })
    }

    /// The file that a process joins by.
    pub(crate) fn members(&self) -> PathBuf {
        self.dir.join("cgroup.procs")
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.dir) {
            eprintln!("{} is left behind: {error}", self.dir.display());
        }
    }
}
