//! Keeps track of what was asked of a queue and what it has promised, and so of what may be found
//! in it.

use std::collections::HashSet;

use crate::log::headers::headers_of;
use crate::log::records::Record;
use crate::log::records::name_of;
use crate::testing::labels;
use crate::{DeadLetter, EnqueueOptions, Headers, Job as Delivery, JobId};

/// Bounds of how often something may be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Count {
    least: u32,
    most: u32,
}

impl Count {
    const fn exactly(count: u32) -> Self {
        Self::within(count, count)
    }

    const fn within(least: u32, most: u32) -> Self {
        Self { least, most }
    }

    /// Adds to both bounds; a bound does not go below 0.
    fn plus(self, least: i32, most: i32) -> Self {
        Self {
            least: self.least.saturating_add_signed(least),
            most: self.most.saturating_add_signed(most),
        }
    }

    fn allows(self, count: u32) -> bool {
        (self.least..=self.most).contains(&count)
    }
}

/// How often a payload may be found as a job that is not done, as a letter, and as either.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fate {
    jobs: Count,
    letters: Count,
    all: Count,
}

/// Refused, acked, purged, or damaged.
const NOWHERE: Fate = Fate {
    jobs: Count::exactly(0),
    letters: Count::exactly(0),
    all: Count::exactly(0),
};

const QUEUED: Fate = Fate {
    jobs: Count::exactly(1),
    letters: Count::exactly(0),
    all: Count::exactly(1),
};

/// Dead, but its letter may not be written and flushed yet, or the job not marked done after that.
const DYING: Fate = Fate {
    jobs: Count::within(0, 1),
    letters: Count::within(0, 1),
    all: Count::exactly(1),
};

const DEAD: Fate = Fate {
    jobs: Count::exactly(0),
    letters: Count::exactly(1),
    all: Count::exactly(1),
};

#[derive(Clone, Debug)]
struct Job {
    len: usize,
    /// Its name and headers follow from this number.
    label: u8,
    fate: Fate,
}

/// How often a job was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) jobs: u32,
    /// How many of `jobs` were not due.
    pub(super) delayed: u32,
    pub(super) letters: u32,
}

/// What is known of each job, by its number.
#[derive(Clone, Debug, Default)]
pub(super) struct Truth {
    jobs: Vec<Job>,
    given: HashSet<JobId>,
}

impl Truth {
    /// Adds a job of `len` bytes that is about to be enqueued, and returns its number.
    pub(super) fn new_job(&mut self, len: usize) -> usize {
        let number = self.jobs.len();
        self.jobs.push(Job {
            len,
            label: number as u8,
            fate: NOWHERE,
        });
        number
    }

    /// Adds the name and the headers of a job.
    pub(super) fn label<'a>(
        &self,
        number: usize,
        options: EnqueueOptions<'a>,
    ) -> EnqueueOptions<'a> {
        labels::label(self.jobs[number].label, options)
    }

    pub(super) fn len(&self) -> usize {
        self.jobs.len()
    }

    pub(super) fn payload(&self, number: usize) -> Vec<u8> {
        let number = number as u64;
        let mut payload = vec![0; self.jobs[number as usize].len];
        fastrand::Rng::with_seed(number).fill(&mut payload);
        payload[..8].copy_from_slice(&number.to_le_bytes());
        payload
    }

    /// The number of a job that was delivered, all of which must be as it was enqueued.
    pub(super) fn number_of(&self, job: &Delivery<'_>) -> usize {
        self.number_with(job.name(), job.headers(), job.payload())
    }

    /// The same of a letter's job.
    pub(super) fn number_of_letter(&self, letter: &DeadLetter) -> usize {
        self.number_with(letter.name(), letter.headers(), letter.payload())
    }

    /// The same of a record's job.
    pub(super) fn number_of_record(&self, record: &Record<'_>) -> usize {
        let headers = Headers::of(headers_of(record.meta()));
        self.number_with(name_of(record.name()), headers, record.payload())
    }

    fn number_with(&self, name: Option<&str>, headers: Headers<'_>, payload: &[u8]) -> usize {
        let number = payload
            .first_chunk()
            .map(|bytes| u64::from_le_bytes(*bytes));
        let number = number.expect("a payload was cut off") as usize;
        let is_whole = number < self.len() && payload == self.payload(number);
        assert!(is_whole, "a payload has changed");
        labels::check(self.jobs[number].label, name, headers);
        number
    }

    fn fate(&mut self, number: usize) -> &mut Fate {
        &mut self.jobs[number].fate
    }

    pub(super) fn enqueued(&mut self, number: usize, sequence: JobId) {
        self.give(sequence);
        *self.fate(number) = QUEUED;
    }

    fn give(&mut self, sequence: JobId) {
        let is_new = self.given.insert(sequence);
        assert!(is_new, "{sequence} was given to two jobs");
    }

    pub(super) fn delivered(&mut self, number: usize) {
        let is_there = self.fate(number).jobs.most > 0;
        assert!(
            is_there,
            "job {number} was delivered, but it cannot be in the queue"
        );
    }

    pub(super) fn acked(&mut self, number: usize) {
        let fate = self.fate(number);
        fate.jobs = fate.jobs.plus(-1, -1);
        fate.all = fate.all.plus(-1, -1);
    }

    pub(super) fn died(&mut self, number: usize) {
        let fate = self.fate(number);
        fate.jobs = fate.jobs.plus(-1, 0);
        fate.letters = fate.letters.plus(0, 1);
    }

    /// Records that the letters of all dead jobs are written and flushed.
    pub(super) fn letters_flushed(&mut self) {
        let dying = self.jobs.iter_mut().filter(|job| job.fate == DYING);
        dying.for_each(|job| job.fate = DEAD);
    }

    pub(super) fn is_letter(&mut self, number: usize) {
        let is_dead = self.fate(number).letters.most > 0;
        assert!(is_dead, "job {number} has a letter, but it is not dead");
    }

    pub(super) fn purged(&mut self, number: usize) {
        *self.fate(number) = NOWHERE;
    }

    pub(super) fn maybe_purged(&mut self, number: usize) {
        let fate = self.fate(number);
        fate.letters = fate.letters.plus(-1, 0);
        fate.all = fate.all.plus(-1, 0);
    }

    pub(super) fn replayed(&mut self, number: usize, sequence: JobId) {
        self.give(sequence);
        *self.fate(number) = QUEUED;
    }

    /// Records that the job's bytes are damaged, so that it must not be found.
    pub(super) fn damaged(&mut self, number: usize) {
        *self.fate(number) = NOWHERE;
    }

    /// Checks that what was found of each job is allowed.
    pub(super) fn check(&self, found: &[Found]) {
        for (number, (Job { fate, .. }, found)) in self.jobs.iter().zip(found).enumerate() {
            let is_kept = fate.jobs.allows(found.jobs)
                && fate.letters.allows(found.letters)
                && fate.all.allows(found.jobs + found.letters);
            assert!(is_kept, "job {number} is {found:?} and should be {fate:?}");
        }
    }
}
