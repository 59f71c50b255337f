//! What this process knows of jobs with keys: their numbers, and which of them run.
//!
//! The number of a job is known once it is stored, so it is not in its key's value. A job of an earlier
//! process is found by its ticket, in one walk over its queue.

use std::collections::{HashMap, HashSet};
use std::hash::BuildHasherDefault;
use std::sync::Arc;

use parking_lot::Mutex;

use super::value::{Header, Ticket};
use crate::backend::{BackendError, Seen};
use crate::enqueue::header;
use crate::identity::Same;
use crate::locks::Lock;
use crate::mill::OpenQueue;

/// So many parts have a lock of their own, and grow one by one.
const PARTS: usize = 64;

/// Tickets are random, and nobody chooses them, so they are their own hashes.
type Numbers = HashMap<Ticket, u64, BuildHasherDefault<Same>>;

pub(crate) struct Tickets {
    /// The numbers of jobs that have not ended, by ticket.
    numbers: Box<[Mutex<Numbers>]>,
    /// How many attempts run, by ticket: one, and two for a moment if a job comes back faster than its
    /// attempt ends.
    running: Mutex<HashMap<Ticket, u32, BuildHasherDefault<Same>>>,
    /// The queues that were walked over.
    walked: Mutex<Walked>,
    /// Held meanwhile.
    walking: Lock,
}

#[derive(Default)]
struct Walked {
    queues: HashSet<Arc<str>>,
    /// How many jobs were to enter a queue later: a walk may have missed those of its time.
    late: u64,
}

impl Default for Tickets {
    fn default() -> Self {
        Self {
            numbers: (0..PARTS).map(|_| Mutex::default()).collect(),
            running: Mutex::default(),
            walked: Mutex::default(),
            walking: Lock::default(),
        }
    }
}

/// An attempt that runs, until it is dropped.
pub(super) struct Running {
    tickets: Arc<Tickets>,
    ticket: Ticket,
}

impl Tickets {
    fn part(&self, ticket: Ticket) -> &Mutex<Numbers> {
        // By other bits than those by which the map of a part chooses a place.
        &self.numbers[(ticket >> 32) as usize % PARTS]
    }

    pub(super) fn note(&self, ticket: Ticket, number: u64) {
        self.part(ticket).lock().insert(ticket, number);
    }

    /// Forgets a job that has ended.
    pub(super) fn forget(&self, ticket: Ticket) {
        let mut numbers = self.part(ticket).lock();
        numbers.remove(&ticket);
        if numbers.capacity() > 64 && numbers.len() < numbers.capacity() / 8 {
            numbers.shrink_to_fit();
        }
    }

    /// The number of the job with a ticket in this queue, looked for among all of its jobs; None if it
    /// has ended. On a shared backend, where those of other processes are not noted here.
    pub(super) fn find(ticket: Ticket, queue: &OpenQueue) -> Result<Option<u64>, BackendError> {
        let mut found = None;
        queue.queue.each(0, &mut |job| {
            found = ticket_of(job)
                .filter(|one| *one == ticket)
                .map(|_| job.number);
            found.is_none()
        })?;
        Ok(found)
    }

    /// The number of the job with a ticket in this queue; None if it has ended.
    pub(super) fn number(
        &self,
        ticket: Ticket,
        queue: &OpenQueue,
    ) -> Result<Option<u64>, BackendError> {
        if let Some(number) = self.known(ticket) {
            return Ok(Some(number));
        }
        // Under the lock, so that of several that look for jobs of an earlier process one walks.
        // The caller has the key, and a walk takes long in a long queue.
        let walking = self.walking.lock_after(1)?;
        let late = {
            let walked = self.walked.lock();
            (!walked.queues.contains(&queue.name)).then_some(walked.late)
        };
        if let Some(late) = late {
            self.walk(queue)?;
            let mut walked = self.walked.lock();
            if walked.late == late {
                walked.queues.insert(Arc::clone(&queue.name));
            }
        }
        drop(walking);
        Ok(self.known(ticket))
    }

    fn known(&self, ticket: Ticket) -> Option<u64> {
        self.part(ticket).lock().get(&ticket).copied()
    }

    /// Has a queue looked through again, for a job that enters it later.
    pub(super) fn is_late(&self, place: &str) {
        let mut walked = self.walked.lock();
        walked.queues.remove(place);
        walked.late += 1;
    }

    fn walk(&self, queue: &OpenQueue) -> Result<(), BackendError> {
        let mut found = Vec::new();
        queue.queue.each(0, &mut |job| {
            found.extend(ticket_of(job).map(|ticket| (ticket, job.number)));
            true
        })?;
        for (ticket, number) in found {
            self.note(ticket, number);
            // One that ends later is forgotten at its end.
            if !queue.queue.contains(number)? {
                self.forget(ticket);
            }
        }
        Ok(())
    }

    /// Begins an attempt at the job with a ticket.
    pub(super) fn begin(self: &Arc<Self>, ticket: Ticket) -> Running {
        *self.running.lock().entry(ticket).or_default() += 1;
        Running {
            tickets: Arc::clone(self),
            ticket,
        }
    }

    pub(super) fn is_running(&self, ticket: Ticket) -> bool {
        self.running.lock().contains_key(&ticket)
    }
}

fn ticket_of(job: &Seen) -> Option<Ticket> {
    let mut headers = job.headers.iter();
    let own = headers.find(|(key, _)| key == header::UNIQUE);
    let header = own.and_then(|(_, value)| Header::parse(value));
    header.map(|header| header.ticket)
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut running = self.tickets.running.lock();
        if let Some(count) = running.get_mut(&self.ticket) {
            *count -= 1;
            if *count == 0 {
                running.remove(&self.ticket);
            }
        }
    }
}
