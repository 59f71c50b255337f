//! Steps of the simulation that concern dead letters: jobs that become letters, replays, purges and
//! late acks.

use super::*;

impl World {
    /// Fills segments with letters, and replays or purges all of them before their jobs are durably
    /// done.
    pub(super) fn bury_and_purge(&mut self) {
        for _ in 0..self.number(10) {
            let payload = truth::large_payload(&mut self.shared.random.borrow_mut());
            self.enqueue_with(payload, &EnqueueOptions::new());
        }
        // A job that is not durable would hardly ever be back after a power cut.
        self.flush();
        let running = self.running();
        for _ in 0..4 {
            self.take();
            while let Some(one) = self.shared.take_in_hand() {
                self.fail(&running, one, Verdict::DeadLetter);
            }
        }
        self.shared.truth.borrow_mut().begin(Doing::Nothing);
        self.look_at_letters();
        match self.number(2) {
            0 => self.replay(usize::MAX),
            _ => self.purge(usize::MAX),
        }
        self.run_maintenance();
    }

    /// Workers exceed the lease timeout, and then ack jobs, most of which have died.
    pub(super) fn be_late(&mut self) {
        self.take();
        self.wait();
        for _ in 0..=self.number(2) {
            self.run_maintenance();
        }
        self.look_at_letters();
        let running = self.running();
        for _ in 0..self.number(8) {
            let Some(one) = self.shared.take_in_hand() else {
                break;
            };
            self.shared.ack(&running, one);
        }
    }

    pub(super) fn letters(&self) -> DeadLetters {
        DeadLetters::new(self.running())
    }

    /// Picks the oldest `some` letters, and records that they are about to be replayed or purged.
    pub(super) fn pick_letters(
        &self,
        some: usize,
        doing: fn(Vec<Sequence>) -> Doing,
    ) -> Vec<Sequence> {
        if self.number(12) == 0 {
            self.fail_a_flush();
        }
        let mut truth = self.shared.truth.borrow_mut();
        let picked: Vec<_> = truth.letters().into_iter().take(some).collect();
        truth.begin(doing(picked.clone()));
        picked
    }

    pub(super) fn replay(&self, some: usize) {
        let picked = self.pick_letters(some, Doing::Replay);
        let replayed = self
            .letters()
            .replay_where(|letter| picked.contains(&letter.id().sequence()));
        let running = self.running();
        let mut truth = self.shared.truth.borrow_mut();
        let (jobs, error) = match replayed {
            Ok(jobs) => {
                assert_eq!(jobs.len(), picked.len(), "some letters were not found");
                (jobs, None)
            }
            Err(DeadLetterError::Partial { replayed, error }) => (replayed, Some(*error)),
            Err(error) => (Vec::new(), Some(error)),
        };
        let mut letters = picked.into_iter();
        for (job, letter) in jobs.into_iter().zip(&mut letters) {
            truth.note_replayed(letter, job.sequence());
        }
        match error {
            None => {}
            Some(DeadLetterError::Enqueue(error)) if is_no_room(&error) => {}
            Some(DeadLetterError::NotDurable { replayed, .. }) => {
                for (job, letter) in replayed.into_iter().zip(letters) {
                    truth.note_withheld(letter, job.sequence());
                }
                truth.is_poisoned = true;
            }
            Some(error) => {
                assert!(running.poison().is_some(), "{error}");
                truth.is_poisoned = true;
            }
        }
    }

    pub(super) fn purge(&self, some: usize) {
        let picked = self.pick_letters(some, Doing::Purge);
        let purged = self
            .letters()
            .purge_where(|letter| picked.contains(&letter.id().sequence()));
        let running = self.running();
        let mut truth = self.shared.truth.borrow_mut();
        match purged {
            Ok(count) => {
                assert_eq!(count, picked.len() as u64, "some letters were not found");
                for letter in picked {
                    truth.note_purged(letter, true);
                }
            }
            Err(error) => {
                assert!(running.poison().is_some(), "{error}");
                // Some were purged and not flushed, or none was.
                let there = letters_of(&running);
                for letter in picked {
                    if !there.iter().any(|one| one.sequence == letter) {
                        truth.note_purged(letter, false);
                    }
                }
                truth.is_poisoned = true;
            }
        }
    }

    pub(super) fn look_at_letters(&self) {
        let running = self.running();
        let found = letters_of(&running);
        let mut truth = self.shared.truth.borrow_mut();
        // A flush may have failed in a call that did not return the error.
        truth.is_poisoned |= running.poison().is_some();
        let is_settled = running.dead().stats().dying == 0;
        truth.note_letters(&found, is_settled);
    }
}
