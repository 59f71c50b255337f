//! The numbers of threads and tasks that operators have set, as they are stored for the next start.

use super::concurrency::Concurrency;
use crate::backend::{Changes, Keep, KeyChange};
use crate::error::StartError;
use crate::keys;
use crate::mill::Mill;

/// The numbers of threads and tasks that a pool has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Numbers {
    /// None: those that the application asks for, or the load.
    pub(super) threads: Option<usize>,
    pub(super) tasks: usize,
}

const VERSION: u8 = 1;
/// In place of a number of threads.
const NOT_SET: usize = 0;

impl Concurrency {
    /// The numbers that were set before this start, or the application's own.
    pub(super) fn at_start(&self, mill: &Mill) -> Result<Numbers, StartError> {
        let own = Numbers {
            threads: None,
            tasks: self.tasks,
        };
        let Some(name) = self.stored_as() else {
            return Ok(own);
        };
        let stored = mill.inner.backend.get(&keys::of_pool(name))?;
        Ok(stored
            .and_then(|stored| parse(&stored.value))
            .unwrap_or(own))
    }

    /// Stores the numbers that were set.
    pub(super) fn store(&self, mill: &Mill, numbers: Numbers) -> Result<(), StartError> {
        let Some(name) = self.stored_as() else {
            return Ok(());
        };
        let (key, value) = (keys::of_pool(name), bytes_of(numbers));
        change(mill, KeyChange::Put(&key, &value, Keep::Forever))
    }

    /// Forgets what was stored.
    pub(super) fn forget(&self, mill: &Mill) -> Result<(), StartError> {
        match self.stored_as() {
            Some(name) => change(mill, KeyChange::Remove(&keys::of_pool(name))),
            None => Ok(()),
        }
    }
}

fn change(mill: &Mill, change: KeyChange<'_>) -> Result<(), StartError> {
    mill.inner.backend.commit(&Changes {
        keys: vec![change],
        sync: true,
        ..Changes::default()
    })?;
    Ok(())
}

fn bytes_of(numbers: Numbers) -> Vec<u8> {
    let mut bytes = vec![VERSION];
    for number in [numbers.threads.unwrap_or(NOT_SET), numbers.tasks] {
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    bytes
}

/// What [`bytes_of`] made; None for anything else.
fn parse(bytes: &[u8]) -> Option<Numbers> {
    let rest = bytes.strip_prefix(&[VERSION])?;
    let (threads, tasks) = rest.split_at_checked(4)?;
    let number = |bytes: &[u8]| {
        let number = u32::from_le_bytes(bytes.try_into().ok()?);
        usize::try_from(number).ok()
    };
    Some(Numbers {
        threads: Some(number(threads)?).filter(|threads| *threads != NOT_SET),
        tasks: number(tasks).filter(|tasks| *tasks > 0)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_parsed_as_they_were_stored_and_nothing_else_is() {
        let numbers = |threads, tasks| Numbers { threads, tasks };
        for threads in [Some(4), None] {
            let stored = bytes_of(numbers(threads, 100));
            assert_eq!(parse(&stored), Some(numbers(threads, 100)));
        }
        let bytes = bytes_of(numbers(Some(4), 100));
        for len in 0..bytes.len() {
            assert_eq!(parse(&bytes[..len]), None);
        }
        assert_eq!(parse(&bytes_of(numbers(Some(4), 0))), None);
        assert_eq!(parse(&[&bytes[..], b"x"].concat()), None);
    }
}
