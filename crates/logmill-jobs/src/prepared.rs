//! A job that is encoded and not enqueued yet: it follows from another job, is stored as a part of
//! something, or is enqueued again and again.

use std::time::{Duration, SystemTime};

use crate::backend::{Due, NewJob};
use crate::enqueue::header;
use crate::expiry;
use crate::fields::{self, take, take_text, take_u64};
use crate::mill::Mill;

/// An encoded job with its options, as a value of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PreparedJob {
    /// The backend's queue.
    pub(crate) place: String,
    pub(crate) kind: String,
    pub(crate) payload: Vec<u8>,
    pub(crate) headers: Vec<(String, Vec<u8>)>,
    pub(crate) due: Due,
    /// From the moment in which it is enqueued.
    pub(crate) expires_after: Option<Duration>,
}

impl PreparedJob {
    /// The headers as a backend takes them.
    pub(crate) fn headers(&self) -> Vec<(&str, &[u8])> {
        let headers = self.headers.iter();
        headers.map(|(key, value)| (&**key, &**value)).collect()
    }

    /// Has it expire from now on, as it is about to be enqueued.
    pub(crate) fn stamp(&mut self, mill: &Mill) {
        if let Some(expires) = expiry::header_of(mill, self.expires_after.take()) {
            self.headers
                .push((header::EXPIRES.to_owned(), expires.to_vec()));
        }
    }

    /// The job as a backend takes it, with these headers. It is to be [stamped](Self::stamp).
    pub(crate) fn new_job<'a>(&'a self, headers: &'a [(&'a str, &'a [u8])]) -> NewJob<'a> {
        debug_assert_eq!(self.expires_after, None);
        NewJob {
            kind: &self.kind,
            payload: &self.payload,
            headers,
            due: self.due,
            sync: false,
        }
    }

    /// The bytes under which it is stored: the format's version, then each field with its length.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        let mut add = |field: &[u8]| fields::add(&mut bytes, field);
        add(self.place.as_bytes());
        add(self.kind.as_bytes());
        add(&self.payload);
        let (tag, due) = match self.due {
            Due::Now => (0, Duration::ZERO),
            Due::After(delay) => (1, delay),
            // Times before the epoch have passed, as the epoch has.
            Due::At(time) => (
                2,
                time.duration_since(SystemTime::UNIX_EPOCH)
                    .unwrap_or_default(),
            ),
        };
        add(&[tag]);
        add(&nanos(due).to_le_bytes());
        add(&self.expires_after.map_or(u64::MAX, nanos).to_le_bytes());
        for (key, value) in &self.headers {
            add(key.as_bytes());
            add(value);
        }
        bytes
    }

    /// Reads what [`to_bytes`](Self::to_bytes) made; None for anything else.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes.strip_prefix(&[VERSION])?;
        let (place, kind) = (take_text(&mut rest)?, take_text(&mut rest)?);
        let payload = take(&mut rest)?.to_vec();
        let tag = take(&mut rest)?;
        let due = Duration::from_nanos(take_u64(&mut rest)?);
        let due = match tag {
            [0] => Due::Now,
            [1] => Due::After(due),
            [2] => Due::At(SystemTime::UNIX_EPOCH.checked_add(due)?),
            _ => return None,
        };
        let expires_after = match take_u64(&mut rest)? {
            u64::MAX => None,
            nanos => Some(Duration::from_nanos(nanos)),
        };
        let mut headers = Vec::new();
        while !rest.is_empty() {
            headers.push((take_text(&mut rest)?, take(&mut rest)?.to_vec()));
        }
        Some(Self {
            place,
            kind,
            payload,
            headers,
            due,
            expires_after,
        })
    }
}

const VERSION: u8 = 1;

/// The nanoseconds of a duration, at most those of 584 years.
fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(due: Due, expires_after: Option<Duration>) -> PreparedJob {
        PreparedJob {
            place: "mail.high".to_owned(),
            kind: "welcome".to_owned(),
            payload: b"{}".to_vec(),
            headers: vec![("key".to_owned(), b"tenant".to_vec())],
            due,
            expires_after,
        }
    }

    #[test]
    fn a_prepared_job_is_parsed_as_it_was_made() {
        let second = Duration::from_secs(1);
        let dues = [
            Due::Now,
            Due::After(second),
            Due::At(SystemTime::UNIX_EPOCH + second),
        ];
        for due in dues {
            for expires_after in [None, Some(second)] {
                let job = job(due, expires_after);
                assert_eq!(PreparedJob::parse(&job.to_bytes()), Some(job));
            }
        }
    }

    #[test]
    fn bytes_that_are_cut_off_or_changed_are_refused_or_parsed_and_never_panic() {
        let bytes = job(Due::Now, None).to_bytes();
        // Without its only header, the job is whole.
        let whole = bytes.len() - (4 + 3 + 4 + 6);
        for len in 0..bytes.len() {
            let parsed = PreparedJob::parse(&bytes[..len]);
            assert_eq!(parsed.is_some(), len == whole, "{len}");
        }
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0x80;
            let _ = PreparedJob::parse(&changed);
        }
    }
}
