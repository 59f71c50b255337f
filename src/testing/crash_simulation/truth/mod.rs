//! Records what was asked of a queue and what it has promised, and checks what is found in it after
//! a crash against that.

mod check;
mod letters;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::rc::Rc;

use fastrand::Rng;

use crate::engine::delivery::Attempt;
use crate::log::ack::RECORDS_PER_WORD;
use crate::log::headers::{Headers, headers_of};
use crate::log::records::Record;
use crate::log::records::name_of;
use crate::testing::labels;
use crate::{Cancelled, EnqueueOptions, JobId, Sequence};

/// The bytes of a payload. Only its length and its first bytes are printed.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Payload(Rc<[u8]>);

impl Payload {
    pub(super) fn new(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }

    /// The payload of a record. Checks that the record also has the name and the headers that the
    /// job was given.
    pub(super) fn of(record: Record<'_>) -> Self {
        let headers = Headers::of(headers_of(record.meta()));
        Self::of_labelled(record.payload(), name_of(record.name()), headers)
    }

    /// As [`of`](Self::of), from the parts of a record.
    pub(super) fn of_labelled(payload: &[u8], name: Option<&str>, headers: Headers<'_>) -> Self {
        let payload = Self::new(payload);
        labels::check(payload.number(), name, headers);
        payload
    }

    /// Adds the name and the headers of the job.
    pub(super) fn label<'a>(&self, options: EnqueueOptions<'a>) -> EnqueueOptions<'a> {
        labels::label(self.number(), options)
    }

    /// Name and headers follow from it.
    fn number(&self) -> u8 {
        self.0.first().copied().unwrap_or(0)
    }
}

impl AsRef<[u8]> for Payload {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let start = &self.0[..self.0.len().min(4)];
        write!(f, "{} bytes, {start:02x?}...", self.0.len())
    }
}

/// The length of a payload of which a few fill a segment. Name and headers fit beside it.
const LARGE: usize = 3530 - labels::MOST_BYTES;

/// A random payload, different from all others unless it is short.
pub(super) fn new_payload(random: &mut Rng) -> Payload {
    let len = match random.u8(0..8) {
        0 => random.usize(0..12),
        1..4 => random.usize(0..LARGE),
        _ => random.usize(0..1200),
    };
    let mut bytes = vec![0; len];
    // Some end in zeros, like bytes that were never written.
    match random.u8(0..8) {
        0 => random.fill(&mut bytes[..len / 2]),
        _ => random.fill(&mut bytes),
    }
    Payload::new(&bytes)
}

/// A random payload so large that a few of its size fill a segment.
pub(super) fn large_payload(random: &mut Rng) -> Payload {
    let bytes: Vec<_> = (0..LARGE).map(|_| random.u8(..)).collect();
    Payload::new(&bytes)
}

/// How a process that had the queue open ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Crash {
    /// The process died, and the page cache survived.
    Kill,
    /// The page cache was lost, too.
    PowerCut,
}

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Acked,
    /// Its letter is durable.
    Dead,
    /// Cancelled, but not durably.
    Cancelled,
}

#[derive(Clone, Debug)]
struct Job {
    payload: Payload,
    /// The first job of its batch, unless it was enqueued alone or with a delay, so that compaction
    /// may move it.
    batch: Option<Sequence>,
    is_durable: bool,
    /// Failed attempts.
    failed: u32,
    /// In how many crashes a handler had it.
    crashes: u32,
    /// How many handlers have it.
    handlers: u32,
    /// Whether it has a crash, and its delivery has not timed out in this process.
    is_suspect: bool,
    /// Whether a handler has had it since its delivery word was last flushed. A power cut may then
    /// leave a word that says that a handler still has it.
    was_begun: bool,
    /// Whether its last attempt has failed, or is about to.
    may_die: bool,
    /// Whether it was acked late, when it was dead or about to be, so that its letter is withdrawn.
    is_withdrawn: bool,
    /// Whether it was cancelled durably while a handler had it, and that has not ended.
    is_cancelled: bool,
    end: Option<End>,
    /// Whether a torn ack word has brought it back although it has a letter.
    is_beside_its_letter: bool,
    /// Whether a torn ack word has brought a second record of it back.
    is_double: bool,
}

#[derive(Clone, Debug)]
struct Letter {
    job: Sequence,
    payload: Payload,
    is_durable: bool,
    /// The job that it was replayed as, if that job could not be flushed. After a crash, exactly
    /// one of the two is there.
    withheld_for: Option<Sequence>,
    /// Whether its job was acked late, so that it is removed once all letters due are written.
    is_withdrawn: bool,
}

/// The call that has begun and has not returned, with its arguments.
#[derive(Clone, Debug, Default)]
pub(super) enum Doing {
    #[default]
    Nothing,
    Enqueue(Vec<Payload>),
    Replay(Vec<Sequence>),
    Purge(Vec<Sequence>),
    Cancel(Sequence),
    Maintenance,
}

/// What was asked of a queue, and what it has promised.
#[derive(Clone, Debug, Default)]
pub(super) struct Truth {
    jobs: BTreeMap<Sequence, Job>,
    letters: BTreeMap<Sequence, Letter>,
    /// Letters whose purge is not durable.
    purged: BTreeMap<Sequence, Letter>,
    doing: Doing,
    /// The highest sequence given to a job, by stripe.
    highest: BTreeMap<u8, Sequence>,
    /// `highest` at the time when `doing` began.
    highest_before: BTreeMap<u8, Sequence>,
    /// Whether a flush has failed. Until then, a letter is durable before its job is done.
    pub(super) is_poisoned: bool,
    /// Whether the queue is being recovered from a power cut, which may have left damage that is
    /// not repaired yet.
    pub(super) is_recovering: bool,
}

/// What a flush has made durable when it returns.
pub(super) struct Mark {
    jobs: Vec<Sequence>,
    ended: Vec<Sequence>,
    letters: Vec<Sequence>,
    purged: Vec<Sequence>,
    /// Jobs that no handler had.
    idle: Vec<Sequence>,
}

impl Truth {
    /// Whether letters are being replayed or purged.
    pub(super) fn is_about_letters(&self) -> bool {
        match &self.doing {
            Doing::Replay(letters) | Doing::Purge(letters) => !letters.is_empty(),
            _ => false,
        }
    }

    fn job(&mut self, job: Sequence) -> &mut Job {
        self.jobs.get_mut(&job).expect("a job that was enqueued")
    }

    pub(super) fn begin(&mut self, doing: Doing) {
        self.doing = doing;
        self.highest_before.clone_from(&self.highest);
    }

    pub(super) fn note_enqueued(&mut self, job: Sequence, payload: Payload, is_durable: bool) {
        let highest = self.highest.entry(job.stripe()).or_insert(job);
        *highest = job.max(*highest);
        let new = Job {
            payload,
            batch: None,
            is_durable,
            failed: 0,
            crashes: 0,
            handlers: 0,
            is_suspect: false,
            was_begun: false,
            may_die: false,
            is_withdrawn: false,
            is_cancelled: false,
            end: None,
            is_beside_its_letter: false,
            is_double: false,
        };
        let old = self.jobs.insert(job, new);
        assert!(old.is_none(), "{job} was given to two jobs");
    }

    /// Records the jobs of a batch, each with its payload and whether it has a delay.
    pub(super) fn note_batch(
        &mut self,
        jobs: Vec<JobId>,
        payloads: Vec<(Payload, bool)>,
        is_durable: bool,
    ) {
        assert_eq!(jobs.len(), payloads.len());
        let first = jobs[0].sequence();
        for (job, (payload, is_delayed)) in jobs.into_iter().zip(payloads) {
            self.note_enqueued(job.sequence(), payload, is_durable);
            self.job(job.sequence()).batch = (!is_delayed).then_some(first);
        }
    }

    /// Records that a job is about to be delivered, and checks that it may be.
    pub(super) fn note_delivered(&mut self, job: Sequence, attempt: Attempt, payload: &Payload) {
        let is_alone = self
            .jobs
            .iter()
            .all(|(other, known)| *other == job || !known.is_suspect || known.handlers == 0);
        let known = self.job(job);
        assert_eq!(*payload, known.payload, "{job} has another payload");
        assert!(!known.is_cancelled, "{job} is cancelled and is delivered");
        assert_ne!(known.end, Some(End::Cancelled), "{job} is delivered");
        if !known.is_double {
            assert_eq!(attempt.number(), known.failed + 1, "attempts of {job}");
        }
        if known.is_suspect {
            assert!(is_alone, "{job} is delivered beside another suspect");
        }
        known.handlers += 1;
        known.was_begun = true;
    }

    /// Records that a handler is done with a job, with another failed attempt or without.
    pub(super) fn note_handled(&mut self, job: Sequence, has_failed: bool) {
        // A job that is acked and flushed is not here any more, though a late handler may have it.
        if let Some(known) = self.jobs.get_mut(&job) {
            if known.is_cancelled {
                // It is durably gone, however its handler has ended.
                self.jobs.remove(&job);
                return;
            }
            known.handlers -= 1;
            // A suspect that has failed stays one.
            known.is_suspect &= has_failed;
            known.failed += u32::from(has_failed);
        }
    }

    /// Records that a delivery has timed out, so that its attempt has failed.
    pub(super) fn note_timed_out(&mut self, job: Sequence) {
        if let Some(known) = self.jobs.get_mut(&job) {
            if known.is_cancelled {
                // Its lease timeout ends it.
                self.jobs.remove(&job);
                return;
            }
            known.failed += 1;
            known.is_suspect = false;
        }
    }

    /// Records that the queue was opened.
    pub(super) fn note_opened(&mut self) {
        for known in self.jobs.values_mut() {
            known.is_suspect = known.crashes > 0;
        }
    }

    /// Records that the queue is about to be closed, after which no handler can cause a crash.
    pub(super) fn note_closing(&mut self) {
        for known in self.jobs.values_mut() {
            known.handlers = 0;
        }
    }

    pub(super) fn note_acked(&mut self, job: Sequence) {
        // A job that was cancelled while it waited is not here any more, though a late handler may
        // have it.
        if let Some(known) = self.jobs.get_mut(&job) {
            known.end.get_or_insert(End::Acked);
        }
    }

    /// All jobs that were not cancelled while they waited, and that are there once.
    pub(super) fn known_jobs(&self) -> Vec<Sequence> {
        let jobs = self.jobs.iter().filter(|(_, known)| !known.is_double);
        jobs.map(|(job, _)| *job).collect()
    }

    /// Records that a job was cancelled, and checks the answer.
    pub(super) fn note_cancelled(
        &mut self,
        job: Sequence,
        answer: Cancelled,
        is_durable: bool,
        has_handler: bool,
    ) {
        let Some(known) = self.jobs.get_mut(&job) else {
            // It had been cancelled before, and its handler has ended during the call.
            return assert_ne!(answer, Cancelled::Waiting, "{job}");
        };
        match answer {
            Cancelled::Gone => {
                let may_be_gone = known.end.is_some() || known.may_die || known.is_withdrawn;
                assert!(may_be_gone, "{job} is not found: {known:?}");
            }
            Cancelled::Waiting | Cancelled::Running => {
                assert!(known.end.is_none(), "{job} has ended: {known:?}");
                assert_eq!(answer == Cancelled::Running, has_handler, "{job}");
                match answer {
                    // It must never be seen again, like a job that was never enqueued.
                    Cancelled::Waiting if is_durable => _ = self.jobs.remove(&job),
                    Cancelled::Running if is_durable => known.is_cancelled = true,
                    _ => known.end = Some(End::Cancelled),
                }
            }
        }
    }

    /// Records that a handler whose delivery had timed out has acked a job that is dead or dying.
    pub(super) fn note_withdrawn(&mut self, job: Sequence) {
        if let Some(known) = self.jobs.get_mut(&job) {
            known.is_withdrawn = true;
        }
        let letters = self.letters.values_mut();
        for letter in letters.filter(|letter| letter.job == job) {
            letter.is_withdrawn = true;
        }
    }

    /// Whether the letter of a job is being replayed or purged.
    pub(super) fn is_about_letter_of(&self, job: Sequence) -> bool {
        match &self.doing {
            Doing::Replay(letters) | Doing::Purge(letters) => letters
                .iter()
                .any(|letter| self.letters.get(letter).is_some_and(|one| one.job == job)),
            _ => false,
        }
    }

    pub(super) fn note_dying(&mut self, job: Sequence) {
        // As in `note_acked`.
        if let Some(known) = self.jobs.get_mut(&job)
            && !known.is_cancelled
        {
            known.may_die = true;
        }
    }

    /// Checks that a sequence was never given to a job before.
    pub(super) fn check_is_new(&self, job: Sequence) {
        let given = self.highest.get(&job.stripe());
        assert!(
            given.is_none_or(|&given| given < job),
            "{job} was given to a job before"
        );
    }

    /// What a flush that starts at this point makes durable: of one stripe, or of all.
    pub(super) fn mark(&self, stripe: Option<u8>) -> Mark {
        let jobs = self.jobs.iter();
        let of_stripe = move |job: &Sequence| stripe.is_none_or(|one| job.stripe() == one);
        let pick = |picks: fn(&Job) -> bool| {
            jobs.clone()
                .filter(|(job, known)| of_stripe(job) && picks(known))
                .map(|(job, _)| *job)
                .collect()
        };
        Mark {
            jobs: pick(|_| true),
            ended: pick(|job| job.end.is_some()),
            letters: self.letters(),
            purged: self.purged.keys().copied().collect(),
            idle: pick(|job| job.handlers == 0),
        }
    }

    pub(super) fn note_records_flushed(&mut self, mark: &Mark) {
        for job in &mark.jobs {
            if let Some(job) = self.jobs.get_mut(job) {
                job.is_durable = true;
            }
        }
    }

    pub(super) fn note_all_flushed(&mut self, mark: &Mark) {
        self.note_records_flushed(mark);
        for letter in &mark.purged {
            self.purged.remove(letter);
        }
        for job in &mark.idle {
            if let Some(job) = self.jobs.get_mut(job) {
                job.was_begun = job.handlers > 0;
            }
        }
        for letter in &mark.letters {
            if let Some(letter) = self.letters.get_mut(letter) {
                letter.is_durable = true;
            }
        }
        for job in &mark.ended {
            // It must never be seen again, like a job that was never enqueued.
            self.jobs.remove(job);
        }
    }
}

/// A job that was found in a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FoundJob {
    pub(super) job: Sequence,
    pub(super) payload: Payload,
    pub(super) failed: u32,
    pub(super) crashes: u32,
}

/// A letter that was found in a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FoundLetter {
    pub(super) sequence: Sequence,
    pub(super) job: Sequence,
    pub(super) payload: Payload,
}

/// All that was found in a queue.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) jobs: Vec<FoundJob>,
    pub(super) letters: Vec<FoundLetter>,
    /// Ack words that failed their check in recovery.
    pub(super) words_reset: u64,
}
