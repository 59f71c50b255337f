//! The state log of a directory of queues: what transactions enqueue and complete, and the values
//! of keys.
//!
//! A transaction is a batch of records in this log, so all of it is there or nothing. Its records
//! are jobs for queues, values of keys, and one that names the job that it completes. From here on
//! all follows the order in which any job moves from one log to another: a record *names* the
//! record that it settles, and that one is marked done once the new one is durable. So the job of a
//! queue names the record of this log that it came from, and the new value of a key names the old
//! one. An open finishes what a crash interrupted.
//!
//! This module knows queues by their ids alone. `engine/transactions.rs` brings the two together.

mod callers;
pub(crate) mod cleaning;
pub(crate) mod entry;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod home;
mod index;
mod settling;
#[cfg(all(test, not(loom)))]
mod tests;

use std::sync::Arc;

use parking_lot::RwLock;

use self::callers::Callers;
use self::entry::{Change, Completes, Entry, NewJob, meta_of_forwarded, meta_of_key};
use self::home::Home;
pub(crate) use self::index::Found;
use self::index::{Index, Place, SHARDS};
use self::settling::Debts;
use crate::error::{FlushError, OpenError};
use crate::event_count::EventCount;
use crate::events::Mutex;
use crate::lasting::Lasting;
use crate::log::manifest::Manifest;
use crate::log::meta::{Elsewhere, JobOptions, Meta, MetaBytes};
use crate::log::poison::Poison;
use crate::log::record::{NewRecord, units_of};
use crate::log::recovery::{Recovery, RecoveryReport};
use crate::log::segment::{Segment, Unsettled};
use crate::log::{Kick, Log, LogConfig, RollError, SpaceBudget};
use crate::planned_flush::PlannedFlush;
use crate::runtime::Waker;
use crate::storage::{Directory, StorageError};
use crate::time::Clock;
use crate::{Sequence, Timestamp};

/// Where the sequences of a state log start. No queue has so many stripes.
pub(crate) const STATE_ORIGIN: Sequence = Sequence::first_of_stripe(254);

/// Bytes of a segment of the state log.
const SEGMENT_SIZE: u64 = 8 * 1024 * 1024;

/// Most bytes by which the record of a value is longer once the value is moved: it names the record
/// that it was moved from, and the one that it was written with.
const MOVED_META_BYTES: usize = 22;

/// The state log.
pub(crate) struct State {
    /// Records in other logs name records of this log by this number.
    id: u64,
    log: Log,
    poison: Arc<Poison>,
    /// The segment to append to. Held to append, and to change the index; a lookup does not wait
    /// for it.
    writer: Mutex<Arc<Segment>>,
    index: RwLock<Index>,
    debts: Mutex<Debts>,
    callers: Callers,
    /// When a flush is due.
    flush: Mutex<PlannedFlush>,
    /// Wakes the maintenance of this log.
    task: Waker,
    clock: Clock,
    /// What keeps maintenance from doing its work.
    failures: Lasting,
}

/// What a transaction writes.
pub(crate) struct Group<'a> {
    pub(crate) completes: Option<Completes>,
    pub(crate) jobs: &'a [NewJob],
    /// What it does to keys, each of which is in it once.
    pub(crate) changes: &'a [(Vec<u8>, Change)],
    /// What must be so, or nothing is written: the version of a key, or that it is not there.
    pub(crate) conditions: &'a [(Vec<u8>, Option<u64>)],
}

/// A transaction that is in the log.
pub(crate) struct Written {
    /// The first of the records of its jobs, which follow each other.
    pub(crate) first_job: Sequence,
    /// The records that name the job which it completes owe that.
    pub(crate) completion: Option<Unsettled>,
}

/// Why a transaction was not written.
#[derive(Debug)]
pub(crate) enum NotWritten {
    /// A condition is not met: of this key.
    Conflict(Vec<u8>),
    /// Its records take so many bytes; the most that they may take.
    TooLarge {
        size: u64,
        max: u64,
    },
    Log(RollError),
}

impl State {
    /// Opens the state log of a tree, or creates it. `has_queues`: the tree has queues, or what is
    /// left of some. A segment size is only given for a new log, or to be checked.
    pub(crate) fn open(
        root: &Directory,
        has_queues: bool,
        segment_size: Option<u64>,
        task: Waker,
        clock: Clock,
    ) -> Result<(Self, RecoveryReport), OpenError> {
        let Home {
            directory: home,
            log: directory,
            manifest,
            lost,
        } = Home::open(root, has_queues, segment_size.unwrap_or(SEGMENT_SIZE))?;
        let Manifest {
            segment_size: on_disk,
            id,
            ..
        } = manifest;
        if let Some(asked) = segment_size.filter(|&asked| asked != on_disk) {
            return Err(OpenError::OptionMismatch {
                option: "state_segment_size",
                on_disk,
                asked,
            });
        }
        let segment_size = on_disk;
        let kick: Kick = {
            let task = task.clone();
            Arc::new(move || task.wake())
        };
        let poison = Arc::<Poison>::default();
        let config = LogConfig {
            segment_size,
            // Many never have a transaction.
            starts_ready: false,
            starts_idle: false,
            is_new: false,
            queue: Arc::clone(&home),
            budget: Arc::new(SpaceBudget::new(None, 0)),
            poison: Arc::clone(&poison),
            kick,
            sleepers: Arc::new(EventCount::new()),
            lost: Arc::new(|_| ()),
        };
        let mut recovery = Recovery {
            segment_size,
            queue: &home,
            report: RecoveryReport::default(),
            progress: None,
            segments_seen: 0,
        };
        if let Some(lost) = lost {
            recovery.report_lost_directory(lost);
        }
        let (log, found) = Log::open(directory, STATE_ORIGIN, config, &mut recovery)?;
        let mut report = recovery.report;
        // The records that name these are durable.
        report.settled += log
            .settle(&found.here)
            .map_err(|error| OpenError::Flush(FlushError(error)))?;
        let mut debts = Debts::default();
        for (named, segment) in found.elsewhere {
            debts.note_completed(named, segment.owing(1));
        }
        let index = find_entries(&log, &mut debts).map_err(|error| error.retold())?;
        // A process that died may not have flushed them, and what each queue is given of a
        // transaction gets to the disk by itself.
        if debts.has_jobs() {
            log.flush(false)
                .map_err(|error| OpenError::Flush(FlushError(error)))?;
        }
        // That of segments which were sealed was found just now.
        report.quarantined.extend(log.damage());
        let state = Self {
            id,
            writer: Mutex::new(log.active()),
            index: RwLock::new(index),
            log,
            poison,
            debts: Mutex::new(debts),
            callers: Callers::default(),
            flush: Mutex::default(),
            task,
            clock,
            failures: Lasting::default(),
        };
        Ok((state, report))
    }

    pub(crate) fn poison(&self) -> Option<&Arc<StorageError>> {
        self.poison.get()
    }

    /// How a record of another log names a record of this one.
    pub(crate) fn name_of(&self, record: Sequence) -> Elsewhere {
        Elsewhere {
            home: self.id,
            record,
        }
    }

    /// The record of this log that is named so.
    pub(crate) fn own(&self, name: Elsewhere) -> Option<Sequence> {
        (name.home == self.id).then_some(name.record)
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<Found> {
        self.index.read().get(key, self.clock.wall())
    }

    /// How many keys there are, including those that have expired and are not removed yet.
    pub(crate) fn keys(&self) -> usize {
        self.index.read().len()
    }

    /// The keys of a part of the index that begin with `prefix`, with their values; None if there
    /// is no such part. Each key stays in its part.
    pub(crate) fn keys_in(&self, part: usize, prefix: &[u8]) -> Option<Vec<(Vec<u8>, Found)>> {
        (part < SHARDS).then(|| self.index.read().in_shard(part, prefix, self.clock.wall()))
    }

    /// Appends a transaction, all of it or nothing.
    pub(crate) fn write(&self, group: &Group<'_>) -> Result<Written, NotWritten> {
        let mut active = self.writer.lock();
        let now = self.clock.wall();
        let completions: Vec<_> = group
            .completes
            .into_iter()
            .flat_map(Completes::metas)
            .collect();
        let metas: Vec<_> = group.jobs.iter().map(NewJob::meta_of_entry).collect();
        let mut keys = Vec::with_capacity(group.changes.len());
        {
            // It does not change, as the writer is locked.
            let index = self.index.read();
            for (key, expected) in group.conditions {
                if index.version_of(key, now) != *expected {
                    return Err(NotWritten::Conflict(key.clone()));
                }
            }
            for (key, change) in group.changes {
                let old = index.place_of(key);
                if old.is_some() || matches!(change, Change::Put { .. }) {
                    keys.push((key, change, old, meta_of(key, change, old)));
                }
            }
        }
        let jobs = group.jobs.iter().zip(&metas);
        let jobs = jobs.map(|(job, meta)| job.record(meta));
        let changes = keys
            .iter()
            .map(|(_, change, _, meta)| record_of(change, meta, now));
        let of_completions = completions
            .iter()
            .map(|meta| record_of(&Change::Remove, meta, now));
        let records = jobs.chain(changes).chain(of_completions);
        let records: Vec<NewRecord<'_>> = records.collect();
        if records.is_empty() {
            return Ok(Written {
                first_job: STATE_ORIGIN,
                completion: None,
            });
        }
        let max = self.log.max_record_bytes() as u64;
        for record in records.iter().skip(group.jobs.len()) {
            let size = (record.len() + MOVED_META_BYTES) as u64;
            if size > max {
                return Err(NotWritten::TooLarge { size, max });
            }
        }
        let batch = self.log.batch(records.iter().copied());
        let batch = batch.map_err(|size| NotWritten::TooLarge { size, max })?;
        let replaced = keys.iter().filter(|(_, _, old, _)| old.is_some()).count() as u64;
        let completes = completions.len() as u64;
        let (first, mut unsettled) = self
            .log
            .append_batch_owing(&mut active, &batch, replaced + completes)
            .map_err(NotWritten::Log)?;
        let completion = (completes > 0).then(|| unsettled.split(completes));
        let base = active.base();
        let mut units = first.units;
        let places = records.iter().enumerate().map(|(at, record)| {
            let place = Place {
                record: base.plus(first.index + at as u32),
                units,
            };
            units += units_of(record.len());
            place
        });
        let places: Vec<_> = places.collect();
        let mut is_sweep_sooner = false;
        if !keys.is_empty() {
            let mut index = self.index.write();
            let sweep = index.next_sweep();
            index.keep(|| active.pin(), base);
            for ((key, change, old, _), &place) in keys.iter().zip(&places[group.jobs.len()..]) {
                match (change, old) {
                    (Change::Put { .. }, _) => {
                        let before = index.insert(key, place);
                        debug_assert_eq!(before, *old);
                    }
                    (Change::Remove, Some(old)) => _ = index.remove(key, *old),
                    (Change::Remove, None) => {}
                }
            }
            is_sweep_sooner = index.next_sweep() != sweep;
        }
        let mut debts = self.debts.lock();
        for ((_, change, old, _), &place) in keys.iter().zip(&places[group.jobs.len()..]) {
            debts.note_key(*old, matches!(change, Change::Remove), place.record);
        }
        debts.note_replaced(unsettled);
        for place in &places[places.len() - completions.len()..] {
            debts.note_key(None, true, place.record);
        }
        drop((debts, active));
        if is_sweep_sooner {
            self.task.wake();
        }
        Ok(Written {
            first_job: base.plus(first.index),
            completion,
        })
    }

    /// Makes all transactions so far durable.
    pub(crate) fn flush_records(&self) -> Result<(), Arc<StorageError>> {
        self.log.flush(false)
    }

    /// Appends the jobs for a queue that are not in it yet: those found at open, and those for
    /// which there was no room. `append` gets the job as a record that names the one in this log.
    ///
    /// Stops at the first error, and is to be called again.
    pub(crate) fn forward<E>(
        &self,
        queue: u64,
        mut append: impl FnMut(&NewRecord<'_>) -> Result<Unsettled, E>,
    ) -> Result<(), Result<E, Arc<StorageError>>> {
        let mut waiting = self.debts.lock().take_waiting(queue).into_iter();
        let mut result = Ok(());
        for entry in waiting.by_ref() {
            match self.forward_one(entry, &mut append) {
                Ok(Some(unsettled)) => self.note_forwarded(queue, entry, unsettled),
                // Found in the queue, where it is named.
                Ok(None) => {}
                Err(error) => {
                    result = Err(error);
                    self.debts.lock().wait_again(queue, entry);
                    break;
                }
            }
        }
        let mut debts = self.debts.lock();
        for entry in waiting {
            debts.wait_again(queue, entry);
        }
        result
    }

    fn forward_one<E>(
        &self,
        entry: Sequence,
        append: &mut impl FnMut(&NewRecord<'_>) -> Result<Unsettled, E>,
    ) -> Result<Option<Unsettled>, Result<E, Arc<StorageError>>> {
        let Some(pinned) = self.log.pin_live(entry).map_err(Err)? else {
            return Ok(None);
        };
        let is_it = |record: &crate::log::records::Record<'_>| {
            pinned.segment().sequence(record.header().index) == entry
        };
        let Some(record) = pinned.live_records().find(is_it) else {
            return Ok(None);
        };
        let meta = meta_of_forwarded(&record, self.name_of(entry));
        let job = NewRecord {
            enqueued_at: record.header().enqueued_at,
            due_at: record.header().due_at,
            name: record.name(),
            meta: &meta,
            payload: record.payload(),
        };
        append(&job).map(Some).map_err(Ok)
    }
}

/// The metadata of the record of a key, with what it settles.
fn meta_of(key: &[u8], change: &Change, old: Option<Place>) -> MetaBytes {
    let expires_at = match change {
        Change::Put { expires_at, .. } => *expires_at,
        Change::Remove => None,
    };
    let meta = Meta {
        options: JobOptions {
            expires_at,
            ..JobOptions::default()
        },
        settles: old.map(|old| old.record),
        ..Meta::default()
    };
    meta_of_key(key, matches!(change, Change::Remove), &meta)
}

fn record_of<'a>(change: &'a Change, meta: &'a [u8], now: Timestamp) -> NewRecord<'a> {
    NewRecord {
        enqueued_at: now,
        due_at: Timestamp::ZERO,
        name: b"",
        meta,
        payload: match change {
            Change::Put { value, .. } => value,
            Change::Remove => b"",
        },
    }
}

/// Goes through all that is live in the log: keys go into the index, and jobs wait for their
/// queues.
fn find_entries(log: &Log, debts: &mut Debts) -> Result<Index, Arc<StorageError>> {
    let mut index = Index::default();
    for pinned in log.pins() {
        let pinned = pinned?;
        let segment = Arc::clone(pinned.segment());
        let mut has_keys = false;
        // Positions first: the index takes the pin, from which records borrow.
        let mut values = Vec::new();
        for record in pinned.live_records() {
            let place = Place {
                record: segment.sequence(record.header().index),
                units: record.units(),
            };
            match Entry::of(&record) {
                Entry::Job { queue } => debts.wait_again(queue, place.record),
                Entry::Value { .. } => {
                    has_keys = true;
                    values.push((place, None));
                }
                Entry::Removal { key } => values.push((place, Some(key.to_vec()))),
                // What it names is durably done, or named for a queue until that opens.
                Entry::Completion => debts.note_key(None, true, place.record),
                Entry::Unknown => {}
            }
        }
        if has_keys {
            index.keep(|| Some(pinned), segment.base());
        }
        for (place, removed) in values {
            if let Some(key) = removed {
                // What it names is durably done. A power cut may have left an earlier value.
                let old = index.place_of(&key);
                old.inspect(|&old| _ = index.remove(&key, old));
                debts.note_key(old, true, place.record);
                debts.note_urgent();
                continue;
            }
            let Some(key) = index.key_at(place) else {
                continue;
            };
            if let Some(old) = index.insert(&key, place) {
                // A power cut may leave both, if neither was flushed.
                debts.note_key(Some(old), false, place.record);
                debts.note_urgent();
            }
        }
    }
    drop(index.let_go());
    Ok(index)
}
