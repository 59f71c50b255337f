//! The MANIFEST: the options that were fixed when the queue directory was created.
//!
//! ```text
//! offset  size  field
//!      0     8  magic         "logmillM"
//!      8     4  version       1
//!     12     4  stripes
//!     16     8  segment size  bytes
//!     24     8  created at    nanoseconds since the Unix epoch
//!     32     8  id            random, names the queue in its tree
//!     40     4  check         CRC-32 of the bytes 0..40
//! ```
//! It is only replaced as a whole: write, flush, rename, flush of the directory.

use std::sync::Arc;

use crate::Timestamp;
use crate::error::OpenError;
use crate::log::header::VERSION;
use crate::options::{self, Builder, DEFAULT_SEGMENT_SIZE, MAX_DEFAULT_STRIPES, MAX_STRIPES};
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
    /// Names the queue where a path would not do: in a tree, queues are never mixed up.
    pub(crate) id: u64,
}

/// Why a MANIFEST was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    Version(u32),
    Corrupt(&'static str),
}

impl Manifest {
    /// The manifest of a new queue with these options.
    pub(super) fn new_for(options: &Builder) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            stripes: options.stripes.unwrap_or(cores.min(MAX_DEFAULT_STRIPES)) as u32,
            segment_size: options.segment_size.unwrap_or(DEFAULT_SEGMENT_SIZE),
            created_at: Timestamp::now(),
            id: fastrand::u64(..),
        }
    }

    /// Checks the options of an open against those in force.
    pub(super) fn check(&self, options: &Builder) -> Result<(), OpenError> {
        let fixed = [
            (
                "stripes",
                u64::from(self.stripes),
                options.stripes.map(|stripes| stripes as u64),
            ),
            ("segment_size", self.segment_size, options.segment_size),
        ];
        for (option, on_disk, asked) in fixed {
            if let Some(asked) = asked
                && asked != on_disk
            {
                return Err(OpenError::OptionMismatch {
                    option,
                    on_disk,
                    asked,
                });
            }
        }
        let least = 3 * u64::from(self.stripes) * self.segment_size;
        if options.max_bytes.is_some_and(|max| max < least) {
            return Err(OpenError::InvalidOption {
                option: "max_bytes",
                why: format!("must be at least three segments a stripe, {least} bytes"),
            });
        }
        Ok(())
    }

    /// Whether this library can have written these values.
    pub(super) fn is_valid(&self) -> bool {
        (1..=MAX_STRIPES).contains(&(self.stripes as usize))
            && options::is_valid_segment_size(self.segment_size)
    }

    pub(crate) fn entry(queue: &Arc<Directory>) -> Entry {
        queue.entry(FILE_NAME)
    }

    /// Writes it; `before` is called before it has its name.
    pub(crate) fn write(
        &self,
        queue: &Arc<Directory>,
        before: impl FnOnce() -> Result<(), StorageError>,
    ) -> Result<(), StorageError> {
        Self::entry(queue).replace_after(&self.encode(), before)
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
