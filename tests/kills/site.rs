//! A queue directory in which one child after the other is killed, and what is done to each child.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use logmill::{Damage, OpenError};
use rustix::fs::statvfs;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use tempfile::TempDir;

use crate::figures::Figures;
use crate::history::History;
use crate::inspection::Inspection;
use crate::journal::{self, Event, Note};
use crate::load::{self, Orders};
use crate::plan::{Kind, Load, Shape};
use crate::support::{Child, PATIENCE, copy_tree, eventually, has_played};

/// The latest time of a kill, in microseconds after the child's start.
const LATEST_KILL: u64 = 300_000;
/// More than any copy takes.
const SCRATCH_ROOM: u64 = 512 * 1024 * 1024;

/// What lasts for the whole run.
pub(crate) struct Run {
    pub seed: u64,
    pub rng: Rng,
    /// Number of children so far.
    pub children: u64,
    pub figures: Figures,
}

/// A queue directory, and what is known of it.
pub(crate) struct Site<'a> {
    run: &'a mut Run,
    shape: Shape,
    dir: TempDir,
    history: History,
    /// How long the last open took.
    open_took: Duration,
    was_closed: bool,
}

impl<'a> Site<'a> {
    pub(crate) fn new(run: &'a mut Run) -> Self {
        run.figures.directories += 1;
        Self {
            shape: Shape::draw(&mut run.rng),
            run,
            dir: tempfile::tempdir().expect("a scratch directory"),
            history: History::default(),
            open_took: Duration::from_millis(2),
            was_closed: true,
        }
    }

    pub(crate) fn figures(&self) -> &Figures {
        &self.run.figures
    }

    /// Whether to go on with another directory, true once in `of` times.
    pub(crate) fn is_last(&mut self, of: u32) -> bool {
        self.run.rng.u32(..of) == 0
    }

    /// Runs one child, or several in a row without an inspection between them, and inspects a copy
    /// of what they leave.
    pub(crate) fn go_on(&mut self) {
        if self.run.rng.u32(..16) == 0 {
            self.run_child(Kind::Fat);
            for _ in 0..self.run.rng.u32(2..=6) {
                self.run_child(Kind::Opening);
            }
        } else {
            self.run_child(Kind::Usual);
        }
        let scratch = scratch();
        let copy = scratch.path().join("queue");
        let original = load::queue_dir(self.dir.path());
        if original.exists() {
            copy_tree(&original, &copy);
        }
        self.inspect(&copy);
    }

    /// Inspects the directory itself instead of a copy.
    pub(crate) fn finish(mut self) {
        self.inspect(&load::queue_dir(self.dir.path()));
    }

    /// Runs a child until it is killed or ends, and processes what it noted.
    fn run_child(&mut self, kind: Kind) {
        self.run.children += 1;
        let orders = Orders {
            seed: self.run.seed,
            generation: self.run.children,
            shape: self.shape,
            kind,
        };
        let load = orders.load();
        orders.write(self.dir.path());
        let mut child = Child::start("load", self.dir.path());
        let was_stopped = self.let_live(&mut child, &load, kind);
        let was_faster = child.has_ended();
        if !was_faster {
            child.kill();
        }
        let status = child.end();
        let (is_killed, is_closed) = (status.signal() == Some(9), has_played(status));
        let stderr = child.stderr();
        assert!(
            (is_killed || is_closed) && !stderr.contains("panicked"),
            "{status}\n{stderr}"
        );
        self.was_closed = is_closed;

        let journals = load::journal_dir(self.dir.path(), load.generation);
        let notes = journal::read(&journals);
        self.history.read(&load, &notes, &mut self.run.figures);
        fs::remove_dir_all(&journals).unwrap_or_default();
        let figures = &mut self.run.figures;
        if is_closed {
            figures.orderly_ends += 1;
            return;
        }
        let has = |event| notes.iter().any(|note| note.event == event);
        figures.kills += 1;
        figures.kills_by_poison += u64::from(was_faster);
        figures.kills_while_stopped += u64::from(was_stopped);
        figures.kills_before_open += u64::from(!has(Event::OpenBegins));
        figures.kills_in_open += u64::from(has(Event::OpenBegins) && !has(Event::OpenReturned));
        figures.kills_in_close += u64::from(has(Event::CloseBegins));
    }

    /// Waits until it is time to kill the child, or until it has ended. Sometimes stops the child
    /// in the meantime. Returns whether it is stopped.
    fn let_live(&mut self, child: &mut Child, load: &Load, kind: Kind) -> bool {
        let started = Instant::now();
        let journals = &load::journal_dir(self.dir.path(), load.generation);
        let rng = &mut self.run.rng;
        let noted = |notes| {
            move |child: &mut Child| {
                eventually("the child notes enough", || {
                    journal::noted_first(journals) >= notes || child.has_ended()
                });
                started.elapsed()
            }
        };
        let micros = |rng: &mut Rng, up_to| Duration::from_micros(rng.u64(..up_to));
        let life = match (kind, load.closes_after.is_some(), rng.u32(..20)) {
            // During an open.
            (Kind::Opening, ..) | (_, _, 0..2) => {
                let within = self.open_took.mul_f64(1.5 * rng.f64());
                noted(1)(child) + within
            }
            // After the child has ended, or during the close before that.
            (_, true, 2..8) => PATIENCE,
            (_, true, 8..14) => noted(3)(child) + micros(rng, 5_000),
            // Before producers have to wait for consumers.
            (_, _, 2..8) => noted(2)(child) + micros(rng, 12_000),
            (_, _, 8) => micros(rng, 10_000),
            _ => micros(rng, LATEST_KILL),
        };
        if rng.u32(..4) == 0 {
            let at = life
                .min(Duration::from_micros(LATEST_KILL))
                .mul_f64(rng.f64());
            // Sometimes longer than a segment stays full before it is sealed.
            let longest = if rng.bool() { 60_000 } else { 400_000 };
            let pause = Duration::from_micros(rng.u64(..longest));
            let is_last = rng.u32(..4) == 0;
            if wait(child, started, at) {
                return false;
            }
            self.stop(child, journals);
            thread::sleep(pause);
            if is_last {
                return true;
            }
            send(child, Signal::CONT);
            wait(child, started, life + pause);
        } else {
            wait(child, started, life);
        }
        assert!(
            life < PATIENCE || child.has_ended(),
            "the child does not end"
        );
        false
    }

    /// Stops the child with SIGSTOP. While it has the queue open, a second open must fail.
    fn stop(&mut self, child: &Child, journals: &Path) {
        send(child, Signal::STOP);
        let either = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        let status = waitid(WaitId::Pid(pid_of(child)), either).expect("waitable");
        if !status.is_some_and(|status| status.stopped()) {
            // It has already ended.
            return;
        }
        self.run.figures.stops += 1;
        let is_open = |note: &Note| note.event == Event::OpenReturned;
        let is_closing = |note: &Note| note.event == Event::CloseBegins;
        let notes = journal::read(journals);
        if notes.iter().any(is_open) && !notes.iter().any(is_closing) {
            let second = self.shape.builder(&load::queue_dir(self.dir.path())).open();
            let is_locked = matches!(second, Err(OpenError::Locked { .. }));
            assert!(
                is_locked,
                "a second open succeeded beside a stopped process: {second:?}"
            );
            self.run.figures.locked += 1;
        }
    }

    fn inspect(&mut self, queue_dir: &Path) {
        let was_closed = self.was_closed;
        let found = Inspection::run(queue_dir, self.shape, was_closed, &mut self.run.rng);
        let figures = &mut self.run.figures;
        self.history.check(&found, figures);
        self.open_took = found.open_took;
        figures.inspections += 1;
        figures.jobs_found += found.live;
        figures.most_jobs_found = figures.most_jobs_found.max(found.live);
        figures.letters_found += found.letters.len() as u64;
        figures.segments_scanned += found.report.scanned;
        figures.holes += found.report.holes;
        figures.replays_settled += found.report.settled;
        let quarantined = found.report.quarantined.iter();
        figures.uncommitted += quarantined
            .filter(|region| region.damage == Damage::Uncommitted)
            .count() as u64;
    }
}

impl Drop for Site<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.dir.disable_cleanup(true);
            let Run {
                seed,
                children,
                figures,
                ..
            } = &*self.run;
            eprintln!(
                "LOGMILL_SEED={seed}, child {children}, {:?}, in {}\n{figures}",
                self.shape,
                self.dir.path().display()
            );
        }
    }
}

/// A directory for a copy to inspect. It is in memory if there is room, since flushes are faster
/// there and the result is the same.
fn scratch() -> TempDir {
    let memory = Path::new("/dev/shm");
    let free = statvfs(memory).map_or(0, |memory| memory.f_bavail * memory.f_frsize);
    let scratch = if free >= SCRATCH_ROOM {
        tempfile::tempdir_in(memory)
    } else {
        tempfile::tempdir()
    };
    scratch.expect("a scratch directory")
}

/// Waits until this long after the start, or until the child has ended; returns whether it has.
fn wait(child: &mut Child, started: Instant, time: Duration) -> bool {
    loop {
        if child.has_ended() {
            return true;
        }
        let left = time.saturating_sub(started.elapsed());
        if left.is_zero() {
            return false;
        }
        thread::sleep(left.min(Duration::from_millis(1)));
    }
}

fn send(child: &Child, signal: Signal) {
    // Until the parent has waited for the child, its process id cannot belong to another process.
    kill_process(pid_of(child), signal).expect("permitted");
}

fn pid_of(child: &Child) -> Pid {
    let pid = i32::try_from(child.pid()).ok().and_then(Pid::from_raw);
    pid.expect("a pid")
}
