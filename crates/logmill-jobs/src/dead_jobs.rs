//! Many dead jobs: lists page by page, and what is done to all that a filter selects.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::JobId;
use crate::backend::BackendError;
use crate::mill::OpenQueue;
use crate::queue::{DeadJob, JobQueue, dead_job};
use crate::user_code;

/// Some of the dead jobs of a queue, from [`JobQueue::dead_jobs_page`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeadPage {
    /// The jobs: those of the highest level of priority first, and within a level the oldest.
    pub jobs: Vec<DeadJob>,
    /// Where the next page begins; None if this one is the last.
    pub next: Option<DeadCursor>,
}

/// A place in the list of the dead jobs of a queue. It stays valid whatever is replayed, purged or
/// dies meanwhile.
///
/// Its text, as `mail.high/17`, can be put into the address of a page, and parsed again.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DeadCursor {
    /// The level, and the number of the letter before the place.
    after: JobId,
}

impl std::fmt::Display for DeadCursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.after.fmt(f)
    }
}

impl std::str::FromStr for DeadCursor {
    type Err = crate::ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self {
            after: text.parse()?,
        })
    }
}

/// Dead jobs that a filter has selected, of one level.
struct Selected {
    level: Arc<OpenQueue>,
    letters: Vec<u64>,
    /// How many there are of each kind.
    kinds: HashMap<String, u64>,
    /// The places of those that are of flows.
    flows: Vec<Vec<u8>>,
    /// Those of unique jobs, with their headers.
    uniques: Vec<(u64, Vec<u8>)>,
}

impl JobQueue {
    /// Up to `limit` dead jobs behind a cursor, or the first ones.
    ///
    /// Has as many jobs in memory as it returns, and reads past those before the cursor.
    ///
    /// ```
    /// # use logmill_jobs::Mill;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let mill = Mill::open(dir.path().join("jobs"))?;
    /// let mail = mill.queue("mail")?;
    /// let mut page = mail.dead_jobs_page(None, 100)?;
    /// loop {
    ///     for dead in &page.jobs {
    ///         println!("{} {}: {}", dead.id, dead.kind, dead.reason());
    ///     }
    ///     let Some(next) = &page.next else { break };
    ///     page = mail.dead_jobs_page(Some(next), 100)?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The cursor is of another queue, or the storage failed.
    pub fn dead_jobs_page(
        &self,
        after: Option<&DeadCursor>,
        limit: usize,
    ) -> Result<DeadPage, BackendError> {
        let limit = limit.max(1);
        let levels = self.existing_levels()?;
        let mut from = 0;
        if let Some(DeadCursor { after }) = after {
            let Some(at) = levels
                .iter()
                .position(|level| &*level.name == after.place())
            else {
                let why = format!("the cursor {after} is not of the queue {}", self.name());
                return Err(BackendError::Invalid(why));
            };
            from = at;
        }
        let mut jobs: Vec<DeadJob> = Vec::new();
        let mut is_more = false;
        for (at, level) in levels.iter().enumerate().skip(from) {
            let after = after.map(|cursor| cursor.after.number());
            let after = after.filter(|_| at == from);
            level.queue.each_dead_letter(after, &mut |letter| {
                is_more = jobs.len() == limit;
                if !is_more {
                    jobs.push(dead_job(&self.mill, level, letter));
                }
                !is_more
            })?;
            if is_more {
                break;
            }
        }
        let last = jobs.last().filter(|_| is_more);
        let next = last.map(|last| DeadCursor {
            after: JobId::new(Arc::clone(last.id.place_arc()), last.letter),
        });
        Ok(DeadPage { jobs, next })
    }

    /// Enqueues dead jobs anew: up to `limit` of those that the filter selects, in the order of
    /// [`dead_jobs_page`](Self::dead_jobs_page). Returns their new ids.
    ///
    /// ```
    /// # use logmill_jobs::Mill;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let mill = Mill::open(dir.path().join("jobs"))?;
    /// let mail = mill.queue("mail")?;
    /// // The server was down.
    /// mail.replay_where(1000, |dead| dead.kind == "welcome" && dead.reason().contains("refused"))?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The queue is full, or the storage failed; some may be enqueued by then. A filter that panics.
    pub fn replay_where(
        &self,
        limit: usize,
        filter: impl FnMut(&DeadJob) -> bool,
    ) -> Result<Vec<JobId>, BackendError> {
        let mut replayed = Vec::new();
        for Selected {
            level,
            letters,
            kinds,
            flows,
            ..
        } in self.select(limit, filter)?
        {
            for flow in &flows {
                crate::flow::note_replay(&self.mill, Some(flow))?;
            }
            let counted = kinds.iter().map(|(kind, count)| {
                let counter = level.arrivals.of(kind);
                counter.add(*count);
                (counter, *count)
            });
            let counted: Vec<_> = counted.collect();
            let numbers = level.queue.replay_all(&letters);
            if !matches!(numbers, Ok(_) | Err(BackendError::NotDurable(_))) {
                // Some may be enqueued by then; how many, the backend does not say.
                for (counter, count) in counted {
                    counter.take_back(count);
                }
            }
            let numbers = numbers?.into_iter();
            replayed.extend(numbers.map(|number| JobId::new(level.name.clone(), number)));
        }
        Ok(replayed)
    }

    /// Removes dead jobs for good: up to `limit` of those that the filter selects, in the order of
    /// [`dead_jobs_page`](Self::dead_jobs_page). Returns how many there were.
    ///
    /// # Errors
    /// The storage failed; some may be removed by then. A filter that panics.
    pub fn purge_where(
        &self,
        limit: usize,
        filter: impl FnMut(&DeadJob) -> bool,
    ) -> Result<u64, BackendError> {
        let mut sum = 0;
        for mut one in self.select(limit, filter)? {
            // Each by itself: it matters whether it is there still.
            let mut alone = HashSet::new();
            for (letter, unique) in &one.uniques {
                if crate::unique::keeps_of_letter(&self.mill, unique)? {
                    sum += u64::from(self.purge_letter(&one.level, *letter, Some(unique))?);
                    alone.insert(*letter);
                }
            }
            one.letters.retain(|letter| !alone.contains(letter));
            sum += one.level.queue.purge_all(&one.letters)?;
        }
        Ok(sum)
    }

    /// The letters that a filter selects, by level. The filter is user code, so it is called before
    /// anything is changed.
    fn select(
        &self,
        limit: usize,
        mut filter: impl FnMut(&DeadJob) -> bool,
    ) -> Result<Vec<Selected>, BackendError> {
        let (mut left, mut panic) = (limit, None);
        let mut selected = Vec::new();
        for level in self.existing_levels()? {
            let (mut letters, mut flows, mut uniques) = (Vec::new(), Vec::new(), Vec::new());
            let mut kinds = HashMap::<String, u64>::new();
            if left == 0 {
                break;
            }
            level.queue.each_dead_letter(None, &mut |letter| {
                let number = letter.letter;
                let dead = dead_job(&self.mill, &level, letter);
                match user_code::call(|| filter(&dead)) {
                    Ok(true) => {
                        letters.push(number);
                        *kinds.entry(dead.kind).or_default() += 1;
                        flows.extend(dead.flow);
                        uniques.extend(dead.unique.map(|unique| (number, unique)));
                        left -= 1;
                    }
                    Ok(false) => {}
                    Err(message) => panic = Some(message),
                }
                left > 0 && panic.is_none()
            })?;
            if let Some(panic) = panic {
                let why = format!("the filter of dead jobs panicked: {panic}");
                return Err(BackendError::Invalid(why));
            }
            selected.push(Selected {
                level,
                letters,
                kinds,
                flows,
                uniques,
            });
        }
        selected.retain(|one| !one.letters.is_empty());
        Ok(selected)
    }
}
