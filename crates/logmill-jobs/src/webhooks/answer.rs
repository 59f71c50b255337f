//! What the answer of a receiver means for the job.

use std::time::{Duration, SystemTime};

use ureq::http::StatusCode;

use crate::failure::Failure;
use crate::{JobResult, discard, rate_limited, retry_in};

/// A receiver that asks for less time than this is still not called again in a loop: no attempt is
/// spent on such an answer.
const SHORTEST_HOLD: Duration = Duration::from_secs(1);

/// An answer, as far as it was read.
pub(super) struct Answer<'a> {
    /// Who gave it, for messages.
    pub(super) host: &'a str,
    pub(super) status: StatusCode,
    /// For how long the receiver asks to be left alone.
    pub(super) retry_after: Option<Duration>,
    /// The begin of the body.
    pub(super) said: &'a str,
    /// Whether the receiver may hold its jobs back without an attempt.
    pub(super) may_hold: bool,
}

impl Answer<'_> {
    /// What becomes of the job.
    pub(super) fn result(&self) -> JobResult {
        let code = self.status.as_u16();
        match (code, self.retry_after) {
            (200..=299, _) => Ok(()),
            (410, _) => Err(discard(self.reason(""))),
            (429 | 503, Some(wait)) => {
                let why = format!(", and to wait for {} s", wait.as_secs());
                match self.may_hold {
                    true => Err(rate_limited(wait, self.reason(&why))),
                    false => Err(retry_in(wait, self.reason(&why))),
                }
            }
            (300..=399, _) => {
                let why = " (redirects are not followed: enqueue with the new url)";
                Err(Failure::retry(self.reason(why)))
            }
            _ => Err(Failure::retry(self.reason(""))),
        }
    }

    fn reason(&self, why: &str) -> String {
        let Self { host, status, .. } = self;
        match self.said {
            "" => format!("{host} answered {status}{why}"),
            said => format!("{host} answered {status}{why}: {said}"),
        }
    }
}

/// The time of a header `Retry-After`, which is a number of seconds or a date; within bounds. None if
/// it is neither.
pub(super) fn retry_after(header: &str, now: SystemTime, most: Duration) -> Option<Duration> {
    let header = header.trim();
    let wait = match !header.is_empty() && header.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than a number has mean a very long time as well.
        true => Duration::from_secs(header.parse().unwrap_or(u64::MAX)),
        false => {
            let date = httpdate::parse_http_date(header).ok()?;
            date.duration_since(now).unwrap_or_default()
        }
    };
    Some(wait.max(SHORTEST_HOLD).min(most))
}

/// A begin of a body as part of a message: on one line.
pub(super) fn excerpt(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let words: Vec<&str> = text
        .split(|c: char| c.is_whitespace() || c.is_control())
        .filter(|word| !word.is_empty())
        .collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::failure::Verdict;
    use crate::{hours, secs};

    fn verdict(status: u16, wait: Option<u64>, may_hold: bool) -> Option<Verdict> {
        let answer = Answer {
            host: "example.com",
            status: StatusCode::from_u16(status).unwrap(),
            retry_after: wait.map(secs),
            said: "",
            may_hold,
        };
        answer.result().err().map(|failure| failure.verdict)
    }

    #[test]
    fn a_status_decides_what_becomes_of_the_job() {
        for done in [200, 201, 202, 204, 299] {
            assert_eq!(verdict(done, None, true), None);
        }
        for retried in [
            301, 302, 304, 307, 308, 400, 401, 404, 408, 422, 429, 500, 502, 503, 504, 599,
        ] {
            assert_eq!(
                verdict(retried, None, true),
                Some(Verdict::Retry),
                "{retried}"
            );
        }
        assert_eq!(verdict(410, Some(5), true), Some(Verdict::Discard));
        for slow in [429, 503] {
            assert_eq!(
                verdict(slow, Some(5), true),
                Some(Verdict::RateLimited(secs(5)))
            );
            assert_eq!(
                verdict(slow, Some(5), false),
                Some(Verdict::RetryIn(secs(5)))
            );
        }
        assert_eq!(verdict(500, Some(5), true), Some(Verdict::Retry));
    }

    #[test]
    fn retry_after_is_a_number_or_a_date_within_bounds() {
        // Sun, 06 Nov 1994 08:49:37 GMT.
        let date = UNIX_EPOCH + secs(784_111_777);
        let after = |header| retry_after(header, date - secs(90), hours(1));
        assert_eq!(after("120"), Some(secs(120)));
        assert_eq!(after(" 7 "), Some(secs(7)));
        for form in [
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
        ] {
            assert_eq!(after(form), Some(secs(90)), "{form}");
        }
        assert_eq!(after("0"), Some(SHORTEST_HOLD));
        assert_eq!(after("Sun, 06 Nov 1994 08:00:00 GMT"), Some(SHORTEST_HOLD));
        assert_eq!(after("86400"), Some(hours(1)));
        assert_eq!(after("99999999999999999999999"), Some(hours(1)));
        assert_eq!(after("Sat, 06 Nov 2094 08:49:37 GMT"), Some(hours(1)));
        for neither in ["", "-1", "+1", "1.5", "soon"] {
            assert_eq!(after(neither), None, "{neither}");
        }
        // A bound below the shortest hold holds as well.
        assert_eq!(retry_after("5", date, Duration::ZERO), Some(Duration::ZERO));
    }

    #[test]
    fn an_excerpt_is_one_line_of_text() {
        assert_eq!(
            excerpt(b" no\r\n\tsuch \x1b[1m thing \xff"),
            "no such [1m thing \u{fffd}"
        );
    }
}
