//! What is stored: queues and keys, under one lock.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use logmill_jobs::backend::{BackendError, Changes, Keep, KeyChange, KeyValue};
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::jobs::Jobs;

/// A time that no test comes to.
const FAR: Duration = Duration::from_secs(100 * 365 * 86_400);

/// What a server has.
#[derive(Default)]
pub(super) struct Store {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
pub(super) struct State {
    queues: BTreeMap<String, Jobs>,
    keys: BTreeMap<Vec<u8>, Stored>,
    /// Of versions of values, and of claims.
    last_number: u64,
    /// How often something has changed, so that a consumer that was about to sleep does not.
    changes: u64,
}

struct Stored {
    value: KeyValue,
    expires_at: Option<SystemTime>,
}

impl Stored {
    fn is_there(&self) -> bool {
        self.expires_at.is_none_or(|at| at > SystemTime::now())
    }
}

impl Store {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Changes something, and wakes all consumers.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock();
        let changed = change(&mut state);
        state.changes += 1;
        self.changed.notify_all();
        changed
    }

    pub(super) fn changes(&self) -> u64 {
        self.state.lock().changes
    }

    /// Sleeps until something changes, or until this time, unless something has changed since.
    pub(super) fn sleep(&self, since: u64, until: Option<Instant>) {
        let mut state = self.state.lock();
        if state.changes != since {
            return;
        }
        match until {
            None => self.changed.wait(&mut state),
            Some(until) => _ = self.changed.wait_until(&mut state, until),
        }
    }
}

impl State {
    /// A number that was not there before.
    pub(super) fn next_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// Creates a queue, unless it exists.
    pub(super) fn create(&mut self, name: &str) -> Result<(), BackendError> {
        if name.is_empty() {
            let why = "a queue needs a name".to_owned();
            return Err(BackendError::Invalid(why));
        }
        if !self.queues.contains_key(name) {
            self.queues.insert(name.to_owned(), Jobs::new(name));
        }
        Ok(())
    }

    pub(super) fn queue_names(&self) -> Vec<String> {
        self.queues.keys().cloned().collect()
    }

    /// A queue that was created.
    pub(super) fn queue(&self, name: &str) -> Option<&Jobs> {
        self.queues.get(name)
    }

    pub(super) fn queue_mut(&mut self, name: &str) -> Option<&mut Jobs> {
        self.queues.get_mut(name)
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<KeyValue> {
        let stored = self.keys.get(key).filter(|stored| stored.is_there());
        stored.map(|stored| stored.value.clone())
    }

    pub(super) fn keys(&self, prefix: &[u8]) -> Vec<(Vec<u8>, KeyValue)> {
        let from = self.keys.range(prefix.to_vec()..);
        let all = from.take_while(|(key, _)| key.starts_with(prefix));
        let all = all.filter(|(_, stored)| stored.is_there());
        all.map(|(key, stored)| (key.clone(), stored.value.clone()))
            .collect()
    }

    /// Makes all changes, or none.
    pub(super) fn apply(
        &mut self,
        changes: &Changes<'_>,
    ) -> Result<Vec<Option<u64>>, BackendError> {
        self.check(changes)?;
        for (queue, _) in &changes.jobs {
            self.create(queue)?;
        }
        for change in &changes.keys {
            match *change {
                KeyChange::Put(key, value, keep) | KeyChange::Insert(key, value, keep) => {
                    self.put(key, value, keep);
                }
                KeyChange::Remove(key) => _ = self.keys.remove(key),
                KeyChange::Expect(..) => {}
            }
        }
        let mut numbers = Vec::with_capacity(changes.jobs.len());
        for (queue, job) in &changes.jobs {
            let queue = self.queues.get_mut(*queue);
            numbers.push(queue.map(|queue| queue.publish(job)));
        }
        Ok(numbers)
    }

    /// Whether all is as expected, before anything changes.
    fn check(&self, changes: &Changes<'_>) -> Result<(), BackendError> {
        for change in &changes.keys {
            let (key, expected) = match *change {
                KeyChange::Insert(key, ..) => (key, None),
                KeyChange::Expect(key, version) => (key, version),
                KeyChange::Put(..) | KeyChange::Remove(_) => continue,
            };
            if self.get(key).map(|value| value.version) != expected {
                let key = String::from_utf8_lossy(key).into_owned();
                return Err(BackendError::Conflict(key));
            }
        }
        Ok(())
    }

    fn put(&mut self, key: &[u8], value: &[u8], keep: Keep) {
        let value = KeyValue {
            value: value.to_vec(),
            version: self.next_number(),
        };
        let expires_at = match keep {
            Keep::Forever => None,
            Keep::For(time) => Some(in_(time)),
        };
        let stored = Stored { value, expires_at };
        self.keys.insert(key.to_vec(), stored);
    }
}

/// The time of the wall clock after this time.
pub(super) fn in_(time: Duration) -> SystemTime {
    SystemTime::now() + time.min(FAR)
}
