//! Looking at a log beside its flow: which jobs are live, whose they are, and whether every
//! record still passes its check.

use std::sync::Arc;

use super::Stripe;
use super::record::{KIND_JOB, Meta, NewRecord, UNIT, units_of};
use super::recovery::{Damage, Quarantined, VerifyReport};
use super::segment::{Lease, Pinned, Record, START};
use crate::Sequence;
use crate::storage::StorageError;

impl Pinned {
    /// The jobs that are not done, in log order.
    pub(crate) fn live_records(&self) -> impl Iterator<Item = Record<'_>> {
        self.records(START).filter(|record| {
            let header = record.header();
            header.kind == KIND_JOB && !self.is_done(header.index)
        })
    }

    pub(crate) fn is_done(&self, index: u32) -> bool {
        self.maps().acks.is_done(index)
    }
}

impl Lease {
    /// The id of the job, which a move to another place in the log does not change.
    #[inline]
    pub(crate) fn job(&self) -> Sequence {
        if self.has_meta() {
            self.meta().original.unwrap_or(self.sequence())
        } else {
            self.sequence()
        }
    }

    #[inline]
    pub(crate) fn has_meta(&self) -> bool {
        self.record().header().meta_len != 0
    }

    pub(crate) fn meta(&self) -> Meta {
        Meta::decode(self.record().meta())
    }

    /// Whether the record settles another one, and that is not known to be settled.
    pub(crate) fn may_not_be_durable_yet(&self) -> bool {
        self.has_meta() && self.meta().settles.is_some() && self.owes()
    }

    /// Failed attempts at the job, those at the records that it was moved from included.
    pub(crate) fn failed(&self) -> u32 {
        let failed = self.deliveries().failed().into();
        match self.has_meta() {
            true => self.meta().prior_attempts.saturating_add(failed),
            false => failed,
        }
    }

    /// How often the process died while a handler had the job, wherever it was in the log.
    pub(crate) fn crashes(&self) -> u32 {
        let crashes = self.deliveries().crashes().into();
        match self.has_meta() {
            true => self.meta().prior_crashes.saturating_add(crashes),
            false => crashes,
        }
    }
}

impl Stripe {
    /// Longest record, in bytes.
    pub(crate) fn max_record_bytes(&self) -> usize {
        super::max_record_bytes(self.config.segment_size)
    }

    /// How many of the payloads [`append_all`](Self::append_all) takes at once.
    pub(crate) fn batch_prefix(&self, template: &NewRecord<'_>, payloads: &[&[u8]]) -> usize {
        let mut room = self.max_record_bytes() / UNIT;
        let fits = |payload: &&&[u8]| {
            let units = units_of(template.with_payload(payload).len()) as usize;
            let fits = units <= room;
            room = room.saturating_sub(units);
            fits
        };
        // A single record always fits.
        payloads.iter().take_while(fits).count().max(1)
    }

    /// The segment of the record with this sequence, if there is one that is not done.
    pub(crate) fn pin_live(&self, sequence: Sequence) -> Result<Option<Pinned>, Arc<StorageError>> {
        let pinned = self.pin_containing(sequence)?;
        Ok(pinned.filter(|pinned| {
            let index = sequence.offset_from(pinned.segment().base());
            index < pinned.segment().reached().index && !pinned.is_done(index)
        }))
    }

    /// Tells the maintenance thread that there is something to retire.
    pub(crate) fn kick(&self) {
        (self.config.kick)();
    }

    /// Checks every committed record. Damage in segments that were not checked before is set
    /// aside; in others it is only reported, as somebody may be reading there.
    pub(crate) fn verify(&self) -> Result<VerifyReport, StorageError> {
        let mut report = VerifyReport::default();
        let mut after = None;
        while let Some(segment) = self.segment_after(after) {
            after = Some(segment.base());
            if let Some(pinned) = self.pin_scanned(&segment).map_err(|error| error.retold())? {
                check_records(&pinned, &mut report);
                report.segments += 1;
            }
        }
        report.damaged.extend(self.damage());
        Ok(report)
    }
}

fn check_records(pinned: &Pinned, report: &mut VerifyReport) {
    let segment = pinned.segment();
    for record in pinned.records(START) {
        let bytes = (record.next() - record.units()) as u64 * UNIT as u64;
        let salt = segment.identity().salt;
        if pinned
            .maps()
            .valid_record(record.units(), record.next(), salt)
            .is_none()
        {
            report.damaged.push(Quarantined {
                path: segment.paths().segment.path().to_path_buf(),
                offset: u64::from(record.units()) * UNIT as u64,
                len: bytes,
                damage: Damage::Checksum,
                copy: None,
            });
        } else if record.header().kind == KIND_JOB {
            report.records += 1;
            report.bytes += bytes;
        }
    }
}
