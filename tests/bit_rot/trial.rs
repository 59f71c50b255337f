//! Runs one case: opens a copy of the queue with one damage, drains it, verifies it and closes it,
//! then does all of that again. Everything must be as expected.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Instant;

use crate::layout::Place;
use logmill::{Damage, DeadLetter, OpenError, Quarantined, Queue, RecoveryReport, Stats};

use crate::damage::{Case, Change};
use crate::expectation::{Delivery, Expectation, Lost, Zero};
use crate::layout::MANIFEST_VERSION;
use crate::sample::{Content, Files, PATIENCE, Sample, builder, directory, read_all};

/// The outcome of a damage.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Outcome {
    /// The damage did not change the file.
    pub unchanged: usize,
    /// The queue could not be opened.
    pub refused: usize,
    /// Something was reported.
    pub reported: usize,
    /// Regions that were set aside.
    pub regions: usize,
    /// Records that were damaged.
    pub lost: usize,
    /// Damaged records that were not reported, because they are zero and in an unsealed segment.
    pub unreported: usize,
    /// Jobs that were delivered although they had been acked or dead, and letters that were back
    /// although they had been done.
    pub again: usize,
}

/// What was found when the queue was opened and drained.
struct Opening {
    report: RecoveryReport,
    delivered: BTreeMap<Place, Delivery>,
    /// Jobs that were delivered but not acked.
    held: BTreeMap<Place, Delivery>,
    letters: Vec<DeadLetter>,
    stats: Stats,
    /// What was set aside, at open or later.
    regions: Vec<Quarantined>,
}

/// Tries a damage, or the undamaged sample.
pub(crate) fn run(sample: &Sample, case: Option<&Case<'_>>) -> Outcome {
    let change = case.map(|case| case.change(sample));
    if matches!(change, Some(None)) {
        return Outcome {
            unchanged: 1,
            ..Outcome::default()
        };
    }
    let change = change.flatten();
    let dir = directory();
    lay_out(&sample.files, change.as_ref(), dir.path());
    if let Some(change) = &change
        && change.file.ends_with("MANIFEST")
    {
        check_refusal(dir.path(), change);
        return Outcome {
            refused: 1,
            reported: 1,
            ..Outcome::default()
        };
    }
    let expected = Expectation::after(sample, change.as_ref());
    let first = open_and_drain(dir.path(), sample);
    check(sample, &expected, &first);
    let unreported = match &change {
        Some(change) => check_regions(dir.path(), change, &expected, &first),
        None => {
            assert!(first.regions.is_empty() && first.report.is_clean());
            0
        }
    };
    let aside = aside(dir.path());

    let second = open_and_drain(dir.path(), sample);
    let report = &second.report;
    assert!(report.is_clean() && report.holes == 0, "{report:?}");
    assert!(second.regions.is_empty(), "{:?}", second.regions);
    // The first opening ended with a close, so its held jobs have no failed attempt and no crash.
    assert_eq!(second.delivered, first.held);
    assert_eq!(second.letters, first.letters);
    assert_eq!(second.stats.delayed, expected.far);
    assert!(
        aside == self::aside(dir.path()),
        "what was set aside has changed"
    );

    let is_reported =
        !first.regions.is_empty() || !first.report.is_clean() || first.report.holes > 0;
    let done_letters = first.letters.iter().filter(|letter| {
        let known = sample.letters.get(&letter.id().get());
        known.is_some_and(|known| known.is_done)
    });
    Outcome {
        reported: usize::from(is_reported),
        regions: first.regions.len(),
        lost: expected.lost.len(),
        unreported,
        again: expected.again + done_letters.count(),
        ..Outcome::default()
    }
}

fn lay_out(files: &Files, change: Option<&Change<'_>>, dir: &Path) {
    for (name, bytes) in files {
        let bytes = match change {
            Some(change) if change.file == name => &change.after,
            _ => bytes,
        };
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

/// Checks that a damaged MANIFEST gets an error of its own type, and that nothing is changed.
fn check_refusal(dir: &Path, change: &Change<'_>) {
    let before = read_all(dir);
    match builder(dir).open() {
        Err(OpenError::ManifestVersion { found, .. }) => {
            assert!(change.hits(MANIFEST_VERSION) && found != 1, "{found}");
        }
        Err(OpenError::ManifestCorrupt { .. }) => {}
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("opened although the MANIFEST is damaged"),
    }
    assert!(read_all(dir) == before, "a refused directory was changed");
}

/// Opens the queue, takes all jobs, acks about half of them, and closes it.
fn open_and_drain(dir: &Path, sample: &Sample) -> Opening {
    let (queue, report) = builder(dir).open().expect("damage is no error");
    let new = queue.enqueue(b"new").unwrap();
    assert!(
        !sample.jobs.contains_key(&new.get()),
        "the id {new} was given out twice"
    );
    let consumer = queue.consumer();
    let mut delivered = BTreeMap::new();
    let mut held = BTreeMap::new();
    let start = Instant::now();
    let letters = loop {
        while let Some(job) = consumer.try_next() {
            let sequence = job.id().get();
            let delivery = (Content::of_job(&job), job.attempts(), job.crashes());
            let known = sample.jobs.get(&sequence);
            let before = delivered.insert(sequence, delivery.clone());
            assert_eq!(before, None, "{sequence} was delivered twice");
            match known {
                // These jobs stay held. Jobs with their own limit are not, since they would be dead
                // instead of delivered again. Neither are jobs with a crash, since no other such
                // job is delivered meanwhile.
                Some(known) if known.limit.is_none() && job.crashes() == 0 && sequence % 2 == 0 => {
                    held.insert(sequence, delivery);
                    std::mem::forget(job);
                }
                _ => job.ack(),
            }
        }
        let letters: Vec<_> = queue.dead_letters().iter().collect();
        let stats = queue.stats();
        if stats.ready == 0 && stats.in_flight == held.len() as u64 {
            break letters;
        }
        assert!(start.elapsed() < PATIENCE, "not drained: {stats:?}");
    };
    let plain = Content::plain(b"new");
    assert_eq!(delivered.remove(&new.get()), Some((plain, 1, 0)));
    let verified = queue.verify().expect("verified");
    let stats = queue.stats();
    let later = verified.damaged.len() as u64;
    assert_eq!(stats.quarantined, later, "{verified:?}");
    let regions = [report.quarantined.clone(), verified.damaged].concat();
    drop(consumer);
    close(queue);
    Opening {
        report,
        delivered,
        held,
        letters,
        stats,
        regions,
    }
}

fn close(queue: Queue) {
    queue.close().expect("closed");
}

/// Checks the jobs, the letters, and the recovery report except for the regions.
fn check(sample: &Sample, expected: &Expectation, found: &Opening) {
    assert_eq!(found.delivered, expected.delivered);
    assert_eq!(found.stats.delayed, expected.far);
    let mut letters = BTreeSet::new();
    let mut new_letters = BTreeSet::new();
    for letter in &found.letters {
        match sample.letters.get(&letter.id().get()) {
            Some(known) => {
                assert_eq!(*letter, known.letter);
                letters.insert(letter.id().get());
            }
            None => {
                let content = Content::of_letter(letter);
                new_letters.insert((letter.job_id().get(), content, letter.attempts()));
            }
        }
    }
    assert_eq!(letters, expected.letters);
    assert_eq!(new_letters, expected.new_letters);
    let report = &found.report;
    assert_eq!(
        report.ack_words_reset, expected.ack_words_reset,
        "{report:?}"
    );
    assert_eq!(report.settled, expected.settled, "{report:?}");
    assert_eq!(
        !report.headers_mended.is_empty(),
        expected.is_header_mended,
        "{report:?}"
    );
    assert_eq!(
        !report.ack_files_rebuilt.is_empty(),
        expected.is_ack_file_rebuilt,
        "{report:?}"
    );
}

/// Checks that each damaged record is in a reported region and its bytes are set aside, and that no
/// region is undamaged. Returns how many records are lost without a report, as they should be.
fn check_regions(
    dir: &Path,
    change: &Change<'_>,
    expected: &Expectation,
    found: &Opening,
) -> usize {
    let path = dir.join(change.file);
    let report = &found.report;
    let mended = report
        .headers_mended
        .iter()
        .chain(&report.ack_files_rebuilt);
    let named = found
        .regions
        .iter()
        .map(|region| &region.path)
        .chain(mended);
    assert!(
        named.clone().all(|named| *named == path),
        "{:?}",
        Vec::from_iter(named)
    );
    for region in &found.regions {
        let (from, to) = (
            region.offset as usize,
            (region.offset + region.len) as usize,
        );
        let is_rest = matches!(region.damage, Damage::Truncated | Damage::Header);
        // A record that was cut off may leave a part.
        let mut lost = expected.lost.iter();
        let is_part = lost.any(|lost| lost.bytes.start < to && from < lost.bytes.end);
        assert!(
            is_rest || is_part || change.hits(from..to),
            "nothing is damaged in {region:?}"
        );
        if let Some(copy) = &region.copy {
            let copied = fs::read(copy).expect("set aside");
            assert!(
                copied == change.after[from..to],
                "the copy differs from {region:?}"
            );
        }
    }
    let is_missed = |lost: &&Lost| !is_reported(change, &found.regions, lost);
    let missed: Vec<_> = expected.lost.iter().filter(is_missed).collect();
    for lost in &missed {
        match lost.zero {
            None => panic!("{:?} is lost silently: {:?}", lost.bytes, found.regions),
            Some(Zero::BetweenRecords) => assert!(found.report.holes > 0, "{:?}", found.report),
            Some(Zero::AtTheEnd) => {}
        }
    }
    missed.len()
}

/// Whether the loss of a record was reported, and what is left of it was set aside.
fn is_reported(change: &Change<'_>, regions: &[Quarantined], lost: &Lost) -> bool {
    let is_in = |region: &Quarantined, at: usize| {
        let from = region.offset as usize;
        // The end of what was cut off is unknown.
        let is_rest = matches!(region.damage, Damage::Truncated | Damage::Header);
        at >= from && (is_rest || at < from + region.len as usize)
    };
    let is_copied = |at: usize| {
        // A record that was cut off is set aside only up to the last multiple of 8 bytes.
        let units = &change.after[..change.after.len() / 8 * 8];
        let byte = units.get(at).copied().unwrap_or(0);
        let mut copies = regions.iter().filter(|region| region.copy.is_some());
        byte == 0 || copies.any(|region| is_in(region, at))
    };
    let is_named = |at: usize| regions.iter().any(|region| is_in(region, at));
    lost.bytes.clone().any(is_named) && lost.bytes.clone().all(is_copied)
}

/// The files in quarantine.
fn aside(dir: &Path) -> Files {
    let quarantine = dir.join("quarantine");
    if quarantine.exists() {
        read_all(&quarantine)
    } else {
        Files::new()
    }
}
