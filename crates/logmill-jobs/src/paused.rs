//! Kinds and keys that are paused: their jobs wait here, without an attempt, until they are resumed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::JobId;
use crate::again::again;
use crate::backend::{BackendError, Changes, Claim, Held, Keep, KeyChange, Settlement};
use crate::enqueue::header;
use crate::keys;
use crate::locks::{Lock, Locked};
use crate::mill::Mill;

/// A backend that holds no jobs gives one out again after this time.
const AGAIN: std::time::Duration = std::time::Duration::from_secs(5);

/// What is paused, from [`Mill::paused`].
///
/// ```
/// use logmill_jobs::{Job, Mill};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize, Job)]
/// #[job(kind = "mail", key = "tenant")]
/// struct Mail {
///     tenant: String,
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// let mill = Mill::open(dir.path().join("jobs"))?;
/// mill.pause_kind("mail")?;
/// mill.pause_key("tenant-7")?;
/// let paused = mill.paused()?;
/// assert_eq!((&paused.kinds[..], &paused.keys[..]), (&["mail".to_owned()][..], &["tenant-7".to_owned()][..]));
/// mill.resume_kind("mail")?;
/// mill.resume_key("tenant-7")?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PausedJobs {
    /// Kinds, sorted.
    pub kinds: Vec<String>,
    /// Keys, sorted.
    pub keys: Vec<String>,
    /// The jobs that workers came to and that wait for the end of a pause.
    pub jobs: Vec<JobId>,
}

/// The kinds and keys, as they are stored.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Names {
    kinds: BTreeSet<String>,
    keys: BTreeSet<String>,
}

impl Names {
    fn of(&mut self, what: What) -> &mut BTreeSet<String> {
        match what {
            What::Kind => &mut self.kinds,
            What::Key => &mut self.keys,
        }
    }

    fn is_empty(&self) -> bool {
        self.kinds.is_empty() && self.keys.is_empty()
    }
}

/// What a pause is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Kind,
    Key,
}

/// What is paused, and the jobs that wait for its end.
#[derive(Default)]
pub(crate) struct Paused {
    is_loaded: AtomicBool,
    /// Held while a change is stored. Taken before `state`.
    changing: Lock,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    names: Names,
    waiting: BTreeMap<(What, String), Vec<Waiting>>,
}

struct Waiting {
    id: JobId,
    /// Dropped, it goes back to its queue.
    _held: Box<dyn Held>,
}

impl State {
    /// The pause that concerns a job.
    fn pause_of(&self, claim: &dyn Claim) -> Option<(What, String)> {
        if self.names.kinds.contains(claim.kind()) {
            return Some((What::Kind, claim.kind().to_owned()));
        }
        let key = std::str::from_utf8(claim.header(header::KEY)?).ok()?;
        if self.names.keys.contains(key) {
            return Some((What::Key, key.to_owned()));
        }
        // A key that is made of one field is a JSON list of one value.
        let [value] = serde_json::from_str::<[serde_json::Value; 1]>(key).ok()?;
        let text = match value {
            serde_json::Value::String(text) => text,
            other => other.to_string(),
        };
        let is_paused = self.names.keys.contains(&text);
        is_paused.then_some((What::Key, text))
    }
}

impl Paused {
    /// How many jobs wait.
    #[cfg(feature = "testing")]
    pub(crate) fn len(&self) -> usize {
        self.state.lock().waiting.values().map(Vec::len).sum()
    }

    /// Whether a job does not run, as its kind or its key is paused.
    pub(crate) fn holds(&self, id: &JobId, claim: &mut dyn Claim) -> bool {
        let Some(pause) = self.state.lock().pause_of(claim) else {
            return false;
        };
        // Without the lock: to hold a job that was cancelled tells of its end.
        let Some(held) = claim.hold() else {
            let _ = claim.settle(Settlement::Snooze { after: AGAIN });
            return true;
        };
        let waiting = Waiting {
            id: id.clone(),
            _held: held,
        };
        let mut state = self.state.lock();
        let (what, name) = &pause;
        let late = match state.names.of(*what).contains(name) {
            true => {
                state.waiting.entry(pause).or_default().push(waiting);
                None
            }
            // It was resumed meanwhile.
            false => Some(waiting),
        };
        drop(state);
        drop(late);
        true
    }

    /// Gives back a job that is to be looked at again, such as one that was cancelled.
    pub(crate) fn release_job(&self, id: &JobId) {
        let mut state = self.state.lock();
        let released = state.waiting.values_mut().find_map(|jobs| {
            let at = jobs.iter().position(|waiting| waiting.id == *id)?;
            Some(jobs.remove(at))
        });
        drop(state);
        drop(released);
    }

    /// Why a job waits here.
    pub(crate) fn reason_of(&self, id: &JobId) -> Option<String> {
        let state = self.state.lock();
        let mut all = state.waiting.iter();
        let ((what, name), _) = all.find(|(_, jobs)| jobs.iter().any(|one| one.id == *id))?;
        Some(match what {
            What::Kind => format!("the kind {name:?} is paused"),
            What::Key => format!("the key {name:?} is paused"),
        })
    }

    /// Gives back all.
    pub(crate) fn release_all(&self) {
        let all = std::mem::take(&mut self.state.lock().waiting);
        drop(all);
    }
}

/// Reads what an earlier process has paused, once; on a shared backend, what others have paused, each
/// time.
pub(crate) fn load(mill: &Mill) -> Result<(), BackendError> {
    let paused = &mill.inner.before.paused;
    if paused.is_loaded.load(Ordering::Acquire) && !mill.is_shared() {
        return Ok(());
    }
    let changing = paused.changing.lock()?;
    let (names, _) = stored(mill)?;
    let released = adopt(mill, names, &changing);
    paused.is_loaded.store(true, Ordering::Release);
    drop(changing);
    drop(released);
    Ok(())
}

/// What is stored, with its version.
fn stored(mill: &Mill) -> Result<(Names, Option<u64>), BackendError> {
    let Some(stored) = mill.inner.backend.get(keys::PAUSED)? else {
        return Ok((Names::default(), None));
    };
    let names = serde_json::from_slice::<Names>(&stored.value);
    let names = names.map_err(|error| BackendError::Storage(Box::new(error)))?;
    Ok((names, Some(stored.version)))
}

/// Pauses or resumes a kind or a key. Returns whether that changed anything.
fn set(mill: &Mill, what: What, name: &str, is_paused: bool) -> Result<bool, BackendError> {
    again(mill, || set_once(mill, what, name, is_paused))
}

fn set_once(mill: &Mill, what: What, name: &str, is_paused: bool) -> Result<bool, BackendError> {
    let changing = mill.inner.before.paused.changing.lock()?;
    // Another process may have changed it since it was loaded.
    let (mut names, version) = stored(mill)?;
    let has_changed = match is_paused {
        true => names.of(what).insert(name.to_owned()),
        false => names.of(what).remove(name),
    };
    if has_changed {
        let bytes = serde_json::to_vec(&names);
        let bytes = bytes.map_err(|error| BackendError::Storage(Box::new(error)))?;
        let change = match names.is_empty() {
            true => KeyChange::Remove(keys::PAUSED),
            false => KeyChange::Put(keys::PAUSED, &bytes, Keep::Forever),
        };
        mill.inner.backend.commit(&Changes {
            keys: vec![KeyChange::Expect(keys::PAUSED, version), change],
            ..Changes::default()
        })?;
        // A subscriber that was called meanwhile may have changed it, too.
        (names, _) = stored(mill)?;
    }
    let released = adopt(mill, names, &changing);
    drop(changing);
    // To give a job back may wake a worker, which holds it again if another pause concerns it.
    drop(released);
    Ok(has_changed)
}

/// Has workers know what is stored. Returns the jobs that nothing holds up any more.
fn adopt(mill: &Mill, mut names: Names, _changing: &Locked<'_>) -> Vec<Waiting> {
    let before = &mill.inner.before;
    let mut state = before.paused.state.lock();
    let (had_any, has_any) = (!state.names.is_empty(), !names.is_empty());
    if has_any && !had_any {
        before.watch();
    }
    let waiting = std::mem::take(&mut state.waiting).into_iter();
    let (waiting, resumed) = waiting.partition(|((what, name), _)| names.of(*what).contains(name));
    state.waiting = waiting;
    state.names = names;
    drop(state);
    if had_any && !has_any {
        before.rest();
    }
    let resumed: BTreeMap<(What, String), Vec<Waiting>> = resumed;
    resumed.into_values().flatten().collect()
}

impl Mill {
    /// Pauses the jobs of a kind, in all queues, until [`resume_kind`](Self::resume_kind); also after a
    /// restart.
    ///
    /// Jobs that run go on, and jobs can be enqueued. One that a worker comes to waits, without an
    /// attempt, and holds up no other; what waits so is in memory. While nothing is paused, this costs
    /// a worker a load for each job. Returns false if the kind was paused already. Survives the death of
    /// the process, and a power cut after the next [`flush`](Self::flush).
    ///
    /// # Errors
    /// The storage failed.
    pub fn pause_kind(&self, kind: &str) -> Result<bool, BackendError> {
        set(self, What::Kind, kind, true)
    }

    /// Ends the pause of a kind. Returns false if it was not paused.
    ///
    /// # Errors
    /// The storage failed.
    pub fn resume_kind(&self, kind: &str) -> Result<bool, BackendError> {
        set(self, What::Kind, kind, false)
    }

    /// Pauses the jobs with a key, such as those of a tenant, of all kinds, as
    /// [`pause_kind`](Self::pause_kind) does.
    ///
    /// The key is that of `#[job(key = "tenant")]` or of [`Enqueue::key`](crate::Enqueue::key); that of
    /// a field which is no text, or of several fields, is named by its JSON, as in `17` or `["a",17]`.
    ///
    /// # Errors
    /// The storage failed.
    pub fn pause_key(&self, key: &str) -> Result<bool, BackendError> {
        set(self, What::Key, key, true)
    }

    /// Ends the pause of a key. Returns false if it was not paused.
    ///
    /// # Errors
    /// The storage failed.
    pub fn resume_key(&self, key: &str) -> Result<bool, BackendError> {
        set(self, What::Key, key, false)
    }

    /// The kinds and keys that are paused, and the jobs that wait for that.
    ///
    /// # Errors
    /// The storage failed.
    pub fn paused(&self) -> Result<PausedJobs, BackendError> {
        load(self)?;
        let state = self.inner.before.paused.state.lock();
        let waiting = state.waiting.values().flatten();
        Ok(PausedJobs {
            kinds: state.names.kinds.iter().cloned().collect(),
            keys: state.names.keys.iter().cloned().collect(),
            jobs: waiting.map(|waiting| waiting.id.clone()).collect(),
        })
    }
}

#[cfg(all(test, feature = "embedded"))]
mod tests {
    use super::*;
    use crate::backend::*;

    type Call = Box<dyn FnOnce() + Send>;

    /// A backend that calls somebody after a commit, as the engine calls subscribers.
    struct Calling {
        inner: Embedded,
        call: std::sync::Arc<Mutex<Option<Call>>>,
    }

    impl Backend for Calling {
        forward_backend!(inner: capabilities on_end queue queue_names consumer wake_consumers get);
        forward_backend!(inner: keys each_key extend damage flush close);

        fn commit(&self, changes: &Changes<'_>) -> Result<Vec<Option<u64>>, BackendError> {
            let committed = self.inner.commit(changes);
            let call = self.call.lock().take();
            if let Some(call) = call {
                call();
            }
            committed
        }
    }

    #[test]
    fn a_subscriber_that_is_called_by_a_pause_pauses_more() {
        let dir = tempfile::tempdir().unwrap();
        let queues = logmill::Queues::options(dir.path().join("jobs")).open();
        let call = std::sync::Arc::default();
        let backend = Calling {
            inner: Embedded::new(queues.unwrap(), logmill::Durability::Process),
            call: std::sync::Arc::clone(&call),
        };
        let mill = Mill::with_backend(backend, crate::MillOptions::new());
        let (same, (ended, end)) = (mill.clone(), std::sync::mpsc::channel());
        *call.lock() = Some(Box::new(move || _ = same.pause_key("k").unwrap()));
        let _ = std::thread::spawn(move || {
            assert!(mill.pause_kind("mail").unwrap());
            ended.send(mill.paused().unwrap()).unwrap();
        });
        let paused = end.recv_timeout(crate::secs(20)).unwrap();
        assert_eq!(
            (paused.kinds, paused.keys),
            (vec!["mail".to_owned()], vec!["k".to_owned()])
        );
    }
}
