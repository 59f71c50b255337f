//! How far a job is: in memory at once, stored seldom, gone when the job has ended.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;

use crate::backend::{BackendError, Changes, Keep, KeyChange};
use crate::mill::Mill;
use crate::{Job, JobHandle, JobId, keys};

/// How far a job is, as its handler said last; from [`JobHandle::progress`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// What is done, in the handler's unit.
    pub done: u64,
    /// What is to be done in all; 0 if that is not known.
    pub total: u64,
    /// What the handler said about it.
    pub note: Option<String>,
    /// When it said so.
    pub at: SystemTime,
}

impl Progress {
    /// The part that is done, from 0 to 1; None if it is not known what is to be done.
    pub fn fraction(&self) -> Option<f64> {
        #[expect(clippy::cast_precision_loss, reason = "a bar is shorter than that")]
        let fraction = self.done.min(self.total) as f64 / self.total as f64;
        (self.total > 0).then_some(fraction)
    }

    fn to_bytes(&self) -> Vec<u8> {
        let at = self.at.duration_since(SystemTime::UNIX_EPOCH);
        let at = u64::try_from(at.unwrap_or_default().as_millis()).unwrap_or(u64::MAX);
        // Numbers and texts are always JSON.
        serde_json::to_vec(&(self.done, self.total, &self.note, at)).unwrap_or_default()
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let (done, total, note, at) = serde_json::from_slice(bytes).ok()?;
        let at = Duration::from_millis(at);
        Some(Self {
            done,
            total,
            note,
            at: SystemTime::UNIX_EPOCH.checked_add(at)?,
        })
    }
}

/// Jobs that come back after an attempt that has stored how far they are.
#[derive(Default)]
pub(crate) struct Progressed {
    /// How many there are, so that others cost a load.
    count: AtomicUsize,
    jobs: Mutex<HashSet<JobId>>,
}

impl Progressed {
    /// How many jobs.
    #[cfg(feature = "testing")]
    pub(crate) fn len(&self) -> usize {
        self.jobs.lock().len()
    }

    pub(crate) fn note(&self, id: &JobId) {
        let mut jobs = self.jobs.lock();
        jobs.insert(id.clone());
        // Relaxed, here and below: a job comes to its next attempt after it was entered.
        self.count.store(jobs.len(), Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn has(&self, id: &JobId) -> bool {
        self.count.load(Ordering::Relaxed) > 0 && self.jobs.lock().contains(id)
    }

    #[inline]
    pub(crate) fn forget(&self, id: &JobId) {
        if self.count.load(Ordering::Relaxed) > 0 {
            let mut jobs = self.jobs.lock();
            jobs.remove(id);
            self.count.store(jobs.len(), Ordering::Relaxed);
        }
    }
}

/// The progress of a job that runs.
#[derive(Debug, Default)]
pub(crate) struct Latest {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    progress: Option<Progress>,
    /// From when on it is stored.
    stores_at: Option<Instant>,
}

/// It is stored at most once in this time.
const INTERVAL: Duration = Duration::from_secs(1);
/// The most bytes of a note that are kept.
const MOST_NOTE: usize = 1024;
/// What is stored is kept for this long, in case the job never ends.
const KEEP: Duration = Duration::from_secs(30 * 86_400);

impl Latest {
    /// Notes how far the job is. Returns whether that is to be stored.
    pub(crate) fn set(&self, progress: Progress, now: Instant) -> bool {
        let mut state = self.state.lock();
        state.progress = Some(progress);
        let stores_at = *state
            .stores_at
            .get_or_insert_with(|| now.checked_add(INTERVAL).unwrap_or(now));
        if stores_at > now {
            return false;
        }
        state.stores_at = now.checked_add(INTERVAL);
        true
    }

    pub(crate) fn get(&self) -> Option<Progress> {
        self.state.lock().progress.clone()
    }
}

/// What a handler says now.
pub(crate) fn now(mill: &Mill, done: u64, total: u64, note: Option<&str>) -> Progress {
    let note = note.map(|note| {
        let mut most = MOST_NOTE.min(note.len());
        while !note.is_char_boundary(most) {
            most -= 1;
        }
        note[..most].to_owned()
    });
    Progress {
        done,
        total,
        note,
        at: mill.inner.clock.wall(),
    }
}

/// Stores how far a job is.
pub(crate) fn store(mill: &Mill, key: &[u8], progress: &Progress) -> Result<(), BackendError> {
    let value = progress.to_bytes();
    mill.inner.backend.commit(&Changes {
        keys: vec![KeyChange::Put(key, &value, Keep::For(KEEP))],
        ..Changes::default()
    })?;
    Ok(())
}

pub(crate) fn remove(mill: &Mill, key: &[u8]) -> Result<(), BackendError> {
    mill.inner.backend.commit(&Changes {
        keys: vec![KeyChange::Remove(key)],
        ..Changes::default()
    })?;
    Ok(())
}

impl Mill {
    /// How far a job is, see [`JobHandle::progress`].
    ///
    /// # Errors
    /// The storage failed.
    pub fn progress(&self, id: &JobId) -> Result<Option<Progress>, BackendError> {
        if let Some(progress) = self.inner.running.progress(id) {
            return Ok(Some(progress));
        }
        let stored = self.inner.backend.get(&keys::of_progress(id))?;
        Ok(stored.and_then(|stored| Progress::parse(&stored.value)))
    }
}

impl<J: Job> JobHandle<J> {
    /// How far the job is, as its handler said by [`Context::progress`](crate::Context::progress).
    /// None if it has said nothing, or the job has ended.
    ///
    /// Of a job that runs, what was said last. Of one that waits for its next attempt, or was
    /// interrupted by the death of the process, what was stored: of the last second or so, some may
    /// be missing, and all of an attempt that was shorter than that.
    ///
    /// # Errors
    /// The storage failed.
    pub fn progress(&self) -> Result<Option<Progress>, BackendError> {
        self.mill().progress(self.id())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(done: u64) -> Progress {
        Progress {
            done,
            total: 8,
            note: Some("page".to_owned()),
            at: SystemTime::UNIX_EPOCH + INTERVAL,
        }
    }

    #[test]
    fn progress_is_parsed_as_it_was_stored_and_knows_its_fraction() {
        let two = progress(2);
        assert_eq!(Progress::parse(&two.to_bytes()), Some(two.clone()));
        assert_eq!(two.fraction(), Some(0.25));
        assert_eq!(Progress { total: 0, ..two }.fraction(), None);
        for bytes in [&b""[..], b"[]", b"[1,2,null]", b"[1,2,3,4]"] {
            assert_eq!(Progress::parse(bytes), None);
        }
    }

    #[test]
    fn it_is_stored_at_most_once_in_an_interval_however_often_it_is_set() {
        let (latest, start) = (Latest::default(), Instant::now());
        let mut stored = 0;
        for step in 0..10_000 {
            let now = start + Duration::from_millis(step);
            stored += u32::from(latest.set(progress(step), now));
        }
        assert_eq!(stored, 9);
        assert_eq!(latest.get(), Some(progress(9_999)));
    }
}
