//! The public id of a job.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};
use std::str::FromStr;

/// Bits below the stripe.
const STRIPE_SHIFT: u32 = 56;

/// The id of a job, unique within its queue for ever: the stripe in the top 8 bits, and below
/// them a number that grows along the stripe's log.
///
/// Sequences of one stripe are in the order of its log. They are not dense: each segment starts at a multiple of
/// the most records that a segment can hold.
///
/// Displayed as `stripe-number`, such as `1-4096`, and parsed from that. This is also its form in
/// [serde](https://serde.rs), with the feature `serde`: a string in every format, as numbers of letters, and of
/// all stripes but the first, are greater than what JSON readers with floating point numbers can tell apart
/// (2^53).
///
/// ```
/// use logmill::Sequence;
///
/// let id: Sequence = "1-4096".parse()?;
/// assert_eq!((id.stripe(), id.to_string().as_str()), (1, "1-4096"));
/// assert!("4096".parse::<Sequence>().is_err());
/// # Ok::<(), logmill::ParseSequenceError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sequence(u64);

/// A map by sequences, which nobody outside can choose.
pub(crate) type SequenceMap<T> = HashMap<Sequence, T, BuildHasherDefault<SequenceHasher>>;

/// Keeps 64 sequences in a row together, as they are mostly used one after the other, and spreads
/// these groups: multiplied by 2^64 over the golden ratio (Knuth, The Art of Computer Programming 3,
/// 6.4), with the halves of the product folded together.
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

/// A text that is not the id of a job: not of the form `stripe-number`, or out of range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not the id of a job or letter, which is of the form stripe-number, such as 1-4096"
)]
pub struct ParseSequenceError {
    text: String,
}

impl FromStr for Sequence {
    type Err = ParseSequenceError;

    /// Takes what [`Display`](fmt::Display) gives, and nothing else.
    fn from_str(text: &str) -> Result<Self, ParseSequenceError> {
        let parsed = text.split_once('-').and_then(|(stripe, number)| {
            let number = number.parse().ok()?;
            let first = Self::first_of_stripe(stripe.parse().ok()?);
            (number <= Self::MAX_WITHIN_STRIPE).then(|| first.plus_wide(number))
        });
        // Without signs and leading zeros, so that one id has one text.
        match parsed {
            Some(sequence) if sequence.to_string() == text => Ok(sequence),
            _ => Err(ParseSequenceError {
                text: text.to_owned(),
            }),
        }
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for Sequence {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for Sequence {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl serde::de::Visitor<'_> for Text {
            type Value = Sequence;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the id of a job as a string, such as \"1-4096\"")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Sequence, E> {
                text.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_str(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDS: [(u64, &str); 5] = [
        (0, "0-0"),
        (1 << 56 | 4096, "1-4096"),
        (Sequence::MAX_WITHIN_STRIPE, "0-72057594037927935"),
        (255 << 56, "255-0"),
        (u64::MAX, "255-72057594037927935"),
    ];

    #[test]
    fn an_id_is_parsed_from_its_text_and_from_no_other() {
        for (number, text) in IDS {
            assert_eq!(Sequence::new(number).to_string(), text);
            assert_eq!(text.parse(), Ok(Sequence::new(number)));
        }
        let others = [
            "",
            "-",
            "7",
            "1-",
            "-1",
            "1-+4",
            "+1-4",
            "01-4",
            "1-04",
            " 1-4",
            "1-4\n",
            "1-4-5",
            "256-0",
            "0-72057594037927936",
            "0-18446744073709551616",
            "one-two",
            "Sequence(1-4)",
        ];
        for other in others {
            let error = other.parse::<Sequence>().unwrap_err();
            assert!(error.to_string().contains(&format!("{other:?}")), "{error}");
        }
    }

    #[cfg(feature = "serde")]
    #[test]
    fn an_id_is_a_string_in_json() {
        for (number, text) in IDS {
            let json = serde_json::to_string(&Sequence::new(number)).unwrap();
            assert_eq!(json, format!("\"{text}\""));
            let back: Sequence = serde_json::from_str(&json).unwrap();
            assert_eq!(back.get(), number);
        }
        for other in ["4096", "\"4096\"", "null", "[1, 4096]"] {
            assert!(serde_json::from_str::<Sequence>(other).is_err());
        }
    }
}
