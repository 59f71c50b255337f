//! Under which conditions something was measured: the machine, its load, the clock, the setup.

use super::round::Setup;
use super::schedule::Clock;
use super::writer;
use crate::conditions;

/// Above this load before the run, something else took the cores that are measured.
pub const QUIET_LOAD: f64 = 0.3;

/// As sentences. Tells what the writer does if there is one beside some load.
pub fn describe(setup: &Setup<'_>, with_writer: bool) -> String {
    let turns = setup.turns;
    let pinned = match setup.cores {
        Some(cores) => format!(
            "The generator is pinned to core {}, the consumer to core {}; the queue's own two \
             threads run where the scheduler puts them",
            cores.generator, cores.consumer
        ),
        None => "No thread is pinned".into(),
    };
    let load = conditions::load();
    let noise = if load.parse().is_ok_and(|load: f64| load > QUIET_LOAD) {
        " **The machine was busy: none of these figures is a valid result.**"
    } else {
        ""
    };
    let beside = if with_writer {
        format!(
            " *Beside a writer*: one more thread, not pinned, overwrites a file of {} on the same \
             file system in a loop, 1 MiB at a time, buffered and without a sync, during all \
             rounds of the load; it has written the whole file before the first round.",
            writer::gibibytes(setup.writer_size),
        )
    } else {
        String::new()
    };
    format!(
        "Conditions: {}; Linux {}, {}; load before the run {load}.{noise} \
         {pinned}. Between jobs the generator reads the clock in a loop, at every rate; it does \
         not sleep. One stripe, segments of 8 MiB, other options at their defaults. {} rounds of \
         {:.1} s for each contender and load; contenders take turns, each with a warm-up of \
         {:.1} s that is not measured. Reading the clock (`Instant`) costs {:.0} ns, which each \
         call includes.{beside}",
        conditions::cpu(),
        conditions::kernel(),
        conditions::file_system(setup.dir),
        turns.rounds,
        turns.measured.as_secs_f64(),
        turns.warm_up.as_secs_f64(),
        Clock::start().cost(),
    )
}
