//! The end of a job that has a key: the key is released, or passed on to the job that was kept.

use std::time::SystemTime;

use super::enqueue::{Found, look_up};
use super::value::{Header, Kept, Stored, Ticket, Turn, Until, Value};
use crate::again::again;
use crate::backend::{self, BackendError, Changes, Due, Keep, KeyChange};
use crate::enqueue::header;
use crate::keys;
use crate::locks::Locked;
use crate::mill::Mill;
use crate::prepared::PreparedJob;

/// The key of a job that ends, locked until this is dropped.
pub(crate) struct Release<'a> {
    mill: &'a Mill,
    ticket: Ticket,
    key: Vec<u8>,
    /// The version of its value, if the job has it.
    version: Option<u64>,
    then: Then,
    marker: Vec<u8>,
    /// Where the arguments of a dead job are kept for its replay, and what is put there.
    letter: Option<(Vec<u8>, Option<Vec<u8>>)>,
    _lock: Locked<'a>,
}

/// What becomes of the key.
enum Then {
    Remove,
    /// Calls follow the job that has ended until this time.
    Quiet(Vec<u8>, Keep),
    Next(Box<Next>),
}

/// The job that follows.
struct Next {
    stored: Stored,
    due: Option<SystemTime>,
    ticket: Ticket,
    value: Vec<u8>,
}

impl Next {
    fn new(kept: Kept) -> Option<Self> {
        let Kept {
            mut stored,
            due,
            first,
        } = kept;
        let mut headers = stored.job.headers.iter_mut();
        let (_, bytes) = headers.find(|(key, _)| key == header::UNIQUE)?;
        let ticket = crate::identity::new();
        let header = Header {
            ticket,
            ..Header::parse(bytes)?
        };
        let (until, header) = (header.until, header.to_text());
        *bytes = header.into_bytes();
        let value = Value {
            ticket,
            until,
            place: stored.job.place.clone(),
            number: None,
            turn: Turn {
                due,
                first,
                ..Turn::default()
            },
        };
        Some(Self {
            value: value.to_bytes(),
            stored,
            due,
            ticket,
        })
    }
}

/// What a dead job is replayed with. It does not expire, see [`backend::Queue::replay`].
fn for_replay(mut stored: Stored) -> Vec<u8> {
    let headers = &mut stored.job.headers;
    headers.retain(|(key, _)| key != header::EXPIRES);
    stored.to_bytes()
}

/// The headers of the job that follows, which the changes borrow.
pub(crate) type Headers<'a> = Vec<(&'a str, &'a [u8])>;

impl<'a> Release<'a> {
    /// Finds the key of a job by its kind and its header. What a job that has died ran with is kept.
    pub(crate) fn of(
        mill: &'a Mill,
        kind: &str,
        header: Option<&[u8]>,
        has_died: bool,
    ) -> Result<Option<Self>, BackendError> {
        let Some(header) = header.and_then(Header::parse) else {
            return Ok(None);
        };
        if header.until == Until::Period {
            return Ok(None);
        }
        let key = keys::of_unique(kind, header.key);
        let lock = mill.inner.unique_locks.lock(&key)?;
        let current = mill.inner.backend.get(&key)?;
        let value = current.as_ref().and_then(|one| Value::parse(&one.value));
        let value = value.filter(|value| value.ticket == header.ticket);
        let mut release = Self {
            mill,
            ticket: header.ticket,
            marker: keys::of_kept(&key),
            key,
            version: value
                .is_some()
                .then(|| current.map(|one| one.version))
                .flatten(),
            then: Then::Remove,
            letter: None,
            _lock: lock,
        };
        match value {
            Some(value) => release.decide(value, has_died),
            None if header.until == Until::Turn => {
                // One that was replayed, or whose key another one has taken: its arguments were kept.
                let letter = keys::of_letter(header.ticket);
                if let Some(kept) = mill.inner.backend.get(&letter)? {
                    let stored = Stored::parse(&kept.value).filter(|_| has_died);
                    // Bytes that are not such arguments stay with a dead job as they are.
                    if stored.is_some() || !has_died {
                        release.letter = Some((letter, stored.map(for_replay)));
                    }
                }
            }
            None => {}
        }
        Ok(Some(release))
    }

    fn decide(&mut self, value: Value, has_died: bool) {
        let now = self.mill.inner.clock.wall();
        let Turn {
            quiet_until,
            instead,
            kept,
            ..
        } = value.turn.clone();
        if has_died && let Some(stored) = instead {
            let letter = keys::of_letter(self.ticket);
            self.letter = Some((letter, Some(for_replay(stored))));
        }
        if let Some(next) = kept.and_then(Next::new) {
            self.then = Then::Next(Box::new(next));
            return;
        }
        let rest = quiet_until.and_then(|until| until.duration_since(now).ok());
        if let Some(rest) = rest.filter(|rest| !rest.is_zero()) {
            let mut quiet = value;
            quiet.turn.is_leading = false;
            self.then = Then::Quiet(quiet.to_bytes(), Keep::For(rest));
        }
    }

    /// The headers of the job that follows, if one does.
    pub(crate) fn headers(&self) -> Headers<'_> {
        match &self.then {
            Then::Next(next) => next.stored.job.headers(),
            Then::Remove | Then::Quiet(..) => Vec::new(),
        }
    }

    /// Adds what releases the key, or passes it on. Its job comes first among those of the changes.
    pub(crate) fn add_to<'b>(&'b self, changes: &mut Changes<'b>, headers: &'b Headers<'b>) {
        if let Some((key, value)) = &self.letter {
            changes.keys.push(match value {
                Some(value) => KeyChange::Put(key, value, Keep::Forever),
                None => KeyChange::Remove(key),
            });
        }
        if self.version.is_none() {
            return;
        }
        let keys = &mut changes.keys;
        keys.push(KeyChange::Expect(&self.key, self.version));
        match &self.then {
            Then::Remove => keys.push(KeyChange::Remove(&self.key)),
            Then::Quiet(value, keep) => keys.push(KeyChange::Put(&self.key, value, *keep)),
            Then::Next(next) => {
                keys.push(KeyChange::Put(&self.key, &next.value, Keep::Forever));
                keys.push(KeyChange::Remove(&self.marker));
                let mut job = next.stored.job.new_job(headers);
                job.due = next.due.map_or(Due::Now, Due::At);
                changes.jobs.insert(0, (&next.stored.job.place, job));
            }
        }
    }

    /// The changes were made, with these numbers of new jobs.
    pub(crate) fn done(self, numbers: &[Option<u64>]) {
        let tickets = &self.mill.inner.tickets;
        tickets.forget(self.ticket);
        if let Then::Next(next) = &self.then
            && self.version.is_some()
        {
            match numbers.first().copied().flatten() {
                Some(number) => tickets.note(next.ticket, number),
                None => tickets.is_late(&next.stored.job.place),
            }
        }
    }
}

/// Enqueues what was kept for jobs that had ended when an earlier process died, before it could say
/// so.
pub(crate) fn finish_interrupted(mill: &Mill, key: &[u8]) -> Result<(), BackendError> {
    again(mill, || finish_once(mill, key))
}

fn finish_once(mill: &Mill, key: &[u8]) -> Result<(), BackendError> {
    let lock = mill.inner.unique_locks.lock(key)?;
    let marker = keys::of_kept(key);
    let (value, version) = match look_up(mill, key)? {
        // Its end does so.
        Found::Job { .. } => return Ok(()),
        Found::Nobody => (None, None),
        Found::Gone { value, version } => (value, Some(version)),
    };
    let kept = value.and_then(|value| value.turn.kept);
    let Some(next) = kept.and_then(Next::new) else {
        mill.inner.backend.commit(&Changes {
            keys: vec![KeyChange::Remove(&marker)],
            ..Changes::default()
        })?;
        return Ok(());
    };
    let release = Release {
        mill,
        ticket: 0,
        key: key.to_vec(),
        version,
        then: Then::Next(Box::new(next)),
        marker,
        letter: None,
        _lock: lock,
    };
    let headers = release.headers();
    let mut changes = Changes::default();
    release.add_to(&mut changes, &headers);
    let numbers = mill.inner.commit(&changes)?;
    drop(changes);
    drop(headers);
    release.done(&numbers);
    Ok(())
}

/// The arguments with which a dead job ran, if they are not its first.
pub(crate) fn job_of_letter(
    mill: &Mill,
    letter: &backend::DeadJob,
) -> Result<Option<PreparedJob>, BackendError> {
    let Some(key) = letter_of(letter.unique.as_deref()) else {
        return Ok(None);
    };
    let kept = mill.inner.backend.get(&key)?;
    let kept = kept.and_then(|kept| Stored::parse(&kept.value));
    Ok(kept.map(|stored| stored.job))
}

/// Whether anything is kept of a dead job: the arguments with which it ran, if they are not its first.
pub(crate) fn keeps_of_letter(mill: &Mill, unique: &[u8]) -> Result<bool, BackendError> {
    match letter_of(Some(unique)) {
        Some(key) => Ok(mill.inner.backend.get(&key)?.is_some()),
        None => Ok(false),
    }
}

/// Removes what was kept of a dead job that was purged.
pub(crate) fn forget_letter(mill: &Mill, unique: Option<&[u8]>) -> Result<(), BackendError> {
    let Some(key) = letter_of(unique) else {
        return Ok(());
    };
    if mill.inner.backend.get(&key)?.is_some() {
        mill.inner.backend.commit(&Changes {
            keys: vec![KeyChange::Remove(&key)],
            ..Changes::default()
        })?;
    }
    Ok(())
}

fn letter_of(unique: Option<&[u8]>) -> Option<Vec<u8>> {
    let header = unique.and_then(Header::parse)?;
    (header.until == Until::Turn).then(|| keys::of_letter(header.ticket))
}
