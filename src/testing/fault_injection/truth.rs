//! What a queue was told and what it promised, and so what may be found in it.

use std::collections::HashSet;

use crate::JobId;

/// How often something may be found.
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

    /// More or less by some, and not less than none.
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

/// Declared dead: its letter is to be written and flushed, and then the job to be done.
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
    fate: Fate,
}

/// How often a job was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) jobs: u32,
    /// Of these, jobs that are not due.
    pub(super) delayed: u32,
    pub(super) letters: u32,
}

/// The jobs, by their numbers.
#[derive(Clone, Debug, Default)]
pub(super) struct Truth {
    jobs: Vec<Job>,
    given: HashSet<JobId>,
}

impl Truth {
    /// A job about to be enqueued, with this many bytes.
    pub(super) fn new_job(&mut self, len: usize) -> usize {
        self.jobs.push(Job { len, fate: NOWHERE });
        self.jobs.len() - 1
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

    /// Which job a payload is of; it must be that job's, to the last byte.
    pub(super) fn number_of(&self, payload: &[u8]) -> usize {
        let number = payload
            .first_chunk()
            .map(|bytes| u64::from_le_bytes(*bytes));
        let number = number.expect("a payload was cut") as usize;
        let is_whole = number < self.len() && payload == self.payload(number);
        assert!(is_whole, "a payload was changed");
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
        assert!(is_new, "sequence {sequence} was given twice");
    }

    pub(super) fn delivered(&mut self, number: usize) {
        let is_there = self.fate(number).jobs.most > 0;
        assert!(
            is_there,
            "job {number} was delivered and is not in the queue"
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

    /// The letters of all that have died are written and flushed.
    pub(super) fn letters_flushed(&mut self) {
        let dying = self.jobs.iter_mut().filter(|job| job.fate == DYING);
        dying.for_each(|job| job.fate = DEAD);
    }

    pub(super) fn is_letter(&mut self, number: usize) {
        let is_dead = self.fate(number).letters.most > 0;
        assert!(is_dead, "job {number} has a letter and is not dead");
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

    /// Its bytes are damaged.
    pub(super) fn damaged(&mut self, number: usize) {
        *self.fate(number) = NOWHERE;
    }

    /// Compares with all that was found.
    pub(super) fn check(&self, found: &[Found]) {
        for (number, (Job { fate, .. }, found)) in self.jobs.iter().zip(found).enumerate() {
            let is_kept = fate.jobs.allows(found.jobs)
                && fate.letters.allows(found.letters)
                && fate.all.allows(found.jobs + found.letters);
            assert!(is_kept, "job {number} is {found:?} and should be {fate:?}");
        }
    }
}
