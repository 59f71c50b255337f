//! Opens an engine from a directory, through recovery.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;

#[cfg(feature = "async")]
use super::alarms::Alarms;
use super::dead_log::DeadLog;
use super::depth::{DepthLimit, give_back_room};
#[cfg(feature = "async")]
use super::flusher::Flusher;
use super::home::{Directories, Home};
use super::maintenance::Signal;
use super::{Engine, enqueue};
use crate::Sequence;
use crate::dispatch::Dispatch;
use crate::dispatch::gate::Gate;
use crate::dispatch::lease_timeouts::Leases;
use crate::error::{FlushError, OpenError};
use crate::event_count::EventCount;
use crate::events::Mutex;
use crate::lasting::Lasting;
use crate::log::poison::Poison;
use crate::log::recovery::{Recovery, RecoveryReport, count_segments};
use crate::log::{DEAD_ORIGIN, Log, LogConfig, SpaceBudget, segment};
use crate::options::{Builder, Durability};
use crate::runtime::Waker;
use crate::tree::Seat;

/// Wake the tasks that serve an engine.
#[derive(Default)]
pub(super) struct Wakers {
    pub(super) timer: Waker,
    pub(super) maintenance: Waker,
}

impl Engine {
    /// Opens or creates the queue that the builder describes.
    pub(super) fn open(
        builder: &Builder,
        seat: Option<Seat>,
        wakers: Wakers,
    ) -> Result<(Self, RecoveryReport), OpenError> {
        let (home, directories) = Home::open(builder, seat)?;
        if let Some((state, id)) = home.state()
            && let Some(error) = state.uncertain(id)
        {
            return Err(OpenError::Flush(FlushError(error)));
        }
        let home = Arc::new(home);
        Self::recover(&home, directories, builder, wakers).inspect_err(|_| home.undo_creation())
    }

    fn recover(
        home: &Arc<Home>,
        directories: Directories,
        builder: &Builder,
        wakers: Wakers,
    ) -> Result<(Self, RecoveryReport), OpenError> {
        let manifest = &home.manifest;
        let signal = Arc::new(Signal::new(wakers.maintenance, builder.starts_idle));
        let kick = {
            let signal = Arc::clone(&signal);
            Arc::new(move || signal.kick())
        };
        let sleepers = Arc::new(EventCount::new());
        let poison = Arc::<Poison>::default();
        #[cfg(feature = "async")]
        let flusher = Arc::new(Flusher::new(&poison));
        let depth = builder.max_depth.map(|max| Arc::new(DepthLimit::new(max)));
        let room = Arc::new(EventCount::new());
        let lost = {
            let (depth, room) = (depth.clone(), Arc::clone(&room));
            Arc::new(move |jobs| give_back_room(depth.as_deref(), &room, jobs))
        };
        let config = LogConfig {
            segment_size: manifest.segment_size,
            starts_ready: true,
            // With a limit, a stripe without a segment has to get one before others use up the
            // bytes.
            starts_idle: builder.starts_idle && builder.max_bytes.is_none(),
            is_new: home.is_new(),
            queue: Arc::clone(home.directory()),
            budget: Arc::new(SpaceBudget::new(builder.max_bytes, manifest.segment_size)),
            poison: Arc::clone(&poison),
            kick,
            sleepers: Arc::clone(&sleepers),
            lost,
        };
        let mut recovery = Recovery {
            segment_size: manifest.segment_size,
            queue: home.directory(),
            report: RecoveryReport::default(),
            progress: builder.progress.as_deref(),
            segments_seen: 0,
        };
        for directory in directories.lost {
            recovery.report_lost_directory(directory);
        }
        if builder.max_bytes.is_some() {
            let capacity = segment::capacity_of(manifest.segment_size);
            for directory in &directories.stripes {
                let found = count_segments(&directory.list()?, capacity);
                config.budget.expect(found * manifest.segment_size);
            }
        }
        let mut stripes = Vec::new();
        let mut settles = Vec::new();
        let mut elsewhere = Vec::new();
        // A manifest has at most 64 stripes.
        for (number, directory) in (0..).zip(directories.stripes) {
            let (stripe, of_stripe) = Log::open(
                directory,
                Sequence::first_of_stripe(number),
                config.clone(),
                &mut recovery,
            )?;
            stripes.push(stripe);
            settles.extend(of_stripe.here);
            elsewhere.extend(of_stripe.elsewhere);
        }
        let dead_config = LogConfig {
            // Most queues never have a letter.
            starts_ready: false,
            budget: Arc::new(SpaceBudget::new(None, 0)),
            // Letters do not count towards the job limit.
            lost: Arc::new(|_| ()),
            ..config.clone()
        };
        let (dead, of_letters) =
            Log::open(directories.dead, DEAD_ORIGIN, dead_config, &mut recovery)?;

        let mut report = recovery.report;
        settles.extend(of_letters.here);
        if let Some((state, id)) = home.state() {
            report.settled += state
                .settle_named(elsewhere.into_iter().map(|(named, _)| named))
                .map_err(|error| OpenError::Flush(FlushError(error)))?;
            settles.extend(state.completed(id));
        }
        // The records that name others are durable. A segment with such records is only sealed, and
        // from then on not searched for names, once what they name is durably done, too.
        for log in stripes.iter().chain([&dead]) {
            let of_log: Vec<_> = settles.extract_if(.., |one| log.is_home_of(*one)).collect();
            report.settled += log
                .settle(&of_log)
                .map_err(|error| OpenError::Flush(FlushError(error)))?;
        }
        if let Some((state, id)) = home.state() {
            // What was found is durable by now, though not what an earlier open of the queue left
            // behind in this process.
            let mut logs = stripes.iter().chain([&dead]);
            state
                .settle(id, || logs.try_for_each(|log| log.flush(true)))
                .map_err(|error| OpenError::Flush(FlushError(error)))?;
        }
        let live: u64 = stripes.iter().map(|stripe| stripe.stats().live).sum();
        if let Some(depth) = &depth {
            depth.start_with(live);
        }
        report.jobs = live;
        report.dead_letters = dead.stats().live;
        let clock = builder.started_clock();
        let max_payload = enqueue::max_payload(&stripes[0]);
        let name = home.directory().path().file_name();
        let name = name.and_then(|name| name.to_str()).unwrap_or_default();
        let engine = Self {
            name: name.into(),
            home: Arc::clone(home),
            durability: builder.durability,
            dispatch: Dispatch::new(
                stripes.into(),
                sleepers,
                wakers.timer,
                clock.clone(),
                builder.retry.clone(),
                builder.lease_timeout.is_some(),
                builder.wait_strategy,
            ),
            leases: builder.lease_timeout.map(Leases::new),
            observer: builder.observer.clone(),
            only_counts: builder.lease_timeout.is_none() && !builder.observer.sees_all(),
            dead: DeadLog::new(dead, Arc::clone(&poison)),
            depth,
            room,
            signal,
            clock,
            max_payload,
            only_appends: builder.max_depth.is_none() && builder.durability == Durability::Process,
            poison,
            unsettled: Mutex::default(),
            pausing: Mutex::default(),
            resumed: EventCount::new(),
            unwritten_letters: Lasting::default(),
            keeps_expired: builder.keep_expired,
            retried: AtomicU64::new(0),
            snoozed: AtomicU64::new(0),
            expired: AtomicU64::new(0),
            cancelled: AtomicU64::new(0),
            dead_lettered: AtomicU64::new(0),
            recovered: live,
            running: OnceLock::new(),
            #[cfg(feature = "async")]
            flusher,
            #[cfg(feature = "async")]
            alarms: Alarms::default(),
        };
        if engine.finds_pause()? {
            engine.gate().set(Gate::PAUSED);
        }
        Ok((engine, report))
    }
}
