//! A walk over the segments of logs, from outside.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use crate::engine::home::directory_of_log;
use crate::log::ack::Deliveries;
use crate::log::headers::headers_of;
use crate::log::lookup::FoundJob;
use crate::log::meta::{Meta, has_engine_fields};
use crate::log::record::Header;
use crate::log::snapshot::{LogFiles, Snapshot};
use crate::log::{DEAD_ORIGIN, record};
use crate::storage::Directory;
use crate::{Sequence, StorageError, Timestamp};

/// How often the directory of a log is listed, to find what compaction has moved meanwhile to
/// segments that were not there before.
pub(super) const LISTINGS: u32 = 64;

/// A queue's directory, and what it has.
#[derive(Clone)]
pub(super) struct Files {
    pub(super) queue: Arc<Directory>,
    pub(super) stripes: u32,
    pub(super) segment_size: u64,
}

/// A log of the queue: a stripe, or without a number the dead letter log.
pub(super) type LogNumber = Option<u32>;

impl Files {
    pub(super) fn stripes(&self) -> impl Iterator<Item = LogNumber> + use<> {
        (0..self.stripes).map(Some)
    }

    /// The files of a log; None if its directory is not there.
    pub(super) fn log(&self, number: LogNumber) -> Result<Option<LogFiles>, StorageError> {
        // A manifest has at most 64 stripes.
        let origin = number.map_or(DEAD_ORIGIN, |number| {
            Sequence::first_of_stripe(number as u8)
        });
        let directory = directory_of_log(&self.queue, number)?;
        Ok(directory.map(|directory| LogFiles::new(directory, origin, self.segment_size)))
    }

    /// What records in these logs settle. They name it until it is durably marked as done, and so
    /// does an open take it, whatever the marks say. Adds what could not be read to `errors`.
    pub(super) fn settled(
        &self,
        logs: impl Iterator<Item = LogNumber>,
        errors: &mut VecDeque<Arc<StorageError>>,
    ) -> BTreeSet<Sequence> {
        let mut settled = BTreeSet::new();
        for number in logs {
            let log = self.log(number).transpose();
            let log = log.map(|log| log.and_then(|log| Ok((log.bases(None)?, log))));
            let (bases, log) = match log {
                Some(Ok(found)) => found,
                Some(Err(error)) => {
                    errors.push_back(Arc::new(error));
                    continue;
                }
                None => continue,
            };
            for base in bases {
                match log.settles(base) {
                    Ok(names) => settled.extend(names),
                    Err(error) => errors.push_back(Arc::new(error)),
                }
            }
        }
        settled
    }
}

/// A record that was not done when its segment was read, copied.
pub(super) struct Found {
    pub(super) sequence: Sequence,
    pub(super) enqueued_at: Timestamp,
    pub(super) due_at: Timestamp,
    pub(super) name: Vec<u8>,
    /// The job's headers, encoded.
    pub(super) headers: Vec<u8>,
    pub(super) meta: Meta,
    pub(super) payload: Vec<u8>,
    pub(super) deliveries: Deliveries,
}

impl Found {
    fn copy(
        sequence: Sequence,
        header: &Header,
        content: &record::Content<'_>,
        deliveries: Deliveries,
    ) -> Self {
        let meta = content.meta;
        Self {
            sequence,
            enqueued_at: header.enqueued_at,
            due_at: header.due_at,
            name: content.name.to_vec(),
            headers: headers_of(meta).to_vec(),
            meta: match has_engine_fields(meta) {
                true => Meta::decode(meta),
                false => Meta::default(),
            },
            payload: content.payload.to_vec(),
            deliveries,
        }
    }

    /// A job that was found in the log of a queue that is open.
    pub(super) fn of_job(found: &FoundJob) -> Self {
        let record = found.record();
        let (header, content) = (record.header(), record.content());
        Self::copy(found.sequence(), header, &content, found.deliveries())
    }

    /// The sequence that the job was first enqueued under.
    pub(super) fn job(&self) -> Sequence {
        self.meta.original.unwrap_or(self.sequence)
    }
}

/// A walk over the records of some logs that are not done, with one segment in memory at a time.
pub(super) struct Walk {
    files: Files,
    /// The logs whose records may settle some of what is found.
    settlers: Vec<LogNumber>,
    /// What these records settle, once the walk has begun.
    settled: Option<BTreeSet<Sequence>>,
    errors: VecDeque<Arc<StorageError>>,
    /// The logs that are still to be walked.
    logs: VecDeque<LogNumber>,
    /// Only records from this place on are found in its log, and others in the logs after it.
    start: Option<Sequence>,
    log: Option<LogWalk>,
    segment: Option<(Snapshot, std::vec::IntoIter<u32>)>,
}

/// A walk over the segments of one log, oldest first.
///
/// Compaction moves jobs to the end of the log, so a walk in this order meets each of them, if it
/// also walks over the segments that are made meanwhile. These are as many as the owner makes, so
/// the walk ends where nothing can have been moved.
pub(super) struct LogWalk {
    files: LogFiles,
    bases: VecDeque<Sequence>,
    /// The first segment is the one that this place is in, or the next one.
    start: Option<Sequence>,
    last: Option<Sequence>,
    listings: u32,
    /// Whether some job may have been moved to a segment that is not listed yet.
    may_have_moved: bool,
}

impl LogWalk {
    pub(super) fn new(files: LogFiles, is_compacted: bool) -> Self {
        Self {
            files,
            bases: VecDeque::new(),
            start: None,
            last: None,
            listings: if is_compacted { 0 } else { LISTINGS - 1 },
            may_have_moved: true,
        }
    }

    pub(super) fn next_segment(&mut self) -> Option<Result<Snapshot, StorageError>> {
        loop {
            let Some(base) = self.bases.pop_front() else {
                if self.listings == LISTINGS || !self.may_have_moved {
                    return None;
                }
                // Jobs of segments that were there at the start may have been moved at any time.
                self.may_have_moved = self.listings == 0;
                self.listings += 1;
                match self.files.bases(self.last) {
                    Ok(bases) if bases.is_empty() => return None,
                    Ok(bases) => {
                        let is_past = |base: &Sequence| Some(*base) <= self.start;
                        let past = bases.iter().take_while(|base| is_past(base)).count();
                        self.bases.extend(&bases[past.saturating_sub(1)..]);
                    }
                    Err(error) => {
                        self.may_have_moved = false;
                        return Some(Err(error));
                    }
                }
                continue;
            };
            self.last = Some(base);
            match self.files.snapshot(base) {
                Ok(Some(snapshot)) => {
                    self.may_have_moved |= snapshot.has_moved_on;
                    return Some(Ok(snapshot));
                }
                Ok(None) => self.may_have_moved = true,
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

impl Walk {
    pub(super) fn new(files: Files, logs: Vec<LogNumber>, settlers: Vec<LogNumber>) -> Self {
        Self {
            files,
            settlers,
            settled: None,
            errors: VecDeque::new(),
            logs: logs.into(),
            start: None,
            log: None,
            segment: None,
        }
    }

    /// Walks over one stripe only.
    pub(super) fn of_stripe(mut self, stripe: u32) -> Self {
        self.logs.retain(|log| *log == Some(stripe));
        // A job is moved within its stripe, or to the dead letter log.
        self.settlers
            .retain(|log| log.is_none_or(|log| log == stripe));
        self
    }

    /// Begins at a place in a stripe.
    pub(super) fn starting_at(mut self, place: Sequence) -> Self {
        let stripe = u32::from(place.stripe());
        self.logs.retain(|log| log.is_none_or(|log| log >= stripe));
        self.start = Some(place);
        self
    }

    /// The next record of the segment in memory.
    fn next_found(&mut self) -> Option<Found> {
        let (snapshot, live) = self.segment.as_mut()?;
        let settled = self.settled.as_ref();
        for units in live {
            let Some(record) = snapshot.record(units) else {
                continue;
            };
            let header = record.header();
            let sequence = snapshot.sequence(header.index);
            if self.start.is_some_and(|start| sequence < start) {
                continue;
            }
            if settled.is_some_and(|settled| settled.contains(&sequence)) {
                continue;
            }
            let deliveries = snapshot.deliveries(header.index);
            let content = record.content();
            return Some(Found::copy(sequence, header, &content, deliveries));
        }
        self.segment = None;
        None
    }
}

impl Iterator for Walk {
    type Item = Result<Found, Arc<StorageError>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.settled.is_none() {
            let settlers = self.settlers.iter().copied();
            self.settled = Some(self.files.settled(settlers, &mut self.errors));
        }
        loop {
            if let Some(error) = self.errors.pop_front() {
                return Some(Err(error));
            }
            if let Some(found) = self.next_found() {
                return Some(Ok(found));
            }
            match self.log.as_mut().and_then(LogWalk::next_segment) {
                Some(Ok(mut snapshot)) => {
                    let live = snapshot.live();
                    self.segment = Some((snapshot, live.into_iter()));
                    continue;
                }
                Some(Err(error)) => return Some(Err(Arc::new(error))),
                None => self.log = None,
            }
            let number = self.logs.pop_front()?;
            match self.files.log(number) {
                Ok(Some(log)) => {
                    let mut log = LogWalk::new(log, number.is_some());
                    let is_in = |start: &Sequence| Some(u32::from(start.stripe())) == number;
                    log.start = self.start.filter(is_in);
                    self.log = Some(log);
                }
                Ok(None) => {}
                Err(error) => return Some(Err(Arc::new(error))),
            }
        }
    }
}
