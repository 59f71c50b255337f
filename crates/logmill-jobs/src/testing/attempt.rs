//! One handler on one job, without a queue: through the codec, with a context, and with the rules by
//! which an attempt ends.

use std::cell::OnceCell;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::SystemTime;

use super::report::How;
use crate::backend::{BackendError, Claim, Held, KeyChange, Settlement};
use crate::context::{Attempt, followed_by};
use crate::enqueue::header;
use crate::error::EnqueueError;
use crate::figures::Watch;
use crate::handler::{Called, Handler, Route, SyncRoute};
use crate::keys::{self, Record};
use crate::mill::Mill;
use crate::settle;
use crate::{CodecError, Job, JobId};

/// An attempt at a job that is not enqueued, from [`attempt`].
#[must_use = "the handler is called by `run`"]
pub struct TestAttempt<'a, J> {
    mill: &'a Mill,
    id: JobId,
    claim: Loose,
    job: PhantomData<fn() -> J>,
}

/// Prepares an attempt at a job that is not enqueued, to test its handler.
///
/// The arguments go through the codec of the mill, and what the handler returns through the rules of
/// the kind. Results of steps are stored in the mill, and a further attempt finds them; nothing else
/// is.
///
/// ```
/// use logmill_jobs::testing::{How, TestMill, attempt};
/// use logmill_jobs::{Context, Job, JobResult, State};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize, Job)]
/// #[job(kind = "charge", output = String)]
/// struct Charge {
///     cents: u64,
/// }
///
/// #[derive(Debug, PartialEq, Serialize, Deserialize, Job)]
/// #[job(kind = "ship")]
/// struct Ship;
///
/// fn charge(job: Charge, State(currency): State<&'static str>, cx: Context) -> JobResult<String> {
///     if cx.attempt() == 1 {
///         return Err("no connection".into());
///     }
///     cx.then(Ship)?;
///     Ok(format!("{} {currency}", job.cents))
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mill = TestMill::open()?;
/// let mut job = attempt(&mill, Charge { cents: 100 })?;
/// let first = job.run(charge, "EUR")?;
/// assert!(matches!(&first.how, How::Retried { reason, .. } if reason == "no connection"));
///
/// let second = job.run(charge, "EUR")?;
/// assert_eq!(second.output.as_deref(), Some("100 EUR"));
/// assert_eq!(second.followed::<Ship>()?, [Ship]);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// The arguments or the key cannot be encoded.
pub fn attempt<J: Job>(mill: &Mill, job: J) -> Result<TestAttempt<'_, J>, EnqueueError> {
    /// No queue gets to such numbers.
    static NEXT: AtomicU64 = AtomicU64::new(u64::MAX - 1);
    let payload = mill.inner.encoded(&job, |bytes| Ok(bytes.to_vec()))?;
    let id = JobId::new(
        J::kind_options().queue,
        NEXT.fetch_sub(1, Ordering::Relaxed),
    );
    let mut headers = Vec::new();
    let tag = mill.inner.codec.tag().map(str::to_owned);
    headers.extend(tag.map(|tag| (header::CODEC, tag.into_bytes())));
    headers.extend(job.limit_key()?.map(|key| (header::KEY, key.into_bytes())));
    let claim = Loose {
        id: id.clone(),
        kind: J::KIND.to_owned(),
        payload,
        headers,
        attempt: 1,
        crashes: 0,
        enqueued_at: mill.inner.clock.wall(),
        is_cancelled: false,
        settled: None,
    };
    Ok(TestAttempt {
        mill,
        id,
        claim,
        job: PhantomData,
    })
}

/// How an attempt ended, and what followed from it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Attempted<J: Job> {
    /// How it ended.
    pub how: How,
    /// What the handler returned, if it completed the job.
    pub output: Option<J::Output>,
    mill: Mill,
    followed: Vec<Following>,
}

/// A job that follows from another one.
#[derive(Clone, Debug)]
struct Following {
    kind: String,
    payload: Vec<u8>,
    tag: Option<Vec<u8>>,
}

impl<J: Job> TestAttempt<'_, J> {
    /// Makes it an attempt with this number; 1 is the first, and the default.
    pub fn attempt(mut self, number: u32) -> Self {
        self.claim.attempt = number.max(1);
        self
    }

    /// Makes it one after so many crashes during attempts.
    pub fn crashes(mut self, crashes: u32) -> Self {
        self.claim.crashes = crashes;
        self
    }

    /// Makes it one at a job that was enqueued then.
    pub fn enqueued_at(mut self, time: SystemTime) -> Self {
        self.claim.enqueued_at = time;
        self
    }

    /// Makes it one at a job that is being cancelled: the handler is told from the start.
    pub fn cancelled(mut self) -> Self {
        self.claim.is_cancelled = true;
        self
    }

    /// Calls a handler. A further call is the next attempt if this one failed.
    ///
    /// # Errors
    /// The output cannot be decoded.
    pub fn run<S, M, H>(&mut self, handler: H, state: S) -> Result<Attempted<J>, CodecError>
    where
        M: 'static,
        H: Handler<J, S, M>,
    {
        self.run_route(&SyncRoute::<J, H, M>::new(handler), &state)
    }

    /// Calls an async handler, and waits for it on this thread.
    ///
    /// # Errors
    /// The output cannot be decoded.
    #[cfg(feature = "tokio")]
    pub fn run_async<S, M, H>(&mut self, handler: H, state: S) -> Result<Attempted<J>, CodecError>
    where
        M: 'static,
        H: crate::handler::AsyncHandler<J, S, M>,
    {
        let route = crate::handler::AsyncRoute::<J, H, M>::new(handler);
        self.run_route(&route, &state)
    }

    /// Calls a service of `tower`, as one that is
    /// [registered](crate::Workers::on_service), and waits for it on this thread.
    ///
    /// # Errors
    /// The output cannot be decoded.
    #[cfg(feature = "tower")]
    pub fn run_service<T>(&mut self, service: T) -> Result<Attempted<J>, CodecError>
    where
        T: tower_service::Service<crate::JobRequest<J>, Response = J::Output>
            + Clone
            + Send
            + Sync
            + 'static,
        T::Error: Into<crate::Failure>,
        T::Future: Send + 'static,
    {
        use crate::handler::{OfService, ServiceHandler};
        self.run_async::<(), OfService, _>(ServiceHandler(service), ())
    }

    fn run_route<S>(
        &mut self,
        route: &dyn Route<S>,
        state: &S,
    ) -> Result<Attempted<J>, CodecError> {
        let mill = self.mill;
        let clock = &mill.inner.clock;
        let timeout = route.options().timeout;
        let deadline = timeout.and_then(|timeout| clock.now().checked_add(timeout));
        let pool_stops = Arc::new(AtomicBool::new(false));
        let attempt = Attempt {
            mill,
            id: &self.id,
            claim: &self.claim,
            deadline,
            pool_stops: &pool_stops,
            context: OnceCell::new(),
        };
        let mut watch = Watch::new(mill);
        let begun = watch.begin(&self.id, J::KIND, &self.claim, route.is_async());
        let called = route.call(state, &attempt);
        let context = attempt.context.into_inner();
        #[cfg_attr(not(feature = "tokio"), expect(clippy::infallible_destructuring_match))]
        let returned = match called {
            Called::Returned(returned) => returned,
            #[cfg(feature = "tokio")]
            Called::Begun(future) => crate::workers::wait_for(clock, deadline, future),
        };
        let followed = followed_by(context);
        let ran = begun.end(mill, watch.cell(), &self.claim);
        let claim = &mut self.claim;
        settle::settle(
            mill,
            claim,
            &self.id,
            route.options(),
            returned,
            followed,
            &ran,
        );
        let settled = claim.settled.take().unwrap_or_default();
        if matches!(settled.how, How::Retried { .. }) {
            claim.attempt = claim.attempt.saturating_add(1);
        }
        let output = match (&settled.how, settled.record) {
            (How::Done, Some((tag, output))) => {
                Some(mill.inner.codec.decode(tag.as_deref(), &output)?)
            }
            (How::Done, None) => crate::handle::unit(),
            _ => None,
        };
        Ok(Attempted {
            how: settled.how,
            output,
            mill: mill.clone(),
            followed: settled.followed,
        })
    }
}

impl<J: Job> Attempted<J> {
    /// The jobs of a kind that [follow](crate::Context::then) from the completion.
    ///
    /// # Errors
    /// The arguments of one cannot be decoded.
    pub fn followed<K: Job>(&self) -> Result<Vec<K>, CodecError> {
        let codec = &self.mill.inner.codec;
        let of_kind = self.followed.iter().filter(|job| job.kind == K::KIND);
        of_kind
            .map(|job| codec.decode(job.tag.as_deref(), &job.payload))
            .collect()
    }
}

/// A claim of a job that is in no queue.
struct Loose {
    id: JobId,
    kind: String,
    payload: Vec<u8>,
    headers: Vec<(&'static str, Vec<u8>)>,
    attempt: u32,
    crashes: u32,
    enqueued_at: SystemTime,
    is_cancelled: bool,
    settled: Option<Settled>,
}

/// How it was settled.
struct Settled {
    how: How,
    /// The output, and how it is encoded.
    record: Option<(Option<Vec<u8>>, Vec<u8>)>,
    followed: Vec<Following>,
}

impl Default for Settled {
    fn default() -> Self {
        Self {
            how: How::Lost,
            record: None,
            followed: Vec::new(),
        }
    }
}

impl Claim for Loose {
    fn queue(&self) -> &str {
        self.id.place()
    }

    fn number(&self) -> u64 {
        self.id.number()
    }

    fn kind(&self) -> &str {
        &self.kind
    }

    fn payload(&self) -> &[u8] {
        &self.payload
    }

    fn header(&self, key: &str) -> Option<&[u8]> {
        let mut headers = self.headers.iter();
        headers
            .find(|(name, _)| *name == key)
            .map(|(_, value)| &value[..])
    }

    fn attempt(&self) -> u32 {
        self.attempt
    }

    fn crashes(&self) -> u32 {
        self.crashes
    }

    fn enqueued_at(&self) -> SystemTime {
        self.enqueued_at
    }

    fn is_cancelled(&self) -> bool {
        self.is_cancelled
    }

    fn settle(&mut self, settlement: Settlement<'_>) -> Result<Vec<Option<u64>>, BackendError> {
        let mut settled = Settled {
            how: How::of(&settlement, &self.id),
            ..Settled::default()
        };
        if let Settlement::Done(Some(changes)) = settlement {
            let key = keys::of_record(&self.id);
            for change in &changes.keys {
                if let KeyChange::Put(of, value, _) = change
                    && *of == key
                    && let Some(Record::Done { tag, output }) = Record::parse(value)
                {
                    settled.record = Some((tag, output));
                }
            }
            for (_, job) in &changes.jobs {
                let mut headers = job.headers.iter();
                let tag = headers.find(|(name, _)| *name == header::CODEC);
                settled.followed.push(Following {
                    kind: job.kind.to_owned(),
                    payload: job.payload.to_vec(),
                    tag: tag.map(|(_, value)| value.to_vec()),
                });
            }
        }
        self.settled = Some(settled);
        // The numbers of jobs that are stored nowhere.
        Ok(Vec::new())
    }

    fn hold(&mut self) -> Option<Box<dyn Held>> {
        None
    }

    fn detach(&mut self) -> Option<Box<dyn Claim + Send>> {
        None
    }
}

impl<J> std::fmt::Debug for TestAttempt<'_, J> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TestAttempt")
            .field("kind", &self.claim.kind)
            .field("attempt", &self.claim.attempt)
            .finish_non_exhaustive()
    }
}
