//! Sequences: the place of a record in any log of a queue.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};

/// How many bits are below the stripe.
const STRIPE_SHIFT: u32 = 56;

/// The place of a record, never reused within its queue: the stripe in the top 8 bits, and below
/// them a number that grows along the stripe's log.
///
/// Sequences of one stripe are in the order of its log. They are not dense: each segment starts at
/// a multiple of the most records that a segment can hold.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Sequence(u64);

/// A map keyed by sequences, which outsiders cannot choose.
pub(crate) type SequenceMap<T> = HashMap<Sequence, T, BuildHasherDefault<SequenceHasher>>;

/// Keeps 64 consecutive sequences together, as they are usually used one after the other, and
/// spreads these groups: multiplied by 2^64 over the golden ratio (Knuth, The Art of Computer
/// Programming 3, 6.4), with the halves of the product folded together.
#[derive(Default)]
pub(crate) struct SequenceHasher(u64);

impl Hasher for SequenceHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(self.0.rotate_left(8) ^ u64::from(byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        let product = u128::from(number >> 6) * 0x9e37_79b9_7f4a_7c15;
        let group = product as u64 ^ (product >> 64) as u64;
        self.0 = group << 6 | number & 63;
    }
}

impl Sequence {
    pub(crate) const MAX_WITHIN_STRIPE: u64 = (1 << STRIPE_SHIFT) - 1;

    pub(crate) const fn new(number: u64) -> Self {
        Self(number)
    }

    pub(crate) const fn get(self) -> u64 {
        self.0
    }

    /// 255: the dead letter log.
    pub(crate) const fn stripe(self) -> u8 {
        (self.0 >> STRIPE_SHIFT) as u8
    }

    pub(crate) const fn first_of_stripe(stripe: u8) -> Self {
        Self((stripe as u64) << STRIPE_SHIFT)
    }

    pub(crate) fn within_stripe(self) -> u64 {
        self.0 & Self::MAX_WITHIN_STRIPE
    }

    #[inline]
    pub(crate) fn plus(self, index: u32) -> Self {
        self.plus_wide(u64::from(index))
    }

    #[inline]
    pub(crate) fn plus_wide(self, distance: u64) -> Self {
        Self(self.0 + distance)
    }

    /// How far past `base` this is, at most a segment's capacity.
    pub(crate) fn offset_from(self, base: Self) -> u32 {
        u32::try_from(self.0 - base.0).unwrap_or(u32::MAX)
    }
}

/// Formatted as `stripe-number`, such as `1-4096`.
impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.stripe(), self.within_stripe())
    }
}

impl fmt::Debug for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sequence({self})")
    }
}
