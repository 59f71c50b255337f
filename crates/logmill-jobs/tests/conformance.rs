//! The engine in this process does what a backend has to do.

use logmill::{Durability, Queues};
use logmill_jobs::backend::{Backend, Embedded, conformance};

#[test]
fn the_engine_is_a_backend() {
    for durability in [Durability::Process, Durability::Sync] {
        // Dropped after the backends, which are in them.
        let mut dirs = Vec::new();
        conformance::check_all(&mut || {
            let dir = tempfile::tempdir().unwrap();
            let queues = Queues::open(dir.path().join("jobs")).unwrap();
            dirs.push(dir);
            let backend: Box<dyn Backend> = Box::new(Embedded::new(queues, durability));
            backend
        });
    }
}
