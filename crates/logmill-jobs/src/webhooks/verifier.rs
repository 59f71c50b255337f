//! The receiver's side: whether a request is a webhook of the sender, and a recent one.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::Secret;
use super::signature::{ID, SIGNATURE, TIMESTAMP, is_signed};

/// How far the time of an attempt may be from now by default.
const TOLERANCE: Duration = Duration::from_secs(300);

/// Checks webhooks that are received: that who sent them has the secret, that nothing in them was
/// changed, and that they are recent.
///
/// Headers come through a function, so that it works with any HTTP server; the names that it is asked
/// for are in lower case. The body has to be the bytes that were received: an equal JSON text that is
/// spelled otherwise has another signature.
///
/// ```
/// use logmill_jobs::webhooks::{Secret, Verifier};
/// use std::collections::HashMap;
/// use std::time::{Duration, UNIX_EPOCH};
///
/// let secret: Secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".parse()?;
/// let verifier = Verifier::new([secret]);
///
/// let headers = HashMap::from([
///     ("webhook-id", "msg_p5jXN8AQM9LWM0D4loKWxJek"),
///     ("webhook-timestamp", "1614265330"),
///     ("webhook-signature", "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="),
/// ]);
/// let body = br#"{"test": 2432232314}"#;
/// let now = UNIX_EPOCH + Duration::from_secs(1_614_265_350); // SystemTime::now(), at home
/// let verified = verifier.verify(|name| headers.get(name).copied(), body, now)?;
/// assert_eq!(verified.id, "msg_p5jXN8AQM9LWM0D4loKWxJek");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// A webhook may come more than once, with the same id: note the ids that were handled for as long as
/// their sender retries.
#[derive(Clone, Debug)]
pub struct Verifier {
    secrets: Vec<Secret>,
    tolerance: Duration,
}

/// What a webhook says that was [verified](Verifier::verify).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verified<'h> {
    /// The id of the message, the same at each attempt to deliver it.
    pub id: &'h str,
    /// When this attempt was made, by the sender's clock.
    pub timestamp: SystemTime,
}

/// A request is not a webhook to rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// A header is missing.
    #[error("the request has no header {0}")]
    MissingHeader(&'static str),
    /// The timestamp is no number of seconds.
    #[error("the header webhook-timestamp is not a time in seconds")]
    InvalidTimestamp,
    /// The attempt was made too long ago: perhaps somebody sends it again.
    #[error("the webhook is too old")]
    TooOld,
    /// The attempt was made in the future: one of the clocks is wrong.
    #[error("the webhook is of a time in the future")]
    TooNew,
    /// No signature is by a secret of the verifier.
    #[error("no signature of the webhook matches")]
    WrongSignature,
}

impl Verifier {
    /// A verifier that takes signatures by any of these secrets: during a rotation, the old one and the
    /// new one.
    pub fn new(secrets: impl IntoIterator<Item = Secret>) -> Self {
        Self {
            secrets: secrets.into_iter().collect(),
            tolerance: TOLERANCE,
        }
    }

    /// Sets how far the time of an attempt may be from now, in both directions. Default: 5 minutes.
    pub fn tolerance(mut self, tolerance: Duration) -> Self {
        self.tolerance = tolerance;
        self
    }

    /// Checks a request by its headers and its body.
    ///
    /// # Errors
    /// It is not to be relied on. Answer it with the status 400 or 401.
    pub fn verify<'h>(
        &self,
        header: impl Fn(&str) -> Option<&'h str>,
        body: &[u8],
        now: SystemTime,
    ) -> Result<Verified<'h>, VerifyError> {
        let get = |name| header(name).ok_or(VerifyError::MissingHeader(name));
        let (id, stamp, signatures) = (get(ID)?, get(TIMESTAMP)?, get(SIGNATURE)?);
        let timestamp = time_of(stamp).ok_or(VerifyError::InvalidTimestamp)?;
        match now.duration_since(timestamp) {
            Ok(age) if age > self.tolerance => return Err(VerifyError::TooOld),
            Err(ahead) if ahead.duration() > self.tolerance => return Err(VerifyError::TooNew),
            _ => {}
        }
        match is_signed(&self.secrets, id, stamp, body, signatures) {
            true => Ok(Verified { id, timestamp }),
            false => Err(VerifyError::WrongSignature),
        }
    }
}

fn time_of(stamp: &str) -> Option<SystemTime> {
    // `parse` alone takes a sign.
    let is_number = stamp.bytes().all(|byte| byte.is_ascii_digit());
    let seconds = is_number.then(|| stamp.parse().ok()).flatten()?;
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::webhooks::signature::sign;

    const AT: u64 = 1_614_265_330;

    fn after(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn check(id: &str, stamp: &str, signatures: &str, now: u64) -> Result<(), VerifyError> {
        let headers = [(ID, id), (TIMESTAMP, stamp), (SIGNATURE, signatures)];
        let get = |name: &str| {
            let found = headers.iter().find(|(of, _)| *of == name);
            found
                .map(|(_, value)| *value)
                .filter(|value| !value.is_empty())
        };
        let verified = Verifier::new([secret(1), secret(2)]).verify(get, b"body", after(now))?;
        assert_eq!((verified.id, verified.timestamp), (id, after(AT)));
        Ok(())
    }

    fn secret(byte: u8) -> Secret {
        Secret::from_key(&[byte; 32]).unwrap()
    }

    #[test]
    fn a_signature_by_any_secret_is_enough_and_others_are_passed_over() {
        let at = AT.to_string();
        for byte in [1, 2] {
            let one = sign(&[secret(byte)], "msg", &at, b"body");
            assert_eq!(check("msg", &at, &one, AT), Ok(()));
            let among = format!("v1a,AAAA v1,not_base64 v2,{} {one}", &one[3..]);
            assert_eq!(check("msg", &at, &among, AT), Ok(()));
        }
        let other = sign(&[secret(3)], "msg", &at, b"body");
        assert_eq!(
            check("msg", &at, &other, AT),
            Err(VerifyError::WrongSignature)
        );
        let unversioned = &sign(&[secret(1)], "msg", &at, b"body")[3..];
        assert_eq!(
            check("msg", &at, unversioned, AT),
            Err(VerifyError::WrongSignature)
        );
    }

    #[test]
    fn a_time_too_far_from_now_is_refused_in_both_directions() {
        let at = AT.to_string();
        let signed = sign(&[secret(1)], "msg", &at, b"body");
        for now in [AT - 300, AT, AT + 300] {
            assert_eq!(check("msg", &at, &signed, now), Ok(()));
        }
        assert_eq!(
            check("msg", &at, &signed, AT + 301),
            Err(VerifyError::TooOld)
        );
        assert_eq!(
            check("msg", &at, &signed, AT - 301),
            Err(VerifyError::TooNew)
        );
    }

    #[test]
    fn what_is_missing_or_no_time_is_named() {
        let missing = |name| Err(VerifyError::MissingHeader(name));
        assert_eq!(check("", "1", "v1,", AT), missing(ID));
        assert_eq!(check("msg", "", "v1,", AT), missing(TIMESTAMP));
        assert_eq!(check("msg", "1", "", AT), missing(SIGNATURE));
        for stamp in [
            "+1",
            "-1",
            "1.0",
            "x",
            "99999999999999999999",
            "18446744073709551615",
        ] {
            let refused = check("msg", stamp, "v1,", AT);
            assert_eq!(refused, Err(VerifyError::InvalidTimestamp), "{stamp}");
        }
    }
}
