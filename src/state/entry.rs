//! The records of the state log: jobs that a transaction enqueues, and values of keys.
//!
//! They are records like those of any log. Fields of their metadata say what they are.

use crate::log::headers::headers_of;
use crate::log::meta::{
    Elsewhere, JobOptions, MAX_META_BYTES, Meta, MetaBytes, TAG_KEY, TAG_QUEUE, TAG_REMOVED, field,
    put,
};
use crate::log::record::NewRecord;
use crate::log::records::Record;
use crate::{Sequence, Timestamp};

/// Most bytes of a key.
pub(crate) const MAX_KEY_BYTES: usize = 1024;

/// A job that a transaction enqueues.
#[derive(Clone, Debug)]
pub(crate) struct NewJob {
    /// The id of the queue that it is for.
    pub(crate) queue: u64,
    pub(crate) enqueued_at: Timestamp,
    pub(crate) due_at: Timestamp,
    pub(crate) name: Vec<u8>,
    pub(crate) options: JobOptions,
    /// Its headers, encoded.
    pub(crate) headers: Vec<u8>,
    pub(crate) payload: Vec<u8>,
}

/// The job that a transaction completes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Completes {
    pub(crate) job: Elsewhere,
    /// The entry that the job came from, if that may not be durable yet: a power cut may leave the
    /// entry and not the job.
    pub(crate) origin: Option<Sequence>,
    /// The record of its queue that the job was moved or replayed from, if the job may not be
    /// durable yet: a power cut may leave that record and not the job.
    pub(crate) before: Option<Elsewhere>,
}

impl Completes {
    /// The metadata of the records that name it.
    pub(super) fn metas(self) -> impl Iterator<Item = MetaBytes> {
        let names = [(Some(self.job), self.origin), (self.before, None)];
        names.into_iter().filter_map(|(named, settles)| {
            let meta = Meta {
                settles,
                settles_elsewhere: Some(named?),
                ..Meta::default()
            };
            Some(meta.encode(&[], MAX_META_BYTES))
        })
    }
}

/// What a transaction does to a key.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    Put {
        value: Vec<u8>,
        expires_at: Option<Timestamp>,
    },
    Remove,
}

/// What a record of the state log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry<'a> {
    /// A job for the queue with this id.
    Job { queue: u64 },
    /// The value of a key is the record's payload.
    Value { key: &'a [u8] },
    /// The key is removed.
    Removal { key: &'a [u8] },
    /// It names the job that a transaction completes.
    Completion,
    /// Nothing that this version knows.
    Unknown,
}

impl<'a> Entry<'a> {
    pub(crate) fn of(record: &Record<'a>) -> Self {
        Self::of_meta(record.meta())
    }

    /// What a record with this metadata is.
    pub(crate) fn of_meta(meta: &'a [u8]) -> Self {
        let queue = field(meta, TAG_QUEUE).and_then(|queue| queue.try_into().ok());
        if let Some(queue) = queue {
            return Self::Job {
                queue: u64::from_le_bytes(queue),
            };
        }
        match field(meta, TAG_KEY) {
            Some(key) if field(meta, TAG_REMOVED).is_some() => Self::Removal { key },
            Some(key) => Self::Value { key },
            None if Meta::decode(meta).settles_elsewhere.is_some() => Self::Completion,
            None => Self::Unknown,
        }
    }
}

impl NewJob {
    /// The metadata of its record in the state log.
    pub(super) fn meta_of_entry(&self) -> MetaBytes {
        let mut bytes = MetaBytes::new();
        put(&mut bytes, TAG_QUEUE, &self.queue.to_le_bytes());
        let meta = Meta {
            options: self.options,
            ..Meta::default()
        };
        bytes.extend_from_slice(&meta.encode(&self.headers, MAX_META_BYTES));
        bytes
    }

    /// The metadata of its record in its queue, which names the one in the state log.
    pub(crate) fn meta_in_queue(&self, entry: Elsewhere) -> MetaBytes {
        meta_in_queue(self.options, &self.headers, entry)
    }

    pub(crate) fn record<'a>(&'a self, meta: &'a [u8]) -> NewRecord<'a> {
        NewRecord {
            enqueued_at: self.enqueued_at,
            due_at: self.due_at,
            name: &self.name,
            meta,
            payload: &self.payload,
        }
    }
}

/// The metadata that a job of the state log has in its queue.
pub(super) fn meta_of_forwarded(record: &Record<'_>, entry: Elsewhere) -> MetaBytes {
    let options = Meta::decode(record.meta()).options;
    meta_in_queue(options, headers_of(record.meta()), entry)
}

fn meta_in_queue(options: JobOptions, headers: &[u8], entry: Elsewhere) -> MetaBytes {
    let meta = Meta {
        options,
        settles_elsewhere: Some(entry),
        ..Meta::default()
    };
    meta.encode(headers, MAX_META_BYTES)
}

/// The metadata of the record of a key. `meta` says what the record settles, and when the value
/// expires.
pub(super) fn meta_of_key(key: &[u8], is_removed: bool, meta: &Meta) -> MetaBytes {
    let mut bytes = MetaBytes::new();
    put(&mut bytes, TAG_KEY, key);
    if is_removed {
        put(&mut bytes, TAG_REMOVED, &[]);
    }
    bytes.extend_from_slice(&meta.encode(&[], MAX_META_BYTES));
    bytes
}

/// When the value in a record expires.
pub(super) fn expiry_of(record: &Record<'_>) -> Option<Timestamp> {
    Meta::decode(record.meta()).options.expires_at
}
