//! A call whose commit may or may not be durable.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::backend::*;

/// The engine, whose disk has everything of a commit but says that it may not.
struct Doubtful {
    inner: Embedded,
    is_in_doubt: Arc<AtomicBool>,
}

impl Backend for Doubtful {
    forward_backend!(inner: capabilities on_end queue queue_names consumer wake_consumers get);
    forward_backend!(inner: keys each_key extend damage flush close);

    fn commit(&self, changes: &Changes<'_>) -> Result<Vec<Option<u64>>, BackendError> {
        let committed = self.inner.commit(changes)?;
        match self.is_in_doubt.load(Ordering::SeqCst) {
            true => Err(BackendError::NotDurable("a flush has failed".into())),
            false => Ok(committed),
        }
    }
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Note;

impl crate::Job for Note {
    type Output = ();
    type Inputs = ();
    const KIND: &'static str = "note";
}

#[test]
fn a_job_that_may_not_be_durable_has_its_key() {
    let dir = tempfile::tempdir().unwrap();
    let queues = logmill::Queues::options(dir.path().join("jobs")).open();
    let is_in_doubt = Arc::new(AtomicBool::new(false));
    let backend = Doubtful {
        inner: Embedded::new(queues.unwrap(), logmill::Durability::Process),
        is_in_doubt: Arc::clone(&is_in_doubt),
    };
    let mill = Mill::with_backend(backend, crate::MillOptions::new());
    // The second one is looked for in a queue that was walked over for the first.
    for key in ["first", "second"] {
        let call = || mill.job(Note).unique(Unique::by(key)).enqueue();
        is_in_doubt.store(true, Ordering::SeqCst);
        let doubtful = call();
        assert!(matches!(doubtful, Err(EnqueueError::NotDurable(_))));
        is_in_doubt.store(false, Ordering::SeqCst);
        assert_eq!(call().unwrap().outcome(), Outcome::Existing, "{key}");
    }
}
