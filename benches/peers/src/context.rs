//! What every group needs: a place for data, and how long to measure.

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
    /// How long a contender's turn takes, about.
    pub turn: Duration,
    /// Whether this is a smoke run, in which sizes and waits are cut down, too.
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

    /// `full`, or `quick` in a smoke run.
    pub fn pick<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }
}

pub struct Context {
    pub data: PathBuf,
    pub pace: Pace,
}

impl Context {
    /// A new directory, which is removed when it is dropped.
    pub fn fresh(&self) -> anyhow::Result<TempDir> {
        tempfile::tempdir_in(&self.data).context("making a data directory")
    }

    /// Has the file system write out what is dirty, so that leftovers of one turn are not written
    /// back in the next. If that fails, the turn is noisier, no more.
    pub fn settle(&self) {
        if let Ok(dir) = File::open(&self.data) {
            let _ = rustix::fs::syncfs(&dir);
        }
    }
}
