//! The engine: what the handles of an open queue share, and the life of a job once it is in the
//! log: delivery, ack, failure, retry.

mod dead_log;
mod failures;
mod home;
mod lock;
pub(crate) mod maintenance;
pub(crate) mod manifest;

use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use crate::Sequence;
use crate::dispatch::Dispatch;
use crate::dispatch::lease_timeouts::{Delivery, Ended, Leases};
use crate::engine::dead_log::{DeadLog, Late};
use crate::engine::home::{Directories, Home};
use crate::error::{EnqueueError, FlushError, OpenError};
use crate::event_count::EventCount;
use crate::events::{Mutex, event};
use crate::failure::{Failure, Then};
use crate::job::Attempt;
use crate::lasting::Lasting;
use crate::log::poison::Poison;
use crate::log::record::Meta;
use crate::log::recovery::{Recovery, RecoveryReport, count_segments};
use crate::log::segment::{self, Lease, Unsettled};
use crate::log::{DEAD_ORIGIN, LogConfig, SpaceBudget, Stripe};
use crate::options::{Builder, Durability};
use crate::producer;
use crate::storage::StorageError;
use crate::time::{Clock, Tick};
use maintenance::Signal;

/// What the handles and threads of an open queue share.
pub(crate) struct Engine {
    /// Locked until the last handle is gone.
    home: Arc<Home>,
    durability: Durability,
    dispatch: Dispatch,
    leases: Option<Leases>,
    dead: DeadLog,
    pub(crate) depth: Option<Arc<DepthLimit>>,
    /// Producers that wait for room.
    pub(crate) room: Arc<EventCount>,
    pub(crate) signal: Arc<Signal>,
    clock: Clock,
    max_payload: usize,
    poison: Arc<Poison>,
    /// What letters name is settled, and not durably so.
    unsettled: Mutex<Vec<Unsettled>>,
    closed: AtomicBool,
    /// Letters that could not be written when somebody wanted to see them.
    pub(crate) unwritten_letters: Lasting,
    retried: AtomicU64,
    dead_lettered: AtomicU64,
    /// Jobs found at open.
    pub(crate) recovered: u64,
}

/// How often things happened since the queue was opened.
pub(crate) struct Counters {
    pub(crate) retried: u64,
    /// Jobs that left the log for the dead letter log.
    pub(crate) dead_lettered: u64,
}

/// The jobs that are neither acked nor dead, where a limit is set on them.
pub(crate) struct DepthLimit {
    max: u64,
    jobs: AtomicU64,
}

impl DepthLimit {
    fn new(max: u64) -> Self {
        Self {
            max,
            jobs: AtomicU64::new(0),
        }
    }

    /// Takes room for up to `wanted` jobs; returns for how many there was.
    pub(crate) fn take(&self, wanted: u64) -> u64 {
        let mut taken = 0;
        // Relaxed: a count, which orders nothing.
        let _ = self
            .jobs
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |jobs| {
                taken = wanted.min(self.max.saturating_sub(jobs));
                (taken > 0).then_some(jobs + taken)
            });
        taken
    }

    /// What an enqueue gets for which there was none.
    pub(crate) fn full(&self) -> EnqueueError {
        EnqueueError::Full {
            limit: "max_depth",
            max: self.max,
        }
    }

    /// Jobs that take room.
    #[cfg(test)]
    pub(crate) fn taken(&self) -> u64 {
        self.jobs.load(Ordering::Relaxed)
    }

    pub(crate) fn give_back(&self, jobs: u64) {
        let before = self.jobs.fetch_sub(jobs, Ordering::Relaxed);
        debug_assert!(before >= jobs, "room was given back twice");
    }
}

#[inline(always)]
fn give_back_room(depth: Option<&DepthLimit>, room: &EventCount, jobs: u64) {
    if let Some(depth) = depth {
        depth.give_back(jobs);
        room.notify_fenced(jobs as usize);
    }
}

impl Engine {
    /// Opens or creates the queue that the builder describes.
    fn open(builder: &Builder) -> Result<(Self, RecoveryReport), OpenError> {
        let (home, directories) = Home::open(builder)?;
        let home = Arc::new(home);
        Self::recover(&home, directories, builder).inspect_err(|_| home.undo_creation())
    }

    fn recover(
        home: &Arc<Home>,
        directories: Directories,
        builder: &Builder,
    ) -> Result<(Self, RecoveryReport), OpenError> {
        let manifest = &home.manifest;
        let signal = Arc::new(Signal::new());
        let kick = {
            let signal = Arc::clone(&signal);
            Arc::new(move || signal.kick())
        };
        let sleepers = Arc::new(EventCount::new());
        let poison = Arc::<Poison>::default();
        let depth = builder.max_depth.map(|max| Arc::new(DepthLimit::new(max)));
        let room = Arc::new(EventCount::new());
        let lost = {
            let (depth, room) = (depth.clone(), Arc::clone(&room));
            Arc::new(move |jobs| give_back_room(depth.as_deref(), &room, jobs))
        };
        let config = LogConfig {
            segment_size: manifest.segment_size,
            starts_ready: true,
            is_new: home.is_new(),
            queue: Arc::clone(home.directory()),
            budget: Arc::new(SpaceBudget::new(builder.max_bytes, manifest.segment_size)),
            poison: Arc::clone(&poison),
            kick,
            sleepers: Arc::clone(&sleepers),
            lost,
        };
        let mut recovery = Recovery {
            segment_size: manifest.segment_size,
            queue: home.directory(),
            report: RecoveryReport::default(),
            progress: builder.progress.as_deref(),
            segments_seen: 0,
        };
        for directory in directories.lost {
            recovery.report_lost_directory(directory);
        }
        if builder.max_bytes.is_some() {
            let capacity = segment::capacity_of(manifest.segment_size);
            for directory in &directories.stripes {
                let found = count_segments(&directory.list()?, capacity);
                config.budget.expect(found * manifest.segment_size);
            }
        }
        let mut stripes = Vec::new();
        let mut settles = Vec::new();
        // A manifest has at most 64 stripes.
        for (number, directory) in (0..).zip(directories.stripes) {
            let (stripe, of_stripe) = Stripe::open(
                directory,
                Sequence::first_of_stripe(number),
                config.clone(),
                &mut recovery,
            )?;
            stripes.push(stripe);
            settles.extend(of_stripe);
        }
        let dead_config = LogConfig {
            // Most queues never have a letter.
            starts_ready: false,
            budget: Arc::new(SpaceBudget::new(None, 0)),
            // Letters take no room.
            lost: Arc::new(|_| ()),
            ..config.clone()
        };
        let (dead, of_letters) =
            Stripe::open(directories.dead, DEAD_ORIGIN, dead_config, &mut recovery)?;

        let mut report = recovery.report;
        settles.extend(of_letters);
        // What names them is durable. It is sealed, after which nobody looks for names in it, only
        // when they are durably done, too.
        for log in stripes.iter().chain([&dead]) {
            let of_log: Vec<_> = settles.extract_if(.., |one| log.is_home_of(*one)).collect();
            report.settled += log
                .settle(&of_log)
                .map_err(|error| OpenError::Flush(FlushError(error)))?;
        }
        let live: u64 = stripes.iter().map(|stripe| stripe.stats().live).sum();
        if let Some(depth) = &depth {
            depth.jobs.store(live, Ordering::Relaxed);
        }
        report.jobs = live;
        report.dead_letters = dead.stats().live;
        let clock = Clock::start();
        let max_payload = producer::max_payload(&stripes[0]);
        let engine = Self {
            home: Arc::clone(home),
            durability: builder.durability,
            dispatch: Dispatch::new(
                stripes.into(),
                sleepers,
                clock,
                builder.retry.clone(),
                builder.lease_timeout.is_some(),
            ),
            leases: builder.lease_timeout.map(Leases::new),
            dead: DeadLog::new(dead, Arc::clone(&poison)),
            depth,
            room,
            signal,
            clock,
            max_payload,
            poison,
            unsettled: Mutex::default(),
            closed: AtomicBool::new(false),
            unwritten_letters: Lasting::default(),
            retried: AtomicU64::new(0),
            dead_lettered: AtomicU64::new(0),
            recovered: live,
        };
        Ok((engine, report))
    }

    pub(crate) fn path(&self) -> &Path {
        self.home.directory().path()
    }

    pub(crate) fn durability(&self) -> Durability {
        self.durability
    }

    pub(crate) fn dispatch(&self) -> &Dispatch {
        &self.dispatch
    }

    pub(crate) fn dead(&self) -> &DeadLog {
        &self.dead
    }

    pub(crate) fn leases(&self) -> Option<&Leases> {
        self.leases.as_ref()
    }

    #[inline]
    pub(crate) fn is_closed(&self) -> bool {
        // Relaxed: who closes wakes the sleepers through a lock, and appends are refused by the
        // log itself.
        self.closed.load(Ordering::Relaxed)
    }

    pub(crate) fn counters(&self) -> Counters {
        Counters {
            retried: self.retried.load(Ordering::Relaxed),
            dead_lettered: self.dead_lettered.load(Ordering::Relaxed),
        }
    }

    /// The failed flush after which nothing more is promised to reach the disk.
    pub(crate) fn poison(&self) -> Option<&Arc<StorageError>> {
        self.poison.get()
    }

    fn logs(&self) -> impl Iterator<Item = &Stripe> {
        self.dispatch.stripes().iter().chain([self.dead.log()])
    }

    /// Longest payload, in bytes.
    #[inline]
    pub(crate) fn max_payload(&self) -> usize {
        self.max_payload
    }

    /// Whether a delivery needs no more than to be counted.
    #[inline]
    pub(crate) fn is_plain(&self, lease: &Lease) -> bool {
        self.leases.is_none() && lease.is_bare()
    }

    /// Begins the delivery of a job: counts it, before it happens. None if the job had used up its
    /// attempts (and is dead now), or was done meanwhile.
    pub(crate) fn begin(&self, mut lease: Lease) -> Option<(Lease, Attempt, Delivery)> {
        let is_suspect = lease.take_suspicion();
        let begun = self.begin_any(lease);
        if begun.is_none() && is_suspect {
            self.dispatch.end_suspect();
        }
        let (lease, attempts, delivery) = begun?;
        Some((lease, Attempt::new(attempts, is_suspect), delivery))
    }

    fn begin_any(&self, lease: Lease) -> Option<(Lease, u32, Delivery)> {
        if lease.is_done() {
            // By a delivery that had timed out and succeeded after all.
            return None;
        }
        let meta = match lease.has_meta() {
            true => lease.meta(),
            false => Meta::default(),
        };
        // Of an earlier process, or moved since.
        let has_past = lease.is_recovered() || meta.prior_attempts > 0 || meta.prior_crashes > 0;
        if has_past
            && let failed = lease.failed()
            && let Some((attempt, reason)) = self.cause_of_death(&lease, failed)
        {
            let (job, crashes) = (lease.job(), lease.crashes());
            self.dead.failures.note(job, attempt, &reason);
            // Nobody can have acked it: no handler of this process had it.
            let _ = self.dead_letter(lease, failed);
            event!(warn, %job, attempts = failed, crashes, reason, "a job is dead");
            return None;
        }
        match &self.leases {
            None => {
                let failed = lease.begin_delivery().failed();
                let attempts = meta.prior_attempts.saturating_add(failed.into());
                Some((lease, attempts.saturating_add(1), Delivery::ONLY))
            }
            Some(leases) => {
                let attempts = lease.failed().saturating_add(1);
                let (delivery, first) = leases.begin(&lease, attempts, self.clock.now())?;
                if first {
                    self.dispatch.timer.interrupt();
                }
                Some((lease, attempts, delivery))
            }
        }
    }

    /// If a job that an earlier process had, or that was moved, is not to be delivered after so many failed
    /// attempts: in which attempt it died, and why.
    fn cause_of_death(&self, lease: &Lease, failed: u32) -> Option<(u32, String)> {
        let crashes = lease.crashes();
        if crashes >= self.dispatch.max_crashes() {
            let reason = format!("the process died with this job in a handler, {crashes} times");
            Some((failed.saturating_add(1), reason))
        } else if failed > 0 && !self.dispatch.may_retry(lease, failed) {
            let reason = "the process ended before it wrote the letter of this job";
            Some((failed, reason.to_owned()))
        } else {
            None
        }
    }

    #[inline(always)]
    pub(crate) fn ack(&self, lease: Lease, delivery: Delivery, attempt: Attempt) {
        if !attempt.is_plain() {
            return self.ack_marked(lease, delivery, attempt);
        }
        if let Some(leases) = &self.leases
            && !leases.end(&lease, delivery)
        {
            return self.ack_late(lease, leases);
        }
        self.complete(lease);
    }

    /// Acks a job that failed before, or a suspect.
    #[cold]
    fn ack_marked(&self, lease: Lease, delivery: Delivery, attempt: Attempt) {
        self.dead.failures.forget(lease.job());
        self.ack(lease, delivery, Attempt::new(1, false));
        if attempt.is_suspect() {
            self.dispatch.end_suspect();
        }
    }

    /// Marks a job done that is not dying. Returns whether it was not before.
    #[inline(always)]
    pub(crate) fn complete(&self, lease: Lease) -> bool {
        let first = self.mark_done(lease);
        if first {
            self.give_back_room(1);
        }
        first
    }

    /// Acks a job whose delivery has timed out. It waits for its next one, is being delivered
    /// again, or is dying: it must be taken from there, for nothing to be said or done of it any
    /// more. If its letter is written, that is withdrawn.
    ///
    /// Done first and then looked for: whoever puts a job anywhere looks whether it is done, under
    /// the lock that it is looked for with here. In a deque it is found done when it is delivered.
    #[cold]
    fn ack_late(&self, lease: Lease, leases: &Leases) {
        let (job, sequence) = (lease.job(), lease.sequence());
        let mut first = false;
        match self
            .dead
            .take_late(job, sequence, || first = self.mark_done(lease))
        {
            Late::Dead => event!(info, %job, "a dead job was acked late"),
            // It took no room any more.
            Late::Dying => {}
            Late::Live if first => self.give_back_room(1),
            Late::Live => {}
        }
        drop(self.dispatch.timer.take_late(sequence));
        leases.end_late(sequence);
        self.dead.failures.forget(job);
        // The space that the job's other leases have kept can go.
        self.signal.kick();
    }

    /// Marks a job done. Returns whether it was not before.
    #[inline(always)]
    fn mark_done(&self, lease: Lease) -> bool {
        let acked = lease.ack();
        if acked.segment_complete {
            self.signal.kick();
        }
        acked.first
    }

    /// Jobs are neither live any more nor on their way to become so.
    #[inline(always)]
    pub(crate) fn give_back_room(&self, jobs: u64) {
        give_back_room(self.depth.as_deref(), &self.room, jobs);
    }

    pub(crate) fn fail(
        &self,
        lease: Lease,
        delivery: Delivery,
        attempt: Attempt,
        failure: Failure,
    ) {
        let ended = match &self.leases {
            None => {
                lease.count_failure(false);
                Ended::Current { others: false }
            }
            Some(leases) => leases.fail(&lease, delivery),
        };
        match (ended, &self.leases) {
            (Ended::Current { others }, _) => {
                let lease = match attempt.is_suspect() {
                    // Until it is acked: it may only have been lucky.
                    true => lease.into_suspect(),
                    false => lease,
                };
                self.fail_current(lease, attempt.number(), failure, others);
            }
            // It has timed out: this attempt has failed already.
            (Ended::Late, Some(leases)) => {
                let has_handler = || leases.has_handler(lease.sequence());
                self.dead.end_late(lease.job(), has_handler);
            }
            (Ended::Late, None) => {}
        }
        if attempt.is_suspect() {
            self.dispatch.end_suspect();
        }
    }

    /// `late`: another handler has the job too, and may ack it.
    fn fail_current(&self, lease: Lease, attempts: u32, failure: Failure, late: bool) {
        let job = lease.job();
        let Failure { reason, then } = failure;
        self.dead.failures.note(job, attempts, &reason);
        let comes_back = then != Then::DeadLetter && self.dispatch.may_retry(&lease, attempts);
        let is_acked = if comes_back {
            let delay = match then {
                Then::RetryAfter(delay) => Some(delay),
                Then::Retry | Then::DeadLetter => None,
            };
            !self.dispatch.retry(lease, attempts, delay, late)
        } else {
            !self.dead_letter(lease, attempts)
        };
        if is_acked {
            // By the other handler, meanwhile.
            return self.dead.failures.forget(job);
        }
        if comes_back {
            self.retried.fetch_add(1, Ordering::Relaxed);
        }
        // Told when it is settled, whatever the subscriber does.
        let last = (!comes_back).then(|| reason.clone());
        event!(debug, %job, attempts, reason, "an attempt failed");
        if let Some(reason) = last {
            event!(warn, %job, attempts, reason, "a job is dead");
        }
    }

    /// Hands a job that must not be delivered again to the dead letter log. Returns false if
    /// another handler has acked it meanwhile.
    fn dead_letter(&self, lease: Lease, attempts: u32) -> bool {
        let is_dying = self.dead.hand_over(lease, attempts);
        if is_dying {
            self.give_back_room(1);
            self.signal.kick();
        }
        is_dying
    }

    /// Writes the letters of all jobs that have died, flushes them, and only then marks the jobs
    /// done.
    pub(crate) fn write_letters(&self) -> Result<(), Arc<StorageError>> {
        let has_handler = |job| {
            let leases = self.leases.as_ref();
            leases.is_some_and(|leases| leases.has_handler(job))
        };
        self.dead.write_letters(has_handler, |lease, unsettled| {
            if self.mark_done(lease) {
                self.dead_lettered.fetch_add(1, Ordering::Relaxed);
            }
            self.note_unsettled(unsettled);
        })
    }

    pub(crate) fn note_unsettled(&self, new: Unsettled) {
        let mut unsettled = self.unsettled.lock();
        // Letters in a row are mostly in one segment.
        let rest = match unsettled.last_mut() {
            Some(last) => last.merge(new),
            None => Some(new),
        };
        unsettled.extend(rest);
    }

    /// Makes the acks of all jobs that have letters durable, for the letters' segments to be sealed
    /// or retired; and what else could not be settled when it was tried.
    pub(crate) fn settle_deaths(&self) -> Result<(), Arc<StorageError>> {
        let unsettled = self.take_unsettled();
        if unsettled.is_empty() {
            return Ok(());
        }
        let flushed = self.logs().try_for_each(|log| log.flush(true));
        self.settled_if(&flushed, unsettled);
        flushed
    }

    fn take_unsettled(&self) -> Vec<Unsettled> {
        let mut unsettled = std::mem::take(&mut *self.unsettled.lock());
        unsettled.append(&mut self.dispatch.unsettled.lock());
        unsettled
    }

    /// After a flush of all logs.
    fn settled_if(&self, flushed: &Result<(), Arc<StorageError>>, unsettled: Vec<Unsettled>) {
        match flushed {
            Ok(()) => self.settled(unsettled),
            // It may have been a file that could not be opened: the next flush settles them.
            Err(_) => self.unsettled.lock().extend(unsettled),
        }
    }

    pub(crate) fn settled(&self, unsettled: Vec<Unsettled>) {
        if unsettled.is_empty() {
            return;
        }
        for one in unsettled {
            one.settle();
        }
        // Segments may go, and letters wait for this.
        self.signal.kick();
    }

    /// Makes everything appended and acked so far durable.
    pub(crate) fn flush(&self) -> Result<(), Arc<StorageError>> {
        if let Some(error) = self.poison() {
            return Err(Arc::clone(error));
        }
        // Each log whatever becomes of the others: letters that do not fit the disk, for one, must
        // not keep jobs from being flushed.
        let mut result = self.write_letters();
        let unsettled = self.take_unsettled();
        let mut flushed = Ok(());
        for log in self.logs() {
            flushed = log.flush(true).and(flushed);
        }
        self.settled_if(&flushed, unsettled);
        result = flushed.and(result);
        result
    }

    /// Bytes of the stripes' segment files, and how many of them are counted.
    #[cfg(test)]
    pub(crate) fn space(&self) -> (u64, u64) {
        let spaces = self.dispatch.stripes().iter().map(Stripe::space);
        let (has, counted): (Vec<_>, Vec<_>) = spaces.unzip();
        (has.iter().sum(), counted[0])
    }

    /// Moves jobs that wait out of segments that nothing else keeps; returns whether there were any.
    /// `is_short`: producers find no room.
    pub(crate) fn compact(&self, is_short: bool) -> Result<bool, Arc<StorageError>> {
        let moved = self.dispatch.compact(is_short);
        if is_short {
            // In the segment that was in reserve; the rest comes with the segments that are done.
            self.room.notify_all();
        }
        moved
    }

    /// Refuses further enqueues, wakes everybody, and leaves on disk what the next open needs
    /// least work for. Jobs in flight can still be settled.
    fn close(&self) -> Result<(), Arc<StorageError>> {
        self.closed.store(true, Ordering::Relaxed);
        for stripe in self.dispatch.stripes() {
            stripe.end_deliveries();
        }
        for stripe in self.dispatch.stripes() {
            stripe.close();
        }
        self.dispatch.sleepers.notify_all();
        self.room.notify_all();
        let mut result = self.flush();
        for stripe in self.dispatch.stripes() {
            result = result.and(stripe.seal(true).map(|_| ()));
            result = result.and(stripe.reclaim_all());
        }
        result
    }

    fn close_dead_log(&self) -> Result<(), Arc<StorageError>> {
        self.write_letters()?;
        self.settle_deaths()?;
        self.dead.log().close();
        self.dead.log().seal(true)?;
        self.dead.log().reclaim_all()
    }

    /// Empties the timer: brings jobs back when they are due, and takes leases that ran out.
    fn run_timer(&self) {
        let mut next_end = None;
        while let Some(due) = self.dispatch.timer.wait(self.clock, next_end) {
            next_end = self.bring_back(due);
        }
    }

    /// Makes jobs available that are due, and takes leases that ran out; says when the next one
    /// would.
    fn bring_back(&self, due: Vec<Lease>) -> Option<Tick> {
        if !due.is_empty() {
            self.dispatch.inject_all(due);
        }
        let (expired, next) = self.leases.as_ref()?.expire(self.clock.now());
        for expired in expired {
            self.fail_current(
                expired.lease,
                expired.attempts,
                "the lease timed out".into(),
                true,
            );
        }
        next
    }

    /// What the timer thread does when it wakes up now.
    #[cfg(test)]
    pub(crate) fn turn_timer(&self) {
        use crate::dispatch::timer::Now;
        let due = self.dispatch.timer.take_due(Now::of(self.clock));
        self.bring_back(due);
    }
}

/// An engine with its threads. The last handle to drop it closes the queue.
pub(crate) struct Running {
    engine: Arc<Engine>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    #[cfg(test)]
    is_dead: AtomicBool,
}

impl Running {
    pub(crate) fn open(builder: &Builder) -> Result<(Self, RecoveryReport), OpenError> {
        let (running, report) = Self::open_idle(builder)?;
        let timer = running.spawn("logmill-timer", Engine::run_timer);
        let threads = timer.and_then(|()| running.spawn("logmill-upkeep", maintenance::run));
        if let Err(error) = threads {
            let home = Arc::clone(&running.home);
            // This stops the threads.
            drop(running);
            home.undo_creation();
            return Err(error);
        }
        Ok((running, report))
    }

    /// As [`open`](Self::open), without the threads.
    pub(crate) fn open_idle(builder: &Builder) -> Result<(Self, RecoveryReport), OpenError> {
        let (engine, report) = Engine::open(builder)?;
        let running = Self {
            engine: Arc::new(engine),
            threads: Mutex::default(),
            #[cfg(test)]
            is_dead: AtomicBool::new(false),
        };
        Ok((running, report))
    }

    /// Has everything end as it does when the process dies: nothing more is done to the files.
    #[cfg(test)]
    pub(crate) fn die(&self) {
        self.is_dead.store(true, Ordering::Relaxed);
    }

    fn spawn(
        &self,
        name: &str,
        run: impl FnOnce(&Engine) + Send + 'static,
    ) -> Result<(), OpenError> {
        let engine = Arc::clone(&self.engine);
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || run(&engine))
            .map_err(OpenError::Thread)?;
        self.threads.lock().push(thread);
        Ok(())
    }

    /// Closes the queue; the threads go on until the last handle is gone, for the jobs in flight.
    pub(crate) fn close(&self) -> Result<(), Arc<StorageError>> {
        self.engine.close()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        #[cfg(test)]
        if self.is_dead.load(Ordering::Relaxed) {
            return;
        }
        self.engine.dispatch.timer.stop();
        self.engine.signal.stop();
        let this = thread::current().id();
        for thread in self.threads.get_mut().drain(..) {
            // This one, if it called code of the user's that held the last handle, ends when that
            // has returned, and has the engine for as long.
            if thread.thread().id() != this {
                // They do not panic; if one did, it has been reported, and closing goes on.
                let _ = thread.join();
            }
        }
        let closed = self.engine.close().and(self.engine.close_dead_log());
        if let Err(error) = closed {
            // Everything is in the page cache, and the next open scans what was not sealed.
            event!(error, %error, "the queue was not closed cleanly");
        }
    }
}

impl Deref for Running {
    type Target = Engine;

    fn deref(&self) -> &Engine {
        &self.engine
    }
}

impl AsRef<Dispatch> for Arc<Running> {
    fn as_ref(&self) -> &Dispatch {
        &self.engine.dispatch
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::time::Duration;

    use rustix::io::Errno;

    use super::*;
    use crate::engine::manifest;
    use crate::storage::Operation;
    use crate::storage::faults::{self, Call, Effect, Plan};
    use crate::{EnqueueError, EnqueueOptions};

    #[test]
    fn a_consumer_asleep_is_woken_when_a_damaged_segment_can_be_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let builder = Builder::new(dir.path()).stripes(1).segment_size(16 * 1024);
        {
            let running = Running::open(&builder).unwrap().0;
            for _ in 0..8 {
                let place = producer::Place::of_this_thread(&running);
                running.enqueue(place, &[7; 3000]).unwrap();
            }
        }
        let segment = dir.path().join(format!("log/00/{:020}.seg", 0));
        let mut bytes = std::fs::read(&segment).unwrap();
        bytes[200] ^= 1;
        std::fs::write(&segment, bytes).unwrap();
        // What is damaged cannot be set aside yet.
        let full = faults::fill_disk(&dir.path().join("quarantine"));
        let running = Arc::new(Running::open(&builder).unwrap().0);
        let consumer = crate::Consumer::new(Arc::clone(&running));
        assert!(consumer.try_next().is_none());
        drop(full);
        // Nothing else happens to the queue from here on.
        let (delivered, is_delivered) = std::sync::mpsc::channel();
        thread::spawn(move || {
            consumer.next().unwrap().ack();
            delivered.send(()).unwrap();
        });
        is_delivered.recv_timeout(Duration::from_secs(60)).unwrap();
    }

    #[test]
    fn a_failed_flush_that_no_caller_was_told_of_refuses_durable_enqueues_all_the_same() {
        let enqueue = |running: &Running, payload: &[u8], durability| {
            let place = producer::Place::of_this_thread(running);
            let options = EnqueueOptions::new().durability(durability);
            running.enqueue_with(place, payload, &options)
        };
        for failing in ["quarantine", "log/00"] {
            let dir = tempfile::tempdir().unwrap();
            let builder = Builder::new(dir.path()).stripes(1).segment_size(16 * 1024);
            let running = Running::open(&builder).unwrap().0;
            enqueue(&running, &[7; 3000], Durability::Sync).unwrap();
            drop(running);
            let running = Arc::new(Running::open_idle(&builder).unwrap().0);
            let segment = dir.path().join(format!("log/00/{:020}.seg", 0));
            let file = std::fs::OpenOptions::new()
                .write(true)
                .open(segment)
                .unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, b"x", 200).unwrap();
            enqueue(&running, &[7; 10], Durability::Sync).unwrap();
            let fault = faults::fail_flushes(dir.path().join(failing));
            // Has damaged bytes set aside.
            let consumer = crate::Consumer::new(Arc::clone(&running));
            assert_eq!(consumer.try_next().is_some(), failing != "quarantine");
            // Raises the limit of sequences, and only hopes to.
            for _ in 0..64 {
                let stripe = &running.dispatch().stripes()[0];
                stripe.prepare();
                for _ in 0..6 {
                    let _ = enqueue(&running, &[7; 3000], Durability::Process);
                }
            }
            drop(fault);
            let error = enqueue(&running, &[7; 10], Durability::Sync).unwrap_err();
            assert!(matches!(error, EnqueueError::Poisoned(_)), "{error}");
            assert!(running.flush().is_err());
        }
    }

    #[test]
    fn a_directory_that_cannot_be_looked_at_is_not_taken_for_a_new_queue() {
        let dir = tempfile::tempdir().unwrap();
        let builder = Builder::new(dir.path());
        drop(Running::open(&builder).unwrap());
        let manifest = dir.path().join(manifest::FILE_NAME);
        std::fs::remove_file(&manifest).unwrap();
        for operation in [Operation::Inspect, Operation::List] {
            let plan = Plan {
                operation,
                calls: 0..usize::MAX,
                effect: Effect::Fail(Errno::IO),
            };
            let _fault = faults::watch(dir.path(), vec![plan]);
            assert!(Running::open(&builder).is_err());
            assert!(!manifest.exists());
        }
    }

    #[test]
    fn the_name_of_a_queue_is_durable_before_it_has_a_manifest() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("queue");
        std::fs::create_dir(&dir).unwrap();
        let fault = faults::watch(root.path(), Vec::new());
        drop(Running::open(&Builder::new(&dir)).unwrap());
        let calls = fault.take_calls();
        let at = |operation, path: &Path| {
            let is_it = |call: &Call| call.operation == operation && call.path == path;
            calls.iter().position(is_it).unwrap()
        };
        let named = at(Operation::FlushDirectory, root.path());
        assert!(named < at(Operation::Rename, &dir.join(manifest::TEMPORARY_NAME)));
    }

    #[test]
    fn a_queue_opens_on_a_full_disk_though_a_stripe_has_no_segment() {
        let dir = tempfile::tempdir().unwrap();
        let builder = Builder::new(dir.path()).stripes(2).segment_size(16 * 1024);
        let enqueue = |running: &Running, stripe: usize| {
            let place = producer::Place::on(&running.dispatch().stripes()[stripe]);
            running.enqueue(place, b"job")
        };
        {
            let running = Running::open(&builder).unwrap().0;
            enqueue(&running, 0).unwrap();
        }
        let full = faults::fill_disk(&dir.path().join("log"));
        let running = Arc::new(Running::open(&builder).unwrap().0);
        for stripe in [0, 1] {
            let error = enqueue(&running, stripe).unwrap_err();
            assert!(matches!(error, EnqueueError::StorageFull(_)), "{error}");
        }
        let consumer = crate::Consumer::new(Arc::clone(&running));
        consumer.try_next().unwrap().ack();
        assert!(consumer.try_next().is_none());
        drop(full);
        for stripe in [1, 0] {
            let id = enqueue(&running, stripe).unwrap();
            let job = consumer.next_timeout(Duration::from_secs(60)).unwrap();
            assert_eq!(job.sequence(), id);
            job.ack();
        }
    }

    #[test]
    fn a_job_that_was_moved_after_its_last_attempt_is_dead_and_not_delivered() {
        let dir = tempfile::tempdir().unwrap();
        let builder = Builder::new(dir.path()).stripes(1).segment_size(16 * 1024);
        let running = Arc::new(Running::open_idle(&builder).unwrap().0);
        let stripe = &running.dispatch().stripes()[0];
        let limit = crate::RetryPolicy::default().attempts_limit().unwrap();
        let counts = [(u32::from(limit), 0), (0, running.dispatch().max_crashes())];
        for (prior_attempts, prior_crashes) in counts {
            let meta = crate::log::record::Meta {
                prior_attempts,
                prior_crashes,
                ..Default::default()
            };
            let record = crate::log::record::NewRecord {
                enqueued_at: crate::Timestamp::ZERO,
                due_at: crate::Timestamp::ZERO,
                meta: &meta.encode(100),
                payload: b"moved",
            };
            stripe.append_shared(&record).unwrap();
        }
        let consumer = crate::Consumer::new(Arc::clone(&running));
        assert!(consumer.try_next().is_none());
        assert_eq!(running.dead().stats().dying, 2);
    }

    #[test]
    fn letters_that_do_not_fit_the_disk_keep_no_job_from_being_flushed() {
        let dir = tempfile::tempdir().unwrap();
        let mut builder = Builder::new(dir.path());
        builder = builder.stripes(1).segment_size(16 * 1024);
        let running = Arc::new(Running::open(&builder).unwrap().0);
        let _full = faults::fill_disk(&dir.path().join("dead"));
        let consumer = crate::Consumer::new(Arc::clone(&running));
        let stripe = &running.dispatch().stripes()[0];
        // More letters than the first segment of the dead letter log holds.
        for _ in 0..8 {
            let place = producer::Place::of_this_thread(&running);
            running.enqueue(place, &[7; 3000]).unwrap();
            let job = consumer.next_timeout(Duration::from_secs(60)).unwrap();
            job.dead_letter("of no use");
        }
        let error = running.flush().unwrap_err();
        assert!(error.is_full(), "{error}");
        assert!(running.poison().is_none());
        // So this one is reached.
        let _failing = faults::fail_flushes(stripe.active().paths().segment.path());
        assert!(running.flush().unwrap_err().is_failed_flush());
        assert!(running.poison().is_some());
    }

    #[test]
    fn upkeep_notes_a_failed_flush_though_something_else_has_failed_before() {
        let dir = tempfile::tempdir().unwrap();
        let builder = Builder::new(dir.path()).stripes(1).segment_size(16 * 1024);
        let running = Arc::new(Running::open_idle(&builder).unwrap().0);
        let stripe = &running.dispatch().stripes()[0];
        running
            .enqueue(producer::Place::on(stripe), b"job")
            .unwrap();
        let consumer = crate::Consumer::new(Arc::clone(&running));
        consumer.try_next().unwrap().dead_letter("of no use");
        stripe.flush(false).unwrap();
        // The letter does not fit the disk, and the segment that is prepared cannot be flushed.
        let _full = faults::fill_disk(&dir.path().join("dead"));
        let next = crate::log::segment::capacity_of(16 * 1024);
        let next = dir.path().join(format!("log/00/{next:020}.seg"));
        let _failing = faults::fail_flushes(&next);
        let mut upkeep = maintenance::Upkeep::new();
        while let Some(wake) = running.signal.take() {
            upkeep.turn(&running, &wake);
        }
        let poison = running.poison().expect("noted");
        assert_eq!(poison.path(), next);
    }
}
