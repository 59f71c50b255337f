//! Events: what happens to jobs, told to receivers of this process. A receiver has a bounded buffer.
//! One that is full loses the newest and counts them, so that no receiver holds up a worker.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;

use crate::JobId;
use crate::mill::Mill;
use crate::notice::Notice;

/// Something that has happened to a job, from [`Events`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Event {
    /// The job.
    pub id: JobId,
    /// The kind under which it is stored.
    pub kind: Arc<str>,
    /// The number of the attempt, as [`Context::attempt`](crate::Context::attempt); 0 if there was none.
    pub attempt: u32,
    /// When it happened.
    pub at: SystemTime,
    /// What happened.
    pub what: EventKind,
}

/// What has happened to a job.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EventKind {
    /// It was enqueued, by a call of its own: one that follows from another job is first seen when it
    /// starts. A fast worker's event may come before this one.
    Enqueued,
    /// An attempt begins.
    Started {
        /// How long the job has been ready. Only for a first attempt.
        waited: Option<Duration>,
    },
    /// The job is done.
    Done {
        /// How long the attempt took. None if it began before anybody listened and was not measured;
        /// also below.
        ran: Option<Duration>,
    },
    /// An attempt has failed, and the job comes back.
    Retried {
        /// How long the attempt took.
        ran: Option<Duration>,
        /// After which time. None if the handler had ended the job, and that could not be stored: the
        /// backend says when it comes back.
        after: Option<Duration>,
        /// What went wrong.
        reason: String,
    },
    /// The handler gave the job back, and no attempt was spent.
    Snoozed {
        /// How long the attempt took.
        ran: Option<Duration>,
        /// For how long.
        after: Duration,
    },
    /// The job is dead.
    Dead {
        /// What went wrong.
        reason: String,
    },
    /// The job was cancelled: while it waited, or its handler has ended since.
    Cancelled {
        /// Why.
        reason: String,
    },
    /// The job expired before it began.
    Expired,
    /// No handler takes its kind: it waits for one.
    Parked,
}

/// Receives what happens to the jobs of a mill, from [`Mill::events`].
///
/// As an iterator it blocks for the next event, and ends when the mill is closed.
///
/// ```
/// use logmill_jobs::{EventKind, Job, JobResult, Mill, Workers};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize, Job)]
/// #[job(kind = "resize")]
/// struct Resize;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// let mill = Mill::open(dir.path().join("jobs"))?;
/// let events = mill.events(1000);
/// let pool = Workers::new(()).on(|_: Resize| JobResult::Ok(())).start(&mill)?;
/// mill.enqueue(Resize)?;
///
/// for event in &events {
///     println!("{} {}: {:?}", event.id, event.kind, event.what);
///     if matches!(event.what, EventKind::Done { .. }) {
///         break;
///     }
/// }
/// assert_eq!(events.dropped(), 0);
/// # drop(pool);
/// # Ok(())
/// # }
/// ```
#[must_use = "events are dropped with it"]
pub struct Events {
    channel: Arc<Channel>,
    hub: Arc<Hub>,
}

/// The receivers of a mill.
#[derive(Default)]
pub(crate) struct Hub {
    /// How many there are, so that an event that nobody hears costs a load. Changed under the lock.
    count: AtomicUsize,
    channels: Mutex<Channels>,
}

#[derive(Default)]
struct Channels {
    open: Vec<Arc<Channel>>,
    is_closed: bool,
}

/// A receiver's buffer.
struct Channel {
    capacity: usize,
    buffer: Mutex<Buffer>,
    dropped: AtomicU64,
    came: Notice,
}

#[derive(Default)]
struct Buffer {
    events: VecDeque<Event>,
    is_closed: bool,
}

/// What a look at a buffer has found.
enum Look {
    Event(Event),
    Nothing,
    Closed,
}

impl Hub {
    /// Whether somebody listens.
    #[inline]
    pub(crate) fn is_on(&self) -> bool {
        // Relaxed: a receiver has no claim to what happens while it is made.
        self.count.load(Ordering::Relaxed) > 0
    }

    /// Tells all receivers. The caller holds no lock, as wakers are user code.
    #[cold]
    pub(crate) fn tell(
        &self,
        mill: &Mill,
        id: &JobId,
        kind: Arc<str>,
        attempt: u32,
        what: EventKind,
    ) {
        let event = Event {
            id: id.clone(),
            kind,
            attempt,
            at: mill.inner.clock.wall(),
            what,
        };
        let channels = self.channels.lock().open.clone();
        for channel in channels {
            channel.push(event.clone());
        }
    }

    /// Ends the waits of all receivers.
    pub(crate) fn close(&self) {
        let open = {
            let mut channels = self.channels.lock();
            channels.is_closed = true;
            self.count.store(0, Ordering::Relaxed);
            std::mem::take(&mut channels.open)
        };
        for channel in open {
            channel.close();
        }
    }
}

impl Channel {
    fn push(&self, event: Event) {
        let mut buffer = self.buffer.lock();
        if buffer.events.len() >= self.capacity {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        buffer.events.push_back(event);
        drop(buffer);
        self.came.notify();
    }

    fn close(&self) {
        self.buffer.lock().is_closed = true;
        self.came.notify();
    }

    fn look(&self) -> Look {
        let mut buffer = self.buffer.lock();
        match buffer.events.pop_front() {
            Some(event) => Look::Event(event),
            None if buffer.is_closed => Look::Closed,
            None => Look::Nothing,
        }
    }
}

impl Mill {
    /// Receives what happens to jobs from now on, in a buffer of so many events, at least one.
    ///
    /// Each receiver gets all events. Nothing waits for one: of a receiver whose buffer is full, new
    /// events are dropped and [counted](Events::dropped). While there is a receiver, each event costs
    /// some hundred nanoseconds, and none otherwise. Events are not stored: what must not be missed
    /// belongs into a job that [follows](crate::Context::then).
    pub fn events(&self, capacity: usize) -> Events {
        let hub = Arc::clone(&self.inner.events);
        let channel = Arc::new(Channel {
            capacity: capacity.max(1),
            buffer: Mutex::default(),
            dropped: AtomicU64::new(0),
            came: Notice::default(),
        });
        let mut channels = hub.channels.lock();
        match channels.is_closed {
            true => channel.close(),
            false => {
                channels.open.push(Arc::clone(&channel));
                hub.count.store(channels.open.len(), Ordering::Relaxed);
            }
        }
        drop(channels);
        Events { channel, hub }
    }
}

impl Events {
    /// Waits for the next event; None once the mill is closed and all were received.
    pub fn recv(&self) -> Option<Event> {
        self.recv_until(None)
    }

    /// Waits for the next event for at most this long; None also if none came.
    pub fn recv_timeout(&self, timeout: Duration) -> Option<Event> {
        // A time that overflows is one that never comes.
        self.recv_until(Instant::now().checked_add(timeout))
    }

    /// The next event, if there is one.
    pub fn try_recv(&self) -> Option<Event> {
        self.channel.buffer.lock().events.pop_front()
    }

    /// Waits for the next event in an async task, on any runtime; None once the mill is closed and all
    /// were received.
    ///
    /// No event is lost if the future is dropped.
    pub async fn recv_async(&self) -> Option<Event> {
        loop {
            let since = self.channel.came.changes();
            match self.channel.look() {
                Look::Event(event) => return Some(event),
                Look::Closed => return None,
                Look::Nothing => self.channel.came.changed(since).await,
            }
        }
    }

    /// How many events were dropped as the buffer was full.
    pub fn dropped(&self) -> u64 {
        self.channel.dropped.load(Ordering::Relaxed)
    }

    fn recv_until(&self, deadline: Option<Instant>) -> Option<Event> {
        loop {
            let since = self.channel.came.changes();
            match self.channel.look() {
                Look::Event(event) => return Some(event),
                Look::Closed => return None,
                Look::Nothing => {}
            }
            if !self.channel.came.wait(since, deadline) {
                return self.try_recv();
            }
        }
    }
}

impl Iterator for &Events {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        self.recv()
    }
}

impl Iterator for Events {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        self.recv()
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let mut channels = self.hub.channels.lock();
        channels.open.retain(|one| !Arc::ptr_eq(one, &self.channel));
        self.hub.count.store(channels.open.len(), Ordering::Relaxed);
    }
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events")
            .field("capacity", &self.channel.capacity)
            .field("waiting", &self.channel.buffer.lock().events.len())
            .field("dropped", &self.dropped())
            .finish()
    }
}
