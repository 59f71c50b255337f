//! What was asked of a queue and what it promised; and whether what is found in it after a crash
//! keeps the promises.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::rc::Rc;

use fastrand::Rng;

use crate::Sequence;
use crate::engine::delivery::Attempt;
use crate::log::ack::RECORDS_PER_WORD;

/// The bytes of a payload; too many to print.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Payload(Rc<[u8]>);

impl Payload {
    pub(super) fn new(bytes: &[u8]) -> Self {
        Self(bytes.into())
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

/// A payload like no other, unless it is short.
pub(super) fn new_payload(random: &mut Rng) -> Payload {
    let len = match random.u8(0..8) {
        0 => random.usize(0..12),
        1..4 => random.usize(0..3500),
        _ => random.usize(0..1200),
    };
    let mut bytes = vec![0; len];
    // Some end as if they had never been written.
    match random.u8(0..8) {
        0 => random.fill(&mut bytes[..len / 2]),
        _ => random.fill(&mut bytes),
    }
    Payload::new(&bytes)
}

/// One of which a few fill a segment.
pub(super) fn large_payload(random: &mut Rng) -> Payload {
    let bytes: Vec<_> = (0..3500).map(|_| random.u8(..)).collect();
    Payload::new(&bytes)
}

/// How a queue ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Crash {
    /// The process died. The page cache is what it was.
    Kill,
    PowerCut,
}

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Acked,
    /// Its letter is durable.
    Dead,
}

#[derive(Clone, Debug)]
struct Job {
    payload: Payload,
    is_durable: bool,
    /// Failed attempts.
    failed: u32,
    /// How often it was in a handler in a crash.
    crashes: u32,
    /// Handlers that have it.
    handlers: u32,
    /// It has a crash, and its delivery has not timed out in this process.
    is_suspect: bool,
    /// One has had it since what is said of deliveries was durable, so that a power cut may have
    /// that one still at it.
    was_begun: bool,
    /// Its last attempt has failed, or is about to.
    may_die: bool,
    /// Acked late, when it was dead or about to be: its letter is withdrawn.
    is_withdrawn: bool,
    end: Option<End>,
    /// A torn ack word has brought it back beside its letter.
    is_beside_its_letter: bool,
}

#[derive(Clone, Debug)]
struct Letter {
    job: Sequence,
    payload: Payload,
    is_durable: bool,
    /// The job that it was replayed as, which could not be flushed: exactly one of the two is there
    /// after a crash.
    withheld_for: Option<Sequence>,
    /// Its job was acked late: it goes with the next look at letters.
    is_withdrawn: bool,
}

/// What has begun and has not returned.
#[derive(Clone, Debug, Default)]
pub(super) enum Doing {
    #[default]
    Nothing,
    Enqueue(Vec<Payload>),
    Replay(Vec<Sequence>),
    Purge(Vec<Sequence>),
    Maintenance,
}

/// What was asked, and what was promised.
#[derive(Clone, Debug, Default)]
pub(super) struct Truth {
    jobs: BTreeMap<Sequence, Job>,
    letters: BTreeMap<Sequence, Letter>,
    /// Letters that were purged, though not durably so.
    purged: BTreeMap<Sequence, Letter>,
    doing: Doing,
    highest: BTreeMap<u8, Sequence>,
    /// The highest when what is done began.
    highest_before: BTreeMap<u8, Sequence>,
    /// Letters are durable before their jobs are done, unless a flush has failed.
    pub(super) is_poisoned: bool,
    /// From a power cut, which may have left damage that is not mended yet.
    pub(super) is_recovering: bool,
}

/// What a flush, once it returns, makes durable.
pub(super) struct Mark {
    jobs: Vec<Sequence>,
    ended: Vec<Sequence>,
    letters: Vec<Sequence>,
    purged: Vec<Sequence>,
    /// Jobs that no handler has.
    idle: Vec<Sequence>,
}

impl Truth {
    /// Whether letters are replayed or purged.
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
            is_durable,
            failed: 0,
            crashes: 0,
            handlers: 0,
            is_suspect: false,
            was_begun: false,
            may_die: false,
            is_withdrawn: false,
            end: None,
            is_beside_its_letter: false,
        };
        let old = self.jobs.insert(job, new);
        assert!(old.is_none(), "{job} was given twice");
    }

    /// A job that is about to be delivered.
    pub(super) fn note_delivered(&mut self, job: Sequence, attempt: Attempt, payload: &[u8]) {
        let is_alone = self
            .jobs
            .iter()
            .all(|(other, known)| *other == job || !known.is_suspect || known.handlers == 0);
        let known = self.job(job);
        assert_eq!(payload, known.payload.as_ref(), "{job} has another payload");
        assert_eq!(attempt.number(), known.failed + 1, "attempts of {job}");
        if known.is_suspect {
            assert!(is_alone, "{job} is delivered beside another suspect");
        }
        known.handlers += 1;
        known.was_begun = true;
    }

    /// A handler is done with a job, with another failed attempt or without.
    pub(super) fn note_handled(&mut self, job: Sequence, has_failed: bool) {
        // What is acked and flushed is forgotten, though another handler may be late with it.
        if let Some(known) = self.jobs.get_mut(&job) {
            known.handlers -= 1;
            // One that failed stays one.
            known.is_suspect &= has_failed;
            known.failed += u32::from(has_failed);
        }
    }

    /// The handler's time is up: its attempt has failed.
    pub(super) fn note_timed_out(&mut self, job: Sequence) {
        if let Some(known) = self.jobs.get_mut(&job) {
            known.failed += 1;
            known.is_suspect = false;
        }
    }

    /// The queue was opened.
    pub(super) fn note_opened(&mut self) {
        for known in self.jobs.values_mut() {
            known.is_suspect = known.crashes > 0;
        }
    }

    /// The queue is about to be closed: whatever handlers do now, it is no crash.
    pub(super) fn note_closing(&mut self) {
        for known in self.jobs.values_mut() {
            known.handlers = 0;
        }
    }

    pub(super) fn note_acked(&mut self, job: Sequence) {
        self.job(job).end.get_or_insert(End::Acked);
    }

    /// A handler whose time was up has acked a job that is dead or dying.
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
        self.job(job).may_die = true;
    }

    /// Demands that a sequence was never given before.
    pub(super) fn check_is_new(&self, job: Sequence) {
        let given = self.highest.get(&job.stripe());
        assert!(
            given.is_none_or(|&given| given < job),
            "{job} was given before"
        );
    }

    /// All that a flush which starts now makes durable when it returns.
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
            // It must never be seen again, as a job that was never enqueued must not.
            self.jobs.remove(job);
        }
    }

    /// Takes note of the letters that are in the dead letter log now. `is_settled`: all were written
    /// that were to be, and flushed.
    pub(super) fn note_letters(&mut self, found: &[FoundLetter], is_settled: bool) {
        for letter in found {
            if self.letters.contains_key(&letter.sequence) {
                continue;
            }
            let payload = self.letter_payload(letter);
            let is_durable = !self.is_poisoned;
            let new = Letter {
                job: letter.job,
                payload: payload.unwrap_or_else(|| panic!("a letter of no dying job: {letter:?}")),
                is_durable,
                withheld_for: None,
                is_withdrawn: false,
            };
            self.letters.insert(letter.sequence, new);
            if is_durable {
                self.job(letter.job).end.get_or_insert(End::Dead);
            }
        }
        if is_settled && !self.is_poisoned {
            self.note_withdrawn_for_good(found);
        }
    }

    fn note_withdrawn_for_good(&mut self, found: &[FoundLetter]) {
        let letters = self.letters.iter();
        let withdrawn: Vec<_> = letters
            .filter(|(_, letter)| letter.is_withdrawn)
            .map(|(letter, _)| *letter)
            .collect();
        for letter in withdrawn {
            let is_there = found.iter().any(|one| one.sequence == letter);
            assert!(!is_there, "letter {letter} of a job that was acked late");
            self.note_purged(letter, false);
        }
        for job in self.jobs.values_mut().filter(|job| job.is_withdrawn) {
            job.end.get_or_insert(End::Acked);
        }
    }

    pub(super) fn letters(&self) -> Vec<Sequence> {
        let letters = self.letters.iter();
        letters
            .filter(|(_, letter)| letter.withheld_for.is_none() && !letter.is_withdrawn)
            .map(|(letter, _)| *letter)
            .collect()
    }

    pub(super) fn note_replayed(&mut self, letter: Sequence, job: Sequence) {
        let payload = self.remove(letter).payload;
        self.note_enqueued(job, payload, true);
    }

    /// The job could not be flushed, and the letter is not marked.
    pub(super) fn note_withheld(&mut self, letter: Sequence, job: Sequence) {
        let known = self.letters.get_mut(&letter).expect("a letter");
        known.withheld_for = Some(job);
        let payload = known.payload.clone();
        self.note_enqueued(job, payload, false);
    }

    pub(super) fn note_purged(&mut self, letter: Sequence, is_durable: bool) {
        let gone = self.remove(letter);
        if !is_durable {
            self.purged.insert(letter, gone);
        }
    }

    /// A letter that is gone. Its job must never come again.
    fn remove(&mut self, letter: Sequence) -> Letter {
        let gone = self.letters.remove(&letter).expect("a letter");
        if self
            .jobs
            .get(&gone.job)
            .is_some_and(|job| job.end.is_some())
        {
            self.jobs.remove(&gone.job);
        }
        gone
    }

    /// The payload of a letter that may just have been written.
    fn letter_payload(&self, letter: &FoundLetter) -> Option<Payload> {
        let job = self.jobs.get(&letter.job)?;
        (job.may_die && job.end != Some(End::Dead) && letter.payload == job.payload)
            .then(|| job.payload.clone())
    }

    /// Demands that what is found keeps every promise.
    pub(super) fn check(&self, found: &Found, crash: Crash) {
        let Found { jobs, letters, .. } = found;
        let mut new_of_letter: BTreeMap<Sequence, u32> = BTreeMap::new();
        // What a torn ack word cost.
        let mut come_again = BTreeSet::new();
        let mut unknown = Vec::new();
        let mut seen = BTreeSet::new();
        for one in jobs {
            let job = one.job;
            let Some(known) = self.jobs.get(&job) else {
                unknown.push(one);
                continue;
            };
            assert_eq!(one.payload, known.payload, "{job}: another payload");
            if !seen.insert(job) {
                assert!(crash == Crash::PowerCut, "{job} is there twice");
                come_again.insert(job);
            }
            assert!(
                known.end.is_none() || crash == Crash::PowerCut,
                "{job} has ended, {:?}, and is there after a kill",
                known.end
            );
            let was_running = match crash {
                Crash::Kill => known.handlers > 0,
                Crash::PowerCut => known.was_begun,
            };
            let most = (known.failed, known.crashes + u32::from(was_running));
            assert!(
                one.failed <= most.0 && one.crashes <= most.1,
                "{one:?} has failed attempts and crashes of {most:?} after a {crash:?}: {known:?}"
            );
            if crash == Crash::Kill {
                assert_eq!((one.failed, one.crashes), most, "deliveries of {job}");
            }
        }
        let mut enqueued = match &self.doing {
            Doing::Enqueue(payloads) => payloads.clone(),
            _ => Vec::new(),
        };
        for one in unknown {
            let before = self.highest_before.get(&one.job.stripe());
            let is_new = before.is_none_or(|&before| before < one.job);
            let is_payload = |payload: &Payload| is_new && *payload == one.payload;
            let replayed = match &self.doing {
                // Of several with the same payload, one that has no job yet.
                Doing::Replay(doing) => doing
                    .iter()
                    .filter(|letter| is_payload(&self.letters[letter].payload))
                    .min_by_key(|letter| {
                        let is_there = letters.iter().any(|one| one.sequence == **letter);
                        new_of_letter.get(letter).copied().unwrap_or(0) + u32::from(is_there)
                    }),
                _ => None,
            };
            if let Some(at) = enqueued.iter().position(is_payload) {
                enqueued.swap_remove(at);
            } else if let Some(letter) = replayed {
                *new_of_letter.entry(*letter).or_default() += 1;
            } else {
                let given = self.highest.get(&one.job.stripe());
                assert!(
                    crash == Crash::PowerCut && given.is_some_and(|&given| one.job <= given),
                    "{} was never enqueued",
                    one.job
                );
                come_again.insert(one.job);
            }
        }
        let mut dead = BTreeMap::new();
        for one in letters {
            let letter = one.sequence;
            match self.letters.get(&letter) {
                Some(known) => {
                    assert_eq!(one.payload, known.payload, "letter {letter}");
                }
                None if self.letter_payload(one).is_some() => {}
                None if crash == Crash::PowerCut && self.purged.contains_key(&letter) => {}
                None => {
                    assert!(
                        crash == Crash::PowerCut,
                        "letter {letter} of {} is not one",
                        one.job
                    );
                    come_again.insert(letter);
                }
            }
            // A letter and its job are never both there, but for what a torn ack word cost.
            let known = self.jobs.get(&one.job);
            let is_beside = known.is_some_and(|job| job.is_beside_its_letter);
            if seen.contains(&one.job) && !is_beside {
                assert!(crash == Crash::PowerCut, "{} has a letter", one.job);
                come_again.insert(one.job);
            }
            let other = dead.insert(one.job, letter);
            assert!(
                other.is_none() || is_beside || come_again.contains(&letter),
                "two letters of {}",
                one.job
            );
        }
        let most = found.words_reset * u64::from(RECORDS_PER_WORD);
        assert!(
            come_again.len() as u64 <= most,
            "had ended durably, and came again: {come_again:?}"
        );
        for (job, known) in &self.jobs {
            let is_promised = known.end.is_none()
                && !known.is_withdrawn
                && (known.is_durable || crash == Crash::Kill);
            let is_there = seen.contains(job) || (known.may_die && dead.contains_key(job));
            assert!(
                is_there || !is_promised,
                "{job} is lost in a {crash:?}: durable {}, failed {}, may die {}; dead: {dead:?}; {:?}",
                known.is_durable,
                known.failed,
                known.may_die,
                self.doing
            );
        }
        for (letter, known) in &self.letters {
            if !known.is_durable && crash == Crash::PowerCut {
                continue;
            }
            let is_there = letters.iter().any(|one| one.sequence == *letter);
            if let Some(job) = known.withheld_for {
                let is_job = seen.contains(&job) || dead.contains_key(&job);
                assert!(
                    !(is_there && is_job),
                    "letter {letter} and its replay {job}"
                );
                let is_over = self.jobs.get(&job).is_none_or(|job| job.end.is_some());
                assert!(is_there || is_job || is_over, "neither {letter} nor {job}");
                continue;
            }
            match &self.doing {
                Doing::Replay(doing) if doing.contains(letter) => {
                    let jobs = new_of_letter.get(letter).copied().unwrap_or(0);
                    assert_eq!(
                        u32::from(is_there) + jobs,
                        1,
                        "a replay of letter {letter}: there: {is_there}, jobs: {jobs}"
                    );
                }
                Doing::Purge(doing) if doing.contains(letter) => {}
                _ if known.is_withdrawn => {}
                _ => assert!(is_there, "letter {letter} of {} is lost", known.job),
            }
        }
    }

    /// Goes on after a crash with what was found. After a power cut, all of that is durable; after a
    /// kill, so is what the open settles before it returns: each letter, and each job that a letter
    /// was replayed as.
    pub(super) fn go_on(&mut self, found: &Found, crash: Crash) {
        let was_doing = std::mem::take(&mut self.doing);
        self.is_poisoned = false;
        let old = self.clone();
        self.letters.clear();
        if crash == Crash::PowerCut {
            self.jobs.clear();
            self.purged.clear();
        } else {
            // What is gone has ended, and a power cut may still bring it back.
            for job in self.jobs.values_mut() {
                let end = match job.is_withdrawn {
                    // Its letter may come back that nobody has seen.
                    true => End::Acked,
                    false => End::Dead,
                };
                job.end.get_or_insert(end);
            }
            let is_purged = |letter: &Sequence| match &was_doing {
                Doing::Purge(letters) => letters.contains(letter),
                _ => false,
            };
            let letters = old.letters.iter();
            let began = letters.filter(|(letter, one)| is_purged(letter) || one.is_withdrawn);
            self.purged
                .extend(began.map(|(letter, one)| (*letter, one.clone())));
        }
        for one in &found.jobs {
            let known = old.jobs.get(&one.job);
            let is_replay = known.is_none() && matches!(was_doing, Doing::Replay(_));
            let new = Job {
                payload: one.payload.clone(),
                is_durable: crash == Crash::PowerCut
                    || is_replay
                    || known.is_some_and(|job| job.is_durable),
                failed: one.failed,
                crashes: one.crashes,
                handlers: 0,
                is_suspect: false,
                was_begun: crash == Crash::Kill && known.is_some_and(|job| job.was_begun),
                may_die: known.is_some_and(|job| job.may_die),
                is_withdrawn: false,
                end: None,
                is_beside_its_letter: found.letters.iter().any(|letter| letter.job == one.job),
            };
            let highest = self.highest.entry(one.job.stripe()).or_insert(one.job);
            *highest = one.job.max(*highest);
            self.jobs.insert(one.job, new);
        }
        for one in &found.letters {
            let new = Letter {
                job: one.job,
                payload: one.payload.clone(),
                is_durable: true,
                withheld_for: None,
                is_withdrawn: false,
            };
            self.letters.insert(one.sequence, new);
            self.purged.remove(&one.sequence);
        }
    }
}

/// A job that is in a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FoundJob {
    pub(super) job: Sequence,
    pub(super) payload: Payload,
    pub(super) failed: u32,
    pub(super) crashes: u32,
}

/// A letter that is in a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FoundLetter {
    pub(super) sequence: Sequence,
    pub(super) job: Sequence,
    pub(super) payload: Payload,
}

/// What is in a queue.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) jobs: Vec<FoundJob>,
    pub(super) letters: Vec<FoundLetter>,
    /// Ack words that recovery could not read.
    pub(super) words_reset: u64,
}
