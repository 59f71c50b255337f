//! How a segment begins: created, made of a spare, or found at open.

#![deny(unsafe_code)]

use super::*;

/// The initial state in memory of a segment found at open.
pub(crate) struct Found {
    pub(crate) end: Position,
    pub(crate) sealed: bool,
    pub(crate) unscanned: bool,
    pub(crate) done: Done,
}

/// The acks of a segment found at open.
#[derive(Clone, Copy, Default)]
pub(crate) struct Done {
    records: u32,
    full_words: u32,
}

impl Done {
    /// Counts the acks of the first `records` records; the bits past them are set.
    pub(crate) fn count(acks: &AckFile, records: u32) -> Self {
        let words = ack::words_for(records);
        let mut done = Self::default();
        for bits in (0..words).map(|word| acks.done_bits(word)) {
            done.full_words += u32::from(bits == u32::MAX);
            done.records += bits.count_ones();
        }
        let past = words * ack::RECORDS_PER_WORD - records;
        done.records = done.records.saturating_sub(past);
        done
    }
}

impl Segment {
    /// Creates the files of a segment and prefaults them as far as `warm` says. The first flush
    /// makes their names durable. Leaves nothing behind on failure.
    pub(crate) fn create(
        names: &Arc<Names>,
        identity: Identity,
        warm: Warm,
    ) -> Result<Arc<Self>, StorageError> {
        let paths = Paths::new(names, identity.base);
        let capacity = capacity_of(identity.segment_size);
        // The segment file first: an ack file beside an empty segment would look like what is left
        // of truncated records.
        let records = create_segment_file(&paths.segment, &identity, warm)?;
        let acks = create_ack_file(&paths.ack, &identity, capacity, warm).inspect_err(|_| {
            // A segment without records is removed by the next open.
            let _ = paths.segment.remove();
        })?;
        let end_units = (identity.segment_size as usize / UNIT) as u32;
        Ok(Self::assemble(
            identity,
            Tail::open(START, end_units),
            Mapping::of(Maps { records, acks }),
            paths,
            names,
            None,
        ))
    }

    /// Makes a segment of a spare's files, which have their names and headers, and records before
    /// `tail`.
    pub(crate) fn from_spare(
        identity: Identity,
        maps: Maps,
        tail: Position,
        paths: Paths,
        names: &Arc<Names>,
    ) -> Arc<Self> {
        let end_units = (identity.segment_size as usize / UNIT) as u32;
        let tail = Tail::open(tail, end_units);
        Self::assemble(identity, tail, Mapping::of(maps), paths, names, None)
    }

    /// Makes a segment of complete files found at open. A segment that is sealed, and so durable,
    /// is not mapped before it is claimed from.
    pub(crate) fn recover(
        identity: Identity,
        maps: Maps,
        paths: Paths,
        names: &Arc<Names>,
        found: &Found,
    ) -> Arc<Self> {
        let mapping = match found.sealed {
            true => Mapping::absent(),
            false => Mapping::of(maps),
        };
        Self::assemble(
            identity,
            Tail::closed_at(found.end),
            mapping,
            paths,
            names,
            Some(found),
        )
    }

    /// A placeholder without files, as if retired: it is empty, and nothing fits into it.
    pub(crate) fn full(names: &Arc<Names>, base: Sequence) -> Arc<Self> {
        let identity = Identity {
            base,
            segment_size: 0,
            created_at: Timestamp::ZERO,
            salt: 0,
        };
        let found = Found {
            end: START,
            sealed: false,
            unscanned: false,
            done: Done::default(),
        };
        let tail = Tail::closed_at(START);
        let paths = Paths::new(names, base);
        Self::assemble(
            identity,
            tail,
            Mapping::retired(),
            paths,
            names,
            Some(&found),
        )
    }

    fn assemble(
        identity: Identity,
        tail: Tail,
        mapping: Mapping,
        paths: Paths,
        names: &Arc<Names>,
        found: Option<&Found>,
    ) -> Arc<Self> {
        let progress = found.map_or_else(Progress::open, |found| {
            let words = ack::words_for(found.end.index);
            Progress::closed(words, found.done.full_words)
        });
        let done_at_open = found.map_or(0, |found| found.done.records);
        Arc::new(Self {
            identity,
            crc: Crc32::new(),
            tail,
            cursor: Cursor::new(START),
            progress,
            mapping,
            paths,
            records_gate: FlushGate::new(),
            acks_gate: FlushGate::new(),
            flushed_acks: FlushedAcks::new(),
            deliveries_changed: DeliveriesChanged::new(),
            names: Arc::clone(names),
            owed: Owed::nothing(),
            settles: AtomicBool::new(false),
            recovered: found.is_some(),
            not_acked: AtomicU32::new(done_at_open),
            unscanned: AtomicBool::new(found.is_some_and(|found| found.unscanned)),
            sealed: AtomicBool::new(found.is_some_and(|found| found.sealed)),
            full_since: OnceLock::new(),
            flushed: AtomicBool::new(found.is_some()),
            has_durable_record: AtomicBool::new(false),
            durable: DurableEnd::new(),
            made_writable: AtomicU32::new(START.units),
            settled: AtomicBool::new(found.is_some_and(|found| found.sealed)),
            abandoned: AtomicBool::new(false),
            named: AtomicBool::new(found.is_some_and(|found| found.sealed)),
            oldest: AtomicU32::new(START.units),
            waiting: AtomicU32::new(START.units),
            left_bytes: Mutex::default(),
            first_job: OnceLock::new(),
        })
    }

    /// Prefaults what a creation with [`Warm::Start`] has left out, while other threads use the
    /// segment.
    pub(crate) fn warm_up(&self) -> Result<(), StorageError> {
        let Some(maps) = self.maps() else {
            return Ok(());
        };
        let Maps { records, acks } = &*maps;
        records.file.prefault_from(Warm::Start.records())?;
        acks.file.prefault_from(0)
    }
}
