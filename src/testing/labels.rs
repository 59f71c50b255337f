//! The names and headers of jobs in simulations. They follow from one byte of the payload, so that
//! they can be checked wherever the job is found.

use crate::{EnqueueOptions, Headers};

/// The names are the beginnings of this text. A record's check folds in a name of less than 4 bytes,
/// one of less than 8, and a longer one in different ways.
const NAME: &str = "resize_the_images_of_an_album_v2";
const HEADERS: [(&str, &[u8]); 3] = [("tenant", b"acme"), ("t", &[0, 0xff]), ("empty", b"")];
/// The most bytes that name and headers add to a payload.
pub(super) const MOST_BYTES: usize = 64;

/// Half of the numbers have a name, three quarters have headers.
fn labels(
    number: u8,
) -> (
    Option<&'static str>,
    &'static [(&'static str, &'static [u8])],
) {
    let len = 1 + usize::from(number >> 3);
    let name = (number & 1 == 1).then_some(&NAME[..len]);
    (name, &HEADERS[..usize::from(number >> 1 & 3)])
}

/// Adds the name and the headers that belong to this number.
pub(super) fn label(number: u8, options: EnqueueOptions<'_>) -> EnqueueOptions<'_> {
    let (name, headers) = labels(number);
    let options = options.headers(headers);
    match name {
        Some(name) => options.name(name),
        None => options,
    }
}

/// Checks that a job or letter has the name and the headers that belong to this number.
pub(super) fn check(number: u8, name: Option<&str>, headers: Headers<'_>) {
    let expected = labels(number);
    assert_eq!(name, expected.0, "the name of a job has changed");
    let is_same = headers.clone().eq(expected.1.iter().copied());
    assert!(is_same, "{headers:?}, not {:?}", expected.1);
}
