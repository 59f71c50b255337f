//! A job that is edited moves to a new record, and its former id leads there.
//!
//! A record cannot be changed where it is. One transaction stores the new record, the key `moved/<id>`
//! that names it, and a note that the former record may still be there; then that one is cancelled,
//! and the note removed. A process that follows one that died in between does the rest before its
//! workers start, so that the former record does not run any more once the transaction is stored.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;

use super::EditError;
use crate::backend::{BackendError, Cancelled, Changes, Due, Keep, KeyChange, NewJob, Seen};
use crate::enqueue::header;
use crate::locks::{Lock, Locked};
use crate::mill::{Mill, OpenQueue};
use crate::{JobId, expiry, keys, unique};

/// So many edits of one job are followed.
const MOST_MOVES: u32 = 10_000;

/// The edits that go on.
#[derive(Default)]
pub(crate) struct Moves {
    /// One edit goes on at a time.
    lock: Lock,
    /// The jobs that are edited.
    jobs: Mutex<HashMap<JobId, Stage>>,
}

/// How far an edit has come.
enum Stage {
    Begun,
    /// The new form is stored, under this id once it is known.
    Stored(Option<JobId>),
}

impl Moves {
    /// How many jobs.
    #[cfg(feature = "testing")]
    pub(crate) fn len(&self) -> usize {
        self.jobs.lock().len()
    }

    /// Whether a job is being edited.
    pub(crate) fn has(&self, id: &JobId) -> bool {
        self.jobs.lock().contains_key(id)
    }

    /// Whether the end of this record is not that of its job, which has moved on.
    pub(crate) fn has_moved(&self, id: &JobId) -> bool {
        matches!(self.jobs.lock().get(id), Some(Stage::Stored(_)))
    }

    /// No other edit goes on while the guard lives.
    pub(super) fn lock(&self) -> Result<Locked<'_>, BackendError> {
        self.lock.lock()
    }

    fn new_id(&self, id: &JobId) -> Option<JobId> {
        match self.jobs.lock().get(id)? {
            Stage::Begun => None,
            Stage::Stored(new) => new.clone(),
        }
    }
}

/// An edit that goes on: workers leave the job alone until it is dropped.
pub(super) struct Moving<'a> {
    mill: &'a Mill,
    id: JobId,
}

impl<'a> Moving<'a> {
    /// None if the job is being edited by this thread, in a call from the backend.
    pub(super) fn begin(mill: &'a Mill, id: &JobId) -> Option<Self> {
        let before = &mill.inner.before;
        let mut jobs = before.moves.jobs.lock();
        if jobs.contains_key(id) {
            return None;
        }
        jobs.insert(id.clone(), Stage::Begun);
        drop(jobs);
        before.watch();
        Some(Self {
            mill,
            id: id.clone(),
        })
    }
}

impl Moving<'_> {
    /// The job is stored anew: from its cancellation on, its former id leads there.
    pub(super) fn note(&self, moved: Moved<'_>) {
        let new = moved.number.map(|number| JobId::new(moved.place, number));
        let mut jobs = self.mill.inner.before.moves.jobs.lock();
        jobs.insert(self.id.clone(), Stage::Stored(new));
    }
}

impl Drop for Moving<'_> {
    fn drop(&mut self) {
        let before = &self.mill.inner.before;
        before.moves.jobs.lock().remove(&self.id);
        before.rest();
    }
}

/// What is new of a job.
pub(super) struct New {
    pub(super) arguments: Option<Vec<u8>>,
    pub(super) due: Due,
    pub(super) has_new_time: bool,
    pub(super) expires_after: Option<Duration>,
}

/// Where a job has moved.
#[derive(Clone, Copy)]
pub(super) struct Moved<'a> {
    ticket: u64,
    place: &'a str,
    /// None if it enters its queue later.
    pub(super) number: Option<u64>,
    due: Due,
}

/// Stores the new form of a job, and that it has moved.
pub(super) fn store<'a>(
    mill: &Mill,
    id: &JobId,
    seen: &Seen,
    to: &'a OpenQueue,
    new: New,
) -> Result<Moved<'a>, EditError> {
    let ticket = crate::identity::new();
    let ticket_bytes = format!("{ticket:016x}");
    let own_codec = mill.inner.codec.tag().map(str::as_bytes);
    let mut headers: Vec<(&str, &[u8])> = Vec::new();
    let expires = expiry::header_of(mill, new.expires_after);
    for (key, value) in &seen.headers {
        let is_replaced = match &**key {
            header::MOVED => true,
            header::CODEC => new.arguments.is_some(),
            header::EXPIRES => expires.is_some(),
            _ => false,
        };
        if !is_replaced {
            headers.push((key, value));
        }
    }
    if new.arguments.is_some()
        && let Some(tag) = own_codec
    {
        headers.push((header::CODEC, tag));
    }
    if let Some(expires) = &expires {
        headers.push((header::EXPIRES, expires));
    }
    headers.push((header::MOVED, ticket_bytes.as_bytes()));
    let mut found = seen.headers.iter();
    let own = found.find(|(key, _)| key == header::UNIQUE);
    let own = own.map(|(_, value)| &**value);
    let edited = unique::Edited {
        to: &to.name,
        arguments: new.arguments.as_deref(),
        codec: own_codec,
        expires: expires.as_ref(),
        has_new_time: new.has_new_time,
    };
    let under_key = unique::moving(mill, &seen.kind, own, &edited)?;
    let job = NewJob {
        kind: &seen.kind,
        payload: new.arguments.as_deref().unwrap_or(&seen.payload),
        headers: &headers,
        due: new.due,
        sync: false,
    };
    let (moved, moving) = (keys::of_moved(id), keys::of_moving(id));
    let value = format!("{ticket_bytes} {}", to.name);
    let mut changes = Changes {
        jobs: vec![(&to.name, job)],
        keys: vec![
            KeyChange::Insert(&moved, value.as_bytes(), Keep::Forever),
            KeyChange::Put(&moving, b"", Keep::Forever),
        ],
        // The cancellation that follows is flushed: without this, a power cut could keep that alone.
        sync: true,
    };
    if let Some(under_key) = &under_key {
        under_key.add_to(&mut changes);
    }
    let numbers = mill.inner.backend.commit(&changes)?;
    drop(changes);
    let number = numbers.first().copied().flatten();
    if let Some(under_key) = under_key {
        under_key.done(number);
    }
    Ok(Moved {
        ticket,
        place: &to.name,
        number,
        due: new.due,
    })
}

/// Cancels the former record of a job that has moved, and notes where it is.
pub(super) fn finish(mill: &Mill, id: &JobId, moved: Moved<'_>) -> Result<(), BackendError> {
    if let Some(queue) = mill.inner.existing_queue(id.place())? {
        match queue.queue.cancel(id.number()) {
            Ok(Cancelled::Running) => mill.inner.running.cancel(id),
            Ok(_) | Err(BackendError::NotDurable(_)) => {}
            Err(error) => return Err(error),
        }
    }
    // One that is held ends when a worker comes to it. One that waits for a limit was put back when its
    // end was told.
    mill.inner.parked.release_job(id);
    mill.inner.before.paused.release_job(id);
    let (key, moving) = (keys::of_moved(id), keys::of_moving(id));
    let Moved {
        ticket,
        place,
        number,
        due,
    } = moved;
    let number = number.map(|number| format!(" {number}"));
    let value = format!("{ticket:016x} {place}{}", number.unwrap_or_default());
    let wall = mill.inner.clock.wall();
    let wait = match due {
        Due::Now => Duration::ZERO,
        Due::After(delay) => delay,
        Due::At(time) => time.duration_since(wall).unwrap_or_default(),
    };
    let keep = Keep::For(mill.inner.keep_results.saturating_add(wait));
    let changes = Changes {
        keys: vec![
            KeyChange::Put(&key, value.as_bytes(), keep),
            KeyChange::Remove(&moving),
        ],
        ..Changes::default()
    };
    mill.inner.backend.commit(&changes)?;
    mill.inner.waiters.end(id, crate::waiters::Ended::Moved);
    Ok(())
}

/// Finishes the edits of a job that were stored when an earlier process died. The job would not be found
/// any more by its former id if it moved on without its number having been noted.
pub(super) fn finish_earlier(mill: &Mill, id: &JobId) -> Result<(), BackendError> {
    let mut current = id.clone();
    for _ in 0..MOST_MOVES {
        if mill
            .inner
            .backend
            .get(&keys::of_moving(&current))?
            .is_some()
        {
            finish_interrupted(mill, &current)?;
        }
        match mill.moved_to(&current)? {
            Some(next) => current = next,
            None => break,
        }
    }
    Ok(())
}

/// Finishes an edit that was stored when an earlier process died.
fn finish_interrupted(mill: &Mill, id: &JobId) -> Result<(), BackendError> {
    let _lock = mill.inner.before.moves.lock()?;
    let Some(moving) = Moving::begin(mill, id) else {
        return Ok(());
    };
    let stored = mill.inner.backend.get(&keys::of_moved(id))?;
    if let Some((ticket, place, _)) = stored.as_ref().and_then(|stored| parse(&stored.value)) {
        let queue = mill.inner.existing_queue(place)?;
        let found = queue.map(|queue| search(&queue, ticket)).transpose()?;
        let (number, due) = found
            .flatten()
            .map_or((None, None), |seen| (Some(seen.0), seen.1));
        let moved = Moved {
            ticket,
            place,
            number,
            due: due.map_or(Due::Now, Due::At),
        };
        moving.note(moved);
        finish(mill, id, moved)?;
    }
    drop(moving);
    Ok(())
}

/// The ticket, the queue and the number that a value says.
fn parse(value: &[u8]) -> Option<(u64, &str, Option<u64>)> {
    let mut parts = std::str::from_utf8(value).ok()?.split(' ');
    let ticket = u64::from_str_radix(parts.next()?, 16).ok()?;
    let place = parts.next()?;
    let number = parts.next().map(str::parse).transpose().ok()?;
    Some((ticket, place, number))
}

/// Looks through a queue for the job that moved there, and when it is due.
fn search(
    queue: &OpenQueue,
    ticket: u64,
) -> Result<Option<(u64, Option<SystemTime>)>, BackendError> {
    let ticket = format!("{ticket:016x}");
    let mut found = None;
    queue.queue.each(0, &mut |job| {
        let mut headers = job.headers.iter();
        if headers.any(|(key, value)| key == header::MOVED && *value == ticket.as_bytes()) {
            found = Some((job.number, job.due));
        }
        found.is_none()
    })?;
    Ok(found)
}

impl Mill {
    /// The id that a job has by now.
    pub(crate) fn current_id(&self, id: &JobId) -> Result<JobId, BackendError> {
        let mut current = id.clone();
        for _ in 0..MOST_MOVES {
            match self.moved_to(&current)? {
                Some(next) => current = next,
                None => break,
            }
        }
        Ok(current)
    }

    /// Waits until a job is not being edited. Returns where an edit that went on has moved it.
    pub(crate) fn moved_meanwhile(&self, id: &JobId) -> Result<Option<JobId>, BackendError> {
        let moves = &self.inner.before.moves;
        if !moves.has(id) {
            return Ok(None);
        }
        drop(moves.lock()?);
        self.moved_to(id)
    }

    /// Where a job was moved by an edit.
    pub(crate) fn moved_to(&self, id: &JobId) -> Result<Option<JobId>, BackendError> {
        if let Some(new) = self.inner.before.moves.new_id(id) {
            return Ok(Some(new));
        }
        let stored = self.inner.backend.get(&keys::of_moved(id))?;
        let Some((ticket, place, number)) = stored.as_ref().and_then(|one| parse(&one.value))
        else {
            return Ok(None);
        };
        let number = match number {
            Some(number) => Some(number),
            // Its process died before it had noted the number.
            None => match self.inner.existing_queue(place)? {
                Some(queue) => search(&queue, ticket)?.map(|(number, _)| number),
                None => None,
            },
        };
        Ok(number.map(|number| JobId::new(place, number)))
    }

    /// Finishes what an earlier process had begun, once.
    ///
    /// Looks at every key of the backend.
    pub(crate) fn finish_interrupted(&self) -> Result<(), BackendError> {
        crate::paused::load(self)?;
        self.inner.finished.make(|| self.finish_all())
    }

    fn finish_all(&self) -> Result<(), BackendError> {
        for (key, value) in self.inner.backend.keys(keys::TO_DO.as_bytes())? {
            if key.starts_with(keys::TO_DO_KEPT.as_bytes()) {
                unique::finish_interrupted(self, &value.value)?;
            } else if let Some(id) = key.strip_prefix(keys::TO_DO_MOVED.as_bytes())
                && let Some(id) = std::str::from_utf8(id).ok().and_then(|id| id.parse().ok())
            {
                finish_interrupted(self, &id)?;
            }
        }
        Ok(())
    }
}

#[cfg(all(test, feature = "embedded"))]
mod tests {
    use std::path::Path;
    use std::sync::{Arc, Mutex};

    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::job::KindOptions;
    use crate::{Job, JobResult, Outcome, Pool, Status, Unique, Workers};

    #[derive(Serialize, Deserialize)]
    struct Note(String);

    impl Job for Note {
        type Inputs = ();
        type Output = ();
        const KIND: &'static str = "note";
        fn kind_options() -> KindOptions {
            KindOptions::new()
        }
    }

    type Ran = Arc<Mutex<Vec<String>>>;

    fn start(mill: &Mill) -> (Pool, Ran) {
        let ran = Ran::default();
        let noted = Arc::clone(&ran);
        let workers = Workers::new(()).on(move |Note(text): Note| -> JobResult {
            noted.lock().unwrap().push(text);
            Ok(())
        });
        (workers.threads(1).start(mill).unwrap(), ran)
    }

    fn wait_for(mill: &Mill, dir: &Path) {
        while mill.queue("default").unwrap().stats().unwrap().ready > 0 {
            std::thread::sleep(Duration::from_millis(2));
        }
        assert!(dir.exists());
    }

    #[test]
    fn an_edit_that_was_stored_when_the_process_died_is_finished_by_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("jobs");
        let mill = Mill::open(&path).unwrap();
        let unique = || Unique::by("x").replacing();
        let old = mill
            .job(Note("old".to_owned()))
            .unique(unique())
            .enqueue()
            .unwrap();
        let id = old.id().clone();
        let queue = mill.inner.existing_queue("default").unwrap().unwrap();
        let seen = queue.queue.look(id.number()).unwrap().unwrap();
        let new = New {
            arguments: Some(br#""new""#.to_vec()),
            due: Due::Now,
            has_new_time: false,
            expires_after: None,
        };
        // It dies here.
        let _ = store(&mill, &id, &seen, &queue, new).unwrap();
        drop((old, queue));
        mill.close().unwrap();

        let mill = Mill::open(&path).unwrap();
        let (pool, ran) = start(&mill);
        wait_for(&mill, dir.path());
        let report = pool.shutdown(Duration::from_secs(60));
        assert!(report.finished_in_time);
        assert_eq!(*ran.lock().unwrap(), ["new"]);
        assert!(
            mill.inner
                .backend
                .keys(keys::TO_DO.as_bytes())
                .unwrap()
                .is_empty()
        );
        let next = mill.current_id(&id).unwrap();
        assert_ne!(next, id);
        assert_eq!(mill.status(&id).unwrap(), Status::Unknown);
        // Its key was that of the new record, which has released it.
        let again = mill
            .job(Note("again".to_owned()))
            .unique(unique())
            .enqueue()
            .unwrap();
        assert_eq!(again.outcome(), Outcome::New);
    }

    fn seen(mill: &Mill, id: &JobId) -> Option<Seen> {
        let queue = mill.inner.existing_queue(id.place()).unwrap().unwrap();
        queue.queue.look(id.number()).unwrap()
    }

    #[test]
    fn a_job_that_is_cancelled_while_it_is_edited_does_not_run() {
        let dir = tempfile::tempdir().unwrap();
        let mill = Mill::open(dir.path().join("jobs")).unwrap();
        let handle = mill.enqueue(Note("old".to_owned())).unwrap();
        let id = handle.id().clone();
        let queue = mill.inner.existing_queue("default").unwrap().unwrap();
        let lock = mill.inner.before.moves.lock().unwrap();
        let moving = Moving::begin(&mill, &id).unwrap();
        let seen_before = seen(&mill, &id).unwrap();
        let new = New {
            arguments: Some(br#""new""#.to_vec()),
            due: Due::Now,
            has_new_time: false,
            expires_after: None,
        };
        let moved = store(&mill, &id, &seen_before, &queue, new).unwrap();
        let cancels = {
            let (mill, id) = (mill.clone(), id.clone());
            std::thread::spawn(move || mill.cancel(&id, "enough").unwrap())
        };
        // It waits for the edit. If it did not, it would be done by now.
        std::thread::sleep(Duration::from_millis(50));
        moving.note(moved);
        finish(&mill, &id, moved).unwrap();
        drop((moving, lock));
        assert_eq!(cancels.join().unwrap(), Cancelled::Waiting);
        let current = mill.current_id(&id).unwrap();
        assert_ne!(current, id);
        assert!(seen(&mill, &current).is_none(), "it still waits");
        let reason = "enough".to_owned();
        assert_eq!(mill.status(&id).unwrap(), Status::Cancelled { reason });
    }

    #[test]
    fn a_job_that_is_being_cancelled_is_not_edited() {
        let dir = tempfile::tempdir().unwrap();
        let mill = Mill::open(dir.path().join("jobs")).unwrap();
        let handle = mill.enqueue(Note("old".to_owned())).unwrap();
        // The call goes on.
        assert!(mill.inner.cancelling.begin(handle.id(), "enough"));
        let edited = mill.run_now(handle.id());
        assert!(matches!(edited, Err(EditError::Gone(_))), "{edited:?}");
        assert_eq!(mill.current_id(handle.id()).unwrap(), *handle.id());
    }

    #[test]
    fn a_job_that_is_cancelled_before_its_edit_is_stored_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        let mill = Mill::open(dir.path().join("jobs")).unwrap();
        let handle = mill.enqueue(Note("old".to_owned())).unwrap();
        let moving = Moving::begin(&mill, handle.id()).unwrap();
        // By a call that had looked before whether the job is edited.
        let queue = mill.inner.existing_queue("default").unwrap().unwrap();
        mill.inner.cancelling.begin(handle.id(), "enough");
        queue.queue.cancel(handle.id().number()).unwrap();
        drop(moving);
        let reason = "enough".to_owned();
        let status = mill.status(handle.id()).unwrap();
        assert_eq!(status, Status::Cancelled { reason });
    }

    #[test]
    fn what_was_kept_runs_once_if_the_process_died_when_the_job_before_it_had_ended() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("jobs");
        let mill = Mill::open(&path).unwrap();
        let call = |text: &str, unique| {
            mill.job(Note(text.to_owned()))
                .unique(unique)
                .enqueue()
                .unwrap()
        };
        let first = call("first", Unique::by("x"));
        let kept = call("kept", Unique::by("x").keep_latest());
        assert_eq!(kept.outcome(), Outcome::Kept);
        // It has ended, and its process dies before it could say so.
        let moving = Moving::begin(&mill, first.id()).unwrap();
        moving.note(Moved {
            ticket: 0,
            place: "default",
            number: None,
            due: Due::Now,
        });
        let queue = mill.inner.existing_queue("default").unwrap().unwrap();
        queue.queue.cancel(first.id().number()).unwrap();
        drop((moving, queue, first, kept));
        mill.close().unwrap();

        for expected in [&["kept"][..], &[]] {
            let mill = Mill::open(&path).unwrap();
            let (pool, ran) = start(&mill);
            wait_for(&mill, dir.path());
            assert!(pool.shutdown(Duration::from_secs(60)).finished_in_time);
            assert_eq!(*ran.lock().unwrap(), expected);
            assert!(mill.inner.backend.keys(b"one/").unwrap().is_empty());
            assert!(
                mill.inner
                    .backend
                    .keys(keys::TO_DO.as_bytes())
                    .unwrap()
                    .is_empty()
            );
            mill.close().unwrap();
        }
    }
}
