//! Names and headers of jobs in tests. They follow from a number, so that they can be checked
//! wherever the job is found.

use std::fmt::Display;

use logmill::{EnqueueOptions, Headers};

/// The names are the beginnings of this text. A record's check folds in a name of less than 4 bytes,
/// one of less than 8, and a longer one in different ways.
const NAME: &str = "resize_the_images_of_an_album";
const HEADERS: [(&str, &[u8]); 4] = [
    ("tenant", b"acme"),
    ("t", &[0, 0xff, 0]),
    ("empty", b""),
    // Metadata up to 64 bytes is kept in another way than longer metadata.
    ("baggage", &[0x5a; 200]),
];

/// The name and the headers of a job, either of which it may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Labels {
    pub name: Option<&'static str>,
    pub headers: &'static [(&'static str, &'static [u8])],
}

impl Labels {
    /// Of four numbers in a row, one has neither, one a name, one headers, and one both.
    pub(crate) fn of(number: u64) -> Self {
        let turn = (number / 4) as usize;
        let name = &NAME[..1 + turn % NAME.len()];
        let headers = &HEADERS[..1 + turn % HEADERS.len()];
        Self {
            name: (number & 1 == 1).then_some(name),
            headers: if number & 2 == 2 { headers } else { &[] },
        }
    }

    pub(crate) fn add_to(self, options: EnqueueOptions<'_>) -> EnqueueOptions<'_> {
        let options = options.headers(self.headers);
        match self.name {
            Some(name) => options.name(name),
            None => options,
        }
    }

    /// How many bytes they take of the room for a payload.
    pub(crate) fn len(self) -> usize {
        let headers = self.headers.iter();
        let headers = headers.map(|(key, value)| 4 + key.len() + value.len());
        self.name.map_or(0, str::len) + headers.sum::<usize>()
    }

    /// Checks that a job or letter has exactly these.
    pub(crate) fn check(self, name: Option<&str>, headers: Headers<'_>, whose: impl Display) {
        assert_eq!(name, self.name, "the name of {whose}");
        let is_same = headers.clone().eq(self.headers.iter().copied());
        assert!(is_same, "{whose} has {headers:?}, not {:?}", self.headers);
    }
}
