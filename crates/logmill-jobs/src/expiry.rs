//! Jobs that are not started any more once their time has passed. A job's header says when, and the
//! worker that comes to it looks: so its end is one step with all that belongs to it.

use std::time::{Duration, SystemTime};

use crate::JobId;
use crate::backend::Claim;
use crate::enqueue::header;
use crate::keys::Record;
use crate::mill::Mill;
use crate::settle;

/// The header of a job that expires after this time: nanoseconds since the epoch.
#[inline]
pub(crate) fn header_of(mill: &Mill, after: Option<Duration>) -> Option<[u8; 8]> {
    after.map(|after| nanos(mill.inner.clock.wall(), after).to_le_bytes())
}

fn nanos(now: SystemTime, after: Duration) -> u64 {
    // A time that overflows is one that never comes.
    let at = now.checked_add(after);
    let since = at.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
    since.map_or(u64::MAX, |since| {
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    })
}

/// Ends a job that has expired. Returns whether it had.
#[inline]
pub(crate) fn end_expired(mill: &Mill, id: &JobId, claim: &mut dyn Claim) -> bool {
    let Some(at) = claim.header(header::EXPIRES) else {
        return false;
    };
    // One that has begun in time goes on.
    if claim.attempt() > 1 || claim.crashes() > 0 {
        return false;
    }
    let at = at.try_into().map_or(u64::MAX, u64::from_le_bytes);
    if nanos(mill.inner.clock.wall(), Duration::ZERO) < at {
        return false;
    }
    settle::end_unbegun(mill, claim, id, Record::Expired);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_that_overflows_never_comes() {
        let now = SystemTime::now();
        assert_eq!(nanos(now, Duration::MAX), u64::MAX);
        assert_eq!(nanos(now, Duration::from_secs(u64::MAX / 2)), u64::MAX);
        assert!(nanos(now, Duration::ZERO) < nanos(now, Duration::from_nanos(1)));
    }
}
