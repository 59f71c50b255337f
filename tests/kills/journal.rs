//! The journals in which a child notes each of its calls, before and after the call. They are
//! separate from the queue's files. A `write` to a file opened for appending survives the death of
//! its writer.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What happened. An event that ends in `Begins` is noted before the call, one that ends in
/// `Returned` after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    OpenBegins,
    OpenReturned,
    EnqueueBegins {
        id: u64,
        /// Whether it is enqueued in one batch with the others of its group.
        in_batch: bool,
    },
    EnqueueReturned {
        id: u64,
        job: u64,
    },
    /// The enqueue found no room, or the queue closed.
    EnqueueRefused {
        id: u64,
    },
    Delivered {
        job: u64,
        id: u64,
        attempt: u32,
        crashes: u32,
    },
    /// A retry, or a dropped job.
    FailureBegins {
        job: u64,
    },
    FailureReturned {
        job: u64,
    },
    AckBegins {
        job: u64,
    },
    AckReturned {
        job: u64,
    },
    /// A call of `Job::dead_letter`.
    DeathBegins {
        job: u64,
        attempt: u32,
    },
    DeathReturned {
        job: u64,
    },
    LetterSeen {
        letter: u64,
        job: u64,
        id: u64,
        attempts: u32,
        crashes: u32,
    },
    ReplayBegins {
        letter: u64,
    },
    /// The letter is 0 if several were replayed in one call.
    ReplayReturned {
        letter: u64,
        job: u64,
    },
    PurgeBegins {
        letter: u64,
    },
    PurgeReturned {
        letter: u64,
    },
    /// A flush or close that began at this tick has returned.
    FlushReturned {
        began: u64,
    },
    FlushBegins,
    CloseBegins,
}

/// An event and its time: ticks order the events of all threads of a child.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Note {
    pub tick: u64,
    pub event: Event,
}

const NOTE_BYTES: usize = 40;

/// Packs attempts and crashes into one number.
fn both(attempts: u32, crashes: u32) -> u32 {
    attempts | crashes << 16
}

impl Note {
    fn encode(self) -> [u8; NOTE_BYTES] {
        let (kind, small, words) = match self.event {
            Event::OpenBegins => (1, 0, [0; 3]),
            Event::OpenReturned => (2, 0, [0; 3]),
            Event::EnqueueBegins { id, in_batch } => (3, in_batch.into(), [id, 0, 0]),
            Event::EnqueueReturned { id, job } => (4, 0, [id, job, 0]),
            Event::EnqueueRefused { id } => (5, 0, [id, 0, 0]),
            Event::Delivered {
                job,
                id,
                attempt,
                crashes,
            } => (6, both(attempt, crashes), [job, id, 0]),
            Event::AckBegins { job } => (7, 0, [job, 0, 0]),
            Event::AckReturned { job } => (8, 0, [job, 0, 0]),
            Event::DeathBegins { job, attempt } => (9, attempt, [job, 0, 0]),
            Event::DeathReturned { job } => (10, 0, [job, 0, 0]),
            Event::LetterSeen {
                letter,
                job,
                id,
                attempts,
                crashes,
            } => (11, both(attempts, crashes), [letter, job, id]),
            Event::ReplayBegins { letter } => (12, 0, [letter, 0, 0]),
            Event::ReplayReturned { letter, job } => (13, 0, [letter, job, 0]),
            Event::PurgeBegins { letter } => (14, 0, [letter, 0, 0]),
            Event::PurgeReturned { letter } => (15, 0, [letter, 0, 0]),
            Event::FlushReturned { began } => (16, 0, [began, 0, 0]),
            Event::FlushBegins => (17, 0, [0; 3]),
            Event::CloseBegins => (18, 0, [0; 3]),
            Event::FailureBegins { job } => (19, 0, [job, 0, 0]),
            Event::FailureReturned { job } => (20, 0, [job, 0, 0]),
        };
        let mut bytes = [0; NOTE_BYTES];
        let words = [
            u64::from(small) << 32 | kind,
            self.tick,
            words[0],
            words[1],
            words[2],
        ];
        for (to, word) in bytes.as_chunks_mut().0.iter_mut().zip(words) {
            *to = word.to_le_bytes();
        }
        bytes
    }

    fn decode(bytes: &[u8; NOTE_BYTES]) -> Self {
        let mut words = bytes
            .as_chunks()
            .0
            .iter()
            .map(|word| u64::from_le_bytes(*word));
        let mut next = || words.next().expect("a note of five words");
        let (first, tick) = (next(), next());
        let (a, b, c) = (next(), next(), next());
        let small = (first >> 32) as u32;
        let event = match first as u32 {
            1 => Event::OpenBegins,
            2 => Event::OpenReturned,
            3 => Event::EnqueueBegins {
                id: a,
                in_batch: small != 0,
            },
            4 => Event::EnqueueReturned { id: a, job: b },
            5 => Event::EnqueueRefused { id: a },
            6 => Event::Delivered {
                job: a,
                id: b,
                attempt: small & 0xffff,
                crashes: small >> 16,
            },
            7 => Event::AckBegins { job: a },
            8 => Event::AckReturned { job: a },
            9 => Event::DeathBegins {
                job: a,
                attempt: small,
            },
            10 => Event::DeathReturned { job: a },
            11 => Event::LetterSeen {
                letter: a,
                job: b,
                id: c,
                attempts: small & 0xffff,
                crashes: small >> 16,
            },
            12 => Event::ReplayBegins { letter: a },
            13 => Event::ReplayReturned { letter: a, job: b },
            14 => Event::PurgeBegins { letter: a },
            15 => Event::PurgeReturned { letter: a },
            16 => Event::FlushReturned { began: a },
            17 => Event::FlushBegins,
            18 => Event::CloseBegins,
            19 => Event::FailureBegins { job: a },
            20 => Event::FailureReturned { job: a },
            other => panic!("a journal has an unknown event {other}"),
        };
        Self { tick, event }
    }
}

/// The journals of one child: a file for each thread, and a clock that the threads share.
#[derive(Clone)]
pub(crate) struct Journals {
    dir: PathBuf,
    ticks: Arc<AtomicU64>,
    opened: Arc<AtomicU64>,
}

impl Journals {
    pub(crate) fn create(dir: PathBuf) -> Self {
        fs::create_dir_all(&dir).expect("writable");
        Self {
            dir,
            ticks: Arc::default(),
            opened: Arc::default(),
        }
    }

    /// Opens a journal for the calling thread.
    pub(crate) fn open(&self) -> Journal {
        let number = self.opened.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.join(number.to_string());
        let file = OpenOptions::new().create_new(true).append(true).open(path);
        Journal {
            file: file.expect("writable"),
            ticks: Arc::clone(&self.ticks),
        }
    }
}

/// The journal of one thread.
pub(crate) struct Journal {
    file: File,
    ticks: Arc<AtomicU64>,
}

impl Journal {
    /// Notes an event; returns its tick.
    pub(crate) fn note(&mut self, event: Event) -> u64 {
        self.note_all([event])
    }

    /// Notes events with one write; returns the tick of the last one.
    pub(crate) fn note_all(&mut self, events: impl IntoIterator<Item = Event>) -> u64 {
        let mut bytes = Vec::new();
        let mut last = 0;
        for event in events {
            // All ticks come from one counter, so an event that happens before another also has a
            // smaller tick.
            last = self.ticks.fetch_add(1, Ordering::SeqCst);
            bytes.extend(Note { tick: last, event }.encode());
        }
        self.file.write_all(&bytes).expect("writable");
        last
    }
}

/// How many notes there are in the journal that was opened first.
pub(crate) fn noted_first(dir: &Path) -> u64 {
    let file = fs::metadata(dir.join("0"));
    file.map_or(0, |file| file.len() / NOTE_BYTES as u64)
}

/// Reads the notes of a child, in order. The last note of each thread may be torn by its death.
pub(crate) fn read(dir: &Path) -> Vec<Note> {
    let mut notes = Vec::new();
    // There is no directory if the child died before its first note.
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let bytes = fs::read(entry.expect("readable").path()).expect("readable");
        notes.extend(bytes.as_chunks().0.iter().map(Note::decode));
    }
    notes.sort_unstable_by_key(|note| note.tick);
    notes
}
