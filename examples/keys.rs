//! Small durable state beside the queues: requests that are sent twice become one job, a report can
//! be asked for its result for a day, and a schedule knows its last tick after a restart.
//!
//! Run with `cargo run --example keys`.

use std::time::Duration;

use logmill::{Durability, Keep, Keys, Queues, TransactionError};

const DAY: Duration = Duration::from_secs(86_400);

/// Enqueues a report, unless this request was seen before.
fn request(queues: &Queues, id: &str) -> Result<(), Box<dyn std::error::Error>> {
    let reports = queues.queue("reports")?;
    let mut transaction = queues.transaction();
    transaction
        .insert_new(format!("request/{id}").as_bytes(), b"", Keep::For(DAY))
        .enqueue(&reports, id.as_bytes());
    match transaction.commit() {
        Ok(_) => println!("request {id} is accepted"),
        Err(TransactionError::Conflict { .. }) => println!("request {id} was seen before"),
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// Counts a tick of a schedule. Of several threads or calls at once, each counts.
fn tick(keys: &Keys, queues: &Queues) -> Result<u64, TransactionError> {
    loop {
        let before = keys.get(b"ticks/hourly");
        let ticks = before.as_ref().map_or(0, |value| {
            u64::from_le_bytes(value.as_bytes().try_into().expect("8 bytes"))
        });
        let mut transaction = queues.transaction();
        transaction
            .expect(b"ticks/hourly", before.map(|value| value.version()))
            .put(b"ticks/hourly", &(ticks + 1).to_le_bytes(), Keep::Forever);
        match transaction.commit() {
            Ok(_) => return Ok(ticks + 1),
            Err(TransactionError::Conflict { .. }) => continue,
            Err(error) => return Err(error),
        }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    for _ in 0..2 {
        // The second time is a restart: the keys are there.
        let queues = Queues::open(dir.path().join("data"))?;
        // What a power cut must not undo.
        let keys = queues.keys().with_durability(Durability::Sync);
        request(&queues, "17")?;
        println!("tick {} of the hourly schedule", tick(&keys, &queues)?);
        keys.put(b"result/17", b"42 pages", Keep::For(DAY))?;
        for (key, value) in keys.with_prefix(b"result/") {
            let (key, value) = (key.escape_ascii(), value.as_bytes().escape_ascii());
            println!("{key}: {value}");
        }
    }
    Ok(())
}
