//! Under which conditions something was measured: the machine, its load, the clock, the setup.

use super::round::Setup;
use super::schedule::Clock;
use crate::conditions;

/// Above this load before the run, something else took the cores that are measured.
pub const QUIET_LOAD: f64 = 0.3;

/// As sentences.
pub fn describe(setup: &Setup<'_>) -> String {
    let turns = setup.turns;
    let pinned = match setup.cores {
        Some(cores) => format!(
            "generator on core {}, consumer on core {}, the queue's own two threads where the \
             scheduler puts them",
            cores.generator, cores.consumer
        ),
        None => "no thread is kept on a core".into(),
    };
    let load = conditions::load();
    let noise = if load.parse().is_ok_and(|load: f64| load > QUIET_LOAD) {
        " **The machine was not quiet: take none of these figures as a result.**"
    } else {
        ""
    };
    format!(
        "Conditions: {}; Linux {}, {}; load before the run {load}.{noise} \
         {pinned}. The generator reads the clock until it is time, at every rate; it does not \
         sleep. One stripe, segments of 8 MiB, all else as it comes. {} rounds of {:.1} s for each \
         contender and load, one contender after the other, each after {:.1} s that do not count. \
         A read of the clock (`Instant`) costs {:.0} ns, and each call has one in it.",
        conditions::cpu(),
        conditions::kernel(),
        conditions::file_system(setup.dir),
        turns.rounds,
        turns.measured.as_secs_f64(),
        turns.warm_up.as_secs_f64(),
        Clock::start().cost(),
    )
}
