//! A worker comes to a job that is a turn: the value of its key says with what it runs, and when.

use std::ops::DerefMut;
use std::time::Duration;

use super::tickets::Running;
use super::value::{Header, Stored, Ticket, Until, Value};
use crate::JobId;
use crate::backend::{
    BackendError, Changes, Claim, Held, Keep, KeyChange, Settlement, forward_claim,
};
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

/// What an edit changes of what is stored beside the job that it moves. See [`crate::edit`].
pub(crate) struct Moving<'a> {
    _lock: Locked<'a>,
    mill: &'a Mill,
    key: Vec<u8>,
    version: u64,
    value: Vec<u8>,
    /// If the job has its key.
    ticket: Option<Ticket>,
}

/// What an edit changes of a job.
pub(crate) struct Edited<'a> {
    /// Its backend's queue.
    pub(crate) to: &'a str,
    pub(crate) arguments: Option<&'a [u8]>,
    /// How new arguments are encoded.
    pub(crate) codec: Option<&'a [u8]>,
    pub(crate) expires: Option<&'a [u8; 8]>,
    pub(crate) has_new_time: bool,
}

impl Edited<'_> {
    /// Changes what replaces the arguments and the options of the job's record.
    fn apply(&self, stored: &mut Stored) {
        let job = &mut stored.job;
        let mut set = |key: &str, value: Option<&[u8]>| {
            job.headers.retain(|(name, _)| name != key);
            job.headers
                .extend(value.map(|value| (key.to_owned(), value.to_vec())));
        };
        if self.arguments.is_some() {
            set(header::CODEC, self.codec);
        }
        if let Some(expires) = self.expires {
            set(header::EXPIRES, Some(expires));
        }
        if let Some(arguments) = self.arguments {
            job.payload = arguments.to_vec();
        }
    }
}

/// Finds what is stored beside a job that is edited: the value of its key, or the arguments with which it
/// runs without one. The job's new record has the same header.
pub(crate) fn moving<'a>(
    mill: &'a Mill,
    kind: &str,
    header: Option<&[u8]>,
    edited: &Edited<'_>,
) -> Result<Option<Moving<'a>>, BackendError> {
    let header = header.and_then(Header::parse);
    let Some(header) = header.filter(|header| header.until != Until::Period) else {
        return Ok(None);
    };
    let key = keys::of_unique(kind, header.key);
    // After that of edits.
    let lock = mill.inner.unique_locks.lock_after(1, &key)?;
    let moving = |key, version, value, ticket| Moving {
        _lock: lock,
        mill,
        key,
        version,
        value,
        ticket,
    };
    if let Some(current) = mill.inner.backend.get(&key)?
        && let Some(mut value) = Value::parse(&current.value)
        && value.ticket == header.ticket
    {
        value.place = edited.to.to_owned();
        value.number = None;
        if let Some(stored) = &mut value.turn.instead {
            edited.apply(stored);
        }
        if edited.has_new_time {
            value.turn.due = None;
        }
        let ticket = Some(header.ticket);
        return Ok(Some(moving(key, current.version, value.to_bytes(), ticket)));
    }
    // One that was replayed, or whose key another one has taken.
    let letter = keys::of_letter(header.ticket);
    let Some(current) = mill.inner.backend.get(&letter)? else {
        return Ok(None);
    };
    let Some(mut stored) = Stored::parse(&current.value) else {
        return Ok(None);
    };
    edited.apply(&mut stored);
    Ok(Some(moving(
        letter,
        current.version,
        stored.to_bytes(),
        None,
    )))
}

impl Moving<'_> {
    pub(crate) fn add_to<'b>(&'b self, changes: &mut Changes<'b>) {
        let keys = &mut changes.keys;
        keys.push(KeyChange::Expect(&self.key, Some(self.version)));
        keys.push(KeyChange::Put(&self.key, &self.value, Keep::Forever));
    }

    pub(crate) fn done(self, number: Option<u64>) {
        if let (Some(ticket), Some(number)) = (self.ticket, number) {
            self.mill.inner.tickets.note(ticket, number);
        }
    }
}
