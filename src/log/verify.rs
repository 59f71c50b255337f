//! Verification: whether every record still passes its check.
use super::Log;
use super::pinned::Pinned;
use super::record::UNIT;
use super::recovery::{Damage, Quarantined, VerifyReport};
use super::segment::START;
use crate::storage::StorageError;

impl Log {
    /// Checks every committed record. Damage in segments that were not checked before is
    /// quarantined; in others it is only reported, because they may be being read.
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
        if !record.is_valid(salt) {
            report.damaged.push(Quarantined {
                path: segment.paths().segment.path().to_path_buf(),
                offset: u64::from(record.units()) * UNIT as u64,
                len: bytes,
                damage: Damage::Checksum,
                copy: None,
            });
        } else if record.header().is_job() {
            report.records += 1;
            report.bytes += bytes;
        }
    }
}
