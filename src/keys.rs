//! The keyed store of a directory of queues.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use crate::error::TransactionError;
use crate::options::Durability;
use crate::state::Found;
use crate::transaction::{Keep, Transaction};
use crate::tree::Tree;

/// Small durable values by key, beside the queues: idempotency keys, results, counters of joins.
/// From [`Queues::keys`](crate::Queues::keys).
///
/// Keys live in the same log as the [transactions](Transaction) of the tree, so a transaction can
/// change them together with jobs. Each call here that changes a key is a transaction of its own,
/// with [`Durability::Process`] unless
/// [`with_durability`](Self::with_durability) says otherwise: it survives the death of the process
/// at once, and a power cut after the next [flush](crate::Queues::flush).
///
/// A key whose value has expired is absent. Maintenance frees the value without a call for the key;
/// at a time, up to as many values may have expired and not be freed as are valid.
///
/// # Costs
/// A lookup copies the value. It does not wait for appends and flushes, only while a change is
/// entered into the index. Changes are made one after the other, under a lock.
///
/// - **Heap:** 20 to 40 bytes for each key, as a table doubles when it is full, and 8 KiB.
/// - **Mapped files:** a record of 32 bytes, key, value, 3 bytes for the field of the key, and 11
///   bytes each for an expiry, for the value that it has replaced, and after it was moved by
///   cleaning; this is rounded up to 8 bytes. Beside records, the files for acks take an eighth of
///   a segment of 8 MiB. With values that are replaced and not freed yet, it is at most twice the
///   valid values and a few segments more, except while maintenance is behind. Each segment takes
///   two of the process's mappings.
/// - **Open:** reads and checks all records of keys.
/// - **Cleaning:** in the worst case, each byte that is written is moved once more.
///
/// A million keys of 32 bytes with values of 16 take 36 MB of heap and 100 to 115 MB of mapped
/// files.
///
/// ```
/// use logmill::{Keep, Queues};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// let queues = Queues::open(dir.path().join("data"))?;
/// let keys = queues.keys();
/// keys.put(b"last tick/hourly", b"2026-03-01T10:00", Keep::Forever)?;
/// let value = keys.get(b"last tick/hourly").expect("a value");
/// assert_eq!(value.as_bytes(), b"2026-03-01T10:00");
/// assert!(keys.insert_new(b"last tick/hourly", b"", Keep::Forever).is_err());
/// keys.remove(b"last tick/hourly")?;
/// assert!(keys.get(b"last tick/hourly").is_none());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Keys {
    tree: Arc<Tree>,
    durability: Durability,
}

/// The value of a key, copied.
#[derive(Clone, PartialEq, Eq)]
pub struct Value(Found);

impl Value {
    /// The bytes that the key was given.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0.value
    }

    /// The bytes that the key was given.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0.value
    }

    /// A number that no other value of this key has had or will have, for
    /// [`Transaction::expect`].
    pub fn version(&self) -> u64 {
        self.0.version
    }

    /// When the value expires, if it does.
    pub fn expires_at(&self) -> Option<SystemTime> {
        self.0.expires_at.map(SystemTime::from)
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Value")
            .field("len", &self.0.value.len())
            .field("version", &self.0.version)
            .field("expires_at", &self.expires_at())
            .finish()
    }
}

impl Keys {
    pub(crate) fn new(tree: Arc<Tree>) -> Self {
        Self {
            tree,
            durability: Durability::Process,
        }
    }

    /// A handle whose changes are as durable as this when they return.
    ///
    /// Default: [`Durability::Process`]. Concurrent changes with [`Durability::Sync`] share
    /// flushes. For a single one, use a [`Transaction`] with that durability.
    pub fn with_durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// The value of a key; None if it has none, or the value has expired.
    pub fn get(&self, key: &[u8]) -> Option<Value> {
        self.tree.state().get(key).map(Value)
    }

    /// The keys that begin with `prefix`, in no order, each with its value; with an empty prefix
    /// all keys.
    ///
    /// A key that has a value during the whole walk is found exactly once; one that is given its
    /// first value or loses its last one meanwhile may be found or not. The walk looks at every key
    /// of the store, whatever the prefix, in 256 parts. While a part is copied, changes of keys
    /// wait: with a million keys, for less than a millisecond.
    pub fn with_prefix(&self, prefix: &[u8]) -> impl Iterator<Item = (Vec<u8>, Value)> + use<> {
        let (tree, prefix) = (Arc::clone(&self.tree), prefix.to_vec());
        let parts = (0..).map_while(move |part| tree.state().keys_in(part, &prefix));
        parts.flatten().map(|(key, found)| (key, Value(found)))
    }

    /// How many keys have a value, including values that have expired and are not freed yet.
    pub fn len(&self) -> usize {
        self.tree.state().keys()
    }

    /// Whether no key has a value.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Gives a key a value, whether it has one or not.
    ///
    /// # Errors
    /// See [`TransactionError`]; the key has its old value.
    pub fn put(&self, key: &[u8], value: &[u8], keep: Keep) -> Result<(), TransactionError> {
        self.change(|transaction| transaction.put(key, value, keep))
    }

    /// Gives a key a value if it has none.
    ///
    /// # Errors
    /// [`TransactionError::Conflict`] if it has one, and see [`TransactionError`].
    pub fn insert_new(&self, key: &[u8], value: &[u8], keep: Keep) -> Result<(), TransactionError> {
        self.change(|transaction| transaction.insert_new(key, value, keep))
    }

    /// Removes a key, whether it has a value or not.
    ///
    /// # Errors
    /// See [`TransactionError`]; the key has its old value.
    pub fn remove(&self, key: &[u8]) -> Result<(), TransactionError> {
        self.change(|transaction| transaction.remove(key))
    }

    fn change(
        &self,
        change: impl FnOnce(&mut Transaction) -> &mut Transaction,
    ) -> Result<(), TransactionError> {
        let mut transaction = Transaction::new(Arc::clone(&self.tree));
        transaction.durability(self.durability);
        change(&mut transaction);
        transaction.commit().map(|_| ())
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys")
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}
