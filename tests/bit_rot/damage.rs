//! The kinds of damage, and the cases: every damage to every byte of every file.

use std::fmt;
use std::ops::Range;
use std::path::Path;

use crate::sample::{Files, Sample};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// One bit of the byte is flipped.
    Flip,
    /// The file is cut off before the byte.
    Cut,
    /// The byte becomes 0xff.
    Ones,
    /// The 512-byte sector that begins at the byte becomes zero.
    ZeroSector,
    /// The 4 KiB page that begins at the byte becomes zero.
    ZeroPage,
}

impl Kind {
    pub(crate) const ALL: [Self; 5] = [
        Self::Flip,
        Self::Cut,
        Self::Ones,
        Self::ZeroSector,
        Self::ZeroPage,
    ];

    /// The distance in bytes between two cases.
    fn step(self) -> usize {
        match self {
            Self::Flip | Self::Cut | Self::Ones => 1,
            Self::ZeroSector => 512,
            Self::ZeroPage => 4096,
        }
    }
}

/// One damage to one file.
#[derive(Clone, Debug)]
pub(crate) struct Case<'a> {
    pub file: &'a Path,
    pub kind: Kind,
    pub offset: usize,
    /// The bit that [`Kind::Flip`] flips.
    bit: u32,
}

impl fmt::Display for Case<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, offset, .. } = self;
        write!(f, "{kind:?} at {offset} of {}", self.file.display())?;
        if *kind == Kind::Flip {
            write!(f, ", bit {}", self.bit)?;
        }
        Ok(())
    }
}

impl<'a> Case<'a> {
    /// Every damage to every byte of every file. With `all_bits`, each bit of a byte is flipped in
    /// a case of its own; otherwise one bit, which differs from byte to byte.
    pub(crate) fn all(files: &'a Files, all_bits: bool) -> Vec<Self> {
        let mut cases = Vec::new();
        for (file, bytes) in files {
            for kind in Kind::ALL {
                for offset in (0..bytes.len()).step_by(kind.step()) {
                    let turn = (offset % 8) as u32;
                    let bits = match kind {
                        Kind::Flip if all_bits => 0..8,
                        _ => turn..turn + 1,
                    };
                    cases.extend(bits.map(|bit| Self {
                        file,
                        kind,
                        offset,
                        bit,
                    }));
                }
            }
        }
        cases
    }

    /// The damaged file, or `None` if the damage changes nothing.
    pub(crate) fn change(&self, sample: &'a Sample) -> Option<Change<'a>> {
        let before = &sample.files[self.file];
        let mut after = before.clone();
        let end = (self.offset + self.kind.step()).min(after.len());
        match self.kind {
            Kind::Flip => after[self.offset] ^= 1 << self.bit,
            Kind::Cut => after.truncate(self.offset),
            Kind::Ones => after[self.offset] = 0xff,
            Kind::ZeroSector | Kind::ZeroPage => after[self.offset..end].fill(0),
        }
        (after != *before).then_some(Change {
            file: self.file,
            before,
            after,
        })
    }
}

/// A file before and after it was damaged.
pub(crate) struct Change<'a> {
    pub file: &'a Path,
    before: &'a [u8],
    pub after: Vec<u8>,
}

impl Change<'_> {
    /// Whether one of these bytes was changed or cut off.
    pub(crate) fn hits(&self, mut range: Range<usize>) -> bool {
        range.any(|at| self.before.get(at) != self.after.get(at))
    }

    /// Whether these bytes, as far as they still exist, are zero after the damage.
    pub(crate) fn is_zero(&self, range: Range<usize>) -> bool {
        let end = range.end.min(self.after.len());
        let rest = self.after.get(range.start..end).unwrap_or_default();
        rest.iter().all(|&byte| byte == 0)
    }

    pub(crate) fn is_cut_before(&self, end: usize) -> bool {
        self.after.len() < end
    }
}
