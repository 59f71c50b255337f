//! The public id of a job.

use std::fmt;

/// Bits below the stripe.
const STRIPE_SHIFT: u32 = 56;

/// The id of a job, unique within its queue for ever: the stripe in the top 8 bits, and below
/// them a number that grows along the stripe's log.
///
/// Sequences of one stripe are in the order of its log. They are not dense: each segment starts
/// at a multiple of how many records could fit the one before.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sequence(u64);

impl Sequence {
    pub(crate) const MAX_WITHIN_STRIPE: u64 = (1 << STRIPE_SHIFT) - 1;

    /// The sequence with this number, as [`get`](Self::get) gave it.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number, for storing it elsewhere.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The stripe it belongs to. Letters, which are in the dead letter log, have 255.
    pub const fn stripe(self) -> u8 {
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

    /// How far past `base` this is, which is at most a segment's capacity.
    pub(crate) fn offset_from(self, base: Self) -> u32 {
        u32::try_from(self.0 - base.0).unwrap_or(u32::MAX)
    }
}

/// As `stripe-number`, such as `1-4096`.
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
