//! Outgoing HTTP notifications that are jobs: stored, signed, retried with backoff, and replayed when
//! they are dead. And a verifier for those who receive them.
//!
//! ```text
//!  mill.enqueue(Webhook) ─▶ queue ─▶ Webhooks: check the url, sign, look up and check the address, POST
//!                             ▲         │
//!                             │         ├─ 2xx ──────────────────────────────▶ done
//!                             │         ├─ 410 ──────────────────────────────▶ dead
//!                             ├─ hold ──┼─ 429, 503 with Retry-After: all of the host
//!                             └─ retry ─┴─ any other answer, no answer in time, no secret
//! ```
//!
//! Requests have the form of the [Standard Webhooks](https://www.standardwebhooks.com) specification.
//! Receivers find libraries for it in most languages, and [`Verifier`] here.
//!
//! ```no_run
//! use logmill_jobs::webhooks::{Secret, Webhook, Webhooks};
//! use logmill_jobs::{Context, Job, JobResult, Mill, Workers};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Serialize, Deserialize, Job)]
//! #[job(kind = "pay_invoice")]
//! struct PayInvoice {
//!     number: u64,
//! }
//!
//! #[derive(Serialize)]
//! struct Invoice {
//!     number: u64,
//! }
//!
//! fn pay_invoice(job: PayInvoice, cx: Context) -> JobResult {
//!     let invoice = Invoice { number: job.number };
//!     let hook = Webhook::new("https://example.com/hooks", "invoice.paid", &invoice)?;
//!     cx.then(hook.secret("billing"))?; // sent if this job completes, and only then
//!     Ok(())
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let secret: Secret = std::env::var("BILLING_SECRET")?.parse()?;
//! let webhooks = Webhooks::new().secret("billing", secret);
//!
//! let mill = Mill::open("jobs")?;
//! let workers = Workers::new(()).on(pay_invoice).on(webhooks).start(&mill)?;
//! mill.enqueue(PayInvoice { number: 17 })?;
//! # drop(workers);
//! # Ok(())
//! # }
//! ```
//!
//! # What a receiver can rely on
//! - **At least once.** A webhook comes again if its answer was no 2xx or was lost, with the same
//!   `webhook-id`, the same body, and the `webhook-timestamp` of that attempt. It can also come twice if
//!   the process dies before it has stored that the receiver has it. So receivers note the ids of what
//!   they have handled.
//! - **In no order.** A retried one comes after others that were enqueued later. An
//!   [order](crate::Order) by key keeps them back.

mod address;
mod answer;
mod secret;
mod sender;
mod signature;
mod target;
mod verifier;

pub use self::address::is_public;
pub use self::secret::{Secret, SecretError};
pub use self::sender::Webhooks;
pub use self::verifier::{Verified, Verifier, VerifyError};

use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use ureq::http::HeaderValue;

use self::target::Target;
use crate::{Backoff, CodecError, Context, Job, KindOptions, hours, secs};

/// The name of the secret by which a webhook is signed that names none.
const DEFAULT_SECRET: &str = "default";
/// The longest id that is taken. Others have about 40 bytes.
const MOST_ID: usize = 200;
/// With the backoff below, retries go on for a day on average, and for two and a half at most.
const RETRIES: u32 = 16;

/// An HTTP notification, as a job: enqueued, scheduled, or part of a flow like any other.
///
/// Its kind is `webhook`, its queue `webhooks`, and the key by which limits count it the host, with the
/// port if the url has one. It has 16 retries, after up to 10, 20, 40 ... seconds and 12 hours at most;
/// [`mill.job(hook)`](crate::Mill::job) sets others. [`Webhooks`] sends it.
///
/// ```
/// use logmill_jobs::Mill;
/// use logmill_jobs::webhooks::Webhook;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let mill = Mill::open(dir.path().join("jobs"))?;
/// let data = serde_json::json!({ "number": 17 });
/// let hook = Webhook::new("https://example.com/hooks", "invoice.paid", &data)?;
/// assert!(hook.body().starts_with(r#"{"type":"invoice.paid","timestamp":"2"#));
/// assert!(hook.body().ends_with(r#","data":{"number":17}}"#));
/// mill.enqueue(hook)?;
///
/// assert!(Webhook::new("ftp://example.com/hooks", "invoice.paid", &data).is_err());
/// # Ok(())
/// # }
/// ```
///
/// It is not `Clone`, as two jobs with one id would be one message to the receiver.
#[derive(Debug, Serialize, Deserialize)]
pub struct Webhook {
    id: String,
    url: String,
    content_type: String,
    body: String,
    /// The name of the secret; None if it is not signed.
    secret: Option<String>,
}

/// A webhook could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WebhookError {
    /// The url is not one that a webhook can go to.
    #[error("a webhook cannot go to this url: {0}")]
    Url(String),
    /// The data could not be encoded.
    #[error("the data of a webhook cannot be encoded as JSON: {0}")]
    Encode(#[source] serde_json::Error),
    /// The content type or the id has characters that it may not have, or the time is out of range.
    #[error("{0}")]
    Invalid(&'static str),
    /// The system gave no random bytes for an id.
    #[error("the system gives no random bytes for the id of a webhook")]
    Random,
}

/// The body that the specification recommends.
#[derive(Serialize)]
struct Message<'a, T> {
    r#type: &'a str,
    timestamp: String,
    data: &'a T,
}

impl Webhook {
    /// A webhook that tells of an event, such as `invoice.paid`, which happens now.
    ///
    /// Its body is JSON with the fields `type`, `timestamp` and `data`, as the specification recommends.
    /// It is made here, and is the same at each attempt.
    ///
    /// # Errors
    /// The url is not an `http` or `https` url with a host, or it has a user or a password, which would be
    /// stored; the data cannot be encoded.
    pub fn new(
        url: impl Into<String>,
        event: &str,
        data: &(impl Serialize + ?Sized),
    ) -> Result<Self, WebhookError> {
        Self::new_at(url, event, SystemTime::now(), data)
    }

    /// A webhook that tells of an event which happened at this time.
    ///
    /// # Errors
    /// As for [`new`](Self::new); or the time is not in the years up to 9999.
    pub fn new_at(
        url: impl Into<String>,
        event: &str,
        time: SystemTime,
        data: &(impl Serialize + ?Sized),
    ) -> Result<Self, WebhookError> {
        let invalid = |_| WebhookError::Invalid("the time of an event is out of range");
        let time = jiff::Timestamp::try_from(time).map_err(invalid)?;
        let message = Message {
            r#type: event,
            timestamp: time.to_string(),
            data: &data,
        };
        let body = serde_json::to_string(&message).map_err(WebhookError::Encode)?;
        Self::with_body(url, "application/json", body)
    }

    /// A webhook with a body of any other form, for receivers that expect one.
    ///
    /// # Errors
    /// As for [`new`](Self::new); or the content type cannot be in a header.
    pub fn with_body(
        url: impl Into<String>,
        content_type: impl Into<String>,
        body: impl Into<String>,
    ) -> Result<Self, WebhookError> {
        let (url, content_type) = (url.into(), content_type.into());
        Target::parse(&url).map_err(WebhookError::Url)?;
        HeaderValue::from_str(&content_type)
            .map_err(|_| WebhookError::Invalid("the content type of a webhook is not valid"))?;
        Ok(Self {
            id: new_id()?,
            url,
            content_type,
            body: body.into(),
            secret: Some(DEFAULT_SECRET.to_owned()),
        })
    }

    /// Signs it by the secrets of this name, instead of the name `default`. Only the name is stored.
    pub fn secret(mut self, name: impl Into<String>) -> Self {
        self.secret = Some(name.into());
        self
    }

    /// Sends it without a signature: the receiver cannot know who has sent it.
    pub fn unsigned(mut self) -> Self {
        self.secret = None;
        self
    }

    /// Sets the id, such as that of the event in the application, instead of a random one. To a receiver,
    /// webhooks with the same id are one.
    ///
    /// # Errors
    /// It is empty, longer than 200 bytes, or has other characters than letters, digits, `-` and `_`.
    pub fn with_id(mut self, id: impl Into<String>) -> Result<Self, WebhookError> {
        self.id = id.into();
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        let is_valid = !self.id.is_empty() && self.id.len() <= MOST_ID;
        match is_valid && self.id.bytes().all(is_allowed) {
            true => Ok(self),
            false => Err(WebhookError::Invalid(
                "the id of a webhook has 1 to 200 letters, digits, `-` and `_`",
            )),
        }
    }

    /// The id, which is the same at each attempt. Of a job of a schedule, the id that is sent also has
    /// the tick in it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The url.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The body.
    pub fn body(&self) -> &str {
        &self.body
    }

    /// The name of the secret; None if it is not signed.
    pub fn secret_name(&self) -> Option<&str> {
        self.secret.as_deref()
    }

    /// The id that is sent. All jobs of a schedule are made of one webhook, so theirs is told apart.
    fn id_at(&self, cx: &Context) -> String {
        #[cfg(feature = "schedules")]
        if let Some((_, tick)) = cx.scheduled() {
            let tick = tick.duration_since(SystemTime::UNIX_EPOCH);
            return format!("{}_{:x}", self.id, tick.unwrap_or_default().as_nanos());
        }
        #[cfg(not(feature = "schedules"))]
        let _ = cx;
        self.id.clone()
    }
}

/// An id that no other webhook has, of this mill or another one.
fn new_id() -> Result<String, WebhookError> {
    let mut random = [0; 16];
    getrandom::fill(&mut random).map_err(|_| WebhookError::Random)?;
    Ok(format!("msg_{:032x}", u128::from_be_bytes(random)))
}

// Not what the compiler is to suggest where a type of the application is not a job.
#[diagnostic::do_not_recommend]
impl Job for Webhook {
    type Output = ();
    type Inputs = ();

    const KIND: &'static str = "webhook";

    fn kind_options() -> KindOptions {
        KindOptions::new()
            .queue("webhooks")
            .max_retries(RETRIES)
            .backoff(Backoff::exponential(secs(10), hours(12)))
    }

    fn limit_key(&self) -> Result<Option<String>, CodecError> {
        let target = Target::parse(&self.url).map_err(CodecError::new)?;
        Ok(Some(target.receiver))
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    const URL: &str = "https://example.com/hooks";

    #[test]
    fn the_body_has_the_recommended_form() {
        let time = UNIX_EPOCH + Duration::new(1_667_507_170, 344_522_000);
        let hook = Webhook::new_at(URL, "contact.created", time, "Ada").unwrap();
        let body =
            r#"{"type":"contact.created","timestamp":"2022-11-03T20:26:10.344522Z","data":"Ada"}"#;
        assert_eq!(hook.body(), body);
        assert_eq!(hook.content_type, "application/json");
        assert_eq!(hook.secret_name(), Some("default"));
        assert_eq!(hook.unsigned().secret_name(), None);
    }

    #[test]
    fn ids_differ_and_have_no_full_stop() {
        let new = || Webhook::new(URL, "a", &1).unwrap();
        assert_ne!(new().id(), new().id());
        assert!(new().with_id(new().id()).is_ok());
        assert_eq!(new().with_id("event-17").unwrap().id(), "event-17");
        for id in ["", "a.b", "a b", "a\n", "ü", &"a".repeat(201)] {
            assert!(
                matches!(new().with_id(id), Err(WebhookError::Invalid(_))),
                "{id}"
            );
        }
    }

    #[test]
    fn what_cannot_be_sent_is_refused_when_it_is_made() {
        let far = UNIX_EPOCH + Duration::from_secs(1 << 40);
        let refused = Webhook::new_at(URL, "a", far, &1);
        assert!(matches!(refused, Err(WebhookError::Invalid(_))));
        let refused = Webhook::with_body(URL, "text/plain\r\nhost: other", "");
        assert!(matches!(refused, Err(WebhookError::Invalid(_))));
        let keys = std::collections::BTreeMap::from([((1, 2), 3)]);
        let refused = Webhook::new(URL, "a", &keys);
        assert!(matches!(refused, Err(WebhookError::Encode(_))));
    }
}
