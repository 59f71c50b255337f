//! Keeps track of dead letters: which there are, and which were replayed, purged or withdrawn.

use super::*;

impl Truth {
    /// Records the letters that are in the dead letter log. `is_settled` says that all letters due
    /// are written and flushed.
    pub(in super::super) fn note_letters(&mut self, found: &[FoundLetter], is_settled: bool) {
        for letter in found {
            if self.letters.contains_key(&letter.sequence) {
                continue;
            }
            assert!(
                self.letters.values().all(|other| other.job != letter.job)
                    || self.job(letter.job).is_beside_its_letter,
                "{} has got a second letter",
                letter.job
            );
            let payload = self.letter_payload(letter);
            let is_durable = !self.is_poisoned;
            let new = Letter {
                job: letter.job,
                payload: payload.unwrap_or_else(|| panic!("a letter of no dying job: {letter:?}")),
                is_durable,
                withheld_for: None,
                is_withdrawn: false,
            };
            self.letters.insert(letter.sequence, new);
            if is_durable {
                self.job(letter.job).end.get_or_insert(End::Dead);
            }
        }
        if is_settled && !self.is_poisoned {
            self.remove_withdrawn(found);
        }
    }

    /// Removes the letters that were withdrawn, and checks that none of them is left in the log.
    /// Their jobs count as acked.
    fn remove_withdrawn(&mut self, found: &[FoundLetter]) {
        let letters = self.letters.iter();
        let withdrawn: Vec<_> = letters
            .filter(|(_, letter)| letter.is_withdrawn)
            .map(|(letter, _)| *letter)
            .collect();
        for letter in withdrawn {
            let is_there = found.iter().any(|one| one.sequence == letter);
            assert!(
                !is_there,
                "letter {letter} is there, but its job was acked late"
            );
            self.note_purged(letter, false);
        }
        for job in self.jobs.values_mut().filter(|job| job.is_withdrawn) {
            job.end.get_or_insert(End::Acked);
        }
    }

    pub(in super::super) fn letters(&self) -> Vec<Sequence> {
        let letters = self.letters.iter();
        letters
            .filter(|(_, letter)| letter.withheld_for.is_none() && !letter.is_withdrawn)
            .map(|(letter, _)| *letter)
            .collect()
    }

    pub(in super::super) fn note_replayed(&mut self, letter: Sequence, job: Sequence) {
        let payload = self.remove(letter).payload;
        self.note_enqueued(job, payload, true);
    }

    /// Records a replay whose job could not be flushed, so that the letter is not marked as done.
    pub(in super::super) fn note_withheld(&mut self, letter: Sequence, job: Sequence) {
        let known = self.letters.get_mut(&letter).expect("a letter");
        known.withheld_for = Some(job);
        let payload = known.payload.clone();
        self.note_enqueued(job, payload, false);
    }

    pub(in super::super) fn note_purged(&mut self, letter: Sequence, is_durable: bool) {
        let gone = self.remove(letter);
        if !is_durable {
            self.purged.insert(letter, gone);
        }
    }

    /// Removes a letter, and its job if that has ended, which must then never be seen again.
    pub(super) fn remove(&mut self, letter: Sequence) -> Letter {
        let gone = self.letters.remove(&letter).expect("a letter");
        if self
            .jobs
            .get(&gone.job)
            .is_some_and(|job| job.end.is_some())
        {
            self.jobs.remove(&gone.job);
        }
        gone
    }

    /// The payload of the letter's job, if that job may have just become this letter.
    pub(super) fn letter_payload(&self, letter: &FoundLetter) -> Option<Payload> {
        let job = self.jobs.get(&letter.job)?;
        (job.may_die && job.end != Some(End::Dead) && letter.payload == job.payload)
            .then(|| job.payload.clone())
    }
}
