//! What a test mill knows of its backend: how many calls stored something, at which of them the
//! process is to crash, and how the attempts ended.

use std::any::Any;
use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use logmill::SimulatedDisk;
use parking_lot::Mutex;

use super::files::Files;
use super::report::{How, Ran};
use super::storage::{End, Storage};
use crate::backend::BackendError;

/// Where a simulated process crashes: at which of the calls that store something, counted from 1
/// from the start of a [simulation](super::simulate), over all of its processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CrashPoint {
    /// Before the call, of which nothing is stored.
    Before(u64),
    /// After the call, when what it says is stored, and before it returns.
    After(u64),
}

impl CrashPoint {
    /// The number of the call.
    pub(super) fn call(self) -> u64 {
        match self {
            Self::Before(call) | Self::After(call) => call,
        }
    }
}

/// What a simulated crash unwinds with. It says nothing, and is caught by the test mill.
struct Unwinding;

#[derive(Default)]
pub(super) struct Probe {
    state: Mutex<State>,
    /// The process of this probe has crashed: nothing is stored any more.
    has_crashed: AtomicBool,
    files: OnceLock<Files>,
    storage: Storage,
}

#[derive(Default)]
struct State {
    calls: u64,
    /// Where to crash, the next first.
    plan: Vec<CrashPoint>,
    /// The call at which it did, in words.
    crashed_at: Option<String>,
    ran: Vec<Ran>,
    /// What the random numbers of a simulation come from.
    seed: Option<u64>,
    reseeded: u64,
    not_kept: Option<io::Error>,
}

impl Probe {
    /// A probe that goes on counting from `calls`, and crashes at the first point of the plan that
    /// comes after that.
    pub(super) fn new(calls: u64, plan: &[CrashPoint], storage: Storage) -> Self {
        let probe = Self {
            storage,
            ..Self::default()
        };
        {
            let mut state = probe.state.lock();
            state.calls = calls;
            state.plan = plan.iter().rev().copied().collect();
        }
        probe
    }

    /// Sets the files that are kept at a crash.
    pub(super) fn set_files(&self, files: Files) {
        let _ = self.files.set(files);
    }

    /// The disk below the files of the next process, once this one has ended.
    pub(super) fn take_disk(&self) -> Option<SimulatedDisk> {
        self.files.get()?.disk.lock().take()
    }

    /// Has the engine do what its threads would do of what has happened.
    pub(super) fn rest(&self) {
        if let Some(files) = self.files.get() {
            files.rest();
        }
    }

    /// Has random numbers and the order of jobs depend on this seed.
    pub(super) fn set_seed(&self, seed: u64) {
        self.state.lock().seed = Some(seed);
    }

    /// Whether the next job is to wait for another one.
    pub(super) fn postpones(&self) -> bool {
        let seed = self.reseed();
        seed.is_some_and(|seed| fastrand::Rng::with_seed(seed).u8(..) < 64)
    }

    /// In a simulation, has the random numbers of this thread depend on the seed and on what is stored
    /// so far, and on nothing that the engine's threads do meanwhile. Returns their seed.
    pub(super) fn reseed(&self) -> Option<u64> {
        let mut state = self.state.lock();
        state.reseeded += 1;
        let mixed = [state.calls, state.reseeded].into_iter();
        let seed = mixed.fold(state.seed?, |seed, number| {
            // Wyrand would give numbers that are alike for seeds that are.
            (seed ^ number)
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .rotate_left(31)
        });
        fastrand::seed(seed);
        Some(seed)
    }

    pub(super) fn calls(&self) -> u64 {
        self.state.lock().calls
    }

    pub(super) fn has_crashed(&self) -> bool {
        self.has_crashed.load(Ordering::SeqCst)
    }

    /// The call at which the process crashed, in words.
    pub(super) fn crashed_at(&self) -> Option<String> {
        self.state.lock().crashed_at.clone()
    }

    /// The crashes that are still to come.
    pub(super) fn rest_of_plan(&self) -> Vec<CrashPoint> {
        let state = self.state.lock();
        state.plan.iter().rev().copied().collect()
    }

    /// Notes how an attempt ended.
    pub(super) fn note(&self, ran: Ran) {
        self.state.lock().ran.push(ran);
    }

    pub(super) fn take_ran(&self) -> Vec<Ran> {
        std::mem::take(&mut self.state.lock().ran)
    }

    /// Changes what became of the job that was noted last.
    pub(super) fn correct_last(&self, how: impl FnOnce(&Ran) -> Option<How>) {
        if let Some(last) = self.state.lock().ran.last_mut()
            && let Some(how) = how(last)
        {
            last.how = how;
        }
    }

    /// Fails if the process has crashed.
    pub(super) fn check(&self) -> Result<(), BackendError> {
        match self.has_crashed() {
            true => Err(BackendError::Closed),
            false => Ok(()),
        }
    }

    /// Makes a call that stores something; crashes before or after it if the plan says so.
    pub(super) fn store<T>(
        &self,
        what: impl Fn() -> String,
        call: impl FnOnce() -> Result<T, BackendError>,
    ) -> Result<T, BackendError> {
        self.check()?;
        let (number, is_simulated) = {
            let mut state = self.state.lock();
            state.calls += 1;
            (state.calls, state.seed.is_some())
        };
        self.crash_at(CrashPoint::Before(number), &what)?;
        if self.is_killed_after(number)
            && let Some(files) = self.files.get()
        {
            // It had written what it stored by this call, and was about to flush it.
            files.ignore_flushes();
        }
        let result = call();
        if self.has_crashed() {
            // In a call that this one made, behind something that catches panics.
            return Err(unwind());
        }
        if is_simulated && self.storage.rests_after(number) {
            self.rest();
        }
        self.crash_at(CrashPoint::After(number), &what)?;
        result
    }

    fn crash_at(&self, point: CrashPoint, what: &dyn Fn() -> String) -> Result<(), BackendError> {
        let end = {
            let mut state = self.state.lock();
            if state.plan.last() != Some(&point) {
                return Ok(());
            }
            state.plan.pop();
            // By the number of this call: others may have been made within it.
            self.storage.end_at(point.call(), state.plan.is_empty())
        };
        let at = match point {
            CrashPoint::Before(call) => format!("before call {call}, {}", what()),
            CrashPoint::After(call) => format!("after call {call}, {}", what()),
        };
        let how = match (self.storage.power_cuts, end) {
            (None, _) => "",
            (Some(_), End::Kill) => "by a kill ",
            (Some(_), End::PowerCut) => "by a power cut ",
        };
        self.state.lock().crashed_at = Some(format!("{how}{at}"));
        if let Err(error) = self.crash_by(end) {
            self.state.lock().not_kept = Some(error);
        }
        Err(unwind())
    }

    /// Ends the process, as far as its files are concerned. An error is that of the crash if it has
    /// crashed before.
    pub(super) fn crash(&self) -> io::Result<()> {
        self.crash_by(End::Kill)
    }

    fn crash_by(&self, end: End) -> io::Result<()> {
        if self.has_crashed.swap(true, Ordering::SeqCst) {
            return self.state.lock().not_kept.take().map_or(Ok(()), Err);
        }
        self.files.get().map_or(Ok(()), |files| files.end(end))
    }

    /// Whether the process is to be killed after this call.
    fn is_killed_after(&self, call: u64) -> bool {
        let state = self.state.lock();
        let is_next = state.plan.last() == Some(&CrashPoint::After(call));
        is_next && self.storage.end_at(call, state.plan.len() == 1) == End::Kill
    }
}

/// Unwinds the thread of a process that has crashed. What it calls meanwhile is refused.
pub(super) fn unwind() -> BackendError {
    if !std::thread::panicking() {
        std::panic::resume_unwind(Box::new(Unwinding));
    }
    BackendError::Closed
}

/// Whether a panic is that of a simulated crash.
pub(super) fn is_crash(panic: &(dyn Any + Send)) -> bool {
    panic.is::<Unwinding>()
}
