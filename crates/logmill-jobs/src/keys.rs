//! The names of the keys that the jobs layer keeps in the backend, and the values of records of
//! ended jobs.

use crate::JobId;

/// What the keys of records begin with.
pub(crate) const RECORDS: &[u8] = b"end/";

/// The job that a record is of.
pub(crate) fn id_of_record(key: &[u8]) -> Option<JobId> {
    let id = std::str::from_utf8(key.strip_prefix(RECORDS)?).ok()?;
    id.parse().ok()
}

/// How far a job is.
pub(crate) fn of_progress(id: &JobId) -> Vec<u8> {
    format!("progress/{id}").into_bytes()
}

/// The record of a job that has ended: its result, or that it was cancelled.
pub(crate) fn of_record(id: &JobId) -> Vec<u8> {
    format!("end/{id}").into_bytes()
}

/// The job that is unique within a key.
pub(crate) fn of_unique(kind: &str, key: &str) -> Vec<u8> {
    bounded("one", kind, key)
}

/// That something is kept in the value of a unique key, whose name is the value here.
pub(crate) fn of_kept(key: &[u8]) -> Vec<u8> {
    format!("{}{:032x}", TO_DO_KEPT, fnv_1a(key)).into_bytes()
}

/// The arguments of a dead job that ran with others than its first.
pub(crate) fn of_letter(ticket: u64) -> Vec<u8> {
    format!("instead/{ticket:016x}").into_bytes()
}

/// Where a job has gone that was edited.
pub(crate) fn of_moved(id: &JobId) -> Vec<u8> {
    format!("moved/{id}").into_bytes()
}

/// That the former record of a job that was edited may still be there.
pub(crate) fn of_moving(id: &JobId) -> Vec<u8> {
    format!("{TO_DO_MOVED}{id}").into_bytes()
}

/// Kinds and keys that are paused.
pub(crate) const PAUSED: &[u8] = b"paused";
/// What a process finishes that follows one that died.
pub(crate) const TO_DO: &str = "todo/";
pub(crate) const TO_DO_KEPT: &str = "todo/kept/";
pub(crate) const TO_DO_MOVED: &str = "todo/moved/";

/// The result of a step of a job.
pub(crate) fn of_step(id: &JobId, step: &str) -> Vec<u8> {
    bounded("step", &id.to_string(), step)
}

/// What was set for the pool of this name while it ran.
pub(crate) fn of_pool(name: &str) -> Vec<u8> {
    bounded("pool", name, "concurrency")
}

/// A schedule.
#[cfg(feature = "schedules")]
pub(crate) fn of_plan(id: &str) -> Vec<u8> {
    [PLANS, id.as_bytes()].concat()
}

/// What the keys of schedules begin with.
#[cfg(feature = "schedules")]
pub(crate) const PLANS: &[u8] = b"plan/";
/// There once a schedule was stored, so that an open need not look through all keys.
#[cfg(feature = "schedules")]
pub(crate) const HAS_PLANS: &[u8] = b"plans";

/// Why a job is being cancelled that a handler of another process has.
pub(crate) fn of_stop(id: &JobId) -> Vec<u8> {
    format!("stop/{id}").into_bytes()
}

/// A dead job that does not block its key any more, as an operator said.
pub(crate) fn of_skipped(id: &JobId) -> Vec<u8> {
    format!("skip/{id}").into_bytes()
}

/// Keys have at most this many bytes in every backend.
const MOST: usize = 512;

/// A key of three parts. One that would be too long ends with a hash of what is left out.
fn bounded(prefix: &str, first: &str, second: &str) -> Vec<u8> {
    // A kind contains any characters, so its length says where it ends.
    let mut key = format!("{prefix}/{}:{first}/{second}", first.len()).into_bytes();
    if key.len() > MOST {
        let hash = fnv_1a(&key);
        key.truncate(MOST - 34);
        key.extend_from_slice(format!("#{hash:033x}").as_bytes());
    }
    key
}

/// FNV-1a with 128 bits, by Fowler, Noll and Vo: the same in every process.
pub(crate) fn fnv_1a(bytes: &[u8]) -> u128 {
    const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    bytes.iter().fold(OFFSET, |hash, byte| {
        (hash ^ u128::from(*byte)).wrapping_mul(PRIME)
    })
}

/// What is kept of a job that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    /// Its output, and how that is encoded.
    Done {
        tag: Option<Vec<u8>>,
        output: Vec<u8>,
    },
    Cancelled {
        reason: String,
    },
    Expired,
    Dead {
        reason: String,
        /// The [identity](crate::mill::Inner::identity) of the mill that has told of the death.
        told_by: Option<u64>,
    },
}

impl Record {
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Done { tag, output } => {
                let tag = tag.as_deref().unwrap_or_default();
                let len = u8::try_from(tag.len()).unwrap_or(u8::MAX);
                [&[b'D', len], &tag[..usize::from(len)], output].concat()
            }
            Self::Cancelled { reason } => [b"C", reason.as_bytes()].concat(),
            Self::Expired => b"E".to_vec(),
            Self::Dead {
                reason,
                told_by: None,
            } => [b"X", reason.as_bytes()].concat(),
            Self::Dead {
                reason,
                told_by: Some(mill),
            } => [b"Y", &mill.to_le_bytes()[..], reason.as_bytes()].concat(),
        }
    }

    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match bytes.split_first()? {
            (b'C', reason) => Some(Self::Cancelled {
                reason: text(reason),
            }),
            (b'E', _) => Some(Self::Expired),
            (b'X', reason) => Some(Self::Dead {
                reason: text(reason),
                told_by: None,
            }),
            (b'Y', rest) => {
                let (mill, reason) = rest.split_first_chunk()?;
                Some(Self::Dead {
                    reason: text(reason),
                    told_by: Some(u64::from_le_bytes(*mill)),
                })
            }
            (b'D', rest) => {
                let (len, rest) = rest.split_first()?;
                let (tag, output) = rest.split_at_checked(usize::from(*len))?;
                Some(Self::Done {
                    tag: (!tag.is_empty()).then(|| tag.to_vec()),
                    output: output.to_vec(),
                })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_told_apart_and_have_a_bounded_length() {
        assert_ne!(of_unique("a/b", "c"), of_unique("a", "b/c"));
        let (long, longer) = ("x".repeat(2000), "x".repeat(2001));
        let (one, other) = (of_unique("k", &long), of_unique("k", &longer));
        assert!(one.len() <= MOST && other.len() <= MOST && one != other);
        // The reference values of the algorithm's authors.
        assert_eq!(fnv_1a(b""), 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d);
        assert_eq!(fnv_1a(b"a"), 0xd228_cb69_6f1a_8caf_7891_2b70_4e4a_8964);
    }

    #[test]
    fn a_record_is_parsed_as_it_was_made() {
        let done = |tag: Option<&[u8]>, output: &[u8]| Record::Done {
            tag: tag.map(<[u8]>::to_vec),
            output: output.to_vec(),
        };
        let reason = || "late".to_owned();
        let records = [
            done(Some(b"json+zstd"), b"7"),
            done(None, b""),
            Record::Cancelled { reason: reason() },
            Record::Expired,
            Record::Dead {
                reason: reason(),
                told_by: None,
            },
            Record::Dead {
                reason: reason(),
                told_by: Some(7),
            },
        ];
        for record in records {
            assert_eq!(Record::parse(&record.to_bytes()), Some(record));
        }
        for bytes in [&b""[..], b"Z", b"D", b"D\x05abc"] {
            assert_eq!(Record::parse(bytes), None);
        }
    }
}
