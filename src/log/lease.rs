//! Leases: the right to deliver one record, and the operations on its job.

use std::sync::atomic::Ordering;

use super::ack::Deliveries;
use super::headers::headers_of;
use super::hold::{Held, Hold};
use super::meta::{self, Meta, has_engine_fields};
use super::record::NAME_LEN_SHIFT;
use super::records::Record;
use super::segment::{Maps, Segment};
use super::tail::Position;
use crate::Sequence;

/// The right to deliver one record and to record the outcome.
///
/// A record has at most one lease, unless leases are counted. Losing a lease loses no job: the
/// record stays not done and is found again at the next open.
#[must_use]
pub(crate) struct Lease {
    hold: Hold,
    /// The record's position, packed, with [`BARE`] and [`SUSPECT`]; so a lease is only two words.
    place: u64,
}

/// Set in a lease's place if its segment was created since the open and its record has no metadata.
/// No units reach this bit, and unpacking a position ignores it.
const BARE: u64 = 1 << 37;
/// Set in a lease's place if a handler had the job when a process died, and its delivery has not
/// timed out since. As unlikely to be reached as [`BARE`].
const SUSPECT: u64 = 1 << 36;

// Deques and timers hold many leases.
const _: () = assert!(size_of::<Lease>() == 16);

/// The effect of an ack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Acked {
    /// This ack, and no other, completed the job.
    pub(crate) first: bool,
    /// All jobs of the segment are done.
    pub(crate) segment_complete: bool,
}

impl Lease {
    #[inline]
    pub(super) fn new(hold: Hold, position: Position, is_bare: bool) -> Self {
        Self {
            hold,
            place: position.pack() | if is_bare { BARE } else { 0 },
        }
    }

    /// Whether its record was appended since the open and has no metadata.
    #[inline]
    pub(crate) fn is_bare(&self) -> bool {
        self.place & BARE != 0
    }

    /// Whether it must not be delivered while another suspect is.
    #[inline]
    pub(crate) fn is_suspect(&self) -> bool {
        self.place & SUSPECT != 0
    }

    pub(crate) fn into_suspect(mut self) -> Self {
        self.place |= SUSPECT;
        self
    }

    /// Clears the suspect bit once a handler has the job. Returns whether it was set.
    pub(crate) fn take_suspicion(&mut self) -> bool {
        let was_suspect = self.is_suspect();
        self.place &= !SUSPECT;
        was_suspect
    }

    #[inline]
    fn index(&self) -> u32 {
        Position::unpack(self.place).index
    }

    #[inline]
    fn units(&self) -> u32 {
        Position::unpack(self.place).units
    }

    #[inline]
    fn segment(&self) -> &Segment {
        self.hold.segment()
    }

    #[inline]
    fn maps(&self) -> &Maps {
        self.hold.maps()
    }

    #[inline]
    pub(crate) fn sequence(&self) -> Sequence {
        self.segment().sequence(self.index())
    }

    /// Whether its segment still [owes](Segment::owes_nothing) settlements.
    pub(crate) fn owes(&self) -> bool {
        !self.segment().owes_nothing()
    }

    /// The base of the lease's segment.
    pub(crate) fn segment_base(&self) -> Sequence {
        self.segment().base()
    }

    pub(crate) fn is_recovered(&self) -> bool {
        self.segment().recovered
    }

    #[inline]
    pub(crate) fn record(&self) -> Record<'_> {
        Record::committed(&self.maps().records, self.units())
    }

    #[inline(always)]
    pub(crate) fn payload(&self) -> &[u8] {
        let records = &self.maps().records;
        let units = self.units();
        if self.is_bare() {
            let identity = records.words(units).identity.load(Ordering::Relaxed);
            let name_len = identity >> NAME_LEN_SHIFT & 0xff;
            records.content(units, name_len as usize, records.commit_word(units))
        } else {
            self.record().payload()
        }
    }

    /// Records that a handler has the job, before the handler gets it.
    #[inline]
    pub(crate) fn begin_delivery(&self) -> Deliveries {
        let begun = self.maps().acks.begin_delivery(self.index());
        self.segment().deliveries_changed.note();
        begun
    }

    /// Records that no handler has the job any more, though it is not done.
    pub(crate) fn end_delivery(&self) {
        self.update_deliveries(Deliveries::ended);
    }

    /// Counts a failed attempt at the job. With `is_running`, a handler may still have the job
    /// (lease timeouts).
    pub(crate) fn count_failure(&self, is_running: bool) {
        self.update_deliveries(|deliveries| match is_running {
            true => deliveries.failed_once(),
            false => deliveries.failed_once().ended(),
        });
    }

    fn update_deliveries(&self, change: impl Fn(Deliveries) -> Deliveries) {
        self.maps().acks.update_deliveries(self.index(), change);
        self.segment().deliveries_changed.note_end();
    }

    /// How the deliveries of its record have gone.
    pub(crate) fn deliveries(&self) -> Deliveries {
        self.maps().acks.deliveries(self.index())
    }

    /// Whether another lease of the same record has marked it done; only counted leases can have
    /// another one.
    pub(crate) fn is_done(&self) -> bool {
        match self.hold.get() {
            Held::NotDone(_) => false,
            Held::Counted(pinned) => pinned.maps().acks.is_done(self.index()),
        }
    }

    /// A second lease of the same record, if leases are counted.
    pub(crate) fn duplicate(&self) -> Option<Lease> {
        match self.hold.get() {
            Held::NotDone(_) => None,
            Held::Counted(_) => Some(Lease {
                hold: self.hold.clone(),
                place: self.place,
            }),
        }
    }

    /// Marks the job done.
    #[inline(always)]
    pub(crate) fn ack(self) -> Acked {
        match self.hold.get() {
            Held::NotDone(segment) => {
                let filled = self.maps().acks.set_once(self.index());
                // If the word is not full, another acker may complete and retire the segment from
                // here on. If it is full, the segment cannot be complete before that is counted.
                Acked {
                    first: true,
                    segment_complete: filled && segment.count_full_word(),
                }
            }
            Held::Counted(pinned) => match pinned.set_done(self.index()) {
                Some(segment_complete) => Acked {
                    first: true,
                    segment_complete,
                },
                None => Acked {
                    first: false,
                    segment_complete: false,
                },
            },
        }
    }
}

impl Lease {
    /// The id of the job, which stays the same when the job is moved in the log.
    #[inline]
    pub(crate) fn job(&self) -> Sequence {
        meta::original_of(self.encoded_meta()).unwrap_or(self.sequence())
    }

    #[inline]
    fn encoded_meta(&self) -> &[u8] {
        match self.is_bare() {
            true => &[],
            false => self.record().meta(),
        }
    }

    /// Whether the engine has noted anything about the job in its record.
    #[inline]
    pub(crate) fn has_meta(&self) -> bool {
        let record = self.record();
        record.header().meta_len != 0 && has_engine_fields(record.meta())
    }

    #[inline]
    pub(crate) fn name(&self) -> &[u8] {
        self.record().name()
    }

    /// The job's headers, encoded.
    #[inline]
    pub(crate) fn headers(&self) -> &[u8] {
        match self.is_bare() {
            true => &[],
            false => headers_of(self.record().meta()),
        }
    }

    pub(crate) fn meta(&self) -> Meta {
        Meta::decode(self.record().meta())
    }

    /// Whether the record settles another one, and that is not known to be durable.
    pub(crate) fn may_not_be_durable_yet(&self) -> bool {
        meta::settles_another(self.encoded_meta()) && self.owes()
    }

    /// Failed attempts at the job, including those at the records that it was moved from.
    pub(crate) fn failed(&self) -> u32 {
        let failed = self.deliveries().failed().into();
        meta::prior_attempts_of(self.encoded_meta()).saturating_add(failed)
    }

    /// How often the process died while a handler had the job, wherever it was in the log.
    #[inline]
    pub(crate) fn crashes(&self) -> u32 {
        if self.is_bare() {
            // It was appended by this process.
            return 0;
        }
        let crashes = self.deliveries().crashes().into();
        meta::prior_crashes_of(self.encoded_meta()).saturating_add(crashes)
    }

    /// The attempts allowed for this job, if not the queue's default; `Some(None)` is unlimited.
    pub(crate) fn max_attempts(&self) -> Option<Option<u8>> {
        meta::max_attempts_of(self.encoded_meta())
    }
}
