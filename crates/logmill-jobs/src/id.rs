//! Ids of jobs.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The id of a job: its queue and its number there, as in `mail/17`, or `mail.high/17` if it is not of
/// normal priority.
///
/// Unique for ever in the backend that gave it, and the same at each attempt. It can be stored and
/// parsed again.
///
/// ```
/// use logmill_jobs::JobId;
///
/// let id: JobId = "mail/17".parse()?;
/// assert_eq!((id.queue(), id.number()), ("mail", 17));
/// assert_eq!(id.to_string(), "mail/17");
/// # Ok::<(), logmill_jobs::ParseIdError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId {
    /// The queue as the backend knows it: with a dot and the level, if that is not the normal one.
    place: Arc<str>,
    number: u64,
}

/// A text that is not the id of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the id of a job: it has the form queue/number")]
pub struct ParseIdError(());

impl JobId {
    /// The id of a job by its queue and its number.
    pub(crate) fn new(place: impl Into<Arc<str>>, number: u64) -> Self {
        Self {
            place: place.into(),
            number,
        }
    }

    /// The queue that the job was enqueued in.
    pub fn queue(&self) -> &str {
        self.place.split('.').next().unwrap_or_default()
    }

    /// The backend's queue: that of the job's level of priority.
    pub(crate) fn place(&self) -> &str {
        &self.place
    }

    pub(crate) fn place_arc(&self) -> &Arc<str> {
        &self.place
    }

    /// The same queue, another job.
    pub(crate) fn set_number(&mut self, number: u64) {
        self.number = number;
    }

    /// The job's number in its queue.
    pub fn number(&self) -> u64 {
        self.number
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.place, self.number)
    }
}

impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for JobId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let (queue, number) = text.rsplit_once('/').ok_or(ParseIdError(()))?;
        // No sign, no leading zero: each id has one form.
        let number: u64 = number.parse().map_err(|_| ParseIdError(()))?;
        let id = Self::new(queue, number);
        match !queue.is_empty() && id.to_string() == text {
            true => Ok(id),
            false => Err(ParseIdError(())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_one_form() {
        assert_eq!("a/0".parse(), Ok(JobId::new("a", 0)));
        let high: JobId = "a.high/3".parse().unwrap();
        assert_eq!(
            (high.queue(), high.place(), high.number()),
            ("a", "a.high", 3)
        );
        for text in [
            "",
            "/",
            "a",
            "a/",
            "/1",
            "a/+1",
            "a/01",
            "a/-1",
            "a/1 ",
            "a/99999999999999999999",
        ] {
            assert_eq!(text.parse::<JobId>(), Err(ParseIdError(())), "{text}");
        }
    }
}
