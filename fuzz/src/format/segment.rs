//! What recovery decides about the two files of a segment, in the second implementation of the
//! format.

use logmill::Damage;

use super::{
    ACK_MAGIC, Acks, Deliveries, End, FILE_HEADER, FIRST, Identity, Record, SEGMENT_MAGIC, UNIT,
    fields, identity, max_record, scan, seal,
};

/// The content of the two files of a segment.
#[derive(Debug)]
pub struct Segment {
    /// The bytes of the segment file.
    pub file: Vec<u8>,
    pub is_sealed: bool,
    /// According to the ack file all records are done, including missing ones.
    pub is_complete: bool,
    /// There is a record of a kind that is not defined, so the segment is left as it is: an open
    /// fails if the segment is not sealed, and its jobs are held back if it is.
    pub is_of_a_later_version: bool,
    pub damage: Vec<(u64, u64, Damage)>,
    /// Jobs that are not done.
    pub live: Vec<Job>,
    /// The records that its jobs name as settled. An open looks for them, also if these jobs are
    /// done.
    pub settles: Vec<u64>,
}

/// What a producer gave the queue.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Content {
    pub name: Option<String>,
    pub headers: Vec<(String, Vec<u8>)>,
    pub payload: Vec<u8>,
}

#[derive(Debug)]
pub struct Job {
    pub id: u64,
    /// The place of its record in the log.
    pub sequence: u64,
    pub content: Content,
    /// Failed attempts according to its metadata.
    pub prior_attempts: u32,
    /// Crashes according to its metadata.
    pub prior_crashes: u32,
    /// Later deliveries, after the death of the process.
    pub deliveries: Deliveries,
    /// 0: unlimited. `None`: as many as the queue allows.
    pub max_attempts: Option<u8>,
    pub due_at: u64,
    /// From then on it is not delivered.
    pub expires_at: Option<u64>,
}

impl Job {
    /// Failed attempts so far.
    pub fn failed(&self) -> u32 {
        let failed = self.deliveries.failed;
        self.prior_attempts.saturating_add(failed.into())
    }

    /// The number of the next attempt.
    pub fn next_attempt(&self) -> u32 {
        self.failed().saturating_add(1)
    }

    /// Crashes so far.
    pub fn crashes(&self) -> u32 {
        let crashes = self.deliveries.crashes;
        self.prior_crashes.saturating_add(crashes.into())
    }
}

impl Segment {
    /// Decides by the table in the section on recovery of DESIGN.md. `base` is from the name of the
    /// files.
    pub fn read(base: u64, segment_size: usize, file: Vec<u8>, acks: &[u8]) -> Self {
        let is_ours = |id: &Identity| id.base == base && id.segment_size == segment_size as u64;
        let own = identity(SEGMENT_MAGIC, &file).filter(is_ours);
        let copy = identity(ACK_MAGIC, acks).filter(is_ours);
        let mut segment = Self {
            file,
            is_sealed: false,
            is_complete: false,
            is_of_a_later_version: false,
            damage: Vec::new(),
            live: Vec::new(),
            settles: Vec::new(),
        };
        let file = &segment.file[..segment.file.len().min(segment_size)];
        let capacity = End::of_bytes(segment_size).records;
        let is_whole = acks.len() >= Acks::<&[u8]>::file_bytes(capacity);
        let acks_of = |id: Identity| Acks {
            file: acks,
            capacity,
            salt: id.salt,
        };
        // Whether a segment without any records counts as lost.
        let is_relied_on = copy.is_some_and(|id| acks_of(id).is_relied_on());
        let is_fresh = copy.is_some_and(|id| acks_of(id).is_fresh());
        let is_lost = is_relied_on
            || is_fresh && copy.is_some_and(|id| is_whole && acks_of(id).tells_of_jobs());
        let all = (0, segment_size as u64, Damage::Truncated);
        let Some(identity) = own.or(copy.filter(|_| file.len() >= FILE_HEADER)) else {
            // Rows 1 and 2 of the table.
            if file.iter().any(|&byte| byte != 0) {
                let damage = match copy {
                    Some(_) => Damage::Truncated,
                    None => Damage::Header,
                };
                segment.damage.push((0, file.len() as u64, damage));
            } else if is_lost {
                segment.damage.push(all);
            }
            return segment;
        };
        // Row 3 needs nothing more, since the code below uses no other words of the header.
        let salt = identity.salt;
        let most = End {
            records: capacity,
            units: (file.len() / UNIT) as u32,
        };
        let seal = seal(file, salt).filter(|end| end.is_possible(segment_size));
        let end = seal.filter(|end| end.units <= most.units);
        // Row 4, or else rows 5 to 7.
        segment.is_sealed = end.is_some();
        let max_record = max_record(segment_size);
        let end_or_most = end.unwrap_or(most);
        let was_sealed = seal.is_some();
        let copy_of_its_own = copy.filter(|&id| id == identity && !was_sealed);
        let reused_from = copy_of_its_own.and_then(|id| acks_of(id).reused_from());
        let scan = scan(
            file,
            salt,
            max_record,
            end_or_most,
            segment.is_sealed,
            was_sealed,
            reused_from.unwrap_or(u32::MAX),
        );
        segment.is_of_a_later_version = scan.not_understood.is_some();
        let offset = |units: u32| u64::from(units) * UNIT as u64;
        let len = seal.map_or(segment_size as u64, |seal| offset(seal.units));
        let end = scan.end;
        if !segment.is_sealed && (file.len() as u64) < len {
            let from = offset(end.units);
            let cut_off = (from, len.saturating_sub(from), Damage::Truncated);
            if seal.is_some() || is_relied_on || is_fresh {
                segment.damage.push(cut_off);
            }
        } else if !segment.is_sealed && end.units == FIRST && is_lost {
            segment.damage.push(all);
        }
        for gap in &scan.gaps {
            if let Some(damage) = gap.damage {
                let (from, to) = (offset(gap.from), offset(gap.to));
                segment.damage.push((from, to - from, damage));
            }
        }
        let has_acks = copy == Some(identity) && is_whole;
        let acks = acks_of(identity);
        let is_done = |index| has_acks && acks.is_done(index);
        segment.is_complete = (0..end.records).all(is_done);
        let record_at = |unit| match Record::at(file, unit, most.units) {
            Some(record) => record,
            None => unreachable!("a scan finds records"),
        };
        if !segment.is_sealed {
            let settling = scan.records.iter();
            let settling = settling.filter_map(|&unit| fields(record_at(unit).meta()).settles);
            segment.settles.extend(settling);
        }
        for (index, unit) in scan.jobs {
            let record = record_at(unit);
            let fields = fields(record.meta());
            if is_done(index) {
                continue;
            }
            let deliveries = match has_acks {
                true => acks.deliveries(index).after_a_crash(),
                false => Deliveries::default(),
            };
            let sequence = base + u64::from(index);
            segment.live.push(Job {
                id: fields.original.unwrap_or(sequence),
                sequence,
                content: Content {
                    name: match record.name() {
                        b"" => None,
                        name => String::from_utf8(name.to_vec()).ok(),
                    },
                    headers: fields.headers,
                    payload: record.payload().to_vec(),
                },
                prior_attempts: fields.prior_attempts,
                prior_crashes: fields.prior_crashes,
                deliveries,
                max_attempts: fields.max_attempts,
                due_at: record.due_at(),
                expires_at: fields.expires_at,
            });
        }
        segment
    }
}
