//! Helpers that the tests share: queues in scratch directories, polling, crashes, child processes,
//! and damage to files.

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{self, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use logmill::{Builder, Damage, JobId, Queue, RecoveryReport, RetryPolicy};
use rustix::process::{Signal, set_parent_process_death_signal};
use tempfile::TempDir;

/// Small, so that a test fills many segments with little work.
pub(crate) const SEGMENT: u64 = 64 * 1024;

/// How long a test waits for something that must happen. Only a failing test waits this long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A queue of one stripe and small segments, whose failed jobs are retried at once.
pub(crate) fn builder(path: impl AsRef<Path>) -> Builder {
    Queue::builder(path)
        .stripes(1)
        .segment_size(SEGMENT)
        .retry(RetryPolicy::fixed(Duration::ZERO))
}

/// Backs off for longer than any test takes. A later process backs off by its own policy.
pub(crate) fn not_today() -> RetryPolicy {
    RetryPolicy::fixed(Duration::from_secs(3600))
}

/// Opens a queue that must be undamaged.
pub(crate) fn open(builder: Builder) -> Queue {
    let (queue, report) = open_any(builder);
    assert!(report.is_clean(), "{report:?}");
    queue
}

/// Opens a queue whose process was killed: records that were being written may be reported as
/// uncommitted, but there is no damage.
pub(crate) fn open_after_kill(builder: Builder) -> Queue {
    let (queue, mut report) = open_any(builder);
    report
        .quarantined
        .retain(|one| one.damage != Damage::Uncommitted);
    assert!(report.is_clean(), "{report:?}");
    queue
}

/// Opens a queue that may be damaged.
pub(crate) fn open_any(builder: Builder) -> (Queue, RecoveryReport) {
    match builder.open() {
        Ok(opened) => opened,
        Err(error) => panic!("the queue must open: {error}"),
    }
}

/// Waits until the condition is true, and fails if that takes longer than [`PATIENCE`].
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "never came true: {what}");
        thread::sleep(Duration::from_micros(300));
    }
}

/// Whether a test is over, for the threads of its scope.
#[derive(Default)]
pub(crate) struct Over(AtomicBool);

impl Over {
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Set once this is dropped, also by a panic: a scope waits for its threads before it passes one
    /// on.
    pub(crate) fn at_end(&self) -> impl Drop + '_ {
        struct AtEnd<'a>(&'a AtomicBool);
        impl Drop for AtEnd<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        AtEnd(&self.0)
    }
}

/// Removes a directory of an open queue, whose threads may create files in it meanwhile.
pub(crate) fn remove_live_directory(path: &Path) {
    eventually("the directory is removed", || {
        match fs::remove_dir_all(path) {
            Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => false,
            removed => {
                removed.unwrap();
                true
            }
        }
    });
}

/// A job as it was delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Delivered {
    pub sequence: JobId,
    pub attempts: u32,
    pub payload: Vec<u8>,
}

impl Delivered {
    /// The number in the payload, for tests whose payloads are made by [`payload_of`].
    pub(crate) fn number(&self) -> u64 {
        number_in(&self.payload)
    }
}

/// Takes and acks every job, until the queue is empty.
pub(crate) fn drain(queue: &Queue) -> Vec<Delivered> {
    let consumer = queue.consumer();
    let mut delivered = Vec::new();
    eventually("the queue is drained", || {
        while let Some(job) = consumer.try_next() {
            delivered.push(Delivered {
                sequence: job.id(),
                attempts: job.attempts(),
                payload: job.payload().to_vec(),
            });
            job.ack();
        }
        queue.stats().depth() == 0
    });
    delivered
}

/// The payloads of [`drain`], sorted.
pub(crate) fn drain_payloads(queue: &Queue) -> Vec<Vec<u8>> {
    let mut payloads: Vec<_> = drain(queue).into_iter().map(|job| job.payload).collect();
    payloads.sort();
    payloads
}

/// The numbers of [`drain`], sorted.
pub(crate) fn drain_numbers(queue: &Queue) -> Vec<u64> {
    let mut numbers: Vec<_> = drain(queue).iter().map(Delivered::number).collect();
    numbers.sort_unstable();
    numbers
}

/// A payload of `len` bytes that repeats a number, so every byte depends on the number.
pub(crate) fn payload_of(number: u64, len: usize) -> Vec<u8> {
    number
        .to_le_bytes()
        .iter()
        .copied()
        .cycle()
        .take(len)
        .collect()
}

/// The number that [`payload_of`] was given; panics if any byte differs.
pub(crate) fn number_in(payload: &[u8]) -> u64 {
    let number = u64::from_le_bytes(*payload.first_chunk().expect("at least 8 bytes"));
    assert_eq!(
        payload,
        payload_of(number, payload.len()),
        "a payload was changed"
    );
    number
}

/// Counts how often each number occurred.
pub(crate) struct Counts(Vec<AtomicU64>);

impl Counts {
    pub(crate) fn new(numbers: u64) -> Self {
        Self((0..numbers).map(|_| AtomicU64::new(0)).collect())
    }

    pub(crate) fn count(&self, number: u64) {
        self.0[number as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn of(&self, number: u64) -> u64 {
        self.0[number as usize].load(Ordering::Relaxed)
    }

    /// Numbers that were not counted exactly once.
    pub(crate) fn not_once(&self) -> Vec<(usize, u64)> {
        let counts = self.0.iter().map(|count| count.load(Ordering::Relaxed));
        counts
            .enumerate()
            .filter(|&(_, count)| count != 1)
            .collect()
    }
}

/// The paths of the files in `dir` with this extension, sorted; empty if there is no directory.
pub(crate) fn files(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    let mut files: Vec<_> = entries
        .map(|entry| entry.expect("readable").path())
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .collect();
    files.sort();
    files
}

/// The segment files of stripe 0.
pub(crate) fn segment_files(queue_dir: &Path) -> Vec<PathBuf> {
    files(&queue_dir.join("log/00"), "seg")
}

/// Every file and directory below `dir`, with the contents of the files.
pub(crate) fn listing(dir: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let mut found = BTreeMap::new();
    let mut todo = vec![dir.to_path_buf()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).expect("readable") {
            let path = entry.expect("readable").path();
            if path.is_dir() {
                found.insert(path.clone(), None);
                todo.push(path);
            } else {
                let bytes = fs::read(&path).expect("readable");
                found.insert(path, Some(bytes));
            }
        }
    }
    found
}

/// A copy of the directory of an open queue, as `kill -9` would leave it: nothing is closed, sealed
/// or tidied up. Nobody else may use the queue.
pub(crate) fn crash_copy(queue_dir: &Path) -> TempDir {
    let mut copy = copied(queue_dir);
    // The library's own threads may be tidying up, and a copy takes time, which a kill does not: some files
    // would be of before a step, and others of after it.
    for _ in 0..20 {
        let again = copied(queue_dir);
        if files_in(copy.path()) == files_in(again.path()) {
            break;
        }
        copy = again;
    }
    copy
}

fn copied(dir: &Path) -> TempDir {
    let copy = tempfile::tempdir().expect("a scratch directory");
    copy_tree(dir, copy.path());
    copy
}

/// The files below a directory, with what they contain.
fn files_in(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut dirs = vec![PathBuf::new()];
    while let Some(below) = dirs.pop() {
        for entry in fs::read_dir(dir.join(&below)).expect("readable") {
            let path = below.join(entry.expect("readable").file_name());
            if dir.join(&path).is_dir() {
                dirs.push(path);
            } else {
                let bytes = fs::read(dir.join(&path)).expect("readable");
                files.insert(path, bytes);
            }
        }
    }
    files
}

/// Copies a directory. Skips files that are removed meanwhile.
pub(crate) fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("create");
    for entry in fs::read_dir(from).expect("readable") {
        let from = entry.expect("readable").path();
        let to = to.join(from.file_name().expect("a name"));
        if from.is_dir() {
            copy_tree(&from, &to);
        } else if let Err(error) = fs::copy(&from, &to) {
            assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
        }
    }
}

/// Changes the bytes of a file.
pub(crate) fn edit(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).expect("readable");
    change(&mut bytes);
    fs::write(path, bytes).expect("writable");
}

/// Whether the bytes contain `needle`.
pub(crate) fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|window| window == needle)
}

/// The offset of `needle` in a file that contains it exactly once.
pub(crate) fn offset_of(path: &Path, needle: &[u8]) -> usize {
    let bytes = fs::read(path).expect("readable");
    let mut found = bytes
        .windows(needle.len())
        .enumerate()
        .filter(|(_, window)| *window == needle);
    let (at, _) = found.next().expect("the bytes are in the file");
    assert!(
        found.next().is_none(),
        "the bytes are in the file more than once"
    );
    at
}

/// The segment file of a queue directory, dead letters included, that contains `needle`.
pub(crate) fn segment_containing(queue_dir: &Path, needle: &[u8]) -> PathBuf {
    let mut dirs = vec![queue_dir.join("dead")];
    dirs.extend(
        fs::read_dir(queue_dir.join("log"))
            .expect("readable")
            .map(|entry| entry.expect("readable").path()),
    );
    dirs.iter()
        .flat_map(|dir| files(dir, "seg"))
        .find(|path| contains(&fs::read(path).expect("readable"), needle))
        .expect("the bytes are in a segment")
}

/// A file of numbers, each appended with one `write`, so that what was noted survives the death of
/// its writer.
pub(crate) struct Journal(File);

impl Journal {
    pub(crate) fn append_to(path: &Path) -> Self {
        let file = OpenOptions::new().create(true).append(true).open(path);
        Self(file.expect("writable"))
    }

    pub(crate) fn note(&mut self, number: u64) {
        self.0.write_all(&number.to_le_bytes()).expect("writable");
    }

    /// The numbers noted so far; empty if there is no such file.
    pub(crate) fn read(path: &Path) -> Vec<u64> {
        Self::read_from(path, 0)
    }

    /// The numbers noted so far, without the first `skipped`.
    pub(crate) fn read_from(path: &Path, skipped: usize) -> Vec<u64> {
        let mut bytes = Vec::new();
        if let Ok(mut file) = File::open(path) {
            let from = SeekFrom::Start(8 * skipped as u64);
            file.seek(from).expect("seekable");
            file.read_to_end(&mut bytes).expect("readable");
        }
        bytes
            .as_chunks()
            .0
            .iter()
            .map(|chunk| u64::from_le_bytes(*chunk))
            .collect()
    }
}

const CHILD_ROLE: &str = "LOGMILL_TEST_CHILD_ROLE";
const CHILD_DIR: &str = "LOGMILL_TEST_CHILD_DIR";

/// What a child process does in the directory that it is given.
pub(crate) type Role = fn(&Path);

/// In a child process: runs the role that the parent asked for.
pub(crate) fn play_role(roles: &[(&str, Role)]) {
    let (Ok(role), Some(dir)) = (env::var(CHILD_ROLE), env::var_os(CHILD_DIR)) else {
        return;
    };
    set_parent_process_death_signal(Some(Signal::KILL)).expect("permitted");
    let known = roles.iter().find(|(name, _)| *name == role);
    let (_, play) = known.unwrap_or_else(|| panic!("no role {role}"));
    play(Path::new(&dir));
    // Exits here instead of returning to the test harness: its exit code would not tell whether the
    // role was run.
    process::exit(PLAYED);
}

/// Exit code of a child that completed its role.
const PLAYED: i32 = 42;

/// A child process that runs this test binary in a role. Killed when dropped.
pub(crate) struct Child {
    process: process::Child,
    stderr: PathBuf,
}

impl Child {
    /// Starts a child in `dir`, which has the queue directory and the files that parent and child
    /// share.
    pub(crate) fn start(role: &str, dir: &Path) -> Self {
        let exe = env::current_exe().expect("known");
        Self::start_under(Command::new(exe), role, dir)
    }

    /// As [`start`](Self::start), with a command that ends in the path of this test binary.
    pub(crate) fn start_under(mut command: Command, role: &str, dir: &Path) -> Self {
        let stderr = dir.join("stderr");
        let process = command
            .args(["child", "--exact", "--ignored", "--nocapture"])
            .env(CHILD_ROLE, role)
            .env(CHILD_DIR, dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&stderr).expect("writable"))
            .spawn()
            .expect("the child starts");
        Self { process, stderr }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Waits for a condition that the child brings about. Fails at once if the child ends.
    pub(crate) fn wait_until(&mut self, what: &str, mut condition: impl FnMut() -> bool) {
        eventually(what, || {
            let ended = self.process.try_wait().expect("waitable");
            let is_true = condition();
            assert!(
                is_true || ended.is_none(),
                "the child ended: {ended:?}\n{}",
                self.stderr()
            );
            is_true
        });
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.process.try_wait().expect("waitable").is_some()
    }

    /// Kills it with SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.process.kill().expect("killable");
        self.process.wait().expect("waitable");
    }

    /// Waits until it ends.
    pub(crate) fn end(&mut self) -> ExitStatus {
        eventually("the child ends", || self.has_ended());
        self.process.wait().expect("waitable")
    }

    /// Waits until it has completed its role.
    pub(crate) fn finish(&mut self) {
        let status = self.end();
        assert!(has_played(status), "{status}\n{}", self.stderr());
    }

    pub(crate) fn stderr(&self) -> String {
        fs::read_to_string(&self.stderr).unwrap_or_default()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Whether a child ended by completing its role.
pub(crate) fn has_played(status: ExitStatus) -> bool {
    status.code() == Some(PLAYED)
}

/// A `tracing` subscriber that calls a function for each event.
pub(crate) struct Subscriber<F>(pub F);

impl<F: Fn(&tracing::Event<'_>) + 'static> tracing::Subscriber for Subscriber<F> {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        (self.0)(event);
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

/// The fields of an event, by name.
pub(crate) fn fields(event: &tracing::Event<'_>) -> BTreeMap<&'static str, String> {
    struct Fields(BTreeMap<&'static str, String>);
    impl tracing::field::Visit for Fields {
        fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
            self.0.insert(field.name(), format!("{value:?}"));
        }

        fn record_str(&mut self, field: &tracing::field::Field, value: &str) {
            self.0.insert(field.name(), value.to_owned());
        }
    }
    let mut fields = Fields(BTreeMap::new());
    event.record(&mut fields);
    fields.0
}
