//! Under which conditions something was measured: the machine, its load, the clock, the setup.

use std::fs;

use anyhow::Result;
use nix::sys::statfs;

use super::round::Setup;
use super::schedule::Clock;

/// Above this load before the run, something else took the cores that are measured.
const QUIET_LOAD: f64 = 0.3;

/// As sentences.
pub fn describe(setup: &Setup<'_>) -> Result<String> {
    let cores = std::thread::available_parallelism()?;
    let file_system = file_system(setup)?;
    let turns = setup.turns;
    let pinned = match setup.cores {
        Some(cores) => format!(
            "generator on core {}, consumer on core {}, the queue's own two threads where the \
             scheduler puts them",
            cores.generator, cores.consumer
        ),
        None => "no thread is kept on a core".into(),
    };
    let load = load();
    let noise = if load.is_some_and(|load| load > QUIET_LOAD) {
        " **The machine was not quiet: take none of these figures as a result.**"
    } else {
        ""
    };
    let load = load.map_or_else(|| "unknown".into(), |load| format!("{load:.2}"));
    Ok(format!(
        "Conditions: {cores} cores of {}, Linux {}, {file_system}; load before the run {load}.{noise} \
         {pinned}. The generator reads the clock until it is time, at every rate; it does not \
         sleep. One stripe, segments of 8 MiB, all else as it comes. {} rounds of {:.1} s for each \
         contender and load, one contender after the other, each after {:.1} s that do not count. \
         A read of the clock (`Instant`) costs {:.0} ns, and each call has one in it.",
        model().unwrap_or_else(|| "an unknown model".into()),
        kernel(),
        turns.rounds,
        turns.measured.as_secs_f64(),
        turns.warm_up.as_secs_f64(),
        Clock::start().cost(),
    ))
}

fn model() -> Option<String> {
    let cpus = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = cpus.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn kernel() -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    release.trim().to_owned()
}

/// Threads that ran or wanted to, over the last minute.
fn load() -> Option<f64> {
    let load = fs::read_to_string("/proc/loadavg").ok()?;
    load.split(' ').next()?.parse().ok()
}

fn file_system(setup: &Setup<'_>) -> Result<&'static str> {
    Ok(match statfs::statfs(setup.dir)?.filesystem_type() {
        statfs::EXT4_SUPER_MAGIC => "ext4",
        statfs::TMPFS_MAGIC => "tmpfs",
        statfs::XFS_SUPER_MAGIC => "xfs",
        statfs::BTRFS_SUPER_MAGIC => "btrfs",
        _ => "another file system",
    })
}
