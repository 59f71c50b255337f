//! Replay: turns dead letters into jobs again.

use std::sync::Arc;

use super::Engine;
use super::letters::Letter;
use crate::error::{DeadLetterError, EnqueueError};
use crate::log::Log;
use crate::log::meta::Meta;
use crate::log::record::NewRecord;
use crate::log::segment::{Segment, Unsettled};
use crate::{JobId, Sequence, Timestamp};

impl Engine {
    /// Appends the jobs, each naming its letter, and flushes them; then marks the letters done and
    /// flushes that. Until then the segments of the new jobs are neither sealed nor retired: after
    /// a crash in between, the next open scans them and marks the letters.
    pub(crate) fn replay(&self, letters: &[Letter]) -> Result<Vec<JobId>, DeadLetterError> {
        // One replay at a time, so that no letter is replayed twice.
        let _hold = self.dead().hold();
        self.check_letters_poison()?;
        let stripe = &self.dispatch().stripes()[0];
        let dead = self.dead().log();
        let mut active = stripe.active();
        let mut jobs = Vec::new();
        let mut unsettled = Vec::new();
        let mut replayed = Vec::new();
        let mut result = Ok(());
        // The letters stay mapped from here on, so that each can be marked done once its job is
        // appended.
        let mut live = Vec::new();
        for letter in letters {
            let pinned = dead.pin_live(letter.sequence)?;
            live.extend(pinned.map(|pinned| (letter, pinned)));
        }
        for (letter, _) in &live {
            match self.append_replay(stripe, &mut active, letter) {
                Ok((job, owed)) => {
                    jobs.push(JobId::of(job));
                    unsettled.push(owed);
                    replayed.push(letter.sequence);
                }
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        if !jobs.is_empty() {
            let flushed = stripe.flush(false);
            self.dispatch().sleepers.notify_fenced(jobs.len());
            if let Err(error) = flushed {
                // The mark might reach the disk when the job does not.
                self.dead().withhold(replayed);
                return Err(DeadLetterError::NotDurable {
                    replayed: jobs,
                    error,
                });
            }
            let mut marked = Ok(());
            for letter in replayed {
                marked = marked.and(dead.mark_done(letter).map(|_| ()));
            }
            // If this fails, the jobs are kept where the next open finds the letters' names.
            match marked.and_then(|()| dead.flush(true)) {
                Ok(()) => self.settled(unsettled),
                Err(_) => unsettled
                    .into_iter()
                    .for_each(|one| self.note_unsettled(one)),
            }
        }
        match result {
            Ok(()) => Ok(jobs),
            Err(error) if jobs.is_empty() => Err(error.into()),
            Err(error) => Err(DeadLetterError::Partial {
                replayed: jobs,
                error: Box::new(error.into()),
            }),
        }
    }

    /// Appends a job that names the letter that it is a replay of.
    fn append_replay(
        &self,
        stripe: &Log,
        active: &mut Arc<Segment>,
        letter: &Letter,
    ) -> Result<(Sequence, Unsettled), EnqueueError> {
        let meta = Meta {
            options: letter.meta.options,
            settles: Some(letter.sequence),
            ..Meta::default()
        }
        .encode(&letter.headers, usize::MAX);
        let job = NewRecord {
            enqueued_at: self.clock.wall(),
            due_at: Timestamp::ZERO,
            name: &letter.name,
            meta: &meta,
            payload: &letter.payload,
        };
        self.take_room(1)?;
        stripe.append_owing(active, &job).map_err(|error| {
            self.leave_room(1);
            error.into()
        })
    }
}
