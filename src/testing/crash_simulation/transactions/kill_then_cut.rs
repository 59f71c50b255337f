//! A power cut while an open makes up for a kill: what the killed process had not flushed of a
//! transaction is not durable merely because an open has seen it.

use std::cell::{Cell, RefCell};
use std::path::Path;
use std::rc::Rc;

use super::super::check::scratch;
use super::{End, NAMES, look, open_queue, open_tree};
use crate::log::mark::pretended;
use crate::options::{Durability, EnqueueOptions};
use crate::storage::Operation;
use crate::storage::disk::Disk;
use crate::storage::faults::{self, Moment};

/// Commits a `Sync` transaction with a job for each queue, and leaves in `to` what a kill leaves
/// before the transaction is flushed.
fn leave_killed(to: &Path, seed: u64) -> Disk {
    let dir = scratch();
    let tree = open_tree(dir.path());
    let queues = NAMES.map(|name| open_queue(&tree, name).0);
    let disk = RefCell::new(Disk::new(dir.path(), seed));
    let left = Rc::new(RefCell::new(None));
    let (state, leaves, to) = (dir.path().join("state"), Rc::clone(&left), to.to_path_buf());
    let observer = move |operation: Operation, path: &Path, moment: Moment| {
        disk.borrow_mut().note(operation, path, moment)?;
        let is_flush = operation == Operation::Flush && moment == Moment::Before;
        if is_flush && path.starts_with(&state) && leaves.borrow().is_none() {
            *leaves.borrow_mut() = Some(disk.borrow_mut().leave_after_a_kill(&to));
        }
        Ok(())
    };
    faults::observe(Some((dir.path().to_path_buf(), Box::new(observer))));
    let mut transaction = tree.transaction();
    for (number, running) in queues.iter().enumerate() {
        let payload = (number as u64).to_le_bytes();
        transaction.add(running, &payload, &EnqueueOptions::new());
    }
    transaction.durability(Durability::Sync);
    let committed = transaction.commit();
    faults::observe(None);
    assert!(committed.is_ok());
    queues.iter().for_each(|running| running.die());
    tree.die();
    left.take().expect("a flush of the transaction")
}

#[test]
fn a_transaction_that_an_open_finds_is_whole_after_a_power_cut_during_the_open() {
    let cuts = Rc::new(Cell::new(0));
    for seed in 0..15 {
        let dir = scratch();
        let mut disk = leave_killed(dir.path(), seed);
        let count = Rc::clone(&cuts);
        let observer = move |operation: Operation, path: &Path, moment: Moment| {
            disk.note(operation, path, moment)?;
            let copy = scratch();
            drop(disk.leave_after_a_power_cut(copy.path()));
            let _restarted = pretended::restart();
            let (found, _) = look(copy.path(), End::Kill);
            let jobs = found.jobs.len();
            assert!(
                [0, 2].contains(&jobs),
                "{operation:?} {path:?} {moment:?}: {found:?}"
            );
            count.set(count.get() + 1);
            Ok(())
        };
        faults::observe(Some((dir.path().to_path_buf(), Box::new(observer))));
        let (found, _) = look(dir.path(), End::Close);
        faults::observe(None);
        assert_eq!(found.jobs.len(), 2);
    }
    assert!(cuts.get() > 150, "{}", cuts.get());
}
