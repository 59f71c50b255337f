//! The observer of file operations, which crashes the simulated process at any of them and checks
//! what is left.

use super::*;

impl Shared {
    pub(super) fn take_in_hand(&self) -> Option<InHand> {
        let mut in_hand = self.in_hand.borrow_mut();
        let at = self.random.borrow_mut().usize(0..in_hand.len().max(1));
        (at < in_hand.len()).then(|| in_hand.swap_remove(at))
    }

    pub(super) fn ack(&self, running: &Running, one: InHand) {
        let dead = running.dead();
        let is_withdrawn = one.has_timed_out && dead.may_be_withdrawn(&one.lease);
        if is_withdrawn
            && (self.truth.borrow().is_about_letter_of(one.job) || !dead.log().is_step_free())
        {
            // The ack would race with the replay or purge, or wait for its own thread.
            return self.in_hand.borrow_mut().push(one);
        }
        // Once this lease has timed out, another one may have completed the job.
        let was_done = one.lease.is_done();
        running.ack(one.lease, one.delivery, one.attempt);
        let mut truth = self.truth.borrow_mut();
        if !was_done {
            truth.note_acked(one.job);
        }
        if is_withdrawn {
            truth.note_withdrawn(one.job);
        }
        truth.note_handled(one.job, false);
    }

    /// Called before and after each file operation: lets other threads go on, and may crash.
    pub(super) fn watch(
        &self,
        operation: Operation,
        path: &Path,
        moment: Moment,
    ) -> std::io::Result<()> {
        let noted = self.disk.borrow_mut().note(operation, path, moment);
        if self.disk.borrow().has_failed() && self.frozen.borrow().is_none() {
            *self.frozen.borrow_mut() = Some(self.seals());
        }
        noted?;
        self.check_frozen();
        if self.random.borrow_mut().u8(0..3) == 0 {
            self.go_on_beside();
        }
        // Crashes are more frequent while a job or letter is on its way from one log to another.
        let often = if self.is_settling(path) { 4 } else { 1 };
        let crashes = [(Crash::Kill, often), (Crash::PowerCut, 3 * often)];
        for (crash, often) in crashes {
            if self.random.borrow_mut().u8(0..120) < often {
                let copy = scratch();
                let disk = self.leave(crash, copy.path());
                self.check(copy.path(), disk, crash);
            }
        }
        let crash = match self.random.borrow_mut().u16(0..600 / u16::from(often)) {
            0 => Crash::PowerCut,
            // After a failed flush, only a restart of the machine shows what the disk has.
            1 if !self.disk.borrow().has_failed() => Crash::Kill,
            _ => return Ok(()),
        };
        if !self.truth.borrow().is_recovering {
            let left = scratch();
            *self.interrupted.borrow_mut() = Some(Interrupted {
                disk: self.leave(crash, left.path()),
                left,
                truth: self.truth.borrow().clone(),
                crash,
            });
        }
        Ok(())
    }

    /// Whether a letter, a cancellation, a replay or a move by compaction may be in progress.
    pub(super) fn is_settling(&self, path: &Path) -> bool {
        let is_of_letters = path.components().any(|part| part.as_os_str() == "dead");
        let is_moving = || {
            let running = self.running.borrow();
            running.as_ref().is_some_and(|running| {
                let moved = running.dispatch().moved();
                moved.copied > moved.moved
            })
        };
        let is_in_reserve = path
            .extension()
            .is_some_and(|extension| extension == "spare" || extension == "spare-ack");
        is_of_letters || is_in_reserve || self.truth.borrow().is_about_letters() || is_moving()
    }

    pub(super) fn leave(&self, crash: Crash, to: &Path) -> Disk {
        let mut disk = self.disk.borrow_mut();
        match crash {
            Crash::Kill => disk.leave_after_a_kill(to),
            Crash::PowerCut => disk.leave_after_a_power_cut(to),
        }
    }

    /// The seals of the segments that have records.
    pub(super) fn seals(&self) -> Seals {
        let files = self.disk.borrow().files_that_end_in(".seg");
        let has_records =
            |bytes: &[u8]| bytes.iter().skip(FILE_HEADER_BYTES).any(|&byte| byte != 0);
        files
            .into_iter()
            .filter(|(_, bytes)| has_records(bytes))
            .map(|(path, bytes)| (path, bytes[SEAL_OFFSET..FILE_HEADER_BYTES].to_vec()))
            .collect()
    }

    /// Checks that nothing was sealed, retired or emptied since a failed flush.
    pub(super) fn check_frozen(&self) {
        if let Some(frozen) = &*self.frozen.borrow() {
            let seals = self.seals();
            for (path, seal) in frozen {
                assert_eq!(
                    seals.get(path),
                    Some(seal),
                    "the seal of {} has changed after a failed flush",
                    path.display()
                );
            }
        }
    }

    /// Enqueues and acks as other threads could during a file operation: only what takes no lock.
    pub(super) fn go_on_beside(&self) {
        let Some(running) = self.running.borrow().as_ref().map(Arc::clone) else {
            return;
        };
        if running.is_closed() {
            return;
        }
        for stripe in running.dispatch().stripes() {
            let payload = truth::new_payload(&mut self.random.borrow_mut());
            let options = payload.label(EnqueueOptions::new());
            let len = options.len() + payload.as_ref().len();
            if stripe.has_room_for(len) && self.random.borrow_mut().bool() {
                let job = running.enqueue_with(Place::on(stripe), payload.as_ref(), &options);
                let job = job.expect("there is room");
                self.truth
                    .borrow_mut()
                    .note_enqueued(job.sequence(), payload, false);
            }
        }
        if self.random.borrow_mut().bool()
            && let Some(one) = self.take_in_hand()
        {
            self.ack(&running, one);
        }
    }

    /// At times flushes the records as another thread could in the middle of a batch, when some of
    /// its records are committed.
    pub(super) fn flush_beside(self: &Rc<Self>, dir: &Path) {
        let Some(running) = self.running.borrow().as_ref().map(Arc::clone) else {
            return;
        };
        if running.is_closed() || self.random.borrow_mut().u8(0..4) > 0 {
            return;
        }
        let shared = Rc::clone(self);
        let observer = move |operation, path: &Path, moment| {
            shared.disk.borrow_mut().note(operation, path, moment)
        };
        let outer = faults::observe(Some((dir.to_path_buf(), Box::new(observer))));
        for (number, stripe) in running.dispatch().stripes().iter().enumerate() {
            let mark = self.truth.borrow().mark(Some(number as u8));
            let flushed = stripe.flush(false);
            let mut truth = self.truth.borrow_mut();
            match flushed {
                Ok(()) => truth.note_records_flushed(&mark),
                Err(_) => truth.is_poisoned = true,
            }
        }
        faults::observe(outer);
    }

    /// Opens what a crash left and checks that the queue kept its promises. Returns what was found.
    pub(super) fn check(&self, dir: &Path, disk: Disk, crash: Crash) -> Found {
        let truth = self.truth.borrow().clone();
        let check = Check {
            setup: &self.setup,
            dir,
            truth: &truth,
            crash,
            disk,
            depth: 0,
            words_reset: 0,
        };
        let (cuts, found) = check.run(&mut self.random.borrow_mut());
        self.cuts.set(self.cuts.get() + cuts);
        found
    }
}
