//! The jobs and dead letters of a queue, and what becomes of them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use logmill_jobs::backend::{
    Cancelled, DeadJob, Due, EXPIRES_HEADER, End, Ended, FLOW_HEADER, KEY_HEADER, NewJob,
    ORDER_HEADER, QueueStats, Seen, UNIQUE_HEADER,
};

use super::store::in_;

/// How long a job waits whose attempt was left unsettled.
pub(super) const BACKOFF: Duration = Duration::from_millis(20);

/// A queue.
pub(super) struct Jobs {
    name: String,
    pub(super) is_paused: bool,
    jobs: BTreeMap<u64, Job>,
    pub(super) letters: BTreeMap<u64, DeadJob>,
    last_number: u64,
    counts: QueueStats,
}

#[derive(Clone)]
pub(super) struct Job {
    pub(super) number: u64,
    pub(super) kind: String,
    pub(super) payload: Vec<u8>,
    pub(super) headers: Vec<(String, Vec<u8>)>,
    pub(super) enqueued_at: SystemTime,
    /// Until when its producer delayed it.
    pub(super) due_at: Option<SystemTime>,
    pub(super) failed: u32,
    pub(super) crashes: u32,
    reasons: Vec<String>,
    is_cancelled: bool,
    place: Place,
}

#[derive(Clone, Copy)]
enum Place {
    /// In the queue, from this time on.
    Waits(SystemTime),
    /// The claim of this number has it, until this time if there is a lease.
    Runs(u64, Option<Instant>),
    /// It waits outside the queue's order, for the one that has this number.
    Held(u64),
}

impl Job {
    pub(super) fn header(&self, key: &str) -> Option<&[u8]> {
        let mut headers = self.headers.iter();
        headers
            .find(|(name, _)| name == key)
            .map(|(_, value)| &value[..])
    }

    /// Whether a consumer may take it.
    fn is_free(&self, now: SystemTime) -> bool {
        match self.place {
            Place::Waits(due) => due <= now,
            Place::Runs(_, until) => until.is_some_and(|until| until <= Instant::now()),
            Place::Held(_) => false,
        }
    }

    fn seen(&self) -> Seen {
        let mut seen = Seen::new(self.number, &*self.kind, self.enqueued_at);
        seen.payload.clone_from(&self.payload);
        seen.headers.clone_from(&self.headers);
        seen.failed = self.failed;
        seen.is_running = matches!(self.place, Place::Runs(..));
        seen.due = match self.place {
            Place::Waits(due) if due > SystemTime::now() => Some(due),
            _ => None,
        };
        seen.cursor = self.number + 1;
        seen
    }
}

/// A job that has ended without being completed, to be told.
pub(super) struct Over {
    queue: String,
    job: Job,
    /// Why it is dead; None if it was cancelled.
    reason: Option<String>,
    attempt: u32,
}

impl Over {
    pub(super) fn as_ended(&self) -> Ended<'_> {
        let how = match &self.reason {
            Some(reason) => End::Dead(reason),
            None => End::Cancelled,
        };
        let job = &self.job;
        Ended::new(
            &self.queue,
            job.number,
            &job.kind,
            job.header(UNIQUE_HEADER),
            how,
        )
        .flow(job.header(FLOW_HEADER))
        .key(job.header(KEY_HEADER))
        .order(job.header(ORDER_HEADER))
        .attempt(self.attempt)
    }
}

/// How an attempt ends that does not complete its job.
pub(super) enum Failed<'a> {
    Retry(Duration, &'a str),
    Snooze(Duration),
    Dead(&'a str),
}

impl Jobs {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            is_paused: false,
            jobs: BTreeMap::new(),
            letters: BTreeMap::new(),
            last_number: 0,
            counts: QueueStats::default(),
        }
    }

    pub(super) fn publish(&mut self, new: &NewJob<'_>) -> u64 {
        let due_at = match new.due {
            Due::Now => None,
            Due::After(delay) => Some(in_(delay)),
            Due::At(time) => Some(time),
        };
        let headers = new.headers.iter();
        let headers = headers.map(|(key, value)| ((*key).to_owned(), value.to_vec()));
        self.insert(
            new.kind.to_owned(),
            new.payload.to_vec(),
            headers.collect(),
            due_at,
        )
    }

    fn insert(
        &mut self,
        kind: String,
        payload: Vec<u8>,
        headers: Vec<(String, Vec<u8>)>,
        due_at: Option<SystemTime>,
    ) -> u64 {
        self.last_number += 1;
        self.counts.enqueued += 1;
        let enqueued_at = SystemTime::now();
        let job = Job {
            number: self.last_number,
            kind,
            payload,
            headers,
            enqueued_at,
            due_at,
            failed: 0,
            crashes: 0,
            reasons: Vec::new(),
            is_cancelled: false,
            place: Place::Waits(due_at.unwrap_or(enqueued_at)),
        };
        self.jobs.insert(self.last_number, job);
        self.last_number
    }

    /// The first job that a consumer may take; one whose lease has expired counts as crashed, and ends
    /// if it was cancelled.
    pub(super) fn first_free(&mut self, ends: &mut Vec<Over>) -> Option<u64> {
        if self.is_paused {
            return None;
        }
        let now = SystemTime::now();
        let free = self.jobs.values().filter(|job| job.is_free(now));
        for number in free.map(|job| job.number).collect::<Vec<_>>() {
            match self.jobs.get(&number) {
                Some(job) if job.is_cancelled => self.end_cancelled(number, ends),
                _ => return Some(number),
            }
        }
        None
    }

    /// Gives a job that is free to a claim.
    pub(super) fn take(&mut self, number: u64, claim: u64, lease: Option<Duration>) -> Option<Job> {
        let job = self.jobs.get_mut(&number)?;
        if let Place::Runs(..) = job.place {
            job.crashes += 1;
        }
        job.place = Place::Runs(claim, lease.map(|lease| Instant::now() + lease));
        Some(job.clone())
    }

    /// How long it takes until another job may be free; None if none will be by itself.
    pub(super) fn free_in(&self) -> Option<Duration> {
        if self.is_paused {
            return None;
        }
        let now = (SystemTime::now(), Instant::now());
        let times = self.jobs.values().filter_map(|job| match job.place {
            Place::Waits(due) => Some(due.duration_since(now.0).unwrap_or_default()),
            Place::Runs(_, until) => Some(until?.saturating_duration_since(now.1)),
            Place::Held(_) => None,
        });
        times.min()
    }

    /// The job that a claim has.
    fn claimed(&mut self, number: u64, claim: u64) -> Option<&mut Job> {
        let job = self.jobs.get_mut(&number)?;
        matches!(job.place, Place::Runs(by, _) if by == claim).then_some(job)
    }

    pub(super) fn has(&mut self, number: u64, claim: u64) -> bool {
        self.claimed(number, claim).is_some()
    }

    pub(super) fn is_cancelled(&self, number: u64) -> bool {
        self.jobs.get(&number).is_some_and(|job| job.is_cancelled)
    }

    /// Has a claim keep its job for this time from now on.
    pub(super) fn extend(&mut self, number: u64, claim: u64, lease: Duration) -> bool {
        let claimed = self.claimed(number, claim);
        let until = Some(Instant::now() + lease);
        claimed
            .map(|job| job.place = Place::Runs(claim, until))
            .is_some()
    }

    /// Completes a job that a claim has, whether it was cancelled or not.
    pub(super) fn complete(&mut self, number: u64) {
        if self.jobs.remove(&number).is_some() {
            self.counts.completed += 1;
            self.counts.ended += 1;
        }
    }

    /// Ends the attempt of a claim otherwise.
    pub(super) fn fail(&mut self, number: u64, how: Failed<'_>, ends: &mut Vec<Over>) {
        if self.is_cancelled(number) {
            return self.end_cancelled(number, ends);
        }
        let Some(job) = self.jobs.get_mut(&number) else {
            return;
        };
        match how {
            Failed::Snooze(after) => job.place = Place::Waits(in_(after)),
            Failed::Retry(after, reason) => {
                job.failed += 1;
                job.reasons.push(reason.to_owned());
                job.place = Place::Waits(in_(after));
                self.counts.retried += 1;
            }
            Failed::Dead(reason) => {
                job.failed += 1;
                job.reasons.push(reason.to_owned());
                self.bury(number, reason, ends);
            }
        }
    }

    fn bury(&mut self, number: u64, reason: &str, ends: &mut Vec<Over>) {
        let Some(job) = self.jobs.remove(&number) else {
            return;
        };
        // The numbers of letters grow as those of jobs do, and both are of one queue.
        self.last_number += 1;
        let letter = self.last_number;
        let mut dead = DeadJob::new(letter, number, &*job.kind);
        dead.payload.clone_from(&job.payload);
        dead.headers.clone_from(&job.headers);
        dead.attempts = job.failed;
        dead.crashes = job.crashes;
        dead.reasons.clone_from(&job.reasons);
        dead.flow = job.header(FLOW_HEADER).map(<[u8]>::to_vec);
        dead.unique = job.header(UNIQUE_HEADER).map(<[u8]>::to_vec);
        dead.died_at = Some(SystemTime::now());
        self.letters.insert(letter, dead);
        self.counts.ended += 1;
        ends.push(Over {
            queue: self.name.clone(),
            attempt: job.failed,
            job,
            reason: Some(reason.to_owned()),
        });
    }

    fn end_cancelled(&mut self, number: u64, ends: &mut Vec<Over>) {
        let Some(job) = self.jobs.remove(&number) else {
            return;
        };
        let has_run = matches!(job.place, Place::Runs(..));
        self.counts.ended += 1;
        ends.push(Over {
            queue: self.name.clone(),
            attempt: job.failed + u32::from(has_run),
            job,
            reason: None,
        });
    }

    pub(super) fn cancel(&mut self, number: u64, ends: &mut Vec<Over>) -> Cancelled {
        match self.jobs.get_mut(&number) {
            None => Cancelled::Gone,
            Some(job) if matches!(job.place, Place::Runs(..)) => {
                job.is_cancelled = true;
                Cancelled::Running
            }
            // One that is held waits as well: who lets go of it finds that it is gone.
            Some(_) => {
                self.end_cancelled(number, ends);
                Cancelled::Waiting
            }
        }
    }

    /// Takes a job that a claim has out of the order. False if it was cancelled, and has ended so.
    pub(super) fn hold(&mut self, number: u64, claim: u64, ends: &mut Vec<Over>) -> bool {
        if self.is_cancelled(number) {
            self.end_cancelled(number, ends);
            return false;
        }
        let held = self.jobs.get_mut(&number);
        held.map(|job| job.place = Place::Held(claim)).is_some()
    }

    /// Lets go of a job that is held.
    pub(super) fn release(&mut self, number: u64, claim: u64) {
        if let Some(job) = self.jobs.get_mut(&number)
            && matches!(job.place, Place::Held(by) if by == claim)
        {
            job.place = Place::Waits(SystemTime::now());
        }
    }

    pub(super) fn look(&self, number: u64) -> Option<Seen> {
        self.jobs.get(&number).map(Job::seen)
    }

    /// All jobs from this number on, in the order of their numbers.
    pub(super) fn all_from(&self, number: u64) -> Vec<Seen> {
        let jobs = self.jobs.range(number..);
        jobs.map(|(_, job)| job.seen()).collect()
    }

    pub(super) fn replay(&mut self, letter: u64) -> Option<u64> {
        let mut dead = self.letters.remove(&letter)?;
        dead.headers.retain(|(key, _)| key != EXPIRES_HEADER);
        Some(self.insert(dead.kind, dead.payload, dead.headers, None))
    }

    pub(super) fn stats(&self) -> QueueStats {
        let mut stats = self.counts;
        let now = SystemTime::now();
        for job in self.jobs.values() {
            match job.place {
                Place::Waits(due) => match now.duration_since(due) {
                    Ok(since) => {
                        stats.ready += 1;
                        stats.oldest_ready = stats.oldest_ready.max(Some(since));
                    }
                    Err(_) => stats.delayed += 1,
                },
                Place::Runs(..) => stats.running += 1,
                Place::Held(_) => stats.held += 1,
            }
        }
        stats.dead = self.letters.len() as u64;
        stats
    }
}
