//! Checks what is found in a queue after a crash, and then goes on from it.

use super::*;

impl Truth {
    /// Checks that what was found keeps every promise.
    pub(in super::super) fn check(&self, found: &Found, crash: Crash) {
        let Found { jobs, letters, .. } = found;
        let mut new_of_letter: BTreeMap<Sequence, u32> = BTreeMap::new();
        // Jobs and letters that had ended durably and are back, which only torn ack words explain.
        let mut come_again = BTreeSet::new();
        let mut unknown = Vec::new();
        let mut seen = BTreeSet::new();
        for one in jobs {
            let job = one.job;
            let Some(known) = self.jobs.get(&job) else {
                unknown.push(one);
                continue;
            };
            assert_eq!(one.payload, known.payload, "{job} has another payload");
            if known.is_double {
                // The power cut that has doubled it was checked.
                seen.insert(job);
                continue;
            }
            if !seen.insert(job) {
                assert!(crash == Crash::PowerCut, "{job} is in the queue twice");
                come_again.insert(job);
            }
            assert!(
                known.end.is_none() || crash == Crash::PowerCut,
                "{job} had ended ({:?}) and is in the queue after a kill",
                known.end
            );
            assert!(
                !known.is_cancelled,
                "{job} was cancelled and is in the queue after a {crash:?}"
            );
            let was_running = match crash {
                Crash::Kill => known.handlers > 0,
                Crash::PowerCut => known.was_begun,
            };
            let most = (known.failed, known.crashes + u32::from(was_running));
            assert!(
                one.failed <= most.0 && one.crashes <= most.1,
                "{one:?} has more than {most:?} failed attempts and crashes after a {crash:?}: \
                 {known:?}"
            );
            if crash == Crash::Kill {
                assert_eq!(
                    (one.failed, one.crashes),
                    most,
                    "failed attempts and crashes of {job} after a kill"
                );
            }
        }
        let mut enqueued = match &self.doing {
            Doing::Enqueue(payloads) => payloads.clone(),
            _ => Vec::new(),
        };
        for one in unknown {
            let before = self.highest_before.get(&one.job.stripe());
            let is_new = before.is_none_or(|&before| before < one.job);
            let is_payload = |payload: &Payload| is_new && *payload == one.payload;
            let replayed = match &self.doing {
                // Of several letters with the same payload, one that no job was found for yet.
                Doing::Replay(doing) => doing
                    .iter()
                    .filter(|letter| is_payload(&self.letters[letter].payload))
                    .min_by_key(|letter| {
                        let is_there = letters.iter().any(|one| one.sequence == **letter);
                        new_of_letter.get(letter).copied().unwrap_or(0) + u32::from(is_there)
                    }),
                _ => None,
            };
            if let Some(at) = enqueued.iter().position(is_payload) {
                enqueued.swap_remove(at);
            } else if let Some(letter) = replayed {
                *new_of_letter.entry(*letter).or_default() += 1;
            } else {
                let given = self.highest.get(&one.job.stripe());
                assert!(
                    crash == Crash::PowerCut && given.is_some_and(|&given| one.job <= given),
                    "{} was never enqueued",
                    one.job
                );
                come_again.insert(one.job);
            }
        }
        if let Doing::Enqueue(payloads) = &self.doing {
            let there = payloads.len() - enqueued.len();
            assert!(
                there == 0 || enqueued.is_empty(),
                "{there} of {} jobs are there of a batch whose enqueue has begun",
                payloads.len()
            );
        }
        self.check_batches(&seen);
        let mut dead = BTreeMap::new();
        for one in letters {
            let letter = one.sequence;
            match self.letters.get(&letter) {
                Some(known) => {
                    assert_eq!(one.payload, known.payload, "letter {letter}");
                }
                None if self.letter_payload(one).is_some() => {}
                None if crash == Crash::PowerCut && self.purged.contains_key(&letter) => {}
                None => {
                    assert!(
                        crash == Crash::PowerCut,
                        "letter {letter} of {} was never written, or is gone durably",
                        one.job
                    );
                    come_again.insert(letter);
                }
            }
            // A letter and its job are never both there, unless a torn ack word has brought one
            // back.
            let known = self.jobs.get(&one.job);
            let is_beside = known.is_some_and(|job| job.is_beside_its_letter);
            if seen.contains(&one.job) && !is_beside {
                assert!(
                    crash == Crash::PowerCut,
                    "{} is in the queue and has a letter, after a kill",
                    one.job
                );
                come_again.insert(one.job);
            }
            let other = dead.insert(one.job, letter);
            // If both were written in this process, that was checked then.
            let is_known = |letter| self.letters.contains_key(letter);
            let are_known = is_known(&letter) && other.as_ref().is_some_and(is_known);
            assert!(
                other.is_none() || are_known || is_beside || come_again.contains(&letter),
                "{} has two letters",
                one.job
            );
        }
        let most = found.words_reset * u64::from(RECORDS_PER_WORD);
        assert!(
            come_again.len() as u64 <= most,
            "more than the {most} that torn ack words explain are back although they had ended \
             durably: {come_again:?}"
        );
        for (job, known) in &self.jobs {
            let is_promised = known.end.is_none()
                && !known.is_withdrawn
                && !known.is_cancelled
                && !self.is_being_cancelled(*job)
                && (known.is_durable || crash == Crash::Kill);
            let is_there = seen.contains(job) || (known.may_die && dead.contains_key(job));
            assert!(
                is_there || !is_promised,
                "{job} is lost after a {crash:?}: durable {}, failed {}, may die {}; dead: \
                 {dead:?}; during {:?}",
                known.is_durable,
                known.failed,
                known.may_die,
                self.doing
            );
        }
        for (letter, known) in &self.letters {
            if !known.is_durable && crash == Crash::PowerCut {
                continue;
            }
            let is_there = letters.iter().any(|one| one.sequence == *letter);
            if let Some(job) = known.withheld_for {
                let is_job = seen.contains(&job) || dead.contains_key(&job);
                assert!(
                    !(is_there && is_job),
                    "both letter {letter} and its replay {job} are there"
                );
                let is_over = self.jobs.get(&job).is_none_or(|job| job.end.is_some());
                assert!(
                    is_there || is_job || is_over,
                    "neither letter {letter} nor its replay {job} is there"
                );
                continue;
            }
            match &self.doing {
                Doing::Replay(doing) if doing.contains(letter) => {
                    let jobs = new_of_letter.get(letter).copied().unwrap_or(0);
                    assert_eq!(
                        u32::from(is_there) + jobs,
                        1,
                        "letter {letter}, whose replay has begun: is there {is_there}, jobs {jobs}"
                    );
                }
                Doing::Purge(doing) if doing.contains(letter) => {}
                _ if known.is_withdrawn => {}
                _ => assert!(is_there, "letter {letter} of {} is lost", known.job),
            }
        }
    }

    /// Checks that of each batch, all jobs or none are there. A job that has failed, or was in a
    /// crash, is no longer tied to its batch: compaction may have moved it.
    fn check_batches(&self, seen: &BTreeSet<Sequence>) {
        let mut batches: BTreeMap<Sequence, Vec<Sequence>> = BTreeMap::new();
        for (&job, known) in &self.jobs {
            let is_waiting = known.end.is_none() && !known.may_die && !known.is_withdrawn;
            let is_new = known.failed == 0 && known.crashes == 0;
            let is_cancelled = known.is_cancelled || self.is_being_cancelled(job);
            let is_whole = is_waiting && is_new && !is_cancelled;
            if let Some(batch) = known.batch.filter(|_| is_whole) {
                batches.entry(batch).or_default().push(job);
            }
        }
        for (batch, jobs) in batches {
            let there = jobs.iter().filter(|job| seen.contains(job)).count();
            assert!(
                there == 0 || there == jobs.len(),
                "{there} of {} jobs are there of the batch that begins with {batch}",
                jobs.len()
            );
        }
    }

    fn is_being_cancelled(&self, job: Sequence) -> bool {
        matches!(self.doing, Doing::Cancel(one) if one == job)
    }

    /// Goes on after a crash with what was found. After a power cut, all of it is durable. After a
    /// kill, what the open settles before it returns is durable: each letter, and each job that a
    /// letter was replayed as.
    pub(in super::super) fn go_on(&mut self, found: &Found, crash: Crash) {
        let was_doing = std::mem::take(&mut self.doing);
        self.is_poisoned = false;
        self.jobs.retain(|_, job| !job.is_cancelled);
        let old = self.clone();
        self.letters.clear();
        if crash == Crash::PowerCut {
            self.jobs.clear();
            self.purged.clear();
        } else {
            // Jobs that were not found have ended, but a power cut may still bring them back.
            for job in self.jobs.values_mut() {
                let end = match job.is_withdrawn {
                    // Its letter may have been written unseen, and may come back.
                    true => End::Acked,
                    false => End::Dead,
                };
                job.end.get_or_insert(end);
            }
            let is_purged = |letter: &Sequence| match &was_doing {
                Doing::Purge(letters) => letters.contains(letter),
                _ => false,
            };
            let letters = old.letters.iter();
            let began = letters.filter(|(letter, one)| is_purged(letter) || one.is_withdrawn);
            self.purged
                .extend(began.map(|(letter, one)| (*letter, one.clone())));
        }
        for one in &found.jobs {
            let known = old.jobs.get(&one.job);
            let is_replay = known.is_none() && matches!(was_doing, Doing::Replay(_));
            let new = Job {
                payload: one.payload.clone(),
                batch: known.and_then(|job| job.batch),
                is_durable: crash == Crash::PowerCut
                    || is_replay
                    || known.is_some_and(|job| job.is_durable),
                failed: one.failed,
                crashes: one.crashes,
                handlers: 0,
                is_suspect: false,
                was_begun: crash == Crash::Kill && known.is_some_and(|job| job.was_begun),
                may_die: known.is_some_and(|job| job.may_die),
                is_withdrawn: false,
                is_cancelled: false,
                end: None,
                is_beside_its_letter: found.letters.iter().any(|letter| letter.job == one.job),
                is_double: known.is_some_and(|job| job.is_double)
                    || found
                        .jobs
                        .iter()
                        .filter(|other| other.job == one.job)
                        .count()
                        > 1,
            };
            let highest = self.highest.entry(one.job.stripe()).or_insert(one.job);
            *highest = one.job.max(*highest);
            self.jobs.insert(one.job, new);
        }
        for one in &found.letters {
            let new = Letter {
                job: one.job,
                payload: one.payload.clone(),
                is_durable: true,
                withheld_for: None,
                is_withdrawn: false,
            };
            self.letters.insert(one.sequence, new);
            self.purged.remove(&one.sequence);
        }
    }
}
