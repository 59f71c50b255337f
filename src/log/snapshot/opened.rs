//! The files of a segment while they are read.

use super::LogFiles;
use crate::Sequence;
use crate::log::header::{
    FILE_HEADER_BYTES, FileKind, Identity, decode_reused, may_be_half_written,
};
use crate::log::record::UNIT;
use crate::log::recovery::seal_of;
use crate::log::tail::Position;
use crate::storage::{Entry, ReadFile, StorageError};

/// The files of a segment, open, with what their headers said.
pub(super) struct Opened {
    pub(super) base: Sequence,
    pub(super) records: ReadFile,
    pub(super) acks: Option<ReadFile>,
    pub(super) headers: Headers,
    /// Whether it was sealed and is shorter than its seal says. It is scanned, as an open does it.
    pub(super) is_cut_off: bool,
}

/// What the headers of a segment's two files say; None where a header is not valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Headers {
    own: Option<Identity>,
    pub(super) copied: Option<Identity>,
    /// None also if the file is cut off.
    pub(super) seal: Option<Position>,
    /// From where on bytes of an earlier life of the files may stand.
    pub(super) reused_from: Option<u32>,
    /// Whether the header of the segment file is all zero.
    pub(super) is_zero: bool,
    /// Whether it may be a header of which some words are not written yet.
    pub(super) may_be_half_written: bool,
}

impl Headers {
    /// The identity of the segment: from its own header, or else from that of its ack file.
    pub(super) fn identity(&self) -> Option<Identity> {
        self.own.or(self.copied)
    }
}

impl LogFiles {
    pub(super) fn entry(&self, base: Sequence, extension: &str) -> Entry {
        let name = format!("{:020}.{extension}", base.within_stripe());
        self.directory.entry(&name)
    }

    pub(super) fn open(&self, base: Sequence) -> Result<Option<Opened>, StorageError> {
        let Some(records) = ReadFile::open(self.entry(base, "seg"))? else {
            return Ok(None);
        };
        let acks = ReadFile::open(self.entry(base, "ack"))?;
        let mut headers = self.headers(base, &records, acks.as_ref())?;
        let len = records.len()?;
        let is_cut_off = headers.seal.is_some_and(|end| bytes_to(end) > len);
        headers.seal = headers.seal.filter(|_| !is_cut_off);
        Ok(Some(Opened {
            base,
            records,
            acks,
            headers,
            is_cut_off,
        }))
    }

    fn headers(
        &self,
        base: Sequence,
        records: &ReadFile,
        acks: Option<&ReadFile>,
    ) -> Result<Headers, StorageError> {
        let header_of = |file: &ReadFile| {
            let mut header = [0; FILE_HEADER_BYTES];
            let len = file.read_at(0, &mut header)?;
            Ok::<_, StorageError>((header, len))
        };
        let identity_of = |kind, header: &[u8]| {
            let identity = Identity::decode(kind, header)?;
            let is_ours = identity.base == base && identity.segment_size == self.segment_size;
            is_ours.then_some(identity)
        };
        let (header, len) = header_of(records)?;
        let own = identity_of(FileKind::Segment, &header[..len]);
        let (copied, reused_from) = match acks {
            Some(acks) => {
                let (header, len) = header_of(acks)?;
                let copied = identity_of(FileKind::Ack, &header[..len]);
                let reused_from = copied.and_then(|copied| decode_reused(copied.salt, &header));
                (copied, reused_from)
            }
            None => (None, None),
        };
        // A file that ends within its header holds nothing.
        let copied = copied.filter(|_| len == FILE_HEADER_BYTES);
        Ok(Headers {
            own,
            copied,
            seal: own
                .or(copied)
                .and_then(|identity| seal_of(&identity, &header)),
            reused_from,
            is_zero: header == [0; FILE_HEADER_BYTES],
            may_be_half_written: may_be_half_written(&header, base, self.segment_size),
        })
    }

    /// Whether everything read between [`open`](Self::open) and now was of this segment.
    pub(super) fn is_unchanged(&self, opened: &Opened) -> Result<bool, StorageError> {
        let has_its_acks = match &opened.acks {
            Some(acks) => acks.has_its_name()?,
            None => self.entry(opened.base, "ack").kind()?.is_none(),
        };
        if !opened.records.has_its_name()? || !has_its_acks {
            return Ok(false);
        }
        // The files of the last segment are emptied under their names, that of the records first.
        let headers = self.headers(opened.base, &opened.records, opened.acks.as_ref())?;
        let before = opened.headers;
        Ok((headers.own, headers.copied, headers.is_zero)
            == (before.own, before.copied, before.is_zero))
    }
}

/// How many bytes there are up to here.
pub(super) fn bytes_to(end: Position) -> u64 {
    u64::from(end.units) * UNIT as u64
}
