//! What the user sees: progress bars on a terminal, a line a second elsewhere, and the texts.

use std::fmt::Display;
use std::io::{self, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use logmill_jobs::DeadJob;
use serde::Deserialize;

/// How often progress is written where there are no bars.
const PLAIN_INTERVAL: Duration = Duration::from_secs(1);

/// Dead jobs listed one by one; the rest are counted.
const DEAD_SHOWN: usize = 12;

pub(crate) struct Screen {
    bars: MultiProgress,
    last_plain: Mutex<Instant>,
}

impl Screen {
    /// Bars go to stderr and hide themselves if that is no terminal; texts go to stdout.
    pub(crate) fn new() -> Self {
        Screen {
            bars: MultiProgress::new(),
            last_plain: Mutex::new(Instant::now()),
        }
    }

    pub(crate) fn say(&self, text: impl Display) {
        // A reader that has gone away (`| head`) is no reason to stop working.
        self.bars.suspend(|| writeln!(io::stdout(), "{text}").ok());
    }

    pub(crate) fn bar(&self, what: &'static str, len: u64) -> ProgressBar {
        let style = ProgressStyle::with_template(
            "  {prefix:9} {bar:30.cyan/black.bright} {pos:>5}/{len:<5} {wide_msg:.dim}",
        )
        .expect("the template is a constant")
        .progress_chars("━╸━");
        let bar = ProgressBar::new(len).with_style(style).with_prefix(what);
        self.bars.add(bar)
    }

    /// Shows progress, whichever way this output can.
    pub(crate) fn progress(&self, bar: &ProgressBar, position: u64, len: u64, message: String) {
        bar.set_length(len);
        bar.set_position(position);
        let mut last_plain = self.last_plain.lock().expect("no one panics with the lock");
        if self.bars.is_hidden() && last_plain.elapsed() >= PLAIN_INTERVAL {
            *last_plain = Instant::now();
            writeln!(io::stderr(), "  {position} of {len} jobs: {message}").ok();
        }
        bar.set_message(message);
    }

    /// The dead jobs one a line: whose job, how often it was tried, and what went wrong.
    pub(crate) fn list_dead(&self, dead: &[DeadJob]) {
        let shown = &dead[..dead.len().min(DEAD_SHOWN)];
        let names: Vec<_> = shown.iter().map(name_of).collect();
        let width = names.iter().map(|name| name.chars().count()).max();
        let width = width.unwrap_or(0);
        for (job, name) in shown.iter().zip(&names) {
            let (kind, tries) = (&job.kind, job.attempts);
            let times = if tries == 1 { "try  " } else { "tries" };
            let reasons = job.reasons.join(" → ");
            self.say(format_args!(
                "    {kind:6}  {name:width$}  {tries} {times}  {reasons}"
            ));
        }
        if dead.len() > shown.len() {
            self.say(format_args!("    … and {} more", dead.len() - shown.len()));
        }
    }
}

/// The upload that a job was for, whose name is in the arguments of both kinds.
fn name_of(job: &DeadJob) -> String {
    #[derive(Deserialize)]
    struct Arguments {
        name: String,
    }
    match serde_json::from_slice(&job.payload) {
        Ok(Arguments { name }) => name,
        Err(_) => job.id.to_string(),
    }
}

/// The waits of one kind of call, described by the usual percentiles.
pub(crate) fn percentiles(mut waits: Vec<Duration>) -> String {
    waits.sort_unstable();
    let Some(worst) = waits.last() else {
        return "nothing to measure".to_owned();
    };
    let rank = |percent: usize| waits[(waits.len() * percent).div_ceil(100) - 1];
    format!(
        "p50 {}, p99 {}, worst {}",
        short(rank(50)),
        short(rank(99)),
        short(*worst)
    )
}

/// Two or three digits are all that a reader compares.
pub(crate) fn short(time: Duration) -> String {
    let nanos = time.as_nanos() as f64;
    let (value, unit) = match nanos {
        ..1e3 => (nanos, "ns"),
        ..1e6 => (nanos / 1e3, "µs"),
        ..1e9 => (nanos / 1e6, "ms"),
        _ => (nanos / 1e9, "s"),
    };
    let digits = usize::from(value < 10.0 && unit != "ns");
    format!("{value:.digits$} {unit}")
}

/// `1 job`, `2 jobs`.
pub(crate) fn count(n: u64, what: &str) -> String {
    let plural = if n == 1 { "" } else { "s" };
    format!("{n} {what}{plural}")
}
