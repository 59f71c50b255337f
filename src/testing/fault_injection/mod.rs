//! Makes each system call of a queue fail in turn, in each way it can, once or from then on.
//!
//! Whatever fails: errors say what failed and on which path, nothing that was promised is lost, and
//! the queue goes on by itself once the disk works again.
//!
//! Modelled on SQLite's tests of I/O errors and full disks (sqlite.org/testing.html).

mod checks;
mod flushes;
mod run;
mod scenes;
mod transactions;
mod truth;

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Once, mpsc};
use std::thread;
use std::time::Duration;

use rustix::io::Errno;

use self::scenes::Scene;
use crate::storage::Operation;
use crate::storage::faults::{Effect, Plan};

/// Far longer than any run takes.
const LIMIT: Duration = Duration::from_secs(300);
/// How many runs go on at the same time: more than there are cores, as a run mostly waits.
const THREADS: usize = 8;
/// After so many failed runs, the others would tell nothing new.
const ENOUGH_FAILURES: usize = 20;
/// How often a scene is played to count its calls, whose number varies with the timing of the
/// queue's threads.
const LOOKS: usize = 3;

const OPERATIONS: [Operation; 17] = [
    Operation::Create,
    Operation::CreateDirectory,
    Operation::Open,
    Operation::Lock,
    Operation::Inspect,
    Operation::List,
    Operation::Read,
    Operation::Write,
    Operation::Allocate,
    Operation::Truncate,
    Operation::Map,
    Operation::Prefault,
    Operation::ReadIn,
    Operation::Rename,
    Operation::Remove,
    Operation::Flush,
    Operation::FlushDirectory,
];

/// A way in which a call can go wrong.
#[derive(Clone, Copy)]
struct Way {
    operation: Operation,
    effect: Effect,
    /// What happens to all later calls of this operation.
    then: Option<Effect>,
    /// Whether no error may be returned.
    is_harmless: bool,
    /// Whether the fault passes while the queue is open, and everything must work again then.
    heals: bool,
}

/// Errors that say that the machine is short of something for the moment.
const SHORTAGES: [Errno; 5] = [
    Errno::MFILE,
    Errno::NFILE,
    Errno::NOMEM,
    Errno::AGAIN,
    Errno::NOBUFS,
];

fn ways_of(operation: Operation) -> Vec<Way> {
    use Operation::*;
    let failures: &[Errno] = match operation {
        Create => &[Errno::IO, Errno::NOSPC, Errno::DQUOT],
        Open => &[Errno::IO],
        Lock => &[Errno::IO, Errno::NOLCK],
        Inspect | List | Read | Truncate | Remove => &[Errno::IO],
        Write | Allocate | Flush => &[Errno::IO, Errno::NOSPC, Errno::DQUOT],
        CreateDirectory | Rename | FlushDirectory => &[Errno::IO, Errno::NOSPC],
        // Only shortages, see below.
        Map => &[],
        // No call.
        Commit => &[],
        Prefault | ReadIn => &[Errno::FAULT, Errno::HWPOISON],
    };
    let mut ways = Vec::new();
    let mut add = |effect, then, is_harmless| {
        ways.push(Way {
            operation,
            effect,
            then,
            is_harmless,
            heals: false,
        });
    };
    for failure in failures.iter().copied().map(Effect::Fail) {
        add(failure, None, false);
        add(failure, Some(failure), false);
    }
    add(Effect::Fail(Errno::INTR), None, true);
    let mut endure = |effect| add(effect, Some(effect), true);
    match operation {
        Read | Write => endure(Effect::Short),
        // A file system that cannot allocate.
        Allocate => endure(Effect::Fail(Errno::OPNOTSUPP)),
        // An older kernel that cannot do it, and a kernel that is short of memory.
        Prefault | ReadIn => {
            endure(Effect::Fail(Errno::INVAL));
            endure(Effect::Fail(Errno::NOMEM));
        }
        _ => {}
    }
    if operation == Write {
        add(Effect::Short, Some(Effect::Fail(Errno::NOSPC)), false);
    }
    if let Create | CreateDirectory | Truncate | Rename | Remove | Allocate | Write = operation {
        add(Effect::FailAfter(Errno::IO), None, false);
    }
    let has_shortages = match operation {
        // A failed flush is final, whatever its error.
        Flush | FlushDirectory => false,
        // Any error but two is harmless to them, see above.
        Prefault | ReadIn => false,
        _ => true,
    };
    for errno in SHORTAGES.into_iter().filter(|_| has_shortages) {
        // With this error a lock says that another process has it.
        if (operation, errno) == (Lock, Errno::AGAIN) {
            continue;
        }
        let effect = Effect::Fail(errno);
        for then in [None, Some(effect)] {
            ways.push(Way {
                operation,
                effect,
                then,
                is_harmless: false,
                heals: true,
            });
        }
    }
    ways
}

/// A scene, the number of a call in it, and the way in which that call goes wrong.
#[derive(Clone, Copy)]
struct Case {
    scene: usize,
    way: Way,
    call: usize,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Way {
            operation,
            effect,
            then,
            ..
        } = self.way;
        write!(f, "{operation:?} {}: {effect:?}, then {then:?}", self.call)
    }
}

impl Case {
    /// Plays the scene with the fault, and returns whether it came to the call.
    fn run(&self, scene: &Scene) -> bool {
        let plan = |calls, effect| Plan {
            operation: self.way.operation,
            calls,
            effect,
        };
        let next = self.call + 1;
        let mut plans = vec![plan(self.call..next, self.way.effect)];
        plans.extend(self.way.then.map(|effect| plan(next..usize::MAX, effect)));
        // A fault that happens once has passed by then anyway.
        let is_mended_early =
            self.way.heals || self.way.then.is_none() || self.call.is_multiple_of(2);
        let outcome = scene.run(plans, is_mended_early);
        assert!(!self.way.is_harmless || outcome.errors == 0);
        assert!(!self.way.heals || !outcome.was_poisoned);
        outcome.calls.iter().any(|call| call.effect.is_some())
    }
}

/// How many calls of each operation a scene makes, at most.
fn sites_of(scene: &Scene) -> [usize; OPERATIONS.len()] {
    let mut most = [0; OPERATIONS.len()];
    for _ in 0..LOOKS {
        let outcome = scene.run(Vec::new(), false);
        assert_eq!(outcome.errors, 0, "{}", scene.name);
        for (most, operation) in most.iter_mut().zip(OPERATIONS) {
            let calls = outcome.calls.iter();
            let count = calls.filter(|call| call.operation == operation).count();
            *most = count.max(*most);
        }
    }
    most
}

/// Panics in the threads of queues.
static PANICS: AtomicUsize = AtomicUsize::new(0);

fn count_panics() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let thread = thread::current();
            if thread
                .name()
                .is_some_and(|name| name.starts_with("logmill-"))
            {
                PANICS.fetch_add(1, Ordering::Relaxed);
            }
            report(panic);
        }));
    });
}

fn message_of(panic: &(dyn Any + Send)) -> String {
    match panic.downcast_ref::<String>() {
        Some(message) => message.clone(),
        None => (*panic.downcast_ref::<&str>().unwrap_or(&"")).to_owned(),
    }
}

/// Runs every case whose number is a multiple of `stride`.
fn run(stride: usize) {
    count_panics();
    let scenes = Arc::new([
        scenes::a_new_queue(),
        scenes::an_unclean_queue(),
        scenes::a_closed_queue(),
        scenes::maintenance(),
        scenes::no_room(),
    ]);
    let mut cases = Vec::new();
    for (number, scene) in scenes.iter().enumerate() {
        let sites = sites_of(scene);
        println!("{}: {} calls", scene.name, sites.iter().sum::<usize>());
        for (operation, count) in OPERATIONS.into_iter().zip(sites) {
            let ways = ways_of(operation);
            println!(
                "    {operation:?}: {count} calls, each fails in {} ways",
                ways.len()
            );
            for way in ways {
                cases.extend((0..count).map(|call| Case {
                    scene: number,
                    way,
                    call,
                }));
            }
        }
    }
    let cases: Arc<Vec<Case>> = Arc::new(cases.into_iter().step_by(stride).collect());
    let next = Arc::new(AtomicUsize::new(0));
    let (ended, has_ended) = mpsc::channel();
    for _ in 0..THREADS {
        let (scenes, cases, next) = (Arc::clone(&scenes), Arc::clone(&cases), Arc::clone(&next));
        let ended = ended.clone();
        thread::spawn(move || {
            while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                let scene = &scenes[case.scene];
                let result = catch_unwind(AssertUnwindSafe(|| case.run(scene)));
                let result = result
                    .map_err(|panic| format!("{}, {case}: {}", scene.name, message_of(&*panic)));
                let _ = ended.send(result);
            }
        });
    }
    let mut met = 0;
    let mut failures = Vec::new();
    for at in 0..cases.len() {
        match has_ended.recv_timeout(LIMIT) {
            Ok(Ok(has_met)) => met += usize::from(has_met),
            Ok(Err(failure)) => failures.push(failure),
            Err(_) => panic!("a run hangs: {at} have ended, and up to {THREADS} are going on"),
        }
        if failures.len() == ENOUGH_FAILURES {
            next.store(cases.len(), Ordering::Relaxed);
            break;
        }
    }
    println!("{} runs, of which {met} came to their call", cases.len());
    assert!(
        failures.is_empty(),
        "{} runs failed:\n{}",
        failures.len(),
        failures.join("\n")
    );
    assert!(met > cases.len() / 2);
    assert_eq!(PANICS.load(Ordering::Relaxed), 0);
}

#[test]
fn a_call_that_fails_loses_nothing_and_says_what_failed() {
    run(17);
}

#[test]
#[ignore = "every call, in every way: minutes"]
fn no_call_that_fails_loses_anything_and_each_says_what_failed() {
    run(1);
}
