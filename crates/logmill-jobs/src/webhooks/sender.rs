//! The handler that sends webhooks: signs, posts, and judges the answer.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use ureq::http::header::{CONTENT_TYPE, RETRY_AFTER};
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::DefaultConnector;
use ureq::{Agent, Body};

use super::address::{Addresses, Allowed, Refused};
use super::answer::{Answer, excerpt, retry_after};
use super::target::Target;
use super::{Secret, Webhook, signature};
use crate::context::{Attempt, Context};
use crate::handler::Handler;
use crate::{Failure, JobResult, discard};

/// How long a request may take by default, the lowest that the specification recommends: each takes a
/// thread of the pool.
const TIMEOUT: Duration = Duration::from_secs(15);
/// For how long a receiver may hold its webhooks back by one answer, by default.
const MOST_RETRY_AFTER: Duration = Duration::from_secs(3600);
/// After this time, an answer that would hold a webhook back spends an attempt, so that a receiver
/// which always gives such answers does not keep its jobs for ever.
const HOLDS_END: Duration = Duration::from_secs(3 * 86_400);
/// How much is read of the body of an answer that is a failure.
const MOST_SAID: u64 = 512;
/// How much is read of the headers of an answer.
const MOST_HEADERS: usize = 16 * 1024;

const USER_AGENT: &str = concat!("logmill-jobs/", env!("CARGO_PKG_VERSION"));

/// What sends webhooks: register it as the handler of [`Webhook`].
///
/// ```
/// use logmill_jobs::webhooks::{Secret, Webhooks};
/// use logmill_jobs::{Limit, Mill, MillOptions, Workers, secs};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("jobs");
/// # let (old, new) = (Secret::generate()?, Secret::generate()?);
/// let webhooks = Webhooks::new()
///     .secret("billing", new) // signed by both, until each receiver has the new one
///     .secret("billing", old)
///     .timeout(secs(20));
///
/// // A host that is slow takes two threads at most.
/// let limit = Limit::on_kind("webhook").by_key().at_once(2);
/// let mill = Mill::builder(path).options(MillOptions::new().limit(limit)).open()?;
/// let workers = Workers::new(()).on(webhooks).threads(8).start(&mill)?;
/// # drop(workers);
/// # Ok(())
/// # }
/// ```
///
/// | the answer | the job |
/// |---|---|
/// | 2xx | is done |
/// | 410 | is dead: the receiver wants no more, so disable it |
/// | 429, 503, with `Retry-After` | waits, and with it all for this host ([`rate_limited`](crate::rate_limited)): an hour at most, and without an attempt, unless it was enqueued more than 3 days ago |
/// | any other, also 3xx, as redirects are not followed | is retried |
/// | none in time, no connection, a failure of TLS | is retried |
///
/// A secret that is missing is a failed attempt as well. An address that is not allowed has the job die
/// at once.
///
/// A request takes a thread of the pool until its answer is there, or its time is up. No proxy is used,
/// also if the environment names one: it would look up names itself. Certificates of TLS are checked by
/// rustls against the roots of Mozilla.
#[derive(Clone)]
#[must_use = "register it by `Workers::on`"]
pub struct Webhooks {
    secrets: Arc<BTreeMap<String, Vec<Secret>>>,
    find: Option<Arc<FindSecrets>>,
    timeout: Duration,
    most_retry_after: Duration,
    addresses: Addresses,
    /// Made at the first request; it has the connections that are kept open.
    agent: Arc<OnceLock<Agent>>,
}

type FindSecrets = dyn Fn(&str) -> Result<Vec<Secret>, Failure> + Send + Sync;

/// Tells [`Webhooks`] apart from functions. It is public, as a private type could not be inferred
/// outside of the crate, and in no path, as nobody writes it.
#[derive(Debug)]
pub struct OfWebhooks;

impl Default for Webhooks {
    fn default() -> Self {
        Self::new()
    }
}

impl Webhooks {
    /// A sender without secrets, which sends to public addresses.
    pub fn new() -> Self {
        Self {
            secrets: Arc::default(),
            find: None,
            timeout: TIMEOUT,
            most_retry_after: MOST_RETRY_AFTER,
            addresses: Addresses::default(),
            agent: Arc::default(),
        }
    }

    /// Adds a secret of this name. If there are several of one name, as during a rotation, each signs.
    ///
    /// Webhooks that name no secret are signed by those named `default`.
    pub fn secret(mut self, name: impl Into<String>, secret: Secret) -> Self {
        let secrets = Arc::make_mut(&mut self.secrets);
        secrets.entry(name.into()).or_default().push(secret);
        self
    }

    /// Has a function find the secrets of a name that no [`secret`](Self::secret) has, such as in a
    /// database with one for each customer. It is called at each attempt. None found, or an error, is a
    /// failed attempt.
    pub fn find_secrets<E: Into<Failure>>(
        mut self,
        find: impl Fn(&str) -> Result<Vec<Secret>, E> + Send + Sync + 'static,
    ) -> Self {
        self.find = Some(Arc::new(move |name| find(name).map_err(Into::into)));
        self
    }

    /// Sets how long a request may take, from the look-up of the name to the answer. Default: 15 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets for how long a receiver may hold its webhooks back by one answer with `Retry-After`.
    /// Default: 1 hour.
    pub fn retry_after_at_most(mut self, most: Duration) -> Self {
        self.most_retry_after = most;
        self
    }

    /// Allows all addresses: also those of this machine, of private networks, and of the metadata
    /// service of a cloud. Only for urls that no customer can choose.
    pub fn allow_private_addresses(mut self) -> Self {
        self.set_addresses(Addresses::All);
        self
    }

    /// Allows the addresses for which this function returns true, instead of those that
    /// [are public](super::is_public).
    ///
    /// It gets the host of the url, and one of the addresses that it stands for at this attempt. The
    /// connection is made to one that is allowed.
    ///
    /// ```
    /// use logmill_jobs::webhooks::{Webhooks, is_public};
    ///
    /// let webhooks = Webhooks::new().allow_addresses_if(|host, address| {
    ///     is_public(address) || host == "billing.internal"
    /// });
    /// ```
    pub fn allow_addresses_if(
        mut self,
        allows: impl Fn(&str, IpAddr) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.set_addresses(Addresses::If(Arc::new(allows)));
        self
    }

    fn set_addresses(&mut self, addresses: Addresses) {
        self.addresses = addresses;
        // Clones that have one keep it.
        self.agent = Arc::default();
    }

    /// Sends a webhook, once: for a handler of the application's own, which does more than that.
    ///
    /// ```
    /// use logmill_jobs::webhooks::{Webhook, Webhooks};
    /// use logmill_jobs::{Context, JobResult, State};
    ///
    /// fn send(hook: Webhook, State(webhooks): State<Webhooks>, cx: Context) -> JobResult {
    ///     println!("sending to {}", hook.url());
    ///     webhooks.send(&hook, &cx)
    /// }
    /// ```
    ///
    /// # Errors
    /// The receiver does not have it, or has not said so. The failure says what is to become of the
    /// job.
    pub fn send(&self, hook: &Webhook, cx: &Context) -> JobResult {
        cx.check()?;
        let target = Target::parse(&hook.url)
            .map_err(|why| discard(format!("a webhook cannot go to its url: {why}")))?;
        let host = &target.receiver;
        let secrets = self.secrets_of(hook)?;
        let now = cx.mill().inner.clock.wall();
        let mut response = match self.post(hook, &target, &secrets, &hook.id_at(cx), now) {
            Ok(response) => response,
            Err(ureq::Error::Timeout(_)) => {
                let why = format!("{host} gave no answer within {:?}", self.timeout);
                return Err(Failure::retry(why));
            }
            Err(ureq::Error::Other(error)) if error.is::<Refused>() => {
                return Err(discard(format!("{host}: {error}")));
            }
            Err(error) => return Err(Failure::retry(format!("{host}: {error}"))),
        };
        let status = response.status();
        let header = response.headers().get(RETRY_AFTER);
        let header = header.and_then(|header| header.to_str().ok());
        let wait = header.and_then(|header| retry_after(header, now, self.most_retry_after));
        let said = match status.is_success() {
            true => String::new(),
            false => begin_of(response.body_mut()),
        };
        let age = now.duration_since(cx.enqueued_at()).unwrap_or_default();
        let answer = Answer {
            host,
            status,
            retry_after: wait,
            said: &said,
            may_hold: age < HOLDS_END,
        };
        answer.result()
    }

    fn post(
        &self,
        hook: &Webhook,
        target: &Target,
        secrets: &[Secret],
        id: &str,
        now: SystemTime,
    ) -> Result<ureq::http::Response<Body>, ureq::Error> {
        let since = now.duration_since(SystemTime::UNIX_EPOCH);
        let timestamp = since.unwrap_or_default().as_secs().to_string();
        let mut request = self
            .agent()
            .post(target.uri.clone())
            .header(CONTENT_TYPE, &hook.content_type)
            .header(signature::ID, id)
            .header(signature::TIMESTAMP, &timestamp);
        if !secrets.is_empty() {
            let signatures = signature::sign(secrets, id, &timestamp, hook.body.as_bytes());
            request = request.header(signature::SIGNATURE, signatures);
        }
        let request = request.config().timeout_global(Some(self.timeout)).build();
        request.send(&hook.body)
    }

    /// The secrets by which it is signed; none if it is to be sent without a signature.
    fn secrets_of(&self, hook: &Webhook) -> Result<Vec<Secret>, Failure> {
        let Some(name) = &hook.secret else {
            return Ok(Vec::new());
        };
        let secrets = match (self.secrets.get(name), &self.find) {
            (Some(secrets), _) => secrets.clone(),
            (None, Some(find)) => find(name)?,
            (None, None) => Vec::new(),
        };
        match secrets.is_empty() {
            true => Err(Failure::retry(format!(
                "there is no secret {name:?} to sign the webhook by; add it to the `Webhooks` of the \
                 workers"
            ))),
            false => Ok(secrets),
        }
    }

    fn agent(&self) -> &Agent {
        self.agent.get_or_init(|| {
            let config = Agent::config_builder()
                .http_status_as_error(false)
                .max_redirects(0)
                .max_redirects_will_error(false)
                .max_response_header_size(MOST_HEADERS)
                .proxy(None)
                .user_agent(USER_AGENT)
                .build();
            let names = Allowed {
                addresses: self.addresses.clone(),
                names: DefaultResolver::default(),
            };
            Agent::with_parts(config, DefaultConnector::new(), names)
        })
    }
}

/// The begin of a body, for a message. If it cannot be read, the status says enough.
fn begin_of(body: &mut Body) -> String {
    let mut bytes = Vec::new();
    let _ = body.as_reader().take(MOST_SAID).read_to_end(&mut bytes);
    excerpt(&bytes)
}

// Not what the compiler is to suggest where a function is not a handler.
#[diagnostic::do_not_recommend]
impl<S> Handler<Webhook, S, OfWebhooks> for Webhooks {
    fn call(&self, hook: Webhook, _: &S, attempt: &Attempt<'_>) -> Result<(), Failure> {
        self.send(&hook, attempt.context())
    }
}

impl fmt::Debug for Webhooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Webhooks")
            .field("secrets", &self.secrets.keys())
            .field("timeout", &self.timeout)
            .field("most_retry_after", &self.most_retry_after)
            .field("addresses", &self.addresses)
            .finish_non_exhaustive()
    }
}
