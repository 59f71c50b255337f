//! The figures as metrics of the crate `metrics`, for whatever recorder the application has installed.

use std::sync::Arc;
use std::time::Duration;

use metrics::{Label, counter, gauge};

use super::{KindStats, Times};
use crate::JobId;
use crate::backend::BackendError;
use crate::mill::Mill;

impl Mill {
    /// Hands the figures to the recorder of the crate [`metrics`] that the application has installed;
    /// to be called at an interval, such as before each scrape.
    ///
    /// | metric | type | labels | |
    /// |---|---|---|---|
    /// | `logmill_jobs_enqueued_total` | counter | `kind`, `queue` | jobs that were enqueued |
    /// | `logmill_jobs_attempts_total` | counter | `kind`, `queue`, `outcome`: `done`, `failed`, `snoozed` | attempts that handlers ended |
    /// | `logmill_jobs_ended_total` | counter | `kind`, `queue`, `outcome`: `done`, `dead`, `cancelled`, `expired` | jobs that ended |
    /// | `logmill_jobs_wait_seconds` | gauge | `kind`, `queue`, `quantile`: `0.5`, `0.9`, `0.99`, `1` | [`KindStats::waited`] |
    /// | `logmill_jobs_run_seconds` | gauge | `kind`, `queue`, `quantile` | [`KindStats::ran`] |
    /// | `logmill_jobs_lateness_seconds` | gauge | `kind`, `queue`, `quantile` | [`KindStats::late`], if there were such jobs |
    /// | `logmill_jobs_kind_arrivals_per_second` | gauge | `kind`, `queue` | [`KindLoad::arrivals`](crate::KindLoad::arrivals) |
    /// | `logmill_jobs_kind_ends_per_second` | gauge | `kind`, `queue` | [`KindLoad::ends`](crate::KindLoad::ends) |
    /// | `logmill_jobs_kind_left`, `logmill_jobs_kind_left_at_most` | gauge | `kind`, `queue` | [`KindLoad::left`](crate::KindLoad::left), [`left_at_most`](crate::KindLoad::left_at_most) |
    /// | `logmill_jobs_kind_time_to_drain_seconds` | gauge | `kind`, `queue` | [`KindLoad::time_to_drain`](crate::KindLoad::time_to_drain); infinite if they become more |
    /// | `logmill_jobs_ready` | gauge | `queue` | jobs that can begin |
    /// | `logmill_jobs_delayed` | gauge | `queue` | jobs whose time is to come |
    /// | `logmill_jobs_running` | gauge | `queue` | jobs that handlers have |
    /// | `logmill_jobs_held` | gauge | `queue` | jobs that wait for a limit, an order, the end of a pause or a handler |
    /// | `logmill_jobs_dead` | gauge | `queue` | dead letters |
    /// | `logmill_jobs_oldest_ready_seconds` | gauge | `queue` | how long the oldest ready job has been ready; 0 if none is |
    /// | `logmill_jobs_arrivals_per_second` | gauge | `queue` | [`Load::arrivals`](crate::Load::arrivals) |
    /// | `logmill_jobs_ends_per_second` | gauge | `queue` | [`Load::ends`](crate::Load::ends) |
    /// | `logmill_jobs_time_to_drain_seconds` | gauge | `queue` | [`Load::time_to_drain`](crate::Load::time_to_drain); infinite if it grows |
    ///
    /// Counters begin with the mill. Nothing is recorded between the calls, so that a job costs no more
    /// with this feature than without.
    ///
    /// # Errors
    /// The storage failed.
    pub fn publish_metrics(&self) -> Result<(), BackendError> {
        let queue_of = |place: &str| JobId::new(place, 0).queue().to_owned();
        let key_of = |kind: &Arc<str>, place: &Arc<str>| Some((kind.clone(), queue_of(place)));
        for ((kind, queue), sum) in self.inner.figures.sums(key_of) {
            let labels = [
                Label::new("kind", kind.to_string()),
                Label::new("queue", queue),
            ];
            publish_kind(&sum.stats(), &labels);
        }
        for (queue, load) in self.load_by_kind_and_queue()? {
            let labels = [
                Label::new("kind", load.kind.clone()),
                Label::new("queue", queue),
            ];
            let set = |metric: &'static str, value: f64| {
                gauge!(metric, labels.to_vec()).set(value);
            };
            set("logmill_jobs_kind_arrivals_per_second", load.arrivals);
            set("logmill_jobs_kind_ends_per_second", load.ends);
            set("logmill_jobs_kind_left", load.left as f64);
            set("logmill_jobs_kind_left_at_most", load.left_at_most as f64);
            let drain = seconds_or_infinite(load.time_to_drain);
            set("logmill_jobs_kind_time_to_drain_seconds", drain);
        }
        for name in self.queue_names()? {
            let queue = self.queue(&name)?;
            let (stats, load) = (queue.stats()?, queue.load()?);
            let set = |metric: &'static str, value: f64| {
                gauge!(metric, vec![Label::new("queue", name.clone())]).set(value);
            };
            set("logmill_jobs_ready", stats.ready as f64);
            set("logmill_jobs_delayed", stats.delayed as f64);
            set("logmill_jobs_running", stats.running as f64);
            set("logmill_jobs_held", stats.held as f64);
            set("logmill_jobs_dead", stats.dead as f64);
            let oldest = stats.oldest_ready.unwrap_or_default();
            set("logmill_jobs_oldest_ready_seconds", oldest.as_secs_f64());
            set("logmill_jobs_arrivals_per_second", load.arrivals);
            set("logmill_jobs_ends_per_second", load.ends);
            let drain = seconds_or_infinite(load.time_to_drain);
            set("logmill_jobs_time_to_drain_seconds", drain);
        }
        Ok(())
    }
}

fn seconds_or_infinite(time: Option<Duration>) -> f64 {
    time.map_or(f64::INFINITY, |time| time.as_secs_f64())
}

fn publish_kind(stats: &KindStats, labels: &[Label]) {
    let count = |metric: &'static str, outcome: &'static str, value: u64| {
        let labels = [labels, &[Label::from_static_parts("outcome", outcome)]].concat();
        counter!(metric, labels).absolute(value);
    };
    counter!("logmill_jobs_enqueued_total", labels.to_vec()).absolute(stats.enqueued);
    let attempts = [
        ("done", stats.done),
        ("failed", stats.failed),
        ("snoozed", stats.snoozed),
    ];
    for (outcome, value) in attempts {
        count("logmill_jobs_attempts_total", outcome, value);
    }
    let ended = [
        ("done", stats.done),
        ("dead", stats.dead),
        ("cancelled", stats.cancelled),
        ("expired", stats.expired),
    ];
    for (outcome, value) in ended {
        count("logmill_jobs_ended_total", outcome, value);
    }
    publish_times("logmill_jobs_wait_seconds", &stats.waited, labels);
    publish_times("logmill_jobs_run_seconds", &stats.ran, labels);
    if stats.late.count > 0 {
        publish_times("logmill_jobs_lateness_seconds", &stats.late, labels);
    }
}

fn publish_times(metric: &'static str, times: &Times, labels: &[Label]) {
    let quantiles: [(&'static str, Duration); 4] = [
        ("0.5", times.p50),
        ("0.9", times.p90),
        ("0.99", times.p99),
        ("1", times.max),
    ];
    for (quantile, value) in quantiles {
        let labels = [labels, &[Label::from_static_parts("quantile", quantile)]].concat();
        gauge!(metric, labels).set(value.as_secs_f64());
    }
}
