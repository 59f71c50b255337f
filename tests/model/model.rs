//! The contract as plain data: the state that every job ever enqueued must have. Each method is
//! told what the queue did, and panics if the contract does not allow it.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::time::{Instant, SystemTime};

use logmill::{Cancelled, DeadLetter, Job, JobId, LetterId, Stats};

use super::labels::Labels;
use super::operation::{Due, Limit, POLICY_LIMIT};

/// The reason that the queue records for a job that is dropped.
const DROPPED: &str = "the job was dropped";
/// With labels and a payload up to this length, a letter has room for all reasons that a case produces.
const ROOM_FOR_REASONS: usize = 2000;
/// Crashes after which a job is dead, under the retry policy of the model's queues.
const MAX_CRASHES: u32 = 3;
/// The most reasons that a letter keeps.
const MAX_REASONS: usize = 32;

/// How the process that had the queue open ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Ending {
    Closed,
    /// Flushed, and without background work in progress.
    DiedQuietly,
    DiedAtOnce,
}

/// The state of a job.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    /// Due. A job without attempts left is not delivered; a consumer that claims it makes it dead.
    Waiting,
    /// Not due before this time.
    Soon(Instant),
    /// Due in the far future.
    Delayed,
    /// Failed, with a backoff far into the future, which only the process knows.
    BackingOff,
    /// Was backing off when the process ended: due at once, unless compaction moved it, which also
    /// recorded its due time.
    WaitingOrDelayed,
    /// The same, with a due time that comes soon.
    WaitingOrSoon,
    Leased,
    Done,
    /// `settled`: the job is also marked done in the log, so it cannot come back.
    Dead {
        settled: bool,
    },
}

#[derive(Clone)]
pub(crate) struct ModelJob {
    payload: Vec<u8>,
    labels: Labels,
    /// Attempts that failed, plus the one that a handler is working on.
    attempts: u32,
    crashes: u32,
    /// It has a crash from an earlier process. It is not delivered while a handler has another
    /// suspect.
    is_suspect: bool,
    /// The most attempts that it may have.
    limit: Option<u32>,
    place: Place,
    /// As reported by the queue at the first delivery.
    enqueued_at: Option<SystemTime>,
    /// It was due when it was enqueued and has not failed, so it is claimed in the order of the
    /// log.
    in_order: bool,
    /// A dropped consumer may have claimed it and given it back, out of order.
    given_back: bool,
    /// It was cancelled, while it waited or while a handler had it.
    is_cancelled: bool,
    /// The reasons of the attempts that failed since the queue was opened.
    reasons: Vec<(u32, String)>,
    letter: Option<LetterId>,
}

impl ModelJob {
    fn has_no_attempt_left(&self) -> bool {
        self.crashes >= MAX_CRASHES || self.limit.is_some_and(|limit| self.attempts >= limit)
    }

    fn is_deliverable(&self) -> bool {
        self.place == Place::Waiting && !self.has_no_attempt_left()
    }

    fn is_in_order(&self) -> bool {
        self.place == Place::Waiting && self.in_order && !self.given_back
    }

    fn has_died_waiting(&self) -> bool {
        self.place == Place::Waiting && self.has_no_attempt_left()
    }
}

impl fmt::Debug for ModelJob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            payload,
            labels,
            attempts,
            crashes,
            limit,
            place,
            letter,
            reasons,
            ..
        } = self;
        let len = payload.len();
        write!(
            f,
            "{place:?} {labels:?} {len} bytes, {attempts} of {limit:?} attempts, {crashes} crashes, letter {letter:?}, {reasons:?}"
        )
    }
}

/// A letter as it was first seen.
#[derive(Clone, Debug, PartialEq)]
struct Letter {
    job: JobId,
    attempts: u32,
    crashes: u32,
    enqueued_at: SystemTime,
    first_failure: Option<SystemTime>,
    last_failure: Option<SystemTime>,
    reasons: Vec<(u32, String)>,
}

impl Letter {
    fn of(letter: &DeadLetter) -> Self {
        Self {
            job: letter.job_id(),
            attempts: letter.attempts(),
            crashes: letter.crashes(),
            enqueued_at: letter.enqueued_at(),
            first_failure: letter.first_failure(),
            last_failure: letter.last_failure(),
            reasons: letter
                .reasons()
                .iter()
                .map(|failure| (failure.attempt, failure.reason.clone()))
                .collect(),
        }
    }
}

/// What has happened since the queue was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Counters {
    recovered: u64,
    enqueued: u64,
    acked: u64,
    cancelled: u64,
    retried: u64,
    dead_lettered: u64,
}

#[derive(Default)]
pub(crate) struct Model {
    jobs: BTreeMap<JobId, ModelJob>,
    /// The letters that must be in the queue.
    letters: BTreeMap<LetterId, Letter>,
    /// The latest sequence of each stripe.
    newest: BTreeMap<u8, JobId>,
    since_open: Counters,
    payloads: u64,
}

impl Model {
    /// A payload that no other job of the case has, unless it is too short for that.
    pub(crate) fn new_payload(&mut self, len: usize) -> Vec<u8> {
        self.payloads += 1;
        let mut word = self.payloads;
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&word.to_le_bytes());
            // Every other payload ends in zeros, which look like space that was never written.
            word = if self.payloads.is_multiple_of(2) {
                0
            } else {
                word.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1)
            };
        }
        bytes.truncate(len);
        bytes
    }

    /// The name and the headers of the next job or batch.
    pub(crate) fn new_labels(&self) -> Labels {
        Labels::of(self.payloads)
    }

    /// A job was enqueued by a call that began at `called`.
    pub(crate) fn enqueued(
        &mut self,
        sequence: JobId,
        (payload, labels): (Vec<u8>, Labels),
        due: Due,
        limit: Limit,
        called: Instant,
    ) {
        let newest = self.newest.insert(sequence.stripe(), sequence);
        assert!(newest < Some(sequence), "{sequence} came after {newest:?}");
        self.since_open.enqueued += 1;
        let job = ModelJob {
            payload,
            labels,
            attempts: 0,
            crashes: 0,
            is_suspect: false,
            limit: match limit {
                Limit::Policy => Some(u32::from(POLICY_LIMIT)),
                Limit::Of(limit) => Some(u32::from(limit)),
                Limit::None => None,
            },
            place: match due {
                Due::AtOnce | Due::Past => Place::Waiting,
                Due::Soon(delay) => Place::Soon(called + delay),
                Due::Far => Place::Delayed,
            },
            enqueued_at: None,
            in_order: matches!(due, Due::AtOnce | Due::Past),
            given_back: false,
            is_cancelled: false,
            reasons: Vec::new(),
            letter: None,
        };
        self.jobs.insert(sequence, job);
    }

    /// A consumer received this job.
    pub(crate) fn delivered(&mut self, delivery: &Job<'_>) {
        let sequence = delivery.id();
        let first_of_stripe = JobId::new(u64::from(sequence.stripe()) << 56);
        let overtaken = self
            .jobs
            .range(first_of_stripe..sequence)
            .find(|(_, job)| job.is_in_order() && job.is_deliverable())
            .map(|(&overtaken, _)| overtaken);
        let has_leased_suspect = self.has_leased_suspect();
        let Some(job) = self.jobs.get_mut(&sequence) else {
            panic!("{sequence} was delivered and never enqueued");
        };
        assert!(
            !job.has_no_attempt_left(),
            "{sequence} was delivered more often than its limit: {job:?}"
        );
        assert!(
            !job.is_suspect || !has_leased_suspect,
            "{sequence} was delivered beside another suspect: {job:?}"
        );
        match job.place {
            Place::Waiting if job.is_in_order() => {
                assert_eq!(overtaken, None, "a job was overtaken by {sequence}");
            }
            Place::Waiting | Place::WaitingOrDelayed | Place::WaitingOrSoon => {}
            Place::Soon(due) => assert!(due <= Instant::now(), "{sequence} came early"),
            _ => panic!("{sequence} was delivered in a wrong state: {job:?}"),
        }
        job.place = Place::Leased;
        job.attempts += 1;
        assert_eq!(delivery.attempts(), job.attempts, "attempts of {sequence}");
        assert_eq!(delivery.crashes(), job.crashes, "crashes of {sequence}");
        assert!(delivery.payload() == job.payload, "payload of {sequence}");
        let (name, headers) = (delivery.name(), delivery.headers());
        job.labels.check(name, headers, sequence);
        let enqueued_at = *job.enqueued_at.get_or_insert(delivery.enqueued_at());
        assert_eq!(delivery.enqueued_at(), enqueued_at, "{sequence}");
    }

    /// The consumer was dropped, and another one takes its place.
    pub(crate) fn consumer_changed(&mut self) {
        for job in self.jobs.values_mut() {
            job.given_back = true;
        }
    }

    /// A consumer found that nothing is due.
    pub(crate) fn nothing_was_due(&mut self) {
        let has_leased_suspect = self.has_leased_suspect();
        for (sequence, job) in &mut self.jobs {
            if job.is_suspect && has_leased_suspect {
                continue;
            }
            match job.place {
                Place::WaitingOrDelayed => job.place = Place::Delayed,
                _ => assert!(
                    !job.is_deliverable(),
                    "{sequence} was not delivered: {job:?}"
                ),
            }
        }
    }

    pub(crate) fn acked(&mut self, sequence: JobId) {
        self.leased(sequence).place = Place::Done;
        self.since_open.acked += 1;
    }

    /// Picks a job that was ever enqueued.
    pub(crate) fn any_job(&self, which: u8) -> Option<JobId> {
        let at = usize::from(which) % self.jobs.len().max(1);
        self.jobs.keys().nth(at).copied()
    }

    /// A job was cancelled, with this answer.
    pub(crate) fn cancelled(&mut self, sequence: JobId, answer: Cancelled) {
        let Some(job) = self.jobs.get_mut(&sequence) else {
            panic!("{sequence} was never enqueued");
        };
        let expected = match job.place {
            Place::Leased => Cancelled::Running,
            Place::Done | Place::Dead { .. } => Cancelled::Gone,
            // A consumer may have come to it, and found it dead.
            Place::Waiting if job.has_no_attempt_left() && answer == Cancelled::Gone => return,
            _ => Cancelled::Waiting,
        };
        assert_eq!(answer, expected, "{sequence} {job:?}");
        match answer {
            Cancelled::Waiting => {
                job.is_cancelled = true;
                job.place = Place::Done;
                self.since_open.cancelled += 1;
            }
            Cancelled::Running => job.is_cancelled = true,
            Cancelled::Gone => {}
        }
    }

    pub(crate) fn is_cancelled(&self, sequence: JobId) -> bool {
        self.jobs[&sequence].is_cancelled
    }

    /// Whether any job was ever cancelled.
    pub(crate) fn has_cancelled(&self) -> bool {
        self.jobs.values().any(|job| job.is_cancelled)
    }

    /// Ends a job that its handler does not ack, if it was cancelled. Returns whether it was.
    fn ends_cancelled(&mut self, sequence: JobId) -> bool {
        let job = self.leased(sequence);
        let is_cancelled = job.is_cancelled;
        if is_cancelled {
            job.place = Place::Done;
            self.since_open.cancelled += 1;
        }
        is_cancelled
    }

    /// A held job is about to fail with this reason, and to be retried when `due`.
    pub(crate) fn failed(&mut self, sequence: JobId, reason: &str, due: Due) {
        if self.ends_cancelled(sequence) {
            return;
        }
        let now = Instant::now();
        let job = self.leased(sequence);
        if job.has_no_attempt_left() {
            return self.died(sequence, reason);
        }
        job.reasons.push((job.attempts, reason.to_owned()));
        job.in_order = false;
        job.place = match due {
            Due::AtOnce | Due::Past => Place::Waiting,
            Due::Soon(delay) => Place::Soon(now + delay),
            Due::Far => Place::BackingOff,
        };
        self.since_open.retried += 1;
    }

    pub(crate) fn dropped(&mut self, sequence: JobId) {
        self.failed(sequence, DROPPED, Due::AtOnce);
    }

    /// A held job was declared dead.
    pub(crate) fn died(&mut self, sequence: JobId, reason: &str) {
        if self.ends_cancelled(sequence) {
            return;
        }
        let job = self.leased(sequence);
        job.reasons.push((job.attempts, reason.to_owned()));
        job.place = Place::Dead { settled: false };
        self.since_open.dead_lettered += 1;
    }

    /// The job, which a handler must have.
    fn leased(&mut self, sequence: JobId) -> &mut ModelJob {
        let Some(job) = self.jobs.get_mut(&sequence) else {
            panic!("{sequence} was never enqueued");
        };
        assert_eq!(job.place, Place::Leased, "{sequence}");
        job
    }

    fn has_leased_suspect(&self) -> bool {
        let mut jobs = self.jobs.values();
        jobs.any(|job| job.is_suspect && job.place == Place::Leased)
    }

    /// A letter became a new job.
    pub(crate) fn replayed(&mut self, letter: LetterId, new: JobId) {
        let old = self.purged(letter);
        let limit = match old.limit {
            None => Limit::None,
            Some(limit) => Limit::Of(u8::try_from(limit).unwrap()),
        };
        let job = (old.payload, old.labels);
        self.enqueued(new, job, Due::AtOnce, limit, Instant::now());
    }

    /// A letter was deleted. Returns its job.
    pub(crate) fn purged(&mut self, letter: LetterId) -> ModelJob {
        let facts = self.letters.remove(&letter).unwrap();
        let job = &self.jobs[&facts.job];
        assert!(matches!(job.place, Place::Dead { .. }), "{job:?}");
        job.clone()
    }

    /// The letters that must be in the queue, oldest first.
    pub(crate) fn letters(&self) -> Vec<LetterId> {
        self.letters.keys().copied().collect()
    }

    /// Whether a dead job has neither a letter yet, nor one among these.
    pub(crate) fn awaits_letters(&self, found: &[DeadLetter]) -> bool {
        self.jobs.iter().any(|(&sequence, job)| {
            let is_dead = matches!(job.place, Place::Dead { .. }) && job.letter.is_none();
            is_dead && !found.iter().any(|letter| letter.job_id() == sequence)
        })
    }

    /// Compares the letters that were found with those of the model, and adds new ones to the
    /// model.
    pub(crate) fn check_letters(&mut self, found: &[DeadLetter]) {
        assert!(found.is_sorted_by_key(DeadLetter::id), "{found:?}");
        for letter in found {
            let sequence = letter.id();
            let facts = Letter::of(letter);
            match self.letters.get(&sequence) {
                Some(known) => assert_eq!(facts, *known, "letter {sequence}"),
                None => self.take_in(sequence, facts),
            }
            let job = &self.jobs[&letter.job_id()];
            assert!(
                letter.payload() == job.payload,
                "payload of letter {sequence}"
            );
            job.labels.check(letter.name(), letter.headers(), sequence);
        }
        assert_eq!(
            found.len(),
            self.letters.len(),
            "letters are missing: {found:?}"
        );
        for (sequence, job) in &mut self.jobs {
            if let Place::Dead { settled } = &mut job.place {
                // Listing the letters makes the queue write those that were due.
                *settled = true;
                let has_letter = job.letter.is_some();
                assert!(has_letter, "{sequence} is dead without a letter: {job:?}");
            }
        }
    }

    fn take_in(&mut self, sequence: LetterId, letter: Letter) {
        let Some(job) = self.jobs.get_mut(&letter.job) else {
            panic!("letter {sequence} of a job that was never enqueued: {letter:?}");
        };
        if job.has_died_waiting() {
            job.place = Place::Dead { settled: false };
            self.since_open.dead_lettered += 1;
        }
        assert!(
            matches!(job.place, Place::Dead { .. }),
            "letter {sequence} of {job:?}"
        );
        assert_eq!(
            job.letter, None,
            "letter {sequence} is the second one of its job"
        );
        job.letter = Some(sequence);
        assert_eq!(
            (letter.attempts, letter.crashes),
            (job.attempts, job.crashes),
            "attempts and crashes in letter {sequence}"
        );
        if let Some(enqueued_at) = job.enqueued_at {
            assert_eq!(letter.enqueued_at, enqueued_at, "letter {sequence}");
        }
        assert!(letter.first_failure <= letter.last_failure, "{letter:?}");

        let mut found = letter.reasons.as_slice();
        if let Some(((attempt, _), others)) = found.split_last()
            && found.len() > job.reasons.len()
        {
            // The last reason is the queue's own: the job died of its last crash, in the attempt
            // after those that failed, or it was found dead at open.
            let was_running = u32::from(job.crashes >= MAX_CRASHES);
            let expected = job.attempts + was_running;
            assert_eq!(*attempt, expected, "reasons in letter {sequence}");
            found = others;
        }
        // A long payload leaves no room for all reasons; the oldest ones are dropped.
        assert!(
            job.reasons.ends_with(found),
            "letter {sequence}: {letter:?} of {job:?}"
        );
        if job.labels.len() + job.payload.len() <= ROOM_FOR_REASONS {
            let least = job.reasons.len().clamp(1, MAX_REASONS);
            assert!(letter.reasons.len() >= least, "{letter:?} of {job:?}");
        }
        self.letters.insert(sequence, letter);
    }

    /// The queue was flushed, which settles all deaths up to this point.
    pub(crate) fn flushed(&mut self) {
        for job in self.jobs.values_mut() {
            if let Place::Dead { settled } = &mut job.place {
                *settled = true;
            }
        }
    }

    /// The queue was opened again, and these letters were found.
    pub(crate) fn reopened(&mut self, found: &[DeadLetter], ending: Ending) {
        self.since_open = Counters::default();
        for (&sequence, job) in &mut self.jobs {
            let has_letter = found.iter().any(|letter| letter.job_id() == sequence);
            job.given_back = false;
            job.place = match job.place {
                Place::Dead { settled: false } if ending != Ending::Closed => {
                    if has_letter || job.letter.is_some() {
                        Place::Dead { settled: true }
                    } else {
                        // Its death was only in memory.
                        Place::Waiting
                    }
                }
                Place::Leased if job.is_cancelled => Place::Done,
                Place::Leased => {
                    job.attempts -= 1;
                    job.crashes += u32::from(ending != Ending::Closed);
                    Place::Waiting
                }
                Place::BackingOff => Place::WaitingOrDelayed,
                // The backoff is known to the process only, unless compaction moved the job.
                Place::Soon(_) if job.attempts > 0 => Place::WaitingOrSoon,
                other => other,
            };
            job.is_suspect = job.crashes > 0;
            job.in_order &= !job.is_suspect;
            if job.has_died_waiting() && has_letter {
                // The letter is new; its job was marked done by the process or by the open.
                job.place = Place::Dead { settled: true };
            }
            let has_new_letter = found.iter().any(|letter| {
                letter.job_id() == sequence && !self.letters.contains_key(&letter.id())
            });
            if !has_new_letter {
                job.reasons.clear();
            }
        }
    }

    /// The open reported this many jobs.
    pub(crate) fn found(&mut self, jobs: u64) {
        self.since_open.recovered = jobs;
    }

    /// Whether the statistics are correct, once background work has finished.
    pub(crate) fn agrees_with(&self, stats: &Stats) -> bool {
        stats.recovered == self.since_open.recovered
            && stats.recovered + stats.enqueued
                == stats.acked + stats.cancelled + stats.dead_lettered + stats.depth() + stats.lost
            && stats.lost == 0
            && stats.enqueued == self.since_open.enqueued
            && stats.acked == self.since_open.acked
            && stats.cancelled == self.since_open.cancelled
            && stats.retried == self.since_open.retried
            && stats.dead_lettered == self.since_open.dead_lettered
            && stats.in_flight == self.count(|place| place == Place::Leased)
            && stats.depth() == self.live()
            && stats.dead == self.letters.len() as u64
            && stats.oldest.is_some() == (stats.depth() > 0)
    }

    /// The state of all jobs that are not done, for messages.
    pub(crate) fn summary(&self) -> String {
        let mut text = format!("{:?}, live {}", self.since_open, self.live());
        for (sequence, job) in &self.jobs {
            if job.place != Place::Done {
                let _ = write!(text, "\n{sequence} {job:?}");
            }
        }
        let _ = write!(text, "\nletters {:?}\n", self.letters());
        text
    }

    /// The number of jobs that are neither done nor dead.
    pub(crate) fn live(&self) -> u64 {
        self.count(|place| !matches!(place, Place::Done | Place::Dead { .. }))
    }

    /// The number of jobs that are certainly neither done nor dead.
    pub(crate) fn least_live(&self) -> u64 {
        let dead = self.jobs.values().filter(|job| job.has_died_waiting());
        self.live() - dead.count() as u64
    }

    /// The number of jobs that are due in the far future.
    pub(crate) fn delayed(&self) -> u64 {
        self.count(|place| matches!(place, Place::Delayed | Place::BackingOff))
    }

    /// Whether some job is due soon.
    pub(crate) fn has_soon(&self) -> bool {
        self.count(|place| matches!(place, Place::Soon(_) | Place::WaitingOrSoon)) > 0
    }

    fn count(&self, wanted: impl Fn(Place) -> bool) -> u64 {
        self.jobs.values().filter(|job| wanted(job.place)).count() as u64
    }
}
