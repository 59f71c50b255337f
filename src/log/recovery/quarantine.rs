//! Damaged regions of a segment: copied to `quarantine/`, reported, and covered.

use std::fmt::Write;
use std::sync::Arc;

use super::scan::{Region, RegionKind};
use super::{Damage, Quarantined, Recovery};
use crate::events::event;
use crate::log::record::UNIT;
use crate::log::records::SoleAccess;
use crate::storage::{Directory, Entry, StorageError};
use crate::{Sequence, Timestamp};

/// Most damaged regions of a segment that are copied out separately. If there are more, a single
/// copy from the first region to the last is made: each copy costs several flushes.
const MAX_COPIES: usize = 32;
/// The name of the directory for damaged bytes, in the queue's directory.
const QUARANTINE: &str = "quarantine";

impl Recovery<'_> {
    /// Sets the damaged regions of a scan aside, and covers them and the holes.
    pub(super) fn mend(
        &mut self,
        base: Sequence,
        entry: &Entry,
        records: &mut SoleAccess<'_>,
        salt: u64,
        regions: &[Region],
    ) -> Result<(), StorageError> {
        if regions.is_empty() {
            return Ok(());
        }
        let damaged: Vec<_> = regions
            .iter()
            .filter_map(|region| {
                let damage = match region.kind {
                    RegionKind::Hole => return None,
                    RegionKind::Uncommitted => Damage::Uncommitted,
                    RegionKind::Incomplete => Damage::Incomplete,
                    RegionKind::Invalid => Damage::Checksum,
                };
                let offset = u64::from(region.from) * UNIT as u64;
                let len = u64::from(region.to - region.from) * UNIT as u64;
                Some((offset, len, damage))
            })
            .collect();
        let copies = if damaged.len() > MAX_COPIES {
            damaged.len()
        } else {
            1
        };
        for regions in damaged.chunks(copies) {
            self.set_aside(base, entry, records.bytes(), regions)?;
        }
        entry.back_with_blocks(records.bytes().len() as u64)?;
        for region in regions {
            self.report.holes += u64::from(region.kind == RegionKind::Hole);
            records.cover(region.from, region.to, region.index, salt);
        }
        Ok(())
    }

    /// Copies damaged regions (offset, length, damage) of a file, and what lies between them, into
    /// the quarantine directory, durably, with a text file that says where they come from.
    ///
    /// Repeating this with the same bytes, after a crash, leaves one copy; with other bytes it
    /// leaves the earlier copy alone.
    pub(super) fn set_aside(
        &mut self,
        base: Sequence,
        entry: &Entry,
        file: &[u8],
        regions: &[(u64, u64, Damage)],
    ) -> Result<(), StorageError> {
        let (Some(first), Some(last)) = (regions.first(), regions.last()) else {
            return Ok(());
        };
        let (offset, end) = (first.0, last.0 + last.1);
        let bytes = &file[offset as usize..end as usize];
        let path = entry.path();
        let quarantine = Arc::new(self.queue.create_subdirectory(QUARANTINE)?);
        self.queue.flush()?;
        let (copy, is_there) = copy_entry(&quarantine, base, offset, bytes)?;
        if !is_there {
            copy.replace(bytes)?;
        }
        let mut text = format!(
            "file: {}\noffset: {offset}\nlength: {}\nfound: {} ns since the Unix epoch\n",
            path.display(),
            bytes.len(),
            Timestamp::now().as_nanos(),
        );
        for (offset, len, damage) in regions {
            // Writing to a string does not fail.
            let _ = writeln!(text, "at {offset}, {len} bytes: {damage}");
        }
        copy.with_extension("txt").replace(text.as_bytes())?;
        let (from, to) = (path.to_path_buf(), copy.path().to_path_buf());
        let (len, damage, regions_in_all) = (bytes.len(), first.2, regions.len());
        event!(
            warn, path = %from.display(), offset, len, %damage, regions = regions_in_all,
            copy = %to.display(), "set damaged bytes aside"
        );
        for &(offset, len, damage) in regions {
            self.report.quarantined.push(Quarantined {
                path: path.to_path_buf(),
                offset,
                len,
                damage,
                copy: Some(copy.path().to_path_buf()),
            });
        }
        Ok(())
    }
}

/// Where to copy these bytes, and whether the copy exists already.
fn copy_entry(
    quarantine: &Arc<Directory>,
    base: Sequence,
    offset: u64,
    bytes: &[u8],
) -> Result<(Entry, bool), StorageError> {
    let name = format!("{:02}-{:020}-{offset}", base.stripe(), base.within_stripe());
    let mut copy = quarantine.entry(&format!("{name}.bin"));
    let mut earlier = 0;
    while copy.kind()?.is_some() {
        if copy.has_content(bytes) {
            return Ok((copy, true));
        }
        earlier += 1;
        copy = quarantine.entry(&format!("{name}-{earlier}.bin"));
    }
    Ok((copy, false))
}
