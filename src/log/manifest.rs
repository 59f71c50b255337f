//! The MANIFEST: the options that were fixed when the directory of a queue was created, or that of a
//! state log.
//!
//! ```text
//! offset  size  field
//!      0     8  magic         "logmillM"
//!      8     4  version       1
//!     12     4  stripes
//!     16     8  segment size  bytes
//!     24     8  created at    nanoseconds since the Unix epoch
//!     32     8  id            random, names the queue in its tree; 0: in none
//!     40     4  check         CRC-32 of the bytes 0..40
//! ```
//! It is only replaced as a whole: write, flush, rename, flush of the directory.

use std::sync::Arc;

use crate::Timestamp;
use crate::error::OpenError;
use crate::log::header::VERSION;
use crate::storage::{Directory, Entry, StorageError};

const MAGIC: [u8; 8] = *b"logmillM";
const BYTES: usize = 44;
/// The place of the check, after all that it covers.
const CHECK: usize = BYTES - 4;

/// The name of the file in the queue directory.
pub(crate) const FILE_NAME: &str = "MANIFEST";

/// The name under which a new MANIFEST is written before it is renamed.
pub(crate) const TEMPORARY_NAME: &str = "MANIFEST.tmp";

/// The options that were fixed at creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) stripes: u32,
    pub(crate) segment_size: u64,
    pub(crate) created_at: Timestamp,
    /// Names a queue of a tree, or the tree's state log, where a path would not do; 0: the queue is
    /// in no tree.
    pub(crate) id: u64,
}

/// Why a MANIFEST was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    Version(u32),
    Corrupt(&'static str),
}

impl Refused {
    /// The error of an open that needs the MANIFEST of this directory.
    pub(crate) fn into_error(self, directory: &Arc<Directory>) -> OpenError {
        let path = Manifest::entry(directory).path().to_path_buf();
        match self {
            Self::Version(found) => OpenError::ManifestVersion {
                path,
                found,
                supported: VERSION,
            },
            Self::Corrupt(why) => OpenError::ManifestCorrupt { path, why },
        }
    }
}

impl Manifest {
    pub(crate) fn entry(queue: &Arc<Directory>) -> Entry {
        queue.entry(FILE_NAME)
    }

    /// Writes it; `before` is called before it has its name.
    pub(crate) fn write(
        &self,
        directory: &Arc<Directory>,
        before: impl FnOnce() -> Result<(), StorageError>,
    ) -> Result<(), StorageError> {
        Self::entry(directory).replace_after(&self.encode(), before)
    }

    fn encode(&self) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        bytes[0..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.stripes.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.segment_size.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.created_at.as_nanos().to_le_bytes());
        bytes[32..40].copy_from_slice(&self.id.to_le_bytes());
        let check = crc32fast::hash(&bytes[..CHECK]);
        bytes[CHECK..].copy_from_slice(&check.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Refused> {
        let Some((magic, rest)) = bytes.split_first_chunk::<8>() else {
            return Err(Refused::Corrupt("it is too short"));
        };
        if *magic != MAGIC {
            return Err(Refused::Corrupt("its magic number is wrong"));
        }
        let Some(version) = rest.first_chunk() else {
            return Err(Refused::Corrupt("it is too short"));
        };
        // The version comes first, so that a later format may change everything after it.
        let version = u32::from_le_bytes(*version);
        if version != VERSION {
            return Err(Refused::Version(version));
        }
        let Ok(bytes) = <&[u8; BYTES]>::try_from(bytes) else {
            return Err(Refused::Corrupt("its length is wrong"));
        };
        let (body, check) = bytes.split_at(CHECK);
        if crc32fast::hash(body).to_le_bytes() != check {
            return Err(Refused::Corrupt("its check value does not match"));
        }
        let word = |at: usize| {
            bytes[at..]
                .first_chunk()
                .map_or(0, |b| u64::from_le_bytes(*b))
        };
        Ok(Self {
            stripes: (word(8) >> 32) as u32,
            segment_size: word(16),
            created_at: Timestamp::from_nanos(word(24)),
            id: word(32),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        Manifest {
            stripes: 2,
            segment_size: 16384,
            created_at: Timestamp::from_nanos(7),
            id: 9,
        }
    }

    #[test]
    fn the_bytes_are_pinned() {
        let bytes = manifest().encode();
        assert_eq!(
            bytes[..CHECK],
            *b"logmillM\x01\0\0\0\x02\0\0\0\0\x40\0\0\0\0\0\0\
               \x07\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\0"
        );
        assert_eq!(Manifest::decode(&bytes), Ok(manifest()));
    }

    #[test]
    fn another_version_and_every_flipped_bit_are_refused() {
        let good = manifest().encode();
        for bit in 0..BYTES * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            match Manifest::decode(&bad) {
                Err(Refused::Version(_)) => assert!((64..96).contains(&bit)),
                Err(Refused::Corrupt(_)) => assert!(!(64..96).contains(&bit)),
                Ok(_) => panic!("bit {bit} went unnoticed"),
            }
        }
        for len in 0..BYTES {
            assert!(Manifest::decode(&good[..len]).is_err());
        }
    }
}
