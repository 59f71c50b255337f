//! A backend that is written outside of the crate: it does what the conformance suite asks of one, and
//! a mill on it does what a mill does.

mod common;
mod memory;
mod shared;
mod typed;

use std::time::Duration;

use logmill_jobs::backend::conformance;

use self::memory::Memory;

#[test]
fn a_backend_in_memory_is_one() {
    conformance::check_all(&mut || Box::new(Memory::new()));
}

#[test]
fn it_is_one_with_leases() {
    let lease = Some(Duration::from_secs(2));
    conformance::check_all(&mut || Box::new(Memory::shared(lease)));
}

#[test]
fn two_processes_share_it() {
    conformance::check_shared(&mut || {
        let memory = Memory::shared(None);
        let other = memory.in_another_process();
        [Box::new(memory), Box::new(other)]
    });
}
