//! The figures as metrics of the crate `metrics`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use logmill_jobs::{Job, JobResult, Mill, Workers, discard, hours};
use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, Key, KeyName, Metadata, Recorder, SharedString,
    Unit,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "touch", queue = "touches")]
struct Touch {
    is_good: bool,
}

/// Keeps the last value of each metric, by its name and labels.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<BTreeMap<String, f64>>>);

struct Metric {
    name: String,
    kept: Kept,
}

impl Kept {
    fn metric(&self, key: &Key) -> Arc<Metric> {
        let labels: Vec<_> = key
            .labels()
            .map(|label| format!("{}={}", label.key(), label.value()))
            .collect();
        Arc::new(Metric {
            name: format!("{} {}", key.name(), labels.join(" ")),
            kept: self.clone(),
        })
    }
}

impl Metric {
    fn keep(&self, value: f64) {
        self.kept.0.lock().insert(self.name.clone(), value);
    }
}

impl CounterFn for Metric {
    fn increment(&self, _: u64) {}
    fn absolute(&self, value: u64) {
        self.keep(value as f64);
    }
}

impl GaugeFn for Metric {
    fn increment(&self, _: f64) {}
    fn decrement(&self, _: f64) {}
    fn set(&self, value: f64) {
        self.keep(value);
    }
}

impl Recorder for Kept {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.metric(key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.metric(key))
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

#[test]
fn figures_are_metrics_with_their_kind_queue_and_outcome() {
    let dir = tempfile::tempdir().unwrap();
    let mill = Mill::open(dir.path().join("jobs")).unwrap();
    let handler = |job: Touch| match job.is_good {
        true => JobResult::Ok(()),
        false => Err(discard("bad")),
    };
    let pool = Workers::new(()).on(handler).start(&mill).unwrap();
    for is_good in [true, true, false] {
        let handle = mill.enqueue(Touch { is_good }).unwrap();
        let _ = handle.wait_timeout(PATIENCE);
    }
    let later = mill.job(Touch { is_good: true }).after(hours(1));
    later.enqueue().unwrap();
    assert!(pool.shutdown(PATIENCE).finished_in_time);
    let kept = Kept::default();
    metrics::with_local_recorder(&kept, || mill.publish_metrics().unwrap());
    let kept = kept.0.lock();
    let of = "kind=touch queue=touches";
    let expected = [
        (format!("logmill_jobs_enqueued_total {of}"), 4.0),
        (format!("logmill_jobs_kind_left {of}"), 1.0),
        (format!("logmill_jobs_kind_left_at_most {of}"), 1.0),
        (
            format!("logmill_jobs_attempts_total {of} outcome=done"),
            2.0,
        ),
        (
            format!("logmill_jobs_attempts_total {of} outcome=failed"),
            1.0,
        ),
        (format!("logmill_jobs_ended_total {of} outcome=done"), 2.0),
        (format!("logmill_jobs_ended_total {of} outcome=dead"), 1.0),
        ("logmill_jobs_running queue=touches".to_owned(), 0.0),
    ];
    for (metric, value) in expected {
        assert_eq!(kept.get(&metric), Some(&value), "{metric} in {kept:?}");
    }
    for quantile in ["0.5", "0.9", "0.99", "1"] {
        let metric = format!("logmill_jobs_run_seconds {of} quantile={quantile}");
        assert!(kept[&metric] > 0.0, "{metric}");
    }
    for rate in ["arrivals", "ends"] {
        let metric = format!("logmill_jobs_kind_{rate}_per_second {of}");
        assert!(kept[&metric] > 0.0, "{metric}");
    }
    let drain = kept[&format!("logmill_jobs_kind_time_to_drain_seconds {of}")];
    assert!(drain.is_infinite(), "{drain}");
    assert!(kept["logmill_jobs_arrivals_per_second queue=touches"] > 0.0);
    assert!(kept.contains_key("logmill_jobs_time_to_drain_seconds queue=touches"));
}
