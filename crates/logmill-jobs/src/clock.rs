//! What time it is: the only place that asks.
//!
//! With the feature `testing`, a mill can have a manual clock. Threads that wait for a time then wait
//! for its advance instead.

use std::time::{Instant, SystemTime};

#[cfg(feature = "testing")]
use logmill::ManualClock;

/// The clocks of a mill, on which its limits, schedules and due times run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Clock {
    /// Asked instead of the system's clocks.
    #[cfg(feature = "testing")]
    manual: Option<ManualClock>,
    /// Threads that would only do what is due do not start, as who advances the clock does that.
    #[cfg(feature = "testing")]
    #[cfg_attr(not(feature = "schedules"), expect(dead_code))]
    is_stepped: bool,
}

/// Calls something at each advance of a manual clock, until it is dropped.
#[derive(Debug)]
pub(crate) struct Advances {
    #[cfg(feature = "testing")]
    _told: Option<logmill::ClockSubscription>,
}

impl Clock {
    /// A manual clock.
    #[cfg(feature = "testing")]
    pub(crate) fn manual(clock: &ManualClock) -> Self {
        Self {
            manual: Some(clock.clone()),
            is_stepped: false,
        }
    }

    /// A manual clock, whose advances alone do what is due: a simulation has no threads that could do it
    /// at another moment each time.
    #[cfg(feature = "testing")]
    pub(crate) fn stepped(clock: &ManualClock) -> Self {
        Self {
            manual: Some(clock.clone()),
            is_stepped: true,
        }
    }

    /// Whether its advances alone do what is due.
    #[cfg(feature = "schedules")]
    pub(crate) fn is_stepped(&self) -> bool {
        #[cfg(feature = "testing")]
        return self.is_stepped;
        #[cfg(not(feature = "testing"))]
        false
    }

    /// The manual clock, if it is one.
    #[cfg(feature = "testing")]
    pub(crate) fn as_manual(&self) -> Option<&ManualClock> {
        self.manual.as_ref()
    }

    /// The time of the monotonic clock.
    #[inline]
    pub(crate) fn now(&self) -> Instant {
        #[cfg(feature = "testing")]
        if let Some(manual) = &self.manual {
            return manual.instant();
        }
        Instant::now()
    }

    /// The time of the wall clock.
    #[inline]
    pub(crate) fn wall(&self) -> SystemTime {
        #[cfg(feature = "testing")]
        if let Some(manual) = &self.manual {
            return manual.now();
        }
        SystemTime::now()
    }

    /// Until when a thread sleeps that waits for this time. None: until it is woken, as whoever
    /// [advances](Self::on_advance) the clock does.
    pub(crate) fn sleeps_until(&self, time: Instant) -> Option<Instant> {
        #[cfg(feature = "testing")]
        if self.manual.is_some() {
            return None;
        }
        Some(time)
    }

    /// The output of a future, or None if a manual clock reaches this time before.
    #[cfg(feature = "tokio")]
    pub(crate) async fn unless_reached<F: Future>(
        &self,
        time: Instant,
        future: F,
    ) -> Option<F::Output> {
        let advanced = std::sync::Arc::<crate::notice::Notice>::default();
        let notified = std::sync::Arc::clone(&advanced);
        let _advances = self.on_advance(move || notified.notify());
        let mut future = std::pin::pin!(future);
        let reached = async {
            loop {
                let since = advanced.changes();
                if self.now() >= time {
                    return;
                }
                advanced.changed(since).await;
            }
        };
        let mut reached = std::pin::pin!(reached);
        std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
            std::task::Poll::Ready(output) => std::task::Poll::Ready(Some(output)),
            std::task::Poll::Pending => reached.as_mut().poll(cx).map(|()| None),
        })
        .await
    }

    /// Has `tell` called by each advance of a manual clock, on the thread that advances it, which
    /// returns when `tell` has: what has become due by then is to be done.
    pub(crate) fn on_advance(&self, tell: impl Fn() + Send + Sync + 'static) -> Advances {
        #[cfg(feature = "testing")]
        let told = self.manual.as_ref().map(|clock| clock.on_advance(tell));
        #[cfg(not(feature = "testing"))]
        drop(tell);
        Advances {
            #[cfg(feature = "testing")]
            _told: told,
        }
    }
}
