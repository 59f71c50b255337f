//! A worker comes to a job that is a turn: the value of its key says with what it runs, and when.

use std::ops::DerefMut;
use std::time::Duration;

use super::tickets::Running;
use super::value::{Header, Stored, Until, Value};
use crate::JobId;
use crate::backend::{BackendError, Changes, Claim, Held, Settlement, forward_claim};
use crate::enqueue::header;
use crate::keys;
use crate::locks::Locked;
use crate::mill::Mill;
use crate::prepared::PreparedJob;

/// A job whose key could not be read is looked at again after this time.
const AGAIN: Duration = Duration::from_secs(1);

/// What became of a job that a worker came to.
pub(crate) enum Began {
    /// It runs as it is.
    AsItIs,
    /// It runs, and this is to live as long as its attempt.
    InTurn(InTurn),
    /// It is not its time.
    GivenBack,
}

/// What an attempt runs with.
pub(crate) struct InTurn {
    instead: Option<PreparedJob>,
    /// None for one that has no key any more.
    _running: Option<Running>,
}

/// Whether a job is a turn.
#[inline]
pub(crate) fn is_turn(claim: &dyn Claim) -> bool {
    let header = claim.header(header::UNIQUE).and_then(Header::parse);
    header.is_some_and(|header| header.until == Until::Turn)
}

/// Begins an attempt at a job that is a turn, or gives the job back.
pub(crate) fn begin(mill: &Mill, id: &JobId, claim: &mut dyn Claim) -> Began {
    match try_begin(mill, id, claim) {
        Ok(Turns::Runs(began)) => began,
        Ok(Turns::Early(after)) => {
            give_back(id, claim, after);
            Began::GivenBack
        }
        Err(error) => {
            tracing::warn!(%id, %error, "the key of a job could not be read");
            give_back(id, claim, AGAIN);
            Began::GivenBack
        }
    }
}

fn give_back(id: &JobId, claim: &mut dyn Claim, after: Duration) {
    if let Err(error) = claim.settle(Settlement::Snooze { after }) {
        tracing::warn!(%id, %error, "a job could not be given back");
    }
}

enum Turns {
    Runs(Began),
    Early(Duration),
}

fn try_begin(mill: &Mill, id: &JobId, claim: &dyn Claim) -> Result<Turns, BackendError> {
    let header = claim.header(header::UNIQUE).and_then(Header::parse);
    let Some(header) = header.filter(|header| header.until == Until::Turn) else {
        return Ok(Turns::Runs(Began::AsItIs));
    };
    let inner = &mill.inner;
    let key = keys::of_unique(claim.kind(), header.key);
    let _lock = inner.unique_locks.lock(&key)?;
    let current = inner.backend.get(&key)?;
    let value = current.and_then(|current| Value::parse(&current.value));
    let Some(value) = value.filter(|value| value.ticket == header.ticket) else {
        // One that was replayed, or whose key another one took while it ran.
        let kept = inner.backend.get(&keys::of_letter(header.ticket))?;
        let kept = kept.and_then(|kept| Stored::parse(&kept.value));
        return Ok(Turns::Runs(Began::InTurn(InTurn {
            instead: kept.map(|stored| stored.job),
            _running: None,
        })));
    };
    let due = value.turn.due;
    let early = due.and_then(|due| due.duration_since(inner.clock.wall()).ok());
    if let Some(early) = early.filter(|early| !early.is_zero()) {
        return Ok(Turns::Early(early));
    }
    inner.tickets.note(header.ticket, id.number());
    Ok(Turns::Runs(Began::InTurn(InTurn {
        instead: value.turn.instead.map(|stored| stored.job),
        _running: Some(inner.tickets.begin(header.ticket)),
    })))
}

/// Headers that a job with replaced arguments keeps.
const OF_RECORD: [&str; 4] = [header::UNIQUE, header::KEY, header::ORDER, header::MOVED];

impl InTurn {
    /// The job as its attempt sees it.
    pub(crate) fn of(self, claim: &mut dyn Claim) -> ClaimInTurn<&mut dyn Claim> {
        ClaimInTurn { turn: self, claim }
    }
}

/// A job that runs with what the value of its key says.
pub(crate) struct ClaimInTurn<C> {
    claim: C,
    turn: InTurn,
}

impl<C> Claim for ClaimInTurn<C>
where
    C: DerefMut,
    C::Target: Claim,
{
    forward_claim!(claim: queue number kind attempt crashes);
    forward_claim!(claim: enqueued_at due_at is_cancelled lease);

    fn payload(&self) -> &[u8] {
        let instead = self.turn.instead.as_ref();
        instead.map_or_else(|| self.claim.payload(), |job| &job.payload)
    }

    fn header(&self, key: &str) -> Option<&[u8]> {
        match &self.turn.instead {
            // Those that belong to the record are its own, and the key, by which limits look for it.
            Some(job) if !OF_RECORD.contains(&key) => {
                let found = job.headers.iter().find(|(name, _)| name == key);
                found.map(|(_, value)| &**value)
            }
            _ => self.claim.header(key),
        }
    }

    fn settle(&mut self, settlement: Settlement<'_>) -> Result<Vec<Option<u64>>, BackendError> {
        self.claim.settle(settlement)
    }

    fn hold(&mut self) -> Option<Box<dyn Held>> {
        self.claim.hold()
    }

    fn detach(&mut self) -> Option<Box<dyn Claim + Send>> {
        let claim = self.claim.detach()?;
        let nothing = InTurn {
            instead: None,
            _running: None,
        };
        Some(Box::new(ClaimInTurn {
            claim,
            turn: std::mem::replace(&mut self.turn, nothing),
        }))
    }
}

/// What an edit changes under the key of the job that it moves. See [`crate::edit`].
pub(crate) struct Moving<'a> {
    _lock: Locked<'a>,
    mill: &'a Mill,
    key: Vec<u8>,
    version: u64,
    value: Vec<u8>,
    ticket: u64,
}

/// Finds the key of a job that moves to another place, or gets other arguments or another time, if it
/// has one. The job's new record has the same header.
pub(crate) fn moving<'a>(
    mill: &'a Mill,
    kind: &str,
    header: Option<&[u8]>,
    to: &str,
    (has_new_arguments, has_new_time): (bool, bool),
    expires: Option<&[u8]>,
) -> Result<Option<Moving<'a>>, BackendError> {
    let Some(header) = header.and_then(Header::parse) else {
        return Ok(None);
    };
    let key = keys::of_unique(kind, header.key);
    // After that of edits.
    let lock = mill.inner.unique_locks.lock_after(1, &key)?;
    let Some(current) = mill.inner.backend.get(&key)? else {
        return Ok(None);
    };
    let value = Value::parse(&current.value).filter(|value| value.ticket == header.ticket);
    let Some(mut value) = value.filter(|value| value.until != Until::Period) else {
        return Ok(None);
    };
    value.place = to.to_owned();
    value.number = None;
    if has_new_arguments {
        value.turn.instead = None;
    }
    if let (Some(expires), Some(stored)) = (expires, &mut value.turn.instead) {
        let headers = &mut stored.job.headers;
        headers.retain(|(key, _)| key != header::EXPIRES);
        headers.push((header::EXPIRES.to_owned(), expires.to_vec()));
    }
    if has_new_time {
        value.turn.due = None;
    }
    Ok(Some(Moving {
        _lock: lock,
        mill,
        key,
        version: current.version,
        value: value.to_bytes(),
        ticket: header.ticket,
    }))
}

impl Moving<'_> {
    pub(crate) fn add_to<'b>(&'b self, changes: &mut Changes<'b>) {
        use crate::backend::{Keep, KeyChange};
        let keys = &mut changes.keys;
        keys.push(KeyChange::Expect(&self.key, Some(self.version)));
        keys.push(KeyChange::Put(&self.key, &self.value, Keep::Forever));
    }

    pub(crate) fn done(self, number: Option<u64>) {
        if let Some(number) = number {
            self.mill.inner.tickets.note(self.ticket, number);
        }
    }
}
