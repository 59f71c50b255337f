//! Processes that are killed: a test starts itself as a child, which works in a directory and notes
//! there what has happened, and kills it at a moment that differs from life to life.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Far more than anything takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// How many bytes of notes a process makes at least before it is killed: on a busy machine it may get to
/// little else.
#[allow(dead_code, reason = "not every test has them")]
pub(crate) const LEAST: u64 = 800;

/// The length of the notes of a directory.
#[allow(dead_code, reason = "not every test has them")]
pub(crate) fn length(dir: &Path) -> u64 {
    std::fs::metadata(dir.join("notes")).map_or(0, |notes| notes.len())
}

/// Starts the ignored test `child` as a process with these variables, and kills it so long after it has
/// begun, as `has_begun` says, which is given its process id. Recovery takes its time, so the
/// death does not come after a fixed one.
pub(crate) fn kill(variables: &[(&str, &str)], has_begun: impl Fn(u32) -> bool, after: Duration) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["child", "--exact", "--ignored", "--nocapture"])
        .envs(variables.iter().copied())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let start = Instant::now();
    while !has_begun(child.id()) {
        assert!(start.elapsed() < PATIENCE, "nothing happens");
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(after);
    assert_eq!(child.try_wait().unwrap(), None, "it died by itself");
    child.kill().unwrap();
    child.wait().unwrap();
}
