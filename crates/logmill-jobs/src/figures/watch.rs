//! What a worker notes of each attempt: when it began, how long its job had waited, how long it ran
//! and how it ended; for the figures, and for those who listen to events.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::{Cell, Count};
use crate::JobId;
use crate::backend::Claim;
use crate::events::EventKind;
use crate::mill::Mill;
use crate::waiters::Ended;

/// The cells of a worker thread.
pub(crate) struct Watch {
    mill: Mill,
    cells: Vec<Arc<Cell>>,
    /// The cells that tasks write, if they were used.
    shared: Vec<Option<Arc<Cell>>>,
    /// The one that was used last, and the place of its job, of which the next one mostly is.
    last: usize,
    last_place: Option<Arc<str>>,
    /// The same moment on both clocks, so that one look at them says both times.
    moment: (Instant, SystemTime),
}

/// After this time the wall clock is looked at again: it may have been set.
const MOMENT: Duration = Duration::from_millis(100);

/// An attempt that goes on.
pub(crate) struct Begun {
    start: Option<Instant>,
    stands_for: u64,
}

/// An attempt whose handler has ended.
pub(crate) struct Ran<'a> {
    cell: &'a Cell,
    took: Option<Duration>,
    /// Its number, if somebody listens.
    told: Option<u32>,
}

impl Watch {
    pub(crate) fn new(mill: &Mill) -> Self {
        let clock = &mill.inner.clock;
        Self {
            moment: (clock.now(), clock.wall()),
            mill: mill.clone(),
            cells: Vec::new(),
            shared: Vec::new(),
            last: 0,
            last_place: None,
        }
    }

    /// Notes that an attempt begins; one that goes on as a task is always measured.
    #[inline]
    pub(crate) fn begin(
        &mut self,
        id: &JobId,
        kind: &str,
        claim: &dyn Claim,
        is_task: bool,
    ) -> Begun {
        let is_there = |place| Arc::ptr_eq(place, id.place_arc());
        if !(self.last_place.as_ref().is_some_and(is_there) && *self.cells[self.last].kind == *kind)
        {
            self.find(id, kind);
        }
        let listens = self.mill.inner.events.is_on();
        let must = listens || is_task || claim.due_at().is_some();
        match self.cells[self.last].turn(must) {
            None => Begun {
                start: None,
                stands_for: 0,
            },
            Some(stands_for) => self.measure(id, claim, stands_for, listens),
        }
    }

    /// The cell of the attempt that began last.
    #[inline]
    pub(crate) fn cell(&self) -> &Arc<Cell> {
        &self.cells[self.last]
    }

    /// The cell that tasks write, for the same kind and queue.
    #[cfg(feature = "tokio")]
    pub(crate) fn shared_cell(&mut self) -> Arc<Cell> {
        let cell = &self.cells[self.last];
        let figures = &self.mill.inner.figures;
        let shared =
            self.shared[self.last].get_or_insert_with(|| figures.shared(&cell.place, &cell.kind));
        Arc::clone(shared)
    }

    fn find(&mut self, id: &JobId, kind: &str) {
        let mut cells = self.cells.iter();
        let found = cells.position(|cell| *cell.kind == *kind && *cell.place == *id.place());
        self.last = found.unwrap_or_else(|| {
            self.cells
                .push(self.mill.inner.figures.own(id.place(), kind));
            self.shared.push(None);
            self.cells.len() - 1
        });
        self.last_place = Some(Arc::clone(id.place_arc()));
    }

    fn measure(&mut self, id: &JobId, claim: &dyn Claim, stands_for: u64, listens: bool) -> Begun {
        let start = self.mill.inner.clock.now();
        let waited = self.waited(claim, start);
        let cell = &self.cells[self.last];
        if let Some((waited, is_delayed)) = waited {
            cell.record_waited(waited, is_delayed, stands_for);
        }
        if listens {
            let waited = waited.map(|(waited, _)| waited);
            let what = EventKind::Started { waited };
            let events = &self.mill.inner.events;
            events.tell(
                &self.mill,
                id,
                Arc::clone(&cell.kind),
                claim.attempt(),
                what,
            );
        }
        Begun {
            start: Some(start),
            stands_for,
        }
    }

    /// How long a job has been ready whose first attempt begins, and whether it was delayed.
    fn waited(&mut self, claim: &dyn Claim, start: Instant) -> Option<(Duration, bool)> {
        if claim.attempt() != 1 || claim.crashes() != 0 {
            return None;
        }
        let due = claim.due_at();
        let ready = claim
            .enqueued_at()
            .max(due.unwrap_or(SystemTime::UNIX_EPOCH));
        let wall = self.wall(start)?;
        // The wall clock may have been set back.
        let waited = wall.duration_since(ready).unwrap_or_default();
        Some((waited, due.is_some()))
    }

    /// The time of the wall clock at this moment.
    fn wall(&mut self, now: Instant) -> Option<SystemTime> {
        let (then, wall) = self.moment;
        let since = now.saturating_duration_since(then);
        if since < MOMENT {
            return wall.checked_add(since);
        }
        self.moment = (now, self.mill.inner.clock.wall());
        Some(self.moment.1)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        for cell in &self.cells {
            self.mill.inner.figures.retire(cell);
        }
    }
}

impl Begun {
    /// Notes that the handler has ended.
    #[inline]
    pub(crate) fn end<'a>(self, mill: &Mill, cell: &'a Cell, claim: &dyn Claim) -> Ran<'a> {
        let took = self.start.map(|start| {
            let took = mill.inner.clock.now().saturating_duration_since(start);
            cell.record_ran(took, self.stands_for);
            took
        });
        let listens = mill.inner.events.is_on();
        let told = listens.then(|| claim.attempt());
        Ran { cell, took, told }
    }
}

impl Ran<'_> {
    /// The attempt has ended the job.
    #[inline]
    pub(crate) fn ended(&self, mill: &Mill, id: &JobId, ended: &Ended) {
        let count = match ended {
            Ended::Done => Count::Done,
            Ended::Cancelled(_) => Count::Cancelled,
            // Told by the backend, and counted then.
            Ended::Dead(_) | Ended::Expired | Ended::Moved => return,
        };
        self.cell.count(count);
        self.tell(mill, id, |ran| match ended {
            Ended::Cancelled(reason) => EventKind::Cancelled {
                reason: reason.clone(),
            },
            _ => EventKind::Done { ran },
        });
    }

    /// The attempt has failed; the job comes back after this time, if it does.
    pub(crate) fn failed(&self, mill: &Mill, id: &JobId, reason: &str, after: Option<Duration>) {
        self.cell.count(Count::Failed);
        if after.is_some() {
            self.tell_retried(mill, id, reason, after);
        }
    }

    /// The attempt counts as failed, as its end could not be stored.
    pub(crate) fn not_stored(&self, mill: &Mill, id: &JobId, reason: &str) {
        self.cell.count(Count::Failed);
        self.tell_retried(mill, id, reason, None);
    }

    fn tell_retried(&self, mill: &Mill, id: &JobId, reason: &str, after: Option<Duration>) {
        self.tell(mill, id, |ran| EventKind::Retried {
            ran,
            after,
            reason: reason.to_owned(),
        });
    }

    /// The attempt has given the job back.
    pub(crate) fn snoozed(&self, mill: &Mill, id: &JobId, after: Duration) {
        self.cell.count(Count::Snoozed);
        self.tell(mill, id, |ran| EventKind::Snoozed { ran, after });
    }

    #[inline]
    fn tell(&self, mill: &Mill, id: &JobId, what: impl FnOnce(Option<Duration>) -> EventKind) {
        if let Some(attempt) = self.told {
            let kind = Arc::clone(&self.cell.kind);
            let events = &mill.inner.events;
            events.tell(mill, id, kind, attempt, what(self.took));
        }
    }
}
