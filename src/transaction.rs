//! Transactions: jobs and keys that are written, and a job that is completed, all or nothing.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::engine::Running;
use crate::engine::transactions::{self, Source};
use crate::error::TransactionError;
use crate::options::{Durability, EnqueueOptions};
use crate::state::entry::{Change, MAX_KEY_BYTES, NewJob};
use crate::time::Clock;
use crate::tree::Tree;
use crate::{JobId, Timestamp};

/// How long a key keeps its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Keep {
    /// Until it is replaced or removed.
    Forever,
    /// For so long from now on, by the wall clock.
    For(Duration),
    /// Until this time, by the wall clock.
    Until(SystemTime),
}

impl Keep {
    fn expires_at(self, clock: &Clock) -> Option<Timestamp> {
        match self {
            Self::Forever => None,
            Self::For(time) => Some(clock.wall().saturating_add(time)),
            Self::Until(time) => Some(time.into()),
        }
    }
}

/// Jobs to enqueue and keys to change, all or nothing, from
/// [`Queues::transaction`](crate::Queues::transaction).
///
/// Nothing happens before [`Job::ack_with`](crate::Job::ack_with) or [`commit`](Self::commit). Then
/// all of it happens, together with the ack, or nothing:
///
/// - After the death of the process at any moment, either the job comes again and nothing else of
///   the transaction exists, or the job is done, each new job is in its queue exactly once, and the
///   keys have their new values.
/// - With [`Durability::Sync`] this also holds after a power cut.
/// - With `Process` and `Interval`, a power cut before the transaction is flushed may undo any part
///   of it by itself: the job may come again beside the new jobs, or be done without some of them.
///   Keys change all or none also then.
///
/// The new jobs may be delivered before the call returns. An open finishes what the death of the
/// process interrupted, for each queue when that queue is opened.
///
/// ```
/// use logmill::{Keep, Queues};
/// # use std::time::Duration;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// let queues = Queues::open(dir.path().join("data"))?;
/// let orders = queues.queue("orders")?;
/// let mails = queues.queue("mails")?;
/// orders.enqueue(b"order 17")?;
///
/// let consumer = orders.consumer();
/// let job = consumer.next().expect("a job was enqueued");
/// let mut transaction = queues.transaction();
/// transaction.enqueue(&mails, b"your order 17 is on its way");
/// transaction.put(b"order/17", b"shipped", Keep::For(Duration::from_secs(86_400)));
/// job.ack_with(transaction)?;
///
/// assert_eq!(orders.stats().depth(), 0);
/// assert_eq!(mails.stats().depth(), 1);
/// assert_eq!(queues.keys().get(b"order/17").expect("a value").as_bytes(), b"shipped");
/// # Ok(())
/// # }
/// ```
#[must_use = "nothing happens before the transaction is committed"]
pub struct Transaction {
    tree: Arc<Tree>,
    durability: Option<Durability>,
    has_durable_ids: bool,
    jobs: Vec<NewJob>,
    /// The queue of each job.
    queues: Vec<Arc<Running>>,
    changes: Vec<(Vec<u8>, Change)>,
    conditions: Vec<(Vec<u8>, Option<u64>)>,
    /// What is wrong with the first part that cannot be committed.
    invalid: Option<TransactionError>,
}

/// What a transaction has enqueued.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Committed {
    /// The ids of the new jobs, in the order in which they were added.
    ///
    /// None if a queue has no segment for the job at the moment, as its disk or `max_bytes` is
    /// full: the job goes to its queue as soon as there is one, also after a restart.
    ///
    /// After a power cut they hold with [`Transaction::durable_ids`].
    pub jobs: Vec<Option<JobId>>,
}

impl Transaction {
    pub(crate) fn new(tree: Arc<Tree>) -> Self {
        Self {
            tree,
            durability: None,
            has_durable_ids: false,
            jobs: Vec::new(),
            queues: Vec::new(),
            changes: Vec::new(),
            conditions: Vec::new(),
            invalid: None,
        }
    }

    /// Sets how durable the transaction is when its commit returns.
    ///
    /// Default: the strongest [`Durability`] of the queues that take part.
    pub fn durability(&mut self, durability: Durability) -> &mut Self {
        self.durability = Some(durability);
        self
    }

    /// Has the ids of the new jobs hold after a power cut, if the transaction is `Sync`: the commit also waits
    /// for a flush of each queue that gets a job.
    ///
    /// Without this, the jobs survive a power cut, but may have other ids after it: what was flushed is
    /// the transaction, from which they are appended to their queues once more.
    pub fn durable_ids(&mut self) -> &mut Self {
        self.has_durable_ids = true;
        self
    }

    /// Adds a job for a queue of the transaction's tree. An error is told by the commit.
    pub(crate) fn add(
        &mut self,
        running: &Arc<Running>,
        payload: &[u8],
        options: &EnqueueOptions<'_>,
    ) {
        match transactions::new_job(running, &self.tree, payload, options) {
            Ok(job) => {
                self.jobs.push(job);
                self.queues.push(Arc::clone(running));
            }
            Err(error) => self.refuse(error),
        }
    }

    fn refuse(&mut self, error: TransactionError) {
        self.invalid.get_or_insert(error);
    }

    fn change(&mut self, key: &[u8], change: Change) -> &mut Self {
        if !(1..=MAX_KEY_BYTES).contains(&key.len()) {
            let len = key.len();
            self.refuse(TransactionError::InvalidKey { len });
            return self;
        }
        self.changes.push((key.to_vec(), change));
        self
    }

    /// Gives a key a value, whether it has one or not.
    ///
    /// A key has 1 to 1,024 bytes. What is done to the same key later in the transaction replaces
    /// this.
    pub fn put(&mut self, key: &[u8], value: &[u8], keep: Keep) -> &mut Self {
        let change = Change::Put {
            value: value.to_vec(),
            expires_at: keep.expires_at(self.tree.clock()),
        };
        self.change(key, change)
    }

    /// Gives a key a value if it has none; otherwise the commit returns
    /// [`TransactionError::Conflict`] and nothing happens.
    ///
    /// For idempotency keys: the check and the write are one step.
    pub fn insert_new(&mut self, key: &[u8], value: &[u8], keep: Keep) -> &mut Self {
        self.expect(key, None).put(key, value, keep)
    }

    /// Removes a key, whether it has a value or not.
    pub fn remove(&mut self, key: &[u8]) -> &mut Self {
        self.change(key, Change::Remove)
    }

    /// Requires that the value of a key has this [version](crate::Value::version), or with None that
    /// it has no value; otherwise the commit returns [`TransactionError::Conflict`] and nothing
    /// happens.
    pub fn expect(&mut self, key: &[u8], version: Option<u64>) -> &mut Self {
        self.conditions.push((key.to_vec(), version));
        self
    }

    /// Commits the transaction without completing a job.
    ///
    /// Takes a lock, under which one transaction of the tree after the other is copied into mapped
    /// memory; with `Sync` it then waits for the flush of one file, and with
    /// [`durable_ids`](Self::durable_ids) for one of each queue that gets a job.
    ///
    /// # Errors
    /// See [`TransactionError`]. Nothing has happened, except after
    /// [`NotDurable`](TransactionError::NotDurable).
    pub fn commit(self) -> Result<Committed, TransactionError> {
        self.commit_with(None)
    }

    pub(crate) fn commit_with(
        mut self,
        source: Option<Source<'_>>,
    ) -> Result<Committed, TransactionError> {
        if let Some(error) = self.invalid {
            if let Some(source) = source {
                source.fail(&error);
            }
            return Err(error);
        }
        leave_last_of_each(&mut self.changes);
        let parts = transactions::Parts {
            jobs: &self.jobs,
            queues: &self.queues,
            changes: &self.changes,
            conditions: &self.conditions,
            has_durable_ids: self.has_durable_ids,
        };
        let jobs = transactions::commit(&self.tree, &parts, self.durability, source)?;
        Ok(Committed { jobs })
    }
}

/// What a handler that has succeeded completes its job with: nothing more, or a [`Transaction`].
///
/// A handler of [`WorkersBuilder::run`](crate::WorkersBuilder::run) returns `Ok(())`,
/// `Ok(transaction)`, or an `Option` of a transaction.
#[derive(Debug)]
pub struct Completion(Option<Transaction>);

impl Completion {
    pub(crate) fn into_transaction(self) -> Option<Transaction> {
        self.0
    }
}

impl From<()> for Completion {
    #[inline]
    fn from((): ()) -> Self {
        Self(None)
    }
}

impl From<Transaction> for Completion {
    fn from(transaction: Transaction) -> Self {
        Self(Some(transaction))
    }
}

impl From<Option<Transaction>> for Completion {
    fn from(transaction: Option<Transaction>) -> Self {
        Self(transaction)
    }
}

/// Leaves only what is done last to each key.
fn leave_last_of_each(changes: &mut Vec<(Vec<u8>, Change)>) {
    if changes.len() > 1 {
        let mut seen = HashSet::with_capacity(changes.len());
        changes.reverse();
        changes.retain(|(key, _)| seen.insert(key.clone()));
        changes.reverse();
    }
}

impl fmt::Debug for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction")
            .field("jobs", &self.jobs.len())
            .field("keys", &self.changes.len())
            .finish_non_exhaustive()
    }
}
