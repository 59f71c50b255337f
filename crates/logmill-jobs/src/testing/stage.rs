//! A mill in a temporary directory, with a clock that goes on and files that stay when the process
//! of the mill ends.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use logmill::SimulatedDisk;
use parking_lot::Mutex;
use tempfile::TempDir;

use super::backend::Probed;
use super::files::{self, Files};
use super::probe::{CrashPoint, Probe, is_crash};
use super::report::{How, RunReport};
use super::storage::Storage;
use super::{ManualClock, RunError};
use crate::backend::Next;
use crate::backend::embedded::Embedded;
use crate::error::OpenError;
use crate::workers::{Inline, Workers};
use crate::{Mill, MillOptions};

/// Attempts after which jobs that make more and more work are not waited for any longer.
const MOST_ATTEMPTS: usize = 100_000;

pub(super) struct Stage {
    pub(super) mill: Mill,
    pub(super) clock: ManualClock,
    pub(super) options: MillOptions,
    pub(super) probe: Arc<Probe>,
    storage: Storage,
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
        storage: Storage,
        plan: &[CrashPoint],
    ) -> Result<Self, OpenError> {
        let directory = files::directory().map_err(on_io)?;
        let mut crashed_at = Vec::new();
        let mut path = directory.path().join("0");
        let disk = storage.first_disk(&path).map_err(on_io)?;
        let process = Process {
            probe: Probe::new(0, plan, storage),
            disk,
        };
        let opened = open(
            &mut path,
            &options,
            &clock,
            storage,
            process,
            &mut crashed_at,
        );
        let (mill, probe) = opened?;
        Ok(Self {
            mill,
            clock,
            options,
            probe,
            storage,
            crashed_at,
            path,
            _directory: directory,
        })
    }

    /// Ends the process of the mill as it is, and begins another one.
    pub(super) fn restart(&mut self) -> Result<(), OpenError> {
        let former = self.path.clone();
        let next = crash(
            &self.probe,
            self.storage,
            &mut self.path,
            &mut self.crashed_at,
        )?;
        // Whoever still has the former mill gets errors. Its files were copied.
        let _ = self.mill.clone().close();
        (self.mill, self.probe) = open(
            &mut self.path,
            &self.options,
            &self.clock,
            self.storage,
            next,
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
                    let calls = self.probe.calls();
                    self.probe.rest();
                    // What the engine's threads find may be followed by jobs.
                    if self.probe.calls() == calls {
                        return Ok(());
                    }
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

/// What the next process has.
struct Process {
    probe: Probe,
    /// What is below its files, if that is simulated.
    disk: Option<SimulatedDisk>,
}

fn on_io(error: std::io::Error) -> OpenError {
    OpenError(Box::new(error))
}

/// Ends a process. The next one finds the files under the new path.
fn crash(
    probe: &Probe,
    storage: Storage,
    path: &mut PathBuf,
    crashed_at: &mut Vec<String>,
) -> Result<Process, OpenError> {
    probe.crash().map_err(on_io)?;
    crashed_at.extend(probe.crashed_at());
    *path = next_to(path);
    Ok(Process {
        probe: Probe::new(probe.calls(), &probe.rest_of_plan(), storage),
        disk: probe.take_disk(),
    })
}

/// Begins a process; others follow while it crashes before it has begun.
fn open(
    path: &mut PathBuf,
    options: &MillOptions,
    clock: &ManualClock,
    storage: Storage,
    mut process: Process,
    crashed_at: &mut Vec<String>,
) -> Result<(Mill, Arc<Probe>), OpenError> {
    loop {
        let Process { probe, disk } = process;
        let tapped = Arc::new(probe);
        let open = || open_once(path, options, clock, storage, disk, &tapped);
        match guarded(&tapped, open) {
            Ok(mill) => return Ok((mill?, tapped)),
            Err(Crashed) => process = crash(&tapped, storage, path, crashed_at)?,
        }
    }
}

fn open_once(
    path: &Path,
    options: &MillOptions,
    clock: &ManualClock,
    storage: Storage,
    disk: Option<SimulatedDisk>,
    probe: &Arc<Probe>,
) -> Result<Mill, OpenError> {
    let segment_size = storage.segment_size();
    let queues = logmill::Queues::options(path)
        .clock(clock)
        .state_segment_size(segment_size);
    // What threads of the engine flush, and when, would differ from run to run.
    let queues = match disk {
        None => queues.open(),
        Some(_) => queues.without_threads().open(),
    };
    let queues = queues.map_err(|error| OpenError(Box::new(error)))?;
    let (durability, of_mill) = (storage.durability(), options.clock.clone());
    let inner = Embedded::for_tests(queues, durability, of_mill, segment_size);
    inner.keep_what_was_found()?;
    let inner = Arc::new(inner);
    probe.set_files(Files {
        engine: Arc::downgrade(&inner),
        from: path.to_path_buf(),
        to: next_to(path),
        disk: Mutex::new(disk),
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
