//! A backend with orders: what is published enters its line first, and what has ended leaves it.

use std::sync::Arc;

use super::claim::OrderedConsumer;
use super::queue::OrderedQueue;
use super::{Orders, Spot, Told, find, position_in, skip};
use crate::JobId;
use crate::backend::{
    Backend, BackendError, Changes, Choice, Consumer, End, Ended, NewJob, OnEnd, Queue, Served,
    forward_backend,
};
use crate::enqueue::header;
use crate::keys;
use crate::order::Position;

/// A backend whose jobs are in orders.
pub(crate) struct Ordered {
    inner: Arc<dyn Backend>,
    orders: Arc<Orders>,
}

impl Ordered {
    pub(crate) fn new(inner: impl Backend, orders: &Arc<Orders>) -> Self {
        Self {
            inner: Arc::new(inner),
            orders: Arc::clone(orders),
        }
    }
}

impl Drop for Ordered {
    fn drop(&mut self) {
        self.orders.close();
    }
}

impl Backend for Ordered {
    forward_backend!(inner: capabilities queue_names wake_consumers get keys each_key extend);
    forward_backend!(inner: damage flush);

    fn on_end(&self, tell: OnEnd) {
        let told = Told {
            orders: Arc::clone(&self.orders),
            backend: Arc::downgrade(&self.inner),
        };
        self.inner.on_end(Box::new(move |ended| {
            told.tell(ended);
            tell(ended);
        }));
        // Tried again before a worker takes a job.
        if let Err(error) = self.orders.build(&*self.inner) {
            tracing::error!(%error, "the jobs of an order could not be read");
        }
    }

    fn queue(&self, name: &str) -> Result<Box<dyn Queue>, BackendError> {
        let queue = OrderedQueue {
            inner: self.inner.queue(name)?,
            backend: Arc::clone(&self.inner),
            place: name.into(),
            orders: Arc::clone(&self.orders),
        };
        Ok(Box::new(queue))
    }

    fn consumer(
        &self,
        queues: &[Served<'_>],
        choice: Choice,
    ) -> Result<Box<dyn Consumer>, BackendError> {
        self.orders.build(&*self.inner)?;
        Ok(Box::new(OrderedConsumer {
            inner: self.inner.consumer(queues, choice)?,
            orders: Arc::clone(&self.orders),
            is_shared: self.inner.capabilities().is_shared,
        }))
    }

    fn commit(&self, changes: &Changes<'_>) -> Result<Vec<Option<u64>>, BackendError> {
        let entered = Entered::of_changes(&self.orders, changes);
        let Some(mut entered) = entered else {
            return self.inner.commit(changes);
        };
        let committed = entered.with_changes(changes, |changes| self.inner.commit(changes));
        entered.note(&committed, |numbers, at| *numbers.get(at)?);
        committed
    }

    fn close(&self) -> Result<(), BackendError> {
        self.orders.close();
        self.inner.close()
    }
}

impl Orders {
    /// Enters in the lines what the backend had when it was opened.
    fn build(&self, backend: &dyn Backend) -> Result<(), BackendError> {
        self.are_built.make(|| self.build_all(backend))
    }

    fn build_all(&self, backend: &dyn Backend) -> Result<(), BackendError> {
        for place in backend.queue_names()? {
            let mut orders = self.orders.iter();
            if orders.any(|(order, _)| order.may_concern(&place)) {
                self.build_queue(backend, &place)?;
            }
        }
        Ok(())
    }

    fn build_queue(&self, backend: &dyn Backend, place: &str) -> Result<(), BackendError> {
        let queue = backend.queue(place)?;
        let place: Arc<str> = place.into();
        queue.each(0, &mut |seen| {
            if let Some(spot) = self.spot_of_seen(&place, seen) {
                let id = JobId::new(Arc::clone(&place), seen.number);
                self.enter_at(&spot, Some(id));
                if seen.failed > 0
                    && let Some(lines) = self.lines(&spot)
                {
                    let failure = "it has failed before the mill was opened";
                    lines.pause(&spot.key, spot.position, Some(failure));
                }
            }
            true
        })?;
        for dead in queue.dead_letters()? {
            let Some(spot) = self.spot_of_dead(&place, &dead) else {
                continue;
            };
            let id = JobId::new(Arc::clone(&place), dead.number);
            if backend.get(&keys::of_skipped(&id))?.is_some() {
                continue;
            }
            if self.enter_at(&spot, Some(id))
                && let Some(lines) = self.lines(&spot)
            {
                let reason = dead.reasons.last().map_or("", String::as_str);
                lines.die(&spot.key, spot.position, reason);
            }
        }
        Ok(())
    }

    /// Enters a job at a place that it had before. Returns whether it is new there.
    pub(super) fn enter_at(&self, spot: &Spot, id: Option<JobId>) -> bool {
        use std::sync::atomic::Ordering;

        // Relaxed, as all that change it.
        self.last.fetch_max(spot.position.number, Ordering::Relaxed);
        let lines = self.lines(spot);
        lines.is_some_and(|lines| lines.enter_at(&spot.key, spot.position, id))
    }

    /// Enters a job that is about to be published. None if no order concerns it.
    fn enter(&self, place: &str, job: &NewJob<'_>) -> Option<EnteredJob> {
        let header = |name| {
            let mut headers = job.headers.iter();
            headers
                .find(|(key, _)| *key == name)
                .map(|(_, value)| *value)
        };
        let key = header(header::KEY)?;
        let order = self.order_of(place, job.kind)?;
        let spot = |position| Spot {
            order,
            key: key.into(),
            position,
        };
        if let Some(position) = position_in(header(header::ORDER)) {
            // It is published again, and keeps its place.
            let spot = spot(position);
            let is_new = self.enter_at(&spot, None);
            return Some(EnteredJob {
                spot,
                is_new,
                header: None,
            });
        }
        let (_, lines) = self.orders.get(order)?;
        let position = lines.enter(key, || Position {
            number: self.next_number(),
            tie: 0,
        });
        Some(EnteredJob {
            spot: spot(position),
            is_new: true,
            header: Some(position.number.to_be_bytes()),
        })
    }
}

impl Told {
    /// A job has ended without being completed.
    fn tell(&self, ended: &Ended<'_>) {
        let (orders, id) = (&self.orders, JobId::new(ended.queue, ended.number));
        let Some((key, order)) = ended.key.zip(orders.order_of(ended.queue, ended.kind)) else {
            return;
        };
        let Some((_, lines)) = orders.orders.get(order) else {
            return;
        };
        let position = position_in(ended.order);
        match (position, ended.how) {
            (Some(position), End::Dead(reason)) => {
                if !lines.die(key, position, reason)
                    && let Some(backend) = self.backend.upgrade()
                    && let Err(error) = backend.commit(&skip(&keys::of_skipped(&id), true))
                {
                    tracing::warn!(%id, %error, "that a dead job is skipped could not be stored");
                }
            }
            (Some(position), _) => lines.end(key, position),
            // Enqueued before there was an order. Its letter does not say where it was, so it blocks
            // nothing.
            (None, _) => {
                if let Some(position) = lines.find(key, &id) {
                    lines.end(key, position);
                }
            }
        }
    }
}

/// A job that has entered its line and is about to be published.
struct EnteredJob {
    spot: Spot,
    is_new: bool,
    /// Its header, unless it has one.
    header: Option<[u8; 8]>,
}

/// Jobs that have entered their lines and are about to be published; dropped before they are, they
/// leave them again.
pub(super) struct Entered {
    orders: Arc<Orders>,
    /// With their queues; None for those without an order.
    jobs: Vec<(Arc<str>, Option<EnteredJob>)>,
    is_published: bool,
}

impl Entered {
    /// None if no order concerns any of the jobs.
    pub(super) fn of<'a>(
        orders: &Arc<Orders>,
        jobs: impl Iterator<Item = (&'a str, &'a NewJob<'a>)> + Clone,
    ) -> Option<Self> {
        let mut all = jobs.clone();
        all.find(|(place, job)| orders.order_of(place, job.kind).is_some())?;
        let entered = jobs.map(|(place, job)| (place.into(), orders.enter(place, job)));
        Some(Self {
            orders: Arc::clone(orders),
            jobs: entered.collect(),
            is_published: false,
        })
    }

    pub(super) fn of_changes(orders: &Arc<Orders>, changes: &Changes<'_>) -> Option<Self> {
        let jobs = changes.jobs.iter();
        Self::of(orders, jobs.map(|(place, job)| (*place, job)))
    }

    /// The headers of the jobs, with those that say their places.
    pub(super) fn headers<'a>(
        &'a self,
        jobs: impl Iterator<Item = &'a NewJob<'a>>,
    ) -> Vec<Vec<(&'a str, &'a [u8])>> {
        let with_place = |(job, (_, entered)): (&'a NewJob<'a>, &'a (_, Option<EnteredJob>))| {
            let mut headers = job.headers.to_vec();
            let place = entered.as_ref().and_then(|job| job.header.as_ref());
            headers.extend(place.map(|place| (header::ORDER, &place[..])));
            headers
        };
        jobs.zip(&self.jobs).map(with_place).collect()
    }

    /// Calls with the changes whose jobs have the headers that say their places.
    pub(super) fn with_changes<T>(
        &self,
        changes: &Changes<'_>,
        call: impl FnOnce(&Changes<'_>) -> T,
    ) -> T {
        let headers = self.headers(changes.jobs.iter().map(|(_, job)| job));
        let jobs = changes.jobs.iter().zip(&headers);
        let jobs = jobs.map(|((place, job), headers)| (*place, NewJob { headers, ..*job }));
        call(&Changes {
            jobs: jobs.collect(),
            keys: changes.keys.clone(),
            sync: changes.sync,
        })
    }

    /// Notes what became of the jobs.
    pub(super) fn note<T>(
        &mut self,
        published: &Result<T, BackendError>,
        number: impl Fn(&T, usize) -> Option<u64>,
    ) {
        self.is_published = matches!(published, Ok(_) | Err(BackendError::NotDurable(_)));
        let Ok(published) = published else {
            return;
        };
        for (at, (place, job)) in self.jobs.iter().enumerate() {
            if let Some(EnteredJob { spot, .. }) = job
                && let Some(number) = number(published, at)
                && let Some(lines) = self.orders.lines(spot)
            {
                let id = JobId::new(Arc::clone(place), number);
                lines.name(&spot.key, spot.position, id);
            }
        }
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        if self.is_published {
            return;
        }
        let jobs = self.jobs.iter().filter_map(|(_, job)| job.as_ref());
        for EnteredJob { spot, .. } in jobs.filter(|job| job.is_new) {
            if let Some(lines) = self.orders.lines(spot) {
                lines.end(&spot.key, spot.position);
            }
        }
    }
}

impl Orders {
    /// The place of a dead job that is in an order. One without a header was enqueued before there was
    /// one.
    pub(super) fn spot_of_dead(&self, place: &str, dead: &crate::backend::DeadJob) -> Option<Spot> {
        Some(Spot {
            order: self.order_of(place, &dead.kind)?,
            key: find(&dead.headers, header::KEY)?.into(),
            position: position_in(find(&dead.headers, header::ORDER))?,
        })
    }
}
