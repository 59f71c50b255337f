//! Dead letters as the handle shows them: listing, reading and purging.

use std::sync::Arc;
use std::time::Duration;

use super::{Engine, Running};
use crate::error::DeadLetterError;
use crate::events::event;
use crate::log::headers::headers_of;
use crate::log::meta::Meta;
use crate::log::pinned::Pinned;
use crate::log::records::Record;
use crate::{Sequence, StorageError, Timestamp};

/// A copy of one dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Letter {
    pub(crate) sequence: Sequence,
    pub(crate) enqueued_at: Timestamp,
    pub(crate) payload: Vec<u8>,
    pub(crate) name: Vec<u8>,
    /// The job's headers, encoded.
    pub(crate) headers: Vec<u8>,
    pub(crate) meta: Meta,
}

impl Letter {
    fn read(letters: &Pinned, record: &Record<'_>) -> Self {
        Self {
            sequence: letters.segment().sequence(record.header().index),
            enqueued_at: record.header().enqueued_at,
            payload: record.payload().to_vec(),
            name: record.name().to_vec(),
            headers: headers_of(record.meta()).to_vec(),
            meta: Meta::decode(record.meta()),
        }
    }
}

/// The letters, oldest first, each read when the iterator reaches it. Yields an error for each
/// segment that cannot be read. Does not keep the queue open.
pub(crate) fn letters_of(
    running: &Arc<Running>,
) -> impl Iterator<Item = Result<Letter, Arc<StorageError>>> + use<> {
    running.settle_letters();
    // Most letters written from here on are in later segments. Without this bound, letters whose
    // replays fail would be replayed forever.
    let last = running.dead().log().last_base();
    let running = Arc::downgrade(running);
    let mut after = None;
    let next = {
        let running = running.clone();
        move || running.upgrade()?.dead().log().next_pin(&mut after, last)
    };
    // One segment is mapped at a time.
    std::iter::from_fn(next).flat_map(move |letters| {
        let (letters, error) = match letters {
            Ok(letters) => (Some(letters), None),
            Err(error) => (None, Some(error)),
        };
        // Positions rather than records, because records borrow from the pin, which is moved.
        let positions: Vec<_> = letters
            .iter()
            .flat_map(Pinned::live_records)
            .map(|record| record.units())
            .collect();
        let running = running.clone();
        let read = positions.into_iter().filter_map(move |units| {
            let letters = letters.as_ref()?;
            let record = letters.record(units)?;
            let index = record.header().index;
            let is_shown =
                |running: Arc<Running>| running.dead().is_shown(letters.segment().sequence(index));
            let is_there = !letters.is_done(index) && running.upgrade().is_none_or(is_shown);
            is_there.then(|| Ok(Letter::read(letters, &record)))
        });
        read.chain(error.map(Err))
    })
}

impl Engine {
    /// Finds a letter by walking through its segment.
    pub(crate) fn find_letter(
        &self,
        letter: Sequence,
    ) -> Result<Option<Letter>, Arc<StorageError>> {
        self.settle_letters();
        let dead = self.dead();
        let Some(letters) = dead.log().pin_containing(letter)? else {
            return Ok(None);
        };
        let is_it =
            |record: &Record<'_>| letters.segment().sequence(record.header().index) == letter;
        let record = letters.live_records().find(is_it);
        let record = record.filter(|_| dead.is_shown(letter));
        Ok(record.map(|record| Letter::read(&letters, &record)))
    }

    /// Deletes letters for good with one flush; returns how many existed.
    pub(crate) fn purge(
        &self,
        letters: impl Iterator<Item = Sequence>,
    ) -> Result<u64, DeadLetterError> {
        self.settle_letters();
        let dead = self.dead();
        let mut purged = 0;
        for letter in letters {
            // A letter must not be purged while it is being replayed.
            let _hold = dead.hold();
            self.check_letters_poison()?;
            purged += u64::from(dead.log().mark_done(letter)?);
        }
        if purged > 0 {
            dead.log().flush(true)?;
        }
        Ok(purged)
    }

    /// Writes the letters that are still to be written, so that they are shown.
    fn settle_letters(&self) {
        let unwritten = &self.unwritten_letters;
        match self.write_letters() {
            Ok(()) => {
                for failure in unwritten.over_since(Duration::ZERO) {
                    event!(info, failure, "the dead letters are written");
                }
            }
            Err(error) => {
                if let Some(times) = unwritten.met_error(&error) {
                    event!(warn, %error, times, "some dead letters are not written yet");
                }
            }
        }
    }

    /// After a failed flush, changes to letters cannot be made durable, so they are refused.
    pub(super) fn check_letters_poison(&self) -> Result<(), DeadLetterError> {
        match self.poison() {
            Some(error) => Err(DeadLetterError::Poisoned(Arc::clone(error))),
            None => Ok(()),
        }
    }
}
