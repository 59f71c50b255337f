//! A schedule as it is stored: what its user has said, its job, and how far it has come.
//!
//! ```text
//! byte 0      version, 1
//! bytes 1..5  length of the state, little-endian
//! then        the state as JSON, and the job as a `PreparedJob`
//! ```

use std::time::SystemTime;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::schedule::{Definition, Misfire, Schedule};
use crate::prepared::PreparedJob;

const VERSION: u8 = 1;
/// A tick that is later than this counts as missed.
const MISSED_AFTER: SignedDuration = SignedDuration::from_secs(60);
/// The most ticks that are made up for.
const MOST_MISFIRES: u32 = 1000;

/// A schedule with its state.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) schedule: Schedule,
    pub(super) job: PreparedJob,
    pub(super) state: State,
}

/// How far a schedule has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    /// When the schedule got its timing; periods count from here.
    pub(super) anchor: Timestamp,
    /// None while it is paused, and once it has ended.
    pub(super) next: Option<Timestamp>,
    /// The last tick that enqueued a job.
    pub(super) last: Option<Timestamp>,
    /// Up to this time it is decided which of several ticks were missed.
    pub(super) decided: Option<Timestamp>,
    pub(super) runs: u64,
    pub(super) skipped: u64,
    pub(super) is_paused: bool,
    /// Whether each enqueue survives a power cut before it counts.
    pub(super) sync: bool,
    /// The jobs that may not have ended, if ticks are skipped while one has not.
    pub(super) jobs: Vec<Enqueued>,
}

/// A job that a schedule has enqueued.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Enqueued {
    pub(super) tick: Timestamp,
    /// The backend's queue.
    pub(super) place: String,
    /// None until it is noted.
    pub(super) number: Option<u64>,
}

/// What is to be done when a tick is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// The tick whose job is enqueued. None if all that are due were missed.
    pub(super) tick: Option<Timestamp>,
    /// The tick after that.
    pub(super) next: Option<Timestamp>,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    definition: Definition,
    state: State,
}

impl Plan {
    /// A schedule that is stored for the first time.
    pub(super) fn new(schedule: Schedule, job: PreparedJob, sync: bool, now: SystemTime) -> Self {
        let now = super::schedule::timestamp_of(now);
        let state = State {
            anchor: now,
            next: None,
            last: None,
            decided: None,
            runs: 0,
            skipped: 0,
            is_paused: false,
            sync,
            jobs: Vec::new(),
        };
        let mut plan = Self {
            schedule,
            job,
            state,
        };
        // A tick of this very moment counts.
        let before = now.checked_sub(SignedDuration::from_nanos(1));
        plan.state.next = plan.next_after(before.unwrap_or(now));
        plan
    }

    /// The plan that takes the place of this one when its user says this; None if it is the same.
    pub(super) fn replaced_by(&self, mut new: Self) -> Option<Self> {
        let old = &self.state;
        let has_same_timing = self.schedule.has_timing_of(&new.schedule);
        let is_same = self.schedule.definition == new.schedule.definition
            && self.job == new.job
            && old.sync == new.state.sync;
        if is_same {
            return None;
        }
        let now = new.state.anchor;
        new.state = State {
            sync: new.state.sync,
            anchor: if has_same_timing { old.anchor } else { now },
            ..old.clone()
        };
        // It may have ended by a number of runs that is another one by now.
        if !has_same_timing || old.next.is_none() || new.has_had_all() {
            new.plan_from(now);
        }
        Some(new)
    }

    /// Ends or begins a pause. Ticks of the pause are not made up for.
    pub(super) fn set_paused(&mut self, is_paused: bool, now: Timestamp) {
        self.state.is_paused = is_paused;
        self.plan_from(now);
    }

    /// Plans the first tick after a time, and after the last tick.
    fn plan_from(&mut self, now: Timestamp) {
        let after = self.state.last.map_or(now, |last| last.max(now));
        self.state.next = self.next_after(after);
    }

    fn has_had_all(&self) -> bool {
        let most = self.schedule.definition.at_most;
        most.is_some_and(|most| self.state.runs >= most)
    }

    /// The tick after a time; None while it is paused, and if it ends before.
    pub(super) fn next_after(&self, after: Timestamp) -> Option<Timestamp> {
        if self.state.is_paused || self.has_had_all() {
            return None;
        }
        self.schedule.next(after, self.state.anchor)
    }

    /// What is to be done now; None if no tick is due.
    pub(super) fn step(&mut self, now: Timestamp) -> Option<Step> {
        let first = self.state.next.filter(|next| *next <= now)?;
        let last = |until| self.schedule.last(first, until, self.state.anchor);
        let tick = match self.schedule.definition.misfire {
            Misfire::Skip => {
                let tick = last(now);
                let is_missed = tick.duration_until(now) > MISSED_AFTER;
                (!is_missed).then_some(tick)
            }
            Misfire::Once => Some(last(now)),
            // Once for each absence: the ticks that are left are enqueued one by one.
            Misfire::All(_) if self.state.decided.is_some_and(|until| first <= until) => {
                Some(first)
            }
            Misfire::All(most) => {
                let most = most.clamp(1, MOST_MISFIRES);
                let tick = match self.has_more_than(most, first, now) {
                    false => first,
                    true => (1..most).fold(last(now), |tick, _| {
                        let before = tick.checked_sub(SignedDuration::from_nanos(1));
                        before.map_or(tick, last)
                    }),
                };
                self.state.decided = Some(now);
                Some(tick)
            }
        };
        Some(Step {
            tick,
            next: self.next_after(tick.unwrap_or(now)),
        })
    }

    /// Whether more ticks than this are due, of which `first` is the first.
    fn has_more_than(&self, most: u32, first: Timestamp, now: Timestamp) -> bool {
        let mut tick = first;
        for _ in 0..most {
            match self.schedule.next(tick, self.state.anchor) {
                Some(next) if next <= now => tick = next,
                _ => return false,
            }
        }
        true
    }

    /// Notes that the job of a tick is enqueued.
    pub(super) fn ran(&mut self, tick: Timestamp) {
        self.state.last = Some(tick);
        self.state.runs += 1;
        if self.has_had_all() {
            self.state.next = None;
        }
    }

    pub(super) fn to_bytes(&self) -> Result<Vec<u8>, serde_json::Error> {
        let state = serde_json::to_vec(&Stored {
            definition: self.schedule.definition.clone(),
            state: self.state.clone(),
        })?;
        // What is longer than this no backend takes.
        let len = u32::try_from(state.len()).unwrap_or(u32::MAX);
        Ok([
            &[VERSION][..],
            &len.to_le_bytes(),
            &state,
            &self.job.to_bytes(),
        ]
        .concat())
    }

    /// Reads what [`to_bytes`](Self::to_bytes) made; the error says why it cannot be read.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let cut_off = || "its bytes are cut off".to_owned();
        let rest = match bytes.split_first() {
            Some((&VERSION, rest)) => rest,
            Some((version, _)) => return Err(format!("it has the unknown version {version}")),
            None => return Err(cut_off()),
        };
        let (len, rest) = rest.split_first_chunk::<4>().ok_or_else(cut_off)?;
        let len = usize::try_from(u32::from_le_bytes(*len)).map_err(|_| cut_off())?;
        let (state, job) = rest.split_at_checked(len).ok_or_else(cut_off)?;
        let stored = serde_json::from_slice::<Stored>(state).map_err(|error| error.to_string())?;
        Ok(Self {
            schedule: Schedule::of(stored.definition).map_err(|error| error.to_string())?,
            job: PreparedJob::parse(job).ok_or("its job cannot be read")?,
            state: stored.state,
        })
    }
}
