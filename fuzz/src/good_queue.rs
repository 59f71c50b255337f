//! The queue that [`damage`](crate::damage) damages: it has a few jobs, some of which are done.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use logmill::{EnqueueOptions, JobId};

use crate::format::{self, Acks, Content, End, FIRST, Record, Segment, UNIT};
use crate::labels::Labels;
use crate::{SEGMENT_SIZE, builder, directory, files};

pub const JOBS: usize = 40;
pub const ACKED: usize = 10;
/// Some payloads end in zeros, which look like space that was never written. The last job has the
/// fourth payload, which does.
const PAYLOADS: [&[u8]; 6] = [b"", b"one", &[7; 300], &[0; 16], b"a second job", &[0; 200]];

/// What a producer gave the queue of a job with this number.
pub fn content(number: usize) -> Content {
    let labels = Labels::of(number as u64);
    let headers = labels.headers.iter();
    Content {
        name: labels.name.map(str::to_owned),
        headers: headers
            .map(|&(key, value)| (key.to_owned(), value.to_vec()))
            .collect(),
        payload: PAYLOADS[number % PAYLOADS.len()].to_vec(),
    }
}

/// Replaces the random values and times in the files of the good queue, so that an input has the
/// same effect in each process.
const SALT: u64 = 0x1122_3344_5566_7788;
const PAST: u64 = 1_700_000_000_000_000_000;

/// The files of a queue that a process has left.
#[derive(Clone)]
pub struct Files {
    pub segment: Vec<u8>,
    pub ack: Vec<u8>,
    /// All other files, with their paths within the queue.
    others: Vec<(PathBuf, Vec<u8>)>,
}

pub const LOG: &str = "log/00";
const SEGMENT: &str = "log/00/00000000000000000000.seg";
const ACK: &str = "log/00/00000000000000000000.ack";

impl Files {
    pub fn write(&self, dir: &Path) {
        fs::create_dir_all(dir.join(LOG)).expect("created");
        fs::create_dir(dir.join("dead")).expect("created");
        for (path, bytes) in &self.others {
            fs::write(dir.join(path), bytes).expect("written");
        }
        fs::write(dir.join(SEGMENT), &self.segment).expect("written");
        fs::write(dir.join(ACK), &self.ack).expect("written");
    }
}

/// The files of a queue with a few jobs, which a process closed (`sealed`) or left by dying.
pub fn good_queue(sealed: bool) -> &'static Files {
    static FILES: [OnceLock<Files>; 2] = [OnceLock::new(), OnceLock::new()];
    FILES[usize::from(sealed)].get_or_init(|| make_queue(sealed))
}

/// Makes such a queue.
fn make_queue(sealed: bool) -> Files {
    let living = directory();
    let (queue, _) = builder(living.path()).open().expect("opened");
    for number in 0..JOBS {
        let options = Labels::of(number as u64).add_to(EnqueueOptions::new());
        let job = queue.enqueue_with(&content(number).payload, options);
        assert_eq!(job.expect("enqueued"), JobId::new(number as u64));
    }
    let consumer = queue.consumer();
    for _ in 0..ACKED {
        consumer.next().expect("a job").ack();
    }
    if sealed {
        drop(consumer);
        queue.close().expect("closed");
    }
    // Copies the files of the open queue, as a crash would leave them. The files of the dead letter
    // log and of the next segment are left out: they are empty and take time to recover.
    let copy = directory();
    files::copy_when_quiet(living.path(), copy.path());
    let read = |path: &Path| fs::read(copy.path().join(path)).expect("read");
    let limit = fs::read_dir(copy.path().join(LOG)).expect("listed");
    let limit = limit.map(|entry| Path::new(LOG).join(entry.expect("an entry").file_name()));
    let is_limit = |path: &PathBuf| {
        path.extension()
            .is_some_and(|extension| extension == "limit")
    };
    let others = limit.filter(is_limit).chain([PathBuf::from("MANIFEST")]);
    let mut files = Files {
        segment: read(Path::new(SEGMENT)),
        ack: read(Path::new(ACK)),
        others: others.map(|path| (path.clone(), read(&path))).collect(),
    };
    files.make_the_same_in_each_process();
    files
}

impl Files {
    /// Gives the files a fixed salt and fixed times. Checks, before and after, that they contain
    /// exactly what was enqueued and acked.
    fn make_the_same_in_each_process(&mut self) {
        self.check();
        let capacity = End::of_bytes(SEGMENT_SIZE as usize).records;
        let mut acks = Acks {
            file: &mut self.ack,
            capacity,
            salt: format::u64_at(&self.segment, 40),
        };
        let found = (0..capacity).map(|index| (acks.is_done(index), acks.deliveries(index)));
        let found: Vec<_> = found.collect();
        acks.salt = SALT;
        for index in (0..capacity).step_by(32) {
            let done = found[index as usize..].iter().take(32).rev();
            let done = done.fold(0, |bits, (done, _)| bits << 1 | u32::from(*done));
            acks.set_word(index, done);
        }
        for (index, (_, deliveries)) in (0..).zip(found) {
            acks.set_deliveries(index, deliveries);
        }
        for file in [&mut self.segment, &mut self.ack] {
            format::put(file, 32, &PAST.to_le_bytes());
            format::put(file, 40, &SALT.to_le_bytes());
            format::mend_header(file);
        }
        format::mend_seal(&mut self.segment);
        let end = (self.segment.len() / UNIT) as u32;
        let mut at = FIRST;
        while let Some(record) = Record::at(&self.segment, at, end) {
            let next = at + record.units();
            format::put(
                &mut self.segment,
                at as usize * UNIT + 16,
                &PAST.to_le_bytes(),
            );
            at = next;
        }
        format::mend_records(&mut self.segment, SALT);
        self.check();
    }

    fn check(&self) {
        let found = Segment::read(0, SEGMENT_SIZE as usize, self.segment.clone(), &self.ack);
        assert_eq!(found.damage, []);
        let found = found.live.into_iter();
        let found = found.map(|job| (job.id as usize, job.content));
        assert!(found.eq((ACKED..JOBS).map(|number| (number, content(number)))));
    }
}
