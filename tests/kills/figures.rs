//! What a run of the harness did, in numbers.

use std::fmt;

#[derive(Clone, Debug, Default)]
pub(crate) struct Figures {
    pub directories: u64,
    pub kills: u64,
    /// Of the kills: before the child had begun to open the queue, and while it was at that.
    pub kills_before_open: u64,
    pub kills_in_open: u64,
    /// While it was closing the queue.
    pub kills_in_close: u64,
    /// By the child's own hand, in the middle of a job.
    pub kills_by_poison: u64,
    pub kills_while_stopped: u64,
    /// Stops (SIGSTOP), and refusals of a second open meanwhile.
    pub stops: u64,
    pub locked: u64,
    pub orderly_ends: u64,
    pub inspections: u64,

    /// Calls that returned.
    pub enqueued: u64,
    pub refused: u64,
    pub delivered: u64,
    pub acked: u64,
    pub replayed: u64,
    pub purged: u64,
    pub flushes: u64,
    /// Letters seen for the first time.
    pub letters: u64,
    /// Enqueues that a kill interrupted, and those of them whose job was there.
    pub in_flight: u64,
    pub in_flight_kept: u64,
    /// Acks that a kill interrupted.
    pub acks_in_flight: u64,
    /// Jobs found beside their letter.
    pub overlaps: u64,
    /// Letters that were not their job's first.
    pub second_letters: u64,
    /// Deliveries that were counted and not noted.
    pub unnoted: u64,

    /// What inspections found.
    pub jobs_found: u64,
    pub most_jobs_found: u64,
    pub letters_found: u64,
    pub segments_scanned: u64,
    pub holes: u64,
    pub uncommitted: u64,
    pub replays_settled: u64,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            directories,
            kills,
            kills_before_open,
            kills_in_open,
            kills_in_close,
            kills_by_poison,
            kills_while_stopped,
            stops,
            locked,
            orderly_ends,
            inspections,
            ..
        } = self;
        writeln!(
            f,
            "{kills} kills in {directories} directories: {kills_before_open} before an open, \
             {kills_in_open} within one, {kills_in_close} within a close, \
             {kills_while_stopped} while stopped, {kills_by_poison} by a job; \
             {stops} stops ({locked} second opens refused), {orderly_ends} orderly ends, \
             {inspections} inspections"
        )?;
        let Self {
            enqueued,
            refused,
            delivered,
            acked,
            replayed,
            purged,
            flushes,
            letters,
            ..
        } = self;
        writeln!(
            f,
            "{enqueued} enqueued, {refused} refused, {delivered} delivered, {acked} acked, \
             {letters} letters, {replayed} replayed, {purged} purged, {flushes} flushes"
        )?;
        let Self {
            in_flight,
            in_flight_kept,
            acks_in_flight,
            overlaps,
            second_letters,
            unnoted,
            ..
        } = self;
        writeln!(
            f,
            "killed within: {in_flight} enqueues (of which {in_flight_kept} were there), \
             {acks_in_flight} acks, {unnoted} deliveries, {overlaps} deaths \
             ({second_letters} second letters)"
        )?;
        let Self {
            jobs_found,
            most_jobs_found,
            letters_found,
            segments_scanned,
            holes,
            uncommitted,
            replays_settled,
            ..
        } = self;
        write!(
            f,
            "found: {jobs_found} jobs (at most {most_jobs_found} at once), \
             {letters_found} letters, {segments_scanned} segments scanned, {holes} holes, \
             {uncommitted} uncommitted, {replays_settled} replays settled"
        )
    }
}
