//! The ids of jobs and of dead letters.

use std::fmt;
use std::str::FromStr;

use crate::sequence::Sequence;

/// The stripe number of letters: the dead letter log is not one of the stripes.
const LETTERS: u8 = u8::MAX;

/// A text that is not an id of the expected kind.
///
/// It is not of the form `stripe-number`, is out of range, or is a job's id where a letter's is
/// expected or the other way round.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not the id of a {kind}, such as {example}")]
pub struct ParseIdError {
    text: String,
    kind: &'static str,
    example: &'static str,
}

/// Parses exactly what [`Display`](fmt::Display) produces: each id has one text.
fn parse(text: &str) -> Option<Sequence> {
    let (stripe, number) = text.split_once('-')?;
    let number = number.parse().ok()?;
    let first = Sequence::first_of_stripe(stripe.parse().ok()?);
    let sequence = (number <= Sequence::MAX_WITHIN_STRIPE).then(|| first.plus_wide(number))?;
    // Rejects signs and leading zeros.
    (sequence.to_string() == text).then_some(sequence)
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident: a $kind:literal such as $example:literal, if $is_one:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Sequence);

        impl $name {
            /// The id with this number, which [`get`](Self::get) returned.
            pub const fn new(number: u64) -> Self {
                Self(Sequence::new(number))
            }

            /// The id as a number, for storing it elsewhere.
            pub const fn get(self) -> u64 {
                self.0.get()
            }

            pub(crate) const fn of(sequence: Sequence) -> Self {
                Self(sequence)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            /// Parses exactly what [`Display`](fmt::Display) produces.
            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let is_one: fn(u8) -> bool = $is_one;
                match parse(text).filter(|sequence| is_one(sequence.stripe())) {
                    Some(sequence) => Ok(Self(sequence)),
                    None => Err(ParseIdError {
                        text: text.to_owned(),
                        kind: $kind,
                        example: $example,
                    }),
                }
            }
        }

        #[cfg(feature = "serde")]
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        #[cfg(feature = "serde")]
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;

                impl serde::de::Visitor<'_> for Text {
                    type Value = $name;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        write!(f, "the id of a {} as a string, such as {:?}", $kind, $example)
                    }

                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$name, E> {
                        text.parse().map_err(E::custom)
                    }
                }

                deserializer.deserialize_str(Text)
            }
        }
    };
}

id! {
    /// The id of a job, unique within its queue for ever.
    ///
    /// Ids of one stripe are in the order in which its jobs were enqueued. They are not
    /// consecutive.
    ///
    /// Displayed as `stripe-number`, such as `1-4096`, and parsed from the same form. With the
    /// feature `serde`, an id is this string in [serde](https://serde.rs) too, in every format: as
    /// numbers, the ids of all stripes but the first exceed 2^53, and JSON readers with floating
    /// point numbers could not tell them apart.
    ///
    /// ```
    /// use logmill::JobId;
    ///
    /// let id: JobId = "1-4096".parse()?;
    /// assert_eq!((id.stripe(), id.to_string().as_str()), (1, "1-4096"));
    /// assert!("4096".parse::<JobId>().is_err());
    /// # Ok::<(), logmill::ParseIdError>(())
    /// ```
    JobId: a "job" such as "1-4096", if |stripe| stripe != LETTERS
}

impl JobId {
    /// The stripe that the job was enqueued on.
    pub const fn stripe(self) -> u8 {
        self.0.stripe()
    }

    pub(crate) const fn sequence(self) -> Sequence {
        self.0
    }
}

id! {
    /// The id of a dead letter, unique within its queue for ever.
    ///
    /// The job that became the letter has an id of its own, a [`JobId`].
    ///
    /// Displayed as `255-number`, such as `255-7`, and parsed from the same form. With the feature
    /// `serde` it is a string in every format.
    ///
    /// ```
    /// use logmill::{JobId, LetterId};
    ///
    /// let letter: LetterId = "255-7".parse()?;
    /// assert_eq!(letter.to_string(), "255-7");
    /// // The two kinds cannot be mixed up.
    /// assert!("255-7".parse::<JobId>().is_err() && "1-4096".parse::<LetterId>().is_err());
    /// # Ok::<(), logmill::ParseIdError>(())
    /// ```
    LetterId: a "letter" such as "255-7", if |stripe| stripe == LETTERS
}

impl LetterId {
    pub(crate) const fn sequence(self) -> Sequence {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOBS: [(u64, &str); 3] = [
        (0, "0-0"),
        (1 << 56 | 4096, "1-4096"),
        (Sequence::MAX_WITHIN_STRIPE, "0-72057594037927935"),
    ];
    const LETTERS: [(u64, &str); 2] = [(255 << 56, "255-0"), (u64::MAX, "255-72057594037927935")];

    #[test]
    fn an_id_is_parsed_from_its_text_and_from_no_other() {
        for (number, text) in JOBS {
            assert_eq!(JobId::new(number).to_string(), text);
            assert_eq!(text.parse(), Ok(JobId::new(number)));
            assert!(text.parse::<LetterId>().is_err());
        }
        for (number, text) in LETTERS {
            assert_eq!(LetterId::new(number).to_string(), text);
            assert_eq!(text.parse(), Ok(LetterId::new(number)));
            assert!(text.parse::<JobId>().is_err());
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
            "JobId(1-4)",
        ];
        for other in others {
            let error = other.parse::<JobId>().unwrap_err();
            assert!(error.to_string().contains(&format!("{other:?}")), "{error}");
            assert!(other.parse::<LetterId>().is_err());
        }
    }

    #[cfg(feature = "serde")]
    #[test]
    fn an_id_is_a_string_in_json() {
        for (number, text) in JOBS {
            let json = serde_json::to_string(&JobId::new(number)).unwrap();
            assert_eq!(json, format!("\"{text}\""));
            let back: JobId = serde_json::from_str(&json).unwrap();
            assert_eq!(back.get(), number);
        }
        for (number, text) in LETTERS {
            let json = serde_json::to_string(&LetterId::new(number)).unwrap();
            assert_eq!(json, format!("\"{text}\""));
            let back: LetterId = serde_json::from_str(&json).unwrap();
            assert_eq!(back.get(), number);
        }
        for other in ["4096", "\"4096\"", "null", "[1, 4096]"] {
            assert!(serde_json::from_str::<JobId>(other).is_err());
            assert!(serde_json::from_str::<LetterId>(other).is_err());
        }
    }
}
