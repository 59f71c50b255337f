//! Headers: bytes by key that a producer gives a job, and that stay with it wherever its record
//! goes; and what a name may be.

use std::fmt;

use super::meta::{Fields, MetaBytes, TAG_HEADER};

/// Most bytes of a job's name: its length is a u8.
const MAX_NAME_BYTES: usize = 255;
/// Most bytes of a header's key: its length is a u8.
const MAX_KEY_BYTES: usize = 255;
/// Most bytes of a job's headers, encoded, so that the engine's own fields always fit beside them.
pub(crate) const MAX_HEADER_BYTES: usize = 32 * 1024;

/// The headers of a new job.
pub(crate) type NewHeaders<'a> = &'a [(&'a str, &'a [u8])];

#[inline]
pub(crate) fn is_valid_name(name: &str) -> bool {
    (1..=MAX_NAME_BYTES).contains(&name.len())
}

pub(crate) fn is_valid_key(key: &str) -> bool {
    (1..=MAX_KEY_BYTES).contains(&key.len())
}

/// How many bytes the headers take, encoded.
pub(crate) fn encoded_len(headers: NewHeaders<'_>) -> usize {
    let lens = headers
        .iter()
        .map(|(key, value)| 4 + key.len() + value.len());
    lens.sum()
}

/// Appends the headers, which must have a valid length and valid keys, behind all other fields.
pub(crate) fn encode(headers: NewHeaders<'_>, meta: &mut MetaBytes) {
    for (key, value) in headers {
        let len = (1 + key.len() + value.len()) as u16;
        let [low, high] = len.to_le_bytes();
        meta.extend_from_slice(&[TAG_HEADER, low, high, key.len() as u8]);
        meta.extend_from_slice(key.as_bytes());
        meta.extend_from_slice(value);
    }
}

/// The headers in encoded metadata, as they are encoded there.
pub(crate) fn headers_of(meta: &[u8]) -> &[u8] {
    let mut fields = Fields(meta);
    loop {
        let rest = fields.0;
        match fields.next() {
            Some((tag, _)) if tag < TAG_HEADER => {}
            Some(_) => return rest,
            None => return &[],
        }
    }
}

/// The key and the value of a field, if it is a header.
fn parts(tag: u8, header: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&len, rest) = header.split_first().filter(|_| tag == TAG_HEADER)?;
    rest.split_at_checked(len.into())
}

/// Encoded headers without those of this key.
pub(crate) fn without(encoded: &[u8], key: &str) -> Vec<u8> {
    let left = Headers::of(encoded).filter(|(this, _)| *this != key);
    let mut rest = MetaBytes::new();
    encode(&left.collect::<Vec<_>>(), &mut rest);
    rest.to_vec()
}

/// The headers of a job: an iterator over keys and values, in the order in which the producer gave
/// them.
///
/// From [`Job::headers`](crate::Job::headers) and
/// [`DeadLetter::headers`](crate::DeadLetter::headers). It reads them in place; looking one up is
/// linear in their number.
///
/// ```
/// use logmill::{EnqueueOptions, Queue};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let (queue, _) = Queue::builder(dir.path()).open()?;
/// let headers: [(&str, &[u8]); 2] = [("tenant", b"acme"), ("trace", &[0x4b, 0xf9])];
/// queue.enqueue_with(b"42", EnqueueOptions::new().name("send_invoice").headers(&headers))?;
///
/// let consumer = queue.consumer();
/// let job = consumer.next().expect("a job was enqueued");
/// assert_eq!(job.name(), Some("send_invoice"));
/// assert_eq!(job.headers().get("tenant"), Some(&b"acme"[..]));
/// for (key, value) in job.headers() {
///     println!("{key}: {value:?}");
/// }
/// # job.ack();
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Headers<'a>(Fields<'a>);

impl<'a> Headers<'a> {
    pub(crate) fn of(encoded: &'a [u8]) -> Self {
        Self(Fields(encoded))
    }

    /// The value of the first header with this key, among those not yet iterated over.
    pub fn get(&self, key: &str) -> Option<&'a [u8]> {
        // Bytes that agree with text are text: nothing else has to be checked.
        let mut fields = self.0.clone();
        fields.find_map(|(tag, header)| {
            let (this, value) = parts(tag, header)?;
            (this == key.as_bytes()).then_some(value)
        })
    }

    /// Whether there is no header, or none is left.
    pub fn is_empty(&self) -> bool {
        self.clone().next().is_none()
    }
}

impl<'a> Iterator for Headers<'a> {
    type Item = (&'a str, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        self.0.find_map(|(tag, header)| {
            let (key, value) = parts(tag, header)?;
            Some((str::from_utf8(key).ok()?, value))
        })
    }
}

impl fmt::Debug for Headers<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut map = f.debug_map();
        for (key, value) in self.clone() {
            map.entry(&key, &format_args!("\"{}\"", value.escape_ascii()));
        }
        map.finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::log::meta::{MAX_META_BYTES, Meta, has_engine_fields};

    #[test]
    fn headers_stay_as_they_are_behind_other_fields() {
        let given: NewHeaders<'_> = &[("a", b"1"), ("größe", b""), ("a", &[0xff])];
        let mut encoded = MetaBytes::new();
        encode(given, &mut encoded);
        assert_eq!(encoded.len(), encoded_len(given));
        assert!(!has_engine_fields(&encoded));
        let other = Meta {
            prior_attempts: 3,
            ..Meta::default()
        };
        let meta = other.encode(&encoded, MAX_META_BYTES);
        assert!(has_engine_fields(&meta));
        assert_eq!(Meta::decode(&meta), other);
        assert_eq!(headers_of(&meta), &encoded[..]);
        let headers = Headers::of(headers_of(&meta));
        assert_eq!(headers.get("a"), Some(&b"1"[..]));
        assert_eq!(headers.get("größe"), Some(&b""[..]));
        assert_eq!(headers.get("b"), None);
        assert!(headers.eq(given.iter().copied()));
        assert!(Headers::of(headers_of(&[])).is_empty());
        assert_eq!(without(&encoded, "b"), &encoded[..]);
        let left = without(&encoded, "a");
        assert!(Headers::of(&left).eq([given[1]]));
    }

    #[test]
    fn lengths_of_names_and_keys_are_limited() {
        assert!(is_valid_name("n") && is_valid_name(&"n".repeat(255)));
        assert!(!is_valid_name("") && !is_valid_name(&"n".repeat(256)));
        assert!(is_valid_key("k") && is_valid_key(&"k".repeat(255)));
        assert!(!is_valid_key("") && !is_valid_key(&"k".repeat(256)));
    }

    proptest! {
        #[test]
        fn reading_arbitrary_headers_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Headers::of(headers_of(&bytes)).count();
        }
    }
}
