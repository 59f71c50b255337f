//! The two files of a segment together: what recovery decides on them.

use logmill::Damage;

use super::{
    ACK_MAGIC, Acks, End, FILE_HEADER, Identity, Record, SEGMENT_MAGIC, UNIT, fields, identity,
    max_record, scan, seal,
};

/// What is in the two files of a segment.
#[derive(Debug)]
pub struct Segment {
    /// The segment file.
    pub file: Vec<u8>,
    pub is_sealed: bool,
    /// All its records are done by what the ack file says, even those that are missing.
    pub is_complete: bool,
    pub damage: Vec<(u64, u64, Damage)>,
    /// Jobs that are not done.
    pub live: Vec<Job>,
}

#[derive(Debug)]
pub struct Job {
    pub id: u64,
    pub payload: Vec<u8>,
    /// Deliveries that its metadata says.
    pub prior_attempts: u32,
    /// Deliveries since.
    pub deliveries: u8,
    /// 0: unlimited; None: as many as the queue allows.
    pub max_attempts: Option<u8>,
    pub due_at: u64,
}

impl Job {
    /// Deliveries so far.
    pub fn attempts(&self) -> u32 {
        self.prior_attempts.saturating_add(self.deliveries.into())
    }

    /// What the next delivery makes of them. Each part stays at the most it can be.
    pub fn next_attempt(&self) -> u32 {
        let deliveries = self.deliveries.saturating_add(1);
        self.prior_attempts.saturating_add(deliveries.into())
    }
}

impl Segment {
    /// Decides by the table in DESIGN.md's chapter on recovery. `base` is the files' name.
    pub fn read(base: u64, segment_size: usize, file: Vec<u8>, acks: &[u8]) -> Self {
        let is_ours = |id: &Identity| id.base == base && id.segment_size == segment_size as u64;
        let own = identity(SEGMENT_MAGIC, &file).filter(is_ours);
        let copy = identity(ACK_MAGIC, acks).filter(is_ours);
        let mut segment = Self {
            file,
            is_sealed: false,
            is_complete: false,
            damage: Vec::new(),
            live: Vec::new(),
        };
        let file = &segment.file[..segment.file.len().min(segment_size)];
        let Some(identity) = own.or(copy.filter(|_| file.len() >= FILE_HEADER)) else {
            // Rows 1 and 2.
            if file.iter().any(|&byte| byte != 0) {
                let damage = match copy {
                    Some(_) => Damage::Truncated,
                    None => Damage::Header,
                };
                segment.damage.push((0, file.len() as u64, damage));
            }
            return segment;
        };
        // Row 3 needs no more: what follows does not look at the header's other words.
        let salt = identity.salt;
        let most = End {
            records: End::of_bytes(segment_size).records,
            units: (file.len() / UNIT) as u32,
        };
        let seal = seal(file, salt).filter(|end| end.is_possible(segment_size));
        let end = seal.filter(|end| end.units <= most.units);
        // Row 4; or rows 5 to 7.
        segment.is_sealed = end.is_some();
        let max_record = max_record(segment_size);
        let end_or_most = end.unwrap_or(most);
        let scan = scan(file, salt, max_record, end_or_most, segment.is_sealed);
        if let (None, Some(seal)) = (end, seal) {
            let [from, to] =
                [scan.end.units, seal.units].map(|units| u64::from(units) * UNIT as u64);
            let cut_off = (from, to.saturating_sub(from), Damage::Truncated);
            segment.damage.push(cut_off);
        }
        for gap in &scan.gaps {
            if let Some(damage) = gap.damage {
                let [from, to] = [gap.from, gap.to].map(|units| u64::from(units) * UNIT as u64);
                segment.damage.push((from, to - from, damage));
            }
        }
        let acks = Acks {
            file: acks,
            capacity: most.records,
            salt,
        };
        let has_acks =
            copy == Some(identity) && acks.file.len() >= Acks::<&[u8]>::file_bytes(most.records);
        let is_done = |index| has_acks && acks.is_done(index);
        segment.is_complete = (0..scan.end.records).all(is_done);
        for (index, unit) in scan.jobs {
            if is_done(index) {
                continue;
            }
            let deliveries = if has_acks { acks.deliveries(index) } else { 0 };
            let Some(record) = Record::at(file, unit, most.units) else {
                unreachable!("a scan finds records");
            };
            let fields = fields(record.meta());
            segment.live.push(Job {
                id: fields.original.unwrap_or(base + u64::from(index)),
                payload: record.payload().to_vec(),
                prior_attempts: fields.prior_attempts,
                deliveries,
                max_attempts: fields.max_attempts,
                due_at: record.due_at(),
            });
        }
        segment
    }
}
