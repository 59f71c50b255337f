//! A mail server on a bad day: most deliveries fail, until someone fixes it.

use std::fs::{File, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

const EXCUSES: [&str; 4] = [
    "421 too busy",
    "450 greylisted",
    "timed out",
    "connection reset",
];

/// How long the pretended network takes to answer.
const ROUND_TRIP: Duration = Duration::from_millis(5);

pub(crate) struct Mailer {
    outbox: File,
    failing_percent: u64,
    seed: u64,
    fixed: AtomicBool,
}

impl Mailer {
    /// Appends what it delivers to the file `outbox`.
    pub(crate) fn new(outbox: &Path, failing_percent: u64, seed: u64) -> io::Result<Self> {
        Ok(Mailer {
            outbox: OpenOptions::new().create(true).append(true).open(outbox)?,
            failing_percent,
            seed,
            fixed: AtomicBool::new(false),
        })
    }

    pub(crate) fn fix(&self) {
        self.fixed.store(true, Ordering::Relaxed);
    }

    /// Delivers the welcome mail for an upload, or fails with one of the usual excuses.
    ///
    /// The same seed fails the same attempts on every run.
    pub(crate) fn send(&self, upload: &str, attempt: u32) -> Result<(), String> {
        thread::sleep(ROUND_TRIP);
        let mut dice = DefaultHasher::new();
        (self.seed, upload, attempt).hash(&mut dice);
        let roll = dice.finish();
        if roll % 100 < self.failing_percent && !self.fixed.load(Ordering::Relaxed) {
            return Err(EXCUSES[(roll / 100) as usize % EXCUSES.len()].to_owned());
        }
        (&self.outbox)
            .write_all(format!("Welcome! We have received {upload}.\n").as_bytes())
            .map_err(|error| format!("writing to the outbox: {error}"))
    }
}
