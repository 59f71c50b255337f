//! What the value of a unique key says, and the header of the job that has it.

use std::time::{Duration, SystemTime};

use crate::prepared::PreparedJob;

/// How long a job has its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Until {
    /// Until it has ended.
    End,
    /// For a period, whether it has ended or not.
    Period,
    /// Until it has ended, and the key's value says with which arguments it runs, when, and what
    /// runs after it: the job in the queue is the turn for that.
    Turn,
}

impl Until {
    fn name(self) -> &'static str {
        match self {
            Self::End => "end",
            Self::Period => "period",
            Self::Turn => "turn",
        }
    }

    fn parse(name: &str) -> Option<Self> {
        [Self::End, Self::Period, Self::Turn]
            .into_iter()
            .find(|until| until.name() == name)
    }
}

/// What a job and the value of its key have in common; random for each enqueue.
pub(super) type Ticket = u64;

/// The header of a job with a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header<'a> {
    pub(super) ticket: Ticket,
    pub(super) until: Until,
    pub(super) key: &'a str,
}

impl<'a> Header<'a> {
    pub(super) fn to_text(self) -> String {
        text_of(self.ticket, self.until, self.key)
    }

    pub(super) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let (ticket, rest) = text.split_once(' ')?;
        let (until, key) = rest.split_once(' ')?;
        Some(Self {
            ticket: Ticket::from_str_radix(ticket, 16).ok()?,
            until: Until::parse(until)?,
            key,
        })
    }
}

/// What the value of a key says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Value {
    pub(super) ticket: Ticket,
    pub(super) until: Until,
    /// The backend's queue of the job.
    pub(super) place: String,
    /// The number of the job, if it is noted.
    pub(super) number: Option<u64>,
    pub(super) turn: Turn,
}

/// What a job with a key runs with, and what follows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Turn {
    /// It runs at once and with its own arguments; calls since then make one that follows it.
    pub(super) is_leading: bool,
    /// Until when calls follow a leading job that has ended.
    pub(super) quiet_until: Option<SystemTime>,
    /// Not before this time, if that is later than the job's own.
    pub(super) due: Option<SystemTime>,
    /// When the first of the calls was that have put it off.
    pub(super) first: Option<SystemTime>,
    /// With these arguments instead of its own.
    pub(super) instead: Option<Stored>,
    /// To be enqueued when it has ended.
    pub(super) kept: Option<Kept>,
}

/// A job as it was to be enqueued. Its header [`UNIQUE`](crate::enqueue::header::UNIQUE) names no
/// ticket yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) job: PreparedJob,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) stored: Stored,
    pub(super) due: Option<SystemTime>,
    pub(super) first: Option<SystemTime>,
}

/// A ticket in sixteen digits, and two texts. By hand, as `format!` took a twentieth of an enqueue.
fn text_of(ticket: Ticket, until: Until, rest: &str) -> String {
    let until = until.name();
    let mut text = String::with_capacity(16 + 1 + until.len() + 1 + rest.len());
    let digits = (0..16).rev().map(|digit| ticket >> (4 * digit) & 0xf);
    text.extend(digits.filter_map(|digit| char::from_digit(digit as u32, 16)));
    for part in [until, rest] {
        text.push(' ');
        text.push_str(part);
    }
    text
}

impl Value {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let Self {
            ticket,
            until,
            place,
            number,
            turn,
        } = self;
        let mut bytes = text_of(*ticket, *until, place).into_bytes();
        if let Some(number) = number {
            bytes.extend_from_slice(format!(" {number}").as_bytes());
        }
        if *turn != Turn::default() {
            // No number is noted beside it.
            bytes.extend_from_slice(b" t");
            turn.write(&mut bytes);
        }
        bytes
    }

    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let mut parts = bytes.splitn(4, |byte| *byte == b' ');
        let mut text = || std::str::from_utf8(parts.next()?).ok();
        let (ticket, until, place) = (text()?, text()?, text()?);
        let (number, turn) = match parts.next() {
            None => (None, Turn::default()),
            Some(rest) => match rest.strip_prefix(b"t") {
                Some(rest) => (None, Turn::read(rest)?),
                None => (
                    Some(std::str::from_utf8(rest).ok()?.parse().ok()?),
                    Turn::default(),
                ),
            },
        };
        Some(Self {
            ticket: Ticket::from_str_radix(ticket, 16).ok()?,
            until: Until::parse(until)?,
            place: place.to_owned(),
            number,
            turn,
        })
    }
}

impl Turn {
    fn write(&self, bytes: &mut Vec<u8>) {
        bytes.push(u8::from(self.is_leading));
        for time in [self.quiet_until, self.due, self.first] {
            write_time(time, bytes);
        }
        write_stored(self.instead.as_ref(), bytes);
        write_stored(self.kept.as_ref().map(|kept| &kept.stored), bytes);
        if let Some(kept) = &self.kept {
            write_time(kept.due, bytes);
            write_time(kept.first, bytes);
        }
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let (flags, mut rest) = bytes.split_first()?;
        let rest = &mut rest;
        let (quiet_until, due, first) = (read_time(rest)?, read_time(rest)?, read_time(rest)?);
        let (instead, kept) = (read_stored(rest)?, read_stored(rest)?);
        let kept = match kept {
            None => None,
            Some(stored) => Some(Kept {
                stored,
                due: read_time(rest)?,
                first: read_time(rest)?,
            }),
        };
        Some(Self {
            is_leading: *flags != 0,
            quiet_until,
            due,
            first,
            instead,
            kept,
        })
    }
}

/// A time in nanoseconds; zero for none.
fn write_time(time: Option<SystemTime>, bytes: &mut Vec<u8>) {
    let since = time.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
    let nanos = since.map_or(0, |since| {
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    });
    bytes.extend_from_slice(&nanos.to_le_bytes());
}

fn read_time(rest: &mut &[u8]) -> Option<Option<SystemTime>> {
    let (nanos, after) = rest.split_first_chunk::<8>()?;
    *rest = after;
    Some(match u64::from_le_bytes(*nanos) {
        0 => None,
        nanos => SystemTime::UNIX_EPOCH.checked_add(Duration::from_nanos(nanos)),
    })
}

fn write_stored(stored: Option<&Stored>, bytes: &mut Vec<u8>) {
    bytes.push(u8::from(stored.is_some()));
    if let Some(stored) = stored {
        let job = stored.job.to_bytes();
        // What is longer than this no backend takes.
        let len = u32::try_from(job.len()).unwrap_or(u32::MAX);
        bytes.extend_from_slice(&len.to_le_bytes());
        bytes.extend_from_slice(&job);
    }
}

fn read_stored(rest: &mut &[u8]) -> Option<Option<Stored>> {
    let (is_there, after) = rest.split_first()?;
    *rest = after;
    if *is_there == 0 {
        return Some(None);
    }
    let (len, after) = rest.split_first_chunk::<4>()?;
    let (job, after) = after.split_at_checked(usize::try_from(u32::from_le_bytes(*len)).ok()?)?;
    *rest = after;
    let job = PreparedJob::parse(job)?;
    Some(Some(Stored { job }))
}

impl Stored {
    /// The bytes under which it is kept by itself.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        write_stored(Some(self), &mut bytes);
        bytes
    }

    pub(super) fn parse(mut bytes: &[u8]) -> Option<Self> {
        read_stored(&mut bytes)?
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Due;

    fn stored(payload: &str) -> Stored {
        Stored {
            job: PreparedJob {
                place: "mail".to_owned(),
                kind: "digest".to_owned(),
                payload: payload.into(),
                headers: vec![("key".to_owned(), b"a b".to_vec())],
                due: Due::Now,
                expires_after: None,
            },
        }
    }

    fn values() -> Vec<Value> {
        let time = |secs| Some(SystemTime::UNIX_EPOCH + Duration::from_secs(secs));
        let plain = Value {
            ticket: 0xa7,
            until: Until::End,
            place: "mail.high".to_owned(),
            number: None,
            turn: Turn::default(),
        };
        let period = Value {
            until: Until::Period,
            number: Some(17),
            ..plain.clone()
        };
        let turn = Value {
            until: Until::Turn,
            turn: Turn {
                is_leading: true,
                quiet_until: time(1),
                due: time(2),
                first: None,
                instead: Some(stored("a t b")),
                kept: Some(Kept {
                    stored: stored(""),
                    due: time(3),
                    first: time(4),
                }),
            },
            ..plain.clone()
        };
        vec![plain, period, turn]
    }

    #[test]
    fn a_value_says_who_has_the_key() {
        for value in values() {
            assert_eq!(Value::parse(&value.to_bytes()), Some(value));
        }
        assert_eq!(Value::parse(b"7 end mail y"), None);
        let kept = stored("x");
        assert_eq!(Stored::parse(&kept.to_bytes()), Some(kept));
    }

    #[test]
    fn values_that_are_cut_off_or_changed_never_panic() {
        for value in values() {
            let bytes = value.to_bytes();
            for at in 0..bytes.len() {
                assert_ne!(Value::parse(&bytes[..at]), Some(value.clone()));
                let mut changed = bytes.clone();
                changed[at] ^= 0x80;
                let _ = Value::parse(&changed);
            }
        }
    }

    #[test]
    fn a_header_says_which_key_a_job_has() {
        for until in [Until::End, Until::Period, Until::Turn] {
            let header = Header {
                ticket: 0xa,
                until,
                key: "Ada Lovelace",
            };
            assert_eq!(Header::parse(header.to_text().as_bytes()), Some(header));
        }
        assert_eq!(Header::parse(b"0a never Ada"), None);
    }
}
