//! Steps of the simulation by producers, consumers and the queue's own threads.

use super::*;

impl World {
    pub(super) fn fail_a_flush(&self) {
        let after = self.number(6);
        self.shared.disk.borrow_mut().fail_a_flush(Some(after));
    }

    /// Sets whether the disk has no room for new segments.
    pub(super) fn fill_disk(&self, is_full: bool) {
        self.shared.disk.borrow_mut().fill(is_full);
    }

    pub(super) fn options(&self) -> EnqueueOptions<'static> {
        let mut random = self.shared.random.borrow_mut();
        let mut options = EnqueueOptions::new().durability(match random.u8(0..4) {
            0 => Durability::Sync,
            1 => Durability::Interval(Duration::from_millis(50)),
            _ => Durability::Process,
        });
        if random.u8(0..3) == 0 {
            options = options.delay(Duration::from_secs(random.u64(0..100)));
        }
        if random.u8(0..6) == 0 {
            options = options.max_attempts(random.u8(1..3));
        }
        options
    }

    pub(super) fn enqueue(&self) {
        let options = self.options();
        let payload = truth::new_payload(&mut self.shared.random.borrow_mut());
        self.enqueue_with(payload, &options);
    }

    /// Fills a few segments whose jobs are soon done, except for one in each that has a long delay.
    pub(super) fn leave_few_waiting(&mut self) {
        for _ in 0..=self.number(10) {
            for _ in 0..4 {
                let payload = truth::large_payload(&mut self.shared.random.borrow_mut());
                self.enqueue_with(payload, &EnqueueOptions::new());
            }
            let delay = Duration::from_secs(20 + self.number(60) as u64);
            let payload = truth::new_payload(&mut self.shared.random.borrow_mut());
            self.enqueue_with(payload, &EnqueueOptions::new().delay(delay));
        }
        self.work_off();
        self.wait();
        self.run_maintenance();
        if self.number(2) == 0 {
            self.run_out_of_room();
        }
    }

    /// Fills the disk, so that only compaction, which moves the delayed jobs, makes room in the
    /// log.
    pub(super) fn run_out_of_room(&mut self) {
        self.fill_disk(true);
        for _ in 0..=self.number(6) {
            for _ in 0..4 {
                let payload = truth::large_payload(&mut self.shared.random.borrow_mut());
                self.enqueue_with(payload, &EnqueueOptions::new());
            }
            self.work_off();
        }
        let stays_full = self.number(4) == 0;
        self.fill_disk(stays_full);
    }

    pub(super) fn enqueue_with(&self, payload: Payload, options: &EnqueueOptions) {
        let running = self.running();
        let stripe = self.number(running.dispatch().stripes().len());
        let is_sync = options.durability == Some(Durability::Sync);
        let mark = {
            let mut truth = self.shared.truth.borrow_mut();
            truth.begin(Doing::Enqueue(vec![payload.clone()]));
            truth.mark(Some(stripe as u8))
        };
        let place = Place::on(&running.dispatch().stripes()[stripe]);
        let result = running.enqueue_with(place, payload.as_ref(), &payload.label(*options));
        let mut truth = self.shared.truth.borrow_mut();
        match result {
            Ok(job) => {
                truth.note_enqueued(job.sequence(), payload, is_sync);
                if is_sync {
                    truth.note_records_flushed(&mark);
                }
            }
            Err(EnqueueError::NotDurable { jobs, .. }) => {
                truth.note_enqueued(jobs[0].sequence(), payload, false);
                truth.is_poisoned = true;
            }
            Err(error) if is_no_room(&error) => {}
            Err(error) => expect_poison(&mut truth, &running, &error),
        }
    }

    pub(super) fn enqueue_batch(&self) {
        let new_job = |_| {
            let payload = truth::new_payload(&mut self.shared.random.borrow_mut());
            (payload, self.options())
        };
        let jobs: Vec<_> = (0..=self.number(12)).map(new_job).collect();
        let payloads: Vec<_> = jobs.iter().map(|(payload, _)| payload.clone()).collect();
        let is_delayed = |(payload, options): &(Payload, EnqueueOptions<'_>)| {
            (payload.clone(), !matches!(options.due, Due::AtOnce))
        };
        let noted = jobs.iter().map(is_delayed).collect();
        let labelled =
            |(payload, options): &(Payload, _)| (payload.clone(), payload.label(*options));
        let labelled: Vec<_> = jobs.iter().map(labelled).collect();
        let is_sync = jobs
            .iter()
            .any(|(_, options)| options.durability == Some(Durability::Sync));
        let running = self.running();
        let stripe = self.number(running.dispatch().stripes().len());
        let mark = {
            let mut truth = self.shared.truth.borrow_mut();
            truth.begin(Doing::Enqueue(payloads));
            truth.mark(Some(stripe as u8))
        };
        let place = Place::on(&running.dispatch().stripes()[stripe]);
        let result = running.enqueue_batch_with(place, &labelled);
        let mut truth = self.shared.truth.borrow_mut();
        match result {
            Ok(jobs) => {
                truth.note_batch(jobs, noted, is_sync);
                if is_sync {
                    truth.note_records_flushed(&mark);
                }
            }
            Err(EnqueueError::NotDurable { jobs, .. }) => {
                truth.note_batch(jobs, noted, false);
                truth.is_poisoned = true;
            }
            Err(EnqueueError::BatchTooLarge { .. }) => {}
            Err(error) if is_no_room(&error) => {}
            Err(error) => expect_poison(&mut truth, &running, &error),
        }
    }

    /// Lets a worker begin to deliver a few jobs.
    pub(super) fn take(&self) {
        let running = self.running();
        let consumer = &self.consumers[self.number(CONSUMERS)];
        for _ in 0..=self.number(12) {
            let Some(lease) = consumer.try_next() else {
                break;
            };
            let job = lease.job();
            let payload = Payload::of(lease.record());
            // A job that has failed or crashed before may become a letter instead.
            let had = lease.deliveries();
            let may_have_ended = match lease.is_recovered() {
                true => had.failed() + had.crashes() > 0 || lease.has_meta(),
                // Compaction may have moved it since the open: its record then has the counts.
                false => {
                    let prior = lease.meta();
                    prior.prior_attempts + prior.prior_crashes > 0
                }
            };
            // If it is done, it is not delivered: a late handler has acked it.
            let is_cancelled = running.dispatch().is_cancelled(lease.sequence());
            if may_have_ended && !lease.is_done() && !is_cancelled {
                self.shared.truth.borrow_mut().note_dying(job);
            }
            let Some((lease, attempt, delivery)) = running.begin(lease) else {
                continue;
            };
            let mut truth = self.shared.truth.borrow_mut();
            truth.note_delivered(job, attempt, &payload);
            self.shared.in_hand.borrow_mut().push(InHand {
                lease,
                job,
                attempt,
                delivery,
                begun_at: stopped::now().unwrap_or_default(),
                has_timed_out: false,
            });
        }
    }

    /// Lets workers ack or fail some of their jobs.
    pub(super) fn settle_some(&self) {
        let running = self.running();
        let count = self.number(1 + self.shared.in_hand.borrow().len());
        for _ in 0..count {
            let Some(one) = self.shared.take_in_hand() else {
                break;
            };
            let then = match self.number(16) {
                0 | 1 => Verdict::DeadLetter,
                2 | 3 => Verdict::Retry,
                4 => Verdict::RetryAfter(Duration::from_secs(self.number(50) as u64)),
                5 => Verdict::Snooze(Duration::from_secs(self.number(50) as u64)),
                _ => {
                    self.shared.ack(&running, one);
                    continue;
                }
            };
            self.fail(&running, one, then);
        }
    }

    pub(super) fn fail(&self, running: &Running, one: InHand, verdict: Verdict) {
        let is_given_back = matches!(verdict, Verdict::Snooze(_));
        let may_retry = running
            .dispatch()
            .may_retry(&one.lease, one.attempt.number());
        let is_last = !is_given_back && !may_retry;
        let mut truth = self.shared.truth.borrow_mut();
        if !one.lease.is_done() && (is_last || matches!(verdict, Verdict::DeadLetter)) {
            truth.note_dying(one.job);
        }
        truth.note_handled(one.job, !is_given_back && !one.has_timed_out);
        drop(truth);
        let failure = Failure {
            verdict,
            reason: "it failed".into(),
        };
        running.fail(one.lease, one.delivery, one.attempt, failure);
    }

    /// Cancels a few jobs, wherever they are. At times maintenance comes before their handlers end.
    pub(super) fn cancel(&mut self) {
        if self.number(2) == 0 {
            self.take();
        }
        for _ in 0..=self.number(4) {
            self.cancel_one();
        }
        if self.number(2) == 0 {
            self.run_maintenance();
            self.settle_some();
        }
    }

    fn cancel_one(&self) {
        if self.number(20) == 0 {
            self.fail_a_flush();
        }
        let mut known = self.shared.truth.borrow().known_jobs();
        if self.number(3) == 0 {
            let in_hand = self.shared.in_hand.borrow();
            known.retain(|job| in_hand.iter().any(|one| one.job == *job));
        }
        let Some(&job) = known.get(self.number(known.len().max(1))) else {
            return;
        };
        let running = self.running();
        // Some handlers may end while the call flushes.
        let has_handler = || {
            let in_hand = self.shared.in_hand.borrow();
            let is_its = |one: &InHand| one.job == job && !one.has_timed_out;
            in_hand.iter().any(is_its)
        };
        let has_handler = has_handler();
        self.shared.truth.borrow_mut().begin(Doing::Cancel(job));
        let result = running.cancel(job);
        let mut truth = self.shared.truth.borrow_mut();
        match result {
            Ok(answer) => truth.note_cancelled(job, answer, true, has_handler),
            Err(CancelError::NotDurable { cancelled, .. }) => {
                truth.note_cancelled(job, cancelled, false, has_handler);
                truth.is_poisoned = true;
            }
            Err(CancelError::Storage(error)) if error.is_full() => {}
            Err(error) => {
                assert!(running.poison().is_some(), "{error}");
                truth.is_poisoned = true;
            }
        }
    }

    pub(super) fn flush(&self) {
        let running = self.running();
        let mark = {
            let mut truth = self.shared.truth.borrow_mut();
            truth.begin(Doing::Maintenance);
            truth.mark(None)
        };
        let result = running.flush();
        let mut truth = self.shared.truth.borrow_mut();
        match result {
            Ok(()) => truth.note_all_flushed(&mark),
            Err(error) => {
                assert!(running.poison().is_some(), "{error}");
                truth.is_poisoned = true;
            }
        }
    }

    /// Lets the timer and maintenance do one turn each.
    pub(super) fn run_maintenance(&mut self) {
        let running = self.running();
        running.turn_timer();
        if let Some(timeout) = self.shared.setup.lease_timeout {
            self.note_timeouts(timeout);
            // Any job that a handler has may have timed out in its last attempt, except those that
            // were done through another lease.
            let in_hand = self.shared.in_hand.borrow();
            let mut truth = self.shared.truth.borrow_mut();
            for one in in_hand.iter().filter(|one| !one.lease.is_done()) {
                if !running
                    .dispatch()
                    .may_retry(&one.lease, one.attempt.number())
                {
                    truth.note_dying(one.job);
                }
            }
        }
        self.shared.truth.borrow_mut().begin(Doing::Maintenance);
        if let Some(wake) = running.signal.take() {
            self.maintenance.turn(&running, &wake);
        }
        let is_poisoned = running.poison().is_some();
        self.shared.truth.borrow_mut().is_poisoned |= is_poisoned;
        let (has, counted) = running.space();
        assert!(
            is_poisoned || counted == has,
            "{counted} bytes are counted, and the files have {has}"
        );
    }

    /// Records the deliveries that the timer has found to have timed out.
    pub(super) fn note_timeouts(&self, timeout: Duration) {
        let now = stopped::now().unwrap_or_default();
        for one in self.shared.in_hand.borrow_mut().iter_mut() {
            if !one.has_timed_out && one.begun_at + timeout <= now {
                one.has_timed_out = true;
                self.shared.truth.borrow_mut().note_timed_out(one.job);
            }
        }
    }

    /// Advances the clock.
    pub(super) fn wait(&self) {
        let now = stopped::now().unwrap_or_default();
        let pause = [1, 60, 300, 1_500, 30_000, 90_000][self.number(6)];
        stopped::set(Some(now + Duration::from_millis(pause)));
        // In a real process, some thread would wake maintenance when this time has passed.
        self.running().signal.kick();
    }
}

pub(super) fn is_no_room(error: &EnqueueError) -> bool {
    matches!(
        error,
        EnqueueError::Full { .. } | EnqueueError::StorageFull(_)
    )
}

fn expect_poison(truth: &mut Truth, running: &Running, error: &EnqueueError) {
    assert!(running.poison().is_some(), "{error}");
    truth.is_poisoned = true;
}
