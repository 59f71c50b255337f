//! A call that enqueues a unique job: what it finds under the key decides what it does.

#[cfg(all(test, feature = "embedded"))]
mod tests;

use std::time::SystemTime;

use super::merge::Merge;
use super::tickets::Tickets;
use super::value::{Header, Kept, Stored, Ticket, Turn, Until, Value};
use super::{Debounce, Unique};
use crate::JobId;
use crate::again::again;
use crate::backend::{BackendError, Changes, Due, Keep, KeyChange, NewJob};
use crate::enqueue::header;
use crate::error::EnqueueError;
use crate::handle::Outcome;
use crate::keys;
use crate::mill::{Mill, OpenQueue};
use crate::prepared::PreparedJob;

/// So often a call begins anew because another one was faster than its merge.
const MERGES: u32 = 64;

/// A call that enqueues.
pub(crate) struct Call<'a> {
    pub(crate) queue: &'a OpenQueue,
    pub(crate) kind: &'a str,
    pub(crate) aliases: &'a [&'a str],
    pub(crate) unique: &'a Unique,
    pub(crate) new: &'a NewJob<'a>,
    pub(crate) merge: Option<&'a Merge<'a>>,
}

/// Who has a key.
pub(super) enum Found {
    Job {
        number: u64,
        value: Value,
        version: u64,
    },
    Nobody,
    /// A job that has ended: it was leading, or its process died before the key was released.
    Gone {
        value: Option<Value>,
        version: u64,
    },
}

/// Whose arguments a call merges its own with.
enum Old {
    None,
    Stored(Stored),
    /// Those of the job itself.
    Own(u64),
}

/// Enqueues a job unless there is one with its key, or has that one run with other arguments.
pub(crate) fn enqueue(mill: &Mill, call: &Call<'_>) -> Result<(JobId, Outcome), EnqueueError> {
    if let Err(why) = call.unique.check() {
        return Err(EnqueueError::Invalid(why.to_owned()));
    }
    again(mill, || enqueue_once(mill, call))
}

fn enqueue_once(mill: &Mill, call: &Call<'_>) -> Result<(JobId, Outcome), EnqueueError> {
    let unique = call.unique;
    for alias in call.aliases {
        let key = keys::of_unique(alias, &unique.key);
        if let Some(done) = on_key(mill, call, alias, &key, false)? {
            return Ok(done);
        }
    }
    let key = keys::of_unique(call.kind, &unique.key);
    let done = on_key(mill, call, call.kind, &key, true)?;
    done.ok_or_else(|| EnqueueError::Invalid("the key of the job has no place".to_owned()))
}

/// Does what is to be done under a key; None if nobody has it, and the job is to get another one.
fn on_key(
    mill: &Mill,
    call: &Call<'_>,
    kind: &str,
    key: &[u8],
    is_own: bool,
) -> Result<Option<(JobId, Outcome)>, EnqueueError> {
    let mut merged: Option<(u64, Vec<u8>)> = None;
    for _ in 0..MERGES {
        let lock = mill.inner.unique_locks.lock(key)?;
        let found = look_up(mill, key)?;
        let is_there = matches!(found, Found::Job { .. });
        if !is_there && !is_own {
            return Ok(None);
        }
        let now = mill.inner.clock.wall();
        let (number, version, value, outcome, old) = match found {
            Found::Nobody => {
                let turn = first_turn(call.unique, call.new.due, now);
                return publish(mill, call, key, (None, None), turn, call.new.payload).map(Some);
            }
            Found::Gone { value, version } => {
                let old = kept_of(value.as_ref());
                (0, version, value, Outcome::New, old)
            }
            Found::Job {
                number,
                value,
                version,
            } => match change_of(mill, call.unique, &value) {
                Change::None => {
                    drop(lock);
                    if call.new.sync {
                        // The call that enqueued it may not have asked for that.
                        mill.inner.backend.flush()?;
                    }
                    let id = JobId::new(value.place, number);
                    return Ok(Some((id, Outcome::Existing)));
                }
                Change::TakeOver => (number, version, Some(value), Outcome::New, Old::None),
                Change::Keep => {
                    let old = kept_of(Some(&value));
                    (number, version, Some(value), Outcome::Kept, old)
                }
                Change::Replace => {
                    let outcome = match call.unique.debounce {
                        Some(_) => Outcome::PutOff,
                        None => Outcome::Replaced,
                    };
                    let old = value.turn.instead.clone();
                    let old = old.map_or(Old::Own(number), Old::Stored);
                    (number, version, Some(value), outcome, old)
                }
            },
        };
        let payload = match (call.merge, merged.take()) {
            (None, _) | (_, None) if call.merge.is_none() => call.new.payload.to_vec(),
            (_, Some((of, payload))) if of == version => payload,
            (Some(merge), _) => {
                // The user's code runs without the lock: it may wait for another call. What it has
                // merged counts if nobody has changed the key meanwhile.
                drop(lock);
                let place = value.as_ref().map(|value| &*value.place);
                let payload = merge_with(mill, merge, place, old)?;
                merged = Some((
                    version,
                    payload.unwrap_or_else(|| call.new.payload.to_vec()),
                ));
                continue;
            }
            (None, _) => call.new.payload.to_vec(),
        };
        let done = match (outcome, value) {
            (Outcome::New, value) => {
                let turn = next_turn(call, value.as_ref(), now);
                let expected = (Some(version), value.as_ref());
                publish(mill, call, key, expected, turn, &payload)
            }
            (outcome, Some(value)) => {
                let stored = stored(call, kind, &payload);
                let id = JobId::new(&*value.place, number);
                change(mill, call, key, (version, value), outcome, stored, now)?;
                Ok((id, outcome))
            }
            (_, None) => continue,
        };
        return done.map(Some);
    }
    let why = "other calls with its key were faster than its merge each time";
    Err(EnqueueError::Storage(BackendError::Conflict(
        why.to_owned(),
    )))
}

fn kept_of(value: Option<&Value>) -> Old {
    let kept = value.and_then(|value| value.turn.kept.clone());
    kept.map_or(Old::None, |kept| Old::Stored(kept.stored))
}

/// What a call does to a job that has its key.
enum Change {
    None,
    Replace,
    Keep,
    TakeOver,
}

fn change_of(mill: &Mill, unique: &Unique, value: &Value) -> Change {
    let keeps = unique.keeps_latest || unique.debounce.is_some();
    let runs = mill.inner.tickets.is_running(value.ticket);
    match value.until {
        Until::Period => Change::None,
        // It does not look what its key says, but its end does.
        Until::End if keeps && !unique.while_waiting => Change::Keep,
        Until::End => Change::None,
        Until::Turn if runs && unique.while_waiting => Change::TakeOver,
        // What is kept stays so until the job has ended, also between two of its attempts.
        Until::Turn if runs || value.turn.is_leading || value.turn.kept.is_some() => match keeps {
            true => Change::Keep,
            false => Change::None,
        },
        Until::Turn if keeps || unique.is_replacing => Change::Replace,
        Until::Turn => Change::None,
    }
}

/// The merge of what a job has and of the call; None if the job has ended meanwhile.
fn merge_with(
    mill: &Mill,
    merge: &Merge<'_>,
    place: Option<&str>,
    old: Old,
) -> Result<Option<Vec<u8>>, EnqueueError> {
    let (headers, payload) = match old {
        Old::None => return Ok(None),
        Old::Stored(stored) => (stored.job.headers, stored.job.payload),
        Old::Own(number) => {
            let queue = place.map(|place| mill.inner.existing_queue(place));
            let Some(queue) = queue.transpose()?.flatten() else {
                return Ok(None);
            };
            match queue.queue.look(number)? {
                Some(seen) => (seen.headers, seen.payload),
                None => return Ok(None),
            }
        }
    };
    let tag = headers.iter().find(|(key, _)| key == header::CODEC);
    merge(tag.map(|(_, tag)| &**tag), &payload).map(Some)
}

/// The turn of a job that nothing precedes.
fn first_turn(unique: &Unique, due: Due, now: SystemTime) -> Turn {
    match unique.debounce {
        None => Turn {
            due: time_of(due, now),
            ..Turn::default()
        },
        Some(debounce) if debounce.is_leading => Turn {
            is_leading: true,
            quiet_until: now.checked_add(debounce.time),
            ..Turn::default()
        },
        Some(debounce) => trailing_turn(debounce, now, now),
    }
}

fn trailing_turn(debounce: Debounce, now: SystemTime, first: SystemTime) -> Turn {
    Turn {
        due: debounce.due(now, first),
        first: Some(first),
        ..Turn::default()
    }
}

/// The turn of a job that takes the place of one that has ended, or of one that runs.
fn next_turn(call: &Call<'_>, value: Option<&Value>, now: SystemTime) -> Turn {
    let before = value.map(|value| &value.turn);
    let kept = before.and_then(|turn| turn.kept.as_ref());
    let is_quiet = before.is_some_and(|turn| turn.quiet_until.is_some_and(|until| until > now));
    match call.unique.debounce {
        Some(debounce) if kept.is_some() || is_quiet => {
            let first = kept.and_then(|kept| kept.first);
            trailing_turn(debounce, now, first.unwrap_or(now))
        }
        _ => first_turn(call.unique, call.new.due, now),
    }
}

/// A due time as one of the wall clock.
fn time_of(due: Due, now: SystemTime) -> Option<SystemTime> {
    match due {
        Due::Now => None,
        Due::After(delay) => now.checked_add(delay),
        Due::At(time) => Some(time),
    }
}

/// Stores a job, and gives it the key.
fn publish(
    mill: &Mill,
    call: &Call<'_>,
    key: &[u8],
    (version, before): (Option<u64>, Option<&Value>),
    turn: Turn,
    payload: &[u8],
) -> Result<(JobId, Outcome), EnqueueError> {
    let (unique, new, place) = (call.unique, call.new, &call.queue.name);
    let until = unique.until();
    let mut value = Value {
        ticket: crate::identity::new(),
        until,
        place: place.to_string(),
        number: None,
        turn: match until {
            Until::Turn => turn,
            Until::End | Until::Period => Turn::default(),
        },
    };
    let header = header_of(value.ticket, unique);
    let mut headers = new.headers.to_vec();
    headers.push((header::UNIQUE, header.as_bytes()));
    let due = match unique.debounce {
        None => new.due,
        Some(_) => value.turn.due.map_or(Due::Now, Due::At),
    };
    let new = NewJob {
        headers: &headers,
        payload,
        due,
        ..*new
    };
    let keep = unique.period.map_or(Keep::Forever, Keep::For);
    let pending = value.to_bytes();
    let mut changes = Changes {
        jobs: vec![(&**place, new)],
        keys: vec![
            KeyChange::Expect(key, version),
            KeyChange::Put(key, &pending, keep),
        ],
        sync: new.sync,
    };
    let marker = keys::of_kept(key);
    if before.is_some_and(|before| before.turn.kept.is_some()) {
        changes.keys.push(KeyChange::Remove(&marker));
    }
    // One that runs and comes back finds its arguments there.
    let running = before.filter(|before| mill.inner.tickets.is_running(before.ticket));
    let instead = running.and_then(|before| {
        let bytes = before.turn.instead.as_ref()?.to_bytes();
        Some((keys::of_letter(before.ticket), bytes))
    });
    if let Some((letter, bytes)) = &instead {
        changes
            .keys
            .push(KeyChange::Put(letter, bytes, Keep::Forever));
    }
    let numbers = match mill.inner.commit(&changes) {
        // It may be there, and nobody says under which number.
        Err(error @ BackendError::NotDurable(_)) => {
            mill.inner.tickets.is_late(place);
            return Err(error.into());
        }
        committed => committed?,
    };
    let Some(number) = numbers.first().copied().flatten() else {
        mill.inner.tickets.is_late(place);
        let why = "it enters its queue once the disk has room";
        return Err(BackendError::NotDurable(why.into()).into());
    };
    // What this process knows by itself, others would have to look for.
    if until == Until::Period || (until == Until::End && mill.is_shared()) {
        value.number = Some(number);
        note(mill, key, &value, keep);
    }
    if until != Until::Period && !mill.is_shared() {
        mill.inner.tickets.note(value.ticket, number);
        if let Some(before) = before
            && !mill.inner.tickets.is_running(before.ticket)
        {
            // It has ended without being forgotten, or will be at its end.
            mill.inner.tickets.forget(before.ticket);
        }
    }
    Ok((JobId::new(place.clone(), number), Outcome::New))
}

fn header_of(ticket: Ticket, unique: &Unique) -> String {
    let header = Header {
        ticket,
        until: unique.until(),
        key: &unique.key,
    };
    header.to_text()
}

/// Notes the number of the job that has a key, which outlasts the job, unless another one has it by
/// now. If that fails, the job is looked for when it is needed.
fn note(mill: &Mill, key: &[u8], value: &Value, keep: Keep) {
    let bytes = value.to_bytes();
    let noted = mill.inner.backend.get(key).and_then(|current| {
        let has_ticket = |bytes: &[u8]| {
            Value::parse(bytes).is_some_and(|current| current.ticket == value.ticket)
        };
        let Some(current) = current.filter(|current| has_ticket(&current.value)) else {
            return Ok(());
        };
        let changes = Changes {
            keys: vec![
                KeyChange::Expect(key, Some(current.version)),
                KeyChange::Put(key, &bytes, keep),
            ],
            ..Changes::default()
        };
        mill.inner.backend.commit(&changes).map(|_| ())
    });
    if let Err(error) = noted {
        tracing::warn!(%error, "the number of a unique job could not be noted");
    }
}

/// The job of a call as it is kept in the value of its key.
fn stored(call: &Call<'_>, kind: &str, payload: &[u8]) -> Stored {
    let headers = call.new.headers.iter();
    let mut headers: Vec<_> = headers
        .map(|(key, value)| ((*key).to_owned(), value.to_vec()))
        .collect();
    // Its ticket is another one by the time it is enqueued.
    let header = header_of(0, call.unique);
    headers.push((header::UNIQUE.to_owned(), header.into_bytes()));
    Stored {
        job: PreparedJob {
            place: call.queue.name.to_string(),
            kind: kind.to_owned(),
            payload: payload.to_vec(),
            headers,
            due: Due::Now,
            // A header says when it expires.
            expires_after: None,
        },
    }
}

/// Changes with what the job runs that has a key, or what follows it.
fn change(
    mill: &Mill,
    call: &Call<'_>,
    key: &[u8],
    (version, mut value): (u64, Value),
    outcome: Outcome,
    stored: Stored,
    now: SystemTime,
) -> Result<(), EnqueueError> {
    let turn = &mut value.turn;
    let is_kept = outcome == Outcome::Kept;
    let first = match (is_kept, &turn.kept) {
        (false, _) => turn.first,
        (true, Some(kept)) => kept.first,
        (true, None) => None,
    };
    let first = first.unwrap_or(now);
    let (due, first) = match call.unique.debounce {
        Some(debounce) => (debounce.due(now, first), Some(first)),
        None => (time_of(call.new.due, now), None),
    };
    if is_kept {
        turn.kept = Some(Kept { stored, due, first });
    } else {
        turn.instead = Some(stored);
        // A worker may have come to the job meanwhile and have put it off until the time that it had.
        turn.due = turn.due.max(due);
        turn.first = first;
    }
    let bytes = value.to_bytes();
    let marker = keys::of_kept(key);
    let mut changes = Changes {
        keys: vec![
            KeyChange::Expect(key, Some(version)),
            KeyChange::Put(key, &bytes, Keep::Forever),
        ],
        sync: call.new.sync,
        ..Changes::default()
    };
    if is_kept {
        changes
            .keys
            .push(KeyChange::Put(&marker, key, Keep::Forever));
    }
    mill.inner.backend.commit(&changes)?;
    Ok(())
}

/// Finds who has a key. Under its lock.
pub(super) fn look_up(mill: &Mill, key: &[u8]) -> Result<Found, BackendError> {
    let Some(current) = mill.inner.backend.get(key)? else {
        return Ok(Found::Nobody);
    };
    let version = current.version;
    let Some(value) = Value::parse(&current.value) else {
        return Ok(Found::Gone {
            value: None,
            version,
        });
    };
    // One that was leading has ended, and its key is kept.
    let is_quiet = value.turn.quiet_until.is_some() && !value.turn.is_leading;
    let queue = match is_quiet {
        true => None,
        false => mill.inner.existing_queue(&value.place)?,
    };
    let number = match queue {
        None => None,
        Some(queue) => match value.number {
            Some(number) if value.until == Until::Period => Some(number),
            number => {
                let number = match number {
                    Some(number) => Some(number),
                    None if mill.is_shared() => Tickets::find(value.ticket, &queue)?,
                    None => mill.inner.tickets.number(value.ticket, &queue)?,
                };
                match number {
                    Some(number) if value.until == Until::Period => Some(number),
                    Some(number) if queue.queue.contains(number)? => Some(number),
                    _ => None,
                }
            }
        },
    };
    Ok(match number {
        Some(number) => Found::Job {
            number,
            value,
            version,
        },
        None => Found::Gone {
            value: Some(value),
            version,
        },
    })
}
