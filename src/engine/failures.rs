//! Reasons why attempts at jobs failed, kept in memory until a job ends, for its dead letter.

use crate::Timestamp;
use crate::events::Mutex;
use crate::log::meta::FailureReason;
use crate::sequence::{Sequence, SequenceMap};

/// Longest reason kept, in bytes; longer ones are truncated.
const MAX_REASON_BYTES: usize = 1024;
/// Most reasons kept for a job; older ones are dropped.
const MAX_REASONS: u32 = 32;
/// Bytes for several short reasons, allocated at once: a job that has failed usually fails again.
const FIRST_REASONS: usize = 88;
/// Most jobs whose reasons are kept between attempts. Beyond that, only the last reason is kept.
const MAX_REMEMBERED: usize = 64 * 1024;

/// The failures of jobs that have not ended.
#[derive(Default)]
pub(crate) struct Failures {
    jobs: Mutex<SequenceMap<FailuresOfJob>>,
}

/// The failed attempts of one job.
#[derive(Clone, Default)]
pub(crate) struct FailuresOfJob {
    pub(crate) first: Timestamp,
    pub(crate) last: Timestamp,
    /// The reasons one after the other, each preceded by its attempt, time and length. One
    /// allocation per job, because very many jobs fail in an outage.
    reasons: Vec<u8>,
    count: u32,
}

impl Failures {
    /// Remembers why an attempt of a job failed.
    pub(crate) fn note(&self, now: Timestamp, job: Sequence, attempt: u32, reason: &str) {
        let mut jobs = self.jobs.lock();
        if jobs.len() >= MAX_REMEMBERED && !jobs.contains_key(&job) {
            // The history of some other job is dropped; which one hardly matters.
            if let Some(&other) = jobs.keys().next() {
                jobs.remove(&other);
            }
        }
        jobs.entry(job).or_default().note(attempt, now, reason);
    }

    /// Forgets a job's failures because the job has ended.
    #[cold]
    pub(crate) fn forget(&self, job: Sequence) {
        let forgotten = self.jobs.lock().remove(&job);
        // Freed after the lock is released.
        drop(forgotten);
    }

    pub(crate) fn of(&self, job: Sequence) -> Option<FailuresOfJob> {
        self.jobs.lock().get(&job).cloned()
    }

    /// The jobs whose failures are remembered.
    #[cfg(test)]
    pub(crate) fn jobs(&self) -> Vec<Sequence> {
        self.jobs.lock().keys().copied().collect()
    }
}

impl FailuresOfJob {
    fn note(&mut self, attempt: u32, at: Timestamp, reason: &str) {
        if self.count == 0 {
            self.first = at;
            self.reasons.reserve(FIRST_REASONS);
        }
        self.last = at;
        if self.count == MAX_REASONS {
            let mut rest = self.reasons.as_slice();
            let _ = take_reason(&mut rest);
            let first = self.reasons.len() - rest.len();
            self.reasons.drain(..first);
            self.count -= 1;
        }
        let reason = &reason.as_bytes()[..reason.floor_char_boundary(MAX_REASON_BYTES)];
        self.count += 1;
        self.reasons.reserve(14 + reason.len());
        self.reasons.extend_from_slice(&attempt.to_le_bytes());
        self.reasons.extend_from_slice(&at.as_nanos().to_le_bytes());
        let len = reason.len() as u16;
        self.reasons.extend_from_slice(&len.to_le_bytes());
        self.reasons.extend_from_slice(reason);
    }

    /// The reasons, oldest first.
    pub(crate) fn reasons(&self) -> Vec<FailureReason> {
        let mut rest = self.reasons.as_slice();
        std::iter::from_fn(|| take_reason(&mut rest)).collect()
    }
}

fn take_reason(rest: &mut &[u8]) -> Option<FailureReason> {
    let (attempt, after) = rest.split_first_chunk()?;
    let (at, after) = after.split_first_chunk()?;
    let (len, after) = after.split_first_chunk()?;
    let (reason, after) = after.split_at_checked(u16::from_le_bytes(*len).into())?;
    *rest = after;
    Some(FailureReason {
        attempt: u32::from_le_bytes(*attempt),
        at: Timestamp::from_nanos(u64::from_le_bytes(*at)).into(),
        reason: String::from_utf8_lossy(reason).into_owned(),
    })
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_latest_reasons_are_kept_and_long_ones_are_cut_between_characters() {
        let failures = Failures::default();
        let job = Sequence::new(7);
        for attempt in 1..=40 {
            let reason = "é".repeat(attempt as usize * 50);
            failures.note(Timestamp::now(), job, attempt, &reason);
        }
        let known = failures.of(job).unwrap();
        assert!(known.first > Timestamp::ZERO && known.first <= known.last);
        let reasons = known.reasons();
        let attempts: Vec<_> = reasons.iter().map(|reason| reason.attempt).collect();
        assert_eq!(attempts, (9..=40).collect::<Vec<_>>());
        assert_eq!(reasons[0].reason, "é".repeat(450));
        assert_eq!(reasons[31].reason, "é".repeat(512));
        failures.note(Timestamp::now(), job, 41, "");
        let reasons = failures.of(job).unwrap().reasons();
        assert_eq!((reasons.len(), reasons[31].reason.as_str()), (32, ""));
        failures.forget(job);
        assert!(failures.of(job).is_none() && failures.jobs().is_empty());
    }

    #[test]
    fn no_more_jobs_are_remembered_than_documented() {
        let failures = Failures::default();
        for job in 0..MAX_REMEMBERED as u64 + 100 {
            failures.note(Timestamp::now(), Sequence::new(job), 1, "it failed");
        }
        assert_eq!(failures.jobs().len(), MAX_REMEMBERED);
        let last = Sequence::new(MAX_REMEMBERED as u64 + 99);
        assert_eq!(failures.of(last).unwrap().reasons().len(), 1);
    }
}
