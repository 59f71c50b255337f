//! Predicts the effect of a damage: which records may be lost and must be reported, and what must
//! become of all other jobs and letters.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;

use crate::layout::Place;

use crate::damage::Change;
use crate::layout::{Acks, Deliveries, HEADER_BYTES, IDENTITY, Segment};
use crate::sample::{Content, Job, Sample};

/// Identifies a letter that is yet to be written: the id of its job, the content, and the failed
/// attempts.
pub(crate) type NewLetter = (Place, Content, u32);

/// What is delivered of a job: its content, the number of the attempt, and its crashes.
pub(crate) type Delivery = (Content, u32, u32);

/// What must be found when the damaged queue is opened and drained.
#[derive(Default)]
pub(crate) struct Expectation {
    pub delivered: BTreeMap<Place, Delivery>,
    /// How many of the delivered jobs had been acked or dead.
    pub again: usize,
    /// Jobs that are not due.
    pub far: u64,
    pub letters: BTreeSet<Place>,
    /// Jobs that have used up their attempts, so they become letters.
    pub new_letters: BTreeSet<NewLetter>,
    /// The damaged records of the damaged file.
    pub lost: Vec<Lost>,
    pub is_header_mended: bool,
    pub is_ack_file_rebuilt: bool,
    pub ack_words_reset: u64,
    /// Jobs and letters that lost their done bits, and that recovery marks done again because a
    /// letter or a replayed job names them.
    pub settled: u64,
}

/// A damaged record.
pub(crate) struct Lost {
    pub bytes: Range<usize>,
    /// Whether the record is all zeros in an unsealed segment. Zeros look like space that was never
    /// written: after the last record they are not reported, and between records they count as a
    /// hole.
    pub zero: Option<Zero>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Zero {
    AtTheEnd,
    BetweenRecords,
}

/// What a damaged ack file no longer says about the records of its segment.
#[derive(Default)]
struct Forgotten {
    done: BTreeSet<Place>,
    deliveries: BTreeSet<Place>,
}

impl Expectation {
    /// The expectation for the undamaged queue (`None`), or after a damage to a segment, an ack
    /// file, or a file that does not matter.
    pub(crate) fn after(sample: &Sample, change: Option<&Change<'_>>) -> Self {
        let mut expected = Self::default();
        let mut lost = BTreeSet::new();
        let mut forgotten = Forgotten::default();
        if let Some(change) = change {
            match change
                .file
                .extension()
                .and_then(|extension| extension.to_str())
            {
                Some("seg") => lost = expected.damage_segment(sample, change),
                Some("ack") => forgotten = expected.damage_acks(sample, change),
                _ => {}
            }
        }
        expected.expect_letters(sample, &lost, &forgotten);
        expected.expect_jobs(sample, &lost, &forgotten);
        expected
    }

    fn damage_segment(&mut self, sample: &Sample, change: &Change<'_>) -> BTreeSet<Place> {
        let segment = segment_of(sample, change.file);
        let is_headless = change.is_cut_before(HEADER_BYTES);
        let is_lost = |at: usize| {
            let record = &segment.records[at];
            is_headless
                || change.hits(record.bytes.clone())
                || change.is_cut_before(record.units.end)
        };
        let are_zeros_damage = segment.is_sealed && !change.hits(Segment::SEAL);
        let lost: Vec<_> = (0..segment.records.len())
            .filter(|&at| is_lost(at))
            .collect();
        let last_intact = (0..segment.records.len()).rfind(|&at| !is_lost(at));
        for &at in &lost {
            let record = &segment.records[at];
            let is_there = !change.is_cut_before(record.units.end);
            let is_zero = is_there && change.is_zero(record.units.clone()) && !are_zeros_damage;
            let zero = match last_intact {
                Some(last) if at < last => Zero::BetweenRecords,
                _ => Zero::AtTheEnd,
            };
            self.lost.push(Lost {
                bytes: record.bytes.clone(),
                zero: is_zero.then_some(zero),
            });
        }
        self.is_header_mended = change.hits(IDENTITY) && !is_headless && last_intact.is_some();
        lost.iter()
            .map(|&at| segment.records[at].sequence)
            .collect()
    }

    fn damage_acks(&mut self, sample: &Sample, change: &Change<'_>) -> Forgotten {
        let segment = segment_of(sample, &change.file.with_extension("seg"));
        let records = segment.records.len();
        let is_rebuilt = change.hits(IDENTITY) || change.is_cut_before(Acks::BYTES);
        // An ack file of a segment without records is removed with its segment.
        self.is_ack_file_rebuilt = is_rebuilt && records > 0;
        if !is_rebuilt {
            // A word of zeros passes its check, and says that no job is done.
            let words = Acks::words(records);
            let reset =
                words.filter(|word| change.hits(word.clone()) && !change.is_zero(word.clone()));
            self.ack_words_reset = reset.count() as u64;
        }
        let forgets = |range: Range<usize>| is_rebuilt || change.hits(range);
        let of = |range: fn(usize) -> Range<usize>| {
            let at = (0..records).filter(|&at| forgets(range(at)));
            at.map(|at| segment.records[at].sequence).collect()
        };
        Forgotten {
            done: of(Acks::word),
            deliveries: of(Acks::delivery_word),
        }
    }

    fn expect_letters(&mut self, sample: &Sample, lost: &BTreeSet<Place>, forgotten: &Forgotten) {
        for (&sequence, letter) in &sample.letters {
            if lost.contains(&sequence) || (letter.is_done && !forgotten.done.contains(&sequence)) {
                continue;
            }
            // The job that replaced the letter is in a segment that is scanned at open, which marks
            // the letter done again.
            let replays = sample
                .jobs
                .values()
                .filter(|job| job.replay_of == Some(sequence));
            if replays.count() > 0 {
                self.settled += 1;
            } else {
                self.letters.insert(sequence);
            }
        }
    }

    fn expect_jobs(&mut self, sample: &Sample, lost: &BTreeSet<Place>, forgotten: &Forgotten) {
        for (&sequence, job) in &sample.jobs {
            if lost.contains(&sequence) || (job.is_done && !forgotten.done.contains(&sequence)) {
                continue;
            }
            if job.is_done && is_named_by_a_letter(sample, sequence) {
                self.settled += 1;
                continue;
            }
            let deliveries = match forgotten.deliveries.contains(&sequence) {
                true => Deliveries::default(),
                false => job.deliveries,
            };
            if job.is_far {
                self.far += 1;
            } else if is_used_up(job, deliveries.failed) {
                let letter = (sequence, job.content.clone(), deliveries.failed);
                self.new_letters.insert(letter);
            } else {
                // A handler had the job when the process died.
                let crashes = deliveries.crashes + u32::from(deliveries.is_running);
                let delivery = (job.content.clone(), deliveries.failed + 1, crashes);
                self.delivered.insert(sequence, delivery);
                self.again += usize::from(job.is_done);
            }
        }
    }
}

fn is_used_up(job: &Job, failed: u32) -> bool {
    failed > 0 && job.limit.is_some_and(|limit| failed >= limit)
}

/// Whether a letter in an unsealed segment, which an open scans, names this job. Done letters
/// count, too.
fn is_named_by_a_letter(sample: &Sample, job: Place) -> bool {
    let segments = sample.files.iter().filter(|(path, _)| {
        path.starts_with("dead") && path.extension().is_some_and(|extension| extension == "seg")
    });
    let unsealed = segments
        .map(|(_, bytes)| Segment::parse(bytes))
        .filter(|segment| !segment.is_sealed);
    unsealed.flat_map(|segment| segment.records).any(|record| {
        let letter = sample.letters.get(&record.sequence);
        letter.is_some_and(|letter| letter.letter.job_id().get() == job)
    })
}

fn segment_of(sample: &Sample, path: &Path) -> Segment {
    Segment::parse(&sample.files[path])
}
