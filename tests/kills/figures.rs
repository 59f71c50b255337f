//! Counts what a run of the harness did and found.

use std::fmt;

#[derive(Clone, Debug, Default)]
pub(crate) struct Figures {
    pub directories: u64,
    pub kills: u64,
    /// Kills before the child had begun to open the queue, and while it was opening the queue.
    pub kills_before_open: u64,
    pub kills_in_open: u64,
    /// Kills while the child was closing the queue.
    pub kills_in_close: u64,
    /// Kills by a poison job, which kills its own process.
    pub kills_by_poison: u64,
    pub kills_while_stopped: u64,
    /// Stops (SIGSTOP), and how often a second open was refused during a stop.
    pub stops: u64,
    pub locked: u64,
    pub orderly_ends: u64,
    pub inspections: u64,

    /// Enqueues that returned a job.
    pub enqueued: u64,
    pub refused: u64,
    pub delivered: u64,
    pub acked: u64,
    pub replayed: u64,
    pub purged: u64,
    pub flushes: u64,
    /// Letters, each counted when it is first seen.
    pub letters: u64,
    /// Letters that were gone although nobody had begun to replay or purge them: their jobs were
    /// acked late.
    pub withdrawn: u64,
    /// Enqueues that a kill interrupted, and how many of these had enqueued their job.
    pub in_flight: u64,
    pub in_flight_kept: u64,
    /// Acks that a kill interrupted.
    pub acks_in_flight: u64,
    /// Jobs found together with their letter.
    pub overlaps: u64,
    /// Letters that were not the first of their job.
    pub second_letters: u64,
    /// Deliveries that the queue counted but the child did not come to note.
    pub unnoted: u64,

    /// What the inspections found.
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
            withdrawn,
            ..
        } = self;
        writeln!(
            f,
            "{enqueued} enqueued, {refused} refused, {delivered} delivered, {acked} acked, \
             {letters} letters, {replayed} replayed, {purged} purged, {withdrawn} withdrawn, \
             {flushes} flushes"
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
