//! The groups of comparisons; `--only` runs one of them alone.

mod durable;
mod end_to_end;
mod enqueue;
mod idle;
mod open;

use anyhow::Result;

pub use self::end_to_end::logmill_and_channel;

use crate::contender::Outcome;
use crate::context::Context;

/// Payloads, in bytes, of most comparisons.
const SIZES: [usize; 2] = [64, 1024];

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Group {
    Enqueue,
    EndToEnd,
    Durable,
    Open,
    Idle,
}

impl Group {
    pub const ALL: [Self; 5] = [
        Self::Enqueue,
        Self::EndToEnd,
        Self::Durable,
        Self::Open,
        Self::Idle,
    ];

    /// The name on the command line, in targets and in the document.
    pub fn name(self) -> &'static str {
        match self {
            Self::Enqueue => "enqueue",
            Self::EndToEnd => "end-to-end",
            Self::Durable => "durable",
            Self::Open => "open",
            Self::Idle => "idle",
        }
    }

    pub fn run(self, context: &Context) -> Result<Vec<Outcome>> {
        match self {
            Self::Enqueue => enqueue::run(context),
            Self::EndToEnd => end_to_end::run(context),
            Self::Durable => durable::run(context),
            Self::Open => open::run(context),
            Self::Idle => idle::run(context),
        }
    }
}

fn size_name(size: usize) -> &'static str {
    match size {
        64 => "64 B",
        1024 => "1 KiB",
        5120 => "5 KiB",
        _ => "odd size",
    }
}
