//! A mill in a temporary directory, with a clock that goes on and files that stay when the process
//! of the mill ends.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;

use super::backend::Probed;
use super::files::{self, Files};
use super::probe::{CrashPoint, Probe, is_crash};
use super::report::{How, RunReport};
use super::{ManualClock, RunError};
use crate::backend::Next;
use crate::backend::embedded::Embedded;
use crate::error::OpenError;
use crate::workers::{Inline, Workers};
use crate::{Mill, MillOptions};

/// Attempts after which jobs that make more and more work are not waited for any longer.
const MOST_ATTEMPTS: usize = 100_000;
/// The segments of a test mill are small, as they are copied at each crash.
pub(super) const SEGMENT_SIZE: u64 = 1024 * 1024;

pub(super) struct Stage {
    pub(super) mill: Mill,
    pub(super) clock: ManualClock,
    pub(super) options: MillOptions,
    pub(super) probe: Arc<Probe>,
    /// The calls at which processes crashed, in words.
    pub(super) crashed_at: Vec<String>,
    /// The directory of the mill's process.
    path: PathBuf,
    /// Dropped last.
    _directory: TempDir,
}

/// The process of a mill has crashed.
pub(super) struct Crashed;

impl Stage {
    pub(super) fn new(
        clock: ManualClock,
        options: MillOptions,
        plan: &[CrashPoint],
    ) -> Result<Self, OpenError> {
        let directory = files::directory().map_err(|error| OpenError(Box::new(error)))?;
        let options = options.clock(&clock);
        let mut crashed_at = Vec::new();
        let mut path = directory.path().join("0");
        let probe = Probe::new(0, plan);
        let (mill, probe) = open(&mut path, &options, &clock, probe, &mut crashed_at)?;
        Ok(Self {
            mill,
            clock,
            options,
            probe,
            crashed_at,
            path,
            _directory: directory,
        })
    }

    /// Ends the process of the mill as it is, and begins another one.
    pub(super) fn restart(&mut self) -> Result<(), OpenError> {
        let former = self.path.clone();
        let probe = crash(&self.probe, &mut self.path, &mut self.crashed_at)?;
        // Whoever still has the former mill gets errors. Its files were copied.
        let _ = self.mill.clone().close();
        (self.mill, self.probe) = open(
            &mut self.path,
            &self.options,
            &self.clock,
            probe,
            &mut self.crashed_at,
        )?;
        // It stays open for as long as there is a handle of it.
        let _ = fs::remove_dir_all(former);
        Ok(())
    }

    /// Lets time pass.
    pub(super) fn advance(&self, time: Duration) {
        self.clock.advance(time);
    }

    /// Runs all jobs that are due.
    pub(super) fn run<S: Clone + Send + Sync + 'static>(
        &self,
        workers: &Workers<S>,
    ) -> Result<Result<RunReport, Crashed>, RunError> {
        let ran = self.guarded(|| self.run_through(workers));
        let report = RunReport {
            ran: self.probe.take_ran(),
        };
        match ran {
            Ok(Ok(())) => Ok(Ok(report)),
            Ok(Err(error)) => Err(error),
            Err(Crashed) => Ok(Err(Crashed)),
        }
    }

    fn run_through<S: Clone + Send + Sync + 'static>(
        &self,
        workers: &Workers<S>,
    ) -> Result<(), RunError> {
        let mut inline = Inline::new(workers, &self.mill)?;
        for _ in 0..MOST_ATTEMPTS {
            // What came back at once, or is due by now, is there then.
            self.advance(Duration::ZERO);
            match inline.run_next()? {
                Next::Taken => self.probe.correct_last(|ran| {
                    let waits = ran.how == How::Held;
                    let is_parked = waits && self.mill.inner.parked.reason_of(&ran.id).is_some();
                    is_parked.then_some(How::Parked)
                }),
                Next::Nothing | Next::Closed => {
                    self.probe.rest();
                    return Ok(());
                }
            }
            if self.probe.has_crashed() {
                return Ok(());
            }
        }
        Err(RunError::Endless)
    }

    /// Calls something that may end with a crash of the mill's process.
    pub(super) fn guarded<T>(&self, call: impl FnOnce() -> T) -> Result<T, Crashed> {
        guarded(&self.probe, call)
    }
}

fn guarded<T>(probe: &Probe, call: impl FnOnce() -> T) -> Result<T, Crashed> {
    let called = std::panic::catch_unwind(std::panic::AssertUnwindSafe(call));
    match called {
        Err(panic) if !is_crash(&*panic) => std::panic::resume_unwind(panic),
        // The crash may have been caught by what was called, or be on another thread.
        _ if probe.has_crashed() => Err(Crashed),
        Ok(result) => Ok(result),
        Err(_) => Err(Crashed),
    }
}

/// Ends a process. Returns the probe of the next one, which finds the files under the new path.
fn crash(
    probe: &Probe,
    path: &mut PathBuf,
    crashed_at: &mut Vec<String>,
) -> Result<Probe, OpenError> {
    let kept = probe.crash();
    kept.map_err(|error| OpenError(Box::new(error)))?;
    crashed_at.extend(probe.crashed_at());
    *path = next_to(path);
    Ok(Probe::new(probe.calls(), &probe.rest_of_plan()))
}

/// Begins a process; others follow while it crashes before it has begun.
fn open(
    path: &mut PathBuf,
    options: &MillOptions,
    clock: &ManualClock,
    mut probe: Probe,
    crashed_at: &mut Vec<String>,
) -> Result<(Mill, Arc<Probe>), OpenError> {
    loop {
        let tapped = Arc::new(probe);
        match guarded(&tapped, || open_once(path, options, clock, &tapped)) {
            Ok(mill) => return Ok((mill?, tapped)),
            Err(Crashed) => probe = crash(&tapped, path, crashed_at)?,
        }
    }
}

fn open_once(
    path: &Path,
    options: &MillOptions,
    clock: &ManualClock,
    probe: &Arc<Probe>,
) -> Result<Mill, OpenError> {
    let queues = logmill::Queues::options(path)
        .clock(clock)
        .state_segment_size(SEGMENT_SIZE)
        .open()
        .map_err(|error| OpenError(Box::new(error)))?;
    let inner = Embedded::for_tests(queues, options.clock.clone(), SEGMENT_SIZE);
    let inner = Arc::new(inner);
    probe.set_files(Files {
        engine: Arc::downgrade(&inner),
        from: path.to_path_buf(),
        to: next_to(path),
    });
    let probe = Arc::clone(probe);
    Ok(Mill::with_backend(Probed { inner, probe }, options.clone()))
}

/// The directory of the next process.
fn next_to(path: &Path) -> PathBuf {
    let number = path
        .file_name()
        .and_then(|name| name.to_str()?.parse().ok());
    path.with_file_name(number.map_or(1, |number: u32| number + 1).to_string())
}
