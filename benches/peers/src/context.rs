//! What every group needs: a directory for data, and how long to measure.

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use tempfile::TempDir;

/// How long a comparison takes.
#[derive(Clone, Copy)]
pub struct Pace {
    /// Rounds that count; one more is run before them and dropped.
    pub rounds: usize,
    /// About how long a contender's turn takes.
    pub turn: Duration,
    /// Whether this is a smoke run, which also reduces sizes and waits.
    pub quick: bool,
}

impl Pace {
    pub const FULL: Self = Self {
        rounds: 7,
        turn: Duration::from_millis(500),
        quick: false,
    };
    pub const QUICK: Self = Self {
        rounds: 2,
        turn: Duration::from_millis(100),
        quick: true,
    };

    /// Returns `quick` in a smoke run, else `full`.
    pub fn pick<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }
}

#[derive(Clone)]
pub struct Context {
    pub data: PathBuf,
    pub pace: Pace,
}

impl Context {
    /// A new directory, which is removed when it is dropped.
    pub fn fresh(&self) -> anyhow::Result<TempDir> {
        tempfile::tempdir_in(&self.data).context("making a data directory")
    }

    /// Makes the file system write out dirty data, so that data of one turn is not written during
    /// the next. If that fails, the turn is only noisier.
    pub fn settle(&self) {
        if let Ok(dir) = File::open(&self.data) {
            let _ = rustix::fs::syncfs(&dir);
        }
    }
}
