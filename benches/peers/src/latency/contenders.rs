//! Who is measured: logmill, an in-memory channel, and nothing at all.

use std::ops::ControlFlow;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use crossbeam_channel::{TryRecvError, unbounded};
use logmill::{Consumer, Durability, JobId, Producer, Queue, WaitStrategy};
use serde::Serialize;

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Contender {
    /// The generator with nothing between its two looks at the clock: the machine's own noise.
    Empty,
    Channel,
    /// Its receiver looks again and again: what a spinning thread can do on this machine.
    ChannelSpins,
    /// Its receiver naps between two looks: what a thread that naps can do on this machine.
    ChannelNaps,
    Logmill,
    /// A consumer that has nothing to do naps, while jobs come often.
    Naps,
    /// A consumer that has nothing to do looks again and again.
    Spins,
    /// What was enqueued is flushed each 10 ms.
    Interval,
}

impl Contender {
    pub const ALL: [Self; 8] = [
        Self::Empty,
        Self::Channel,
        Self::ChannelSpins,
        Self::ChannelNaps,
        Self::Logmill,
        Self::Naps,
        Self::Spins,
        Self::Interval,
    ];

    /// None: it is not logmill.
    fn wait_strategy(self) -> Option<WaitStrategy> {
        match self {
            Self::Empty | Self::Channel | Self::ChannelSpins | Self::ChannelNaps => None,
            Self::Logmill | Self::Interval => Some(WaitStrategy::Sleep),
            Self::Naps => Some(WaitStrategy::Nap(NAP)),
            Self::Spins => Some(WaitStrategy::Spin),
        }
    }

    pub fn is_logmill(self) -> bool {
        self.wait_strategy().is_some()
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Empty => "empty loop",
            Self::Channel => "crossbeam channel",
            Self::ChannelSpins => "channel, spins",
            Self::ChannelNaps => "channel, naps",
            Self::Logmill => "logmill",
            Self::Naps => "logmill, naps",
            Self::Spins => "logmill, spins",
            Self::Interval => "logmill, flushed each 10 ms",
        }
    }

    /// What a job that was sent survives.
    pub fn guarantee(self) -> &'static str {
        match self {
            Self::Empty => "nothing is sent",
            Self::Channel => {
                "`crossbeam_channel::unbounded`, a newly allocated `Vec<u8>` for each message, \
                 `recv`: a message is lost with the process"
            }
            Self::ChannelSpins => "the same with `try_recv` in a loop instead of `recv`",
            Self::ChannelNaps => {
                "the same with a sleep of 1 µs after each `try_recv` that finds nothing, to which the \
                 kernel adds the thread's timer slack of 50 µs, as to naps of logmill here"
            }
            Self::Logmill => {
                "`Producer::enqueue` with `Durability::Process`, `Consumer::next`, each job acked: \
                 a job and its ack survive `kill -9`, not a power cut"
            }
            Self::Naps => {
                "the same with `WaitStrategy::Nap` of 50 µs: while jobs come often, an idle \
                 consumer looks for them, and producers wake nobody"
            }
            Self::Spins => {
                "the same with `WaitStrategy::Spin`: an idle consumer looks for jobs all the time"
            }
            Self::Interval => {
                "with `Durability::Interval` of 10 ms: a power cut loses what is younger than that and \
                 a flush"
            }
        }
    }
}

/// The side that is timed.
pub trait Send {
    /// What a call returns, to be looked at when it has been timed.
    type Receipt;

    fn send(&mut self, payload: &[u8]) -> Result<Self::Receipt>;

    /// Whether this call, the next after the last one asked about, began a new segment.
    fn has_rolled(&mut self, receipt: Self::Receipt) -> bool;
}

/// The side that handles.
pub trait Receive {
    /// Hands over what comes, until told that it was the last.
    fn receive(self, handle: impl FnMut(&[u8]) -> ControlFlow<()>);
}

pub struct Empty;

impl Send for Empty {
    type Receipt = ();

    #[inline]
    fn send(&mut self, payload: &[u8]) -> Result<()> {
        std::hint::black_box(payload);
        Ok(())
    }

    #[inline]
    fn has_rolled(&mut self, (): ()) -> bool {
        false
    }
}

impl Receive for Empty {
    fn receive(self, _: impl FnMut(&[u8]) -> ControlFlow<()>) {}
}

pub struct ChannelSender(crossbeam_channel::Sender<Vec<u8>>);
pub struct ChannelReceiver {
    messages: crossbeam_channel::Receiver<Vec<u8>>,
    contender: Contender,
}

pub fn channel(contender: Contender) -> (ChannelSender, ChannelReceiver) {
    let (sender, messages) = unbounded();
    let receiver = ChannelReceiver {
        messages,
        contender,
    };
    (ChannelSender(sender), receiver)
}

impl Send for ChannelSender {
    type Receipt = ();

    #[inline]
    fn send(&mut self, payload: &[u8]) -> Result<()> {
        Ok(self.0.send(payload.to_vec())?)
    }

    #[inline]
    fn has_rolled(&mut self, (): ()) -> bool {
        false
    }
}

impl Receive for ChannelReceiver {
    fn receive(self, mut handle: impl FnMut(&[u8]) -> ControlFlow<()>) {
        let looked = |pause: fn()| loop {
            match self.messages.try_recv() {
                Ok(message) => break Some(message),
                Err(TryRecvError::Empty) => pause(),
                Err(TryRecvError::Disconnected) => break None,
            }
        };
        let next = || match self.contender {
            Contender::ChannelSpins => looked(std::hint::spin_loop),
            Contender::ChannelNaps => looked(|| thread::sleep(SHORTEST_NAP)),
            _ => self.messages.recv().ok(),
        };
        while let Some(message) = next() {
            if handle(&message).is_break() {
                break;
            }
        }
    }
}

const SHORTEST_NAP: Duration = Duration::from_micros(1);
const NAP: Duration = Duration::from_micros(50);
const FLUSH_INTERVAL: Duration = Duration::from_millis(10);

/// A new queue in an empty directory, all of it as it comes but for one stripe: there is one
/// producer.
pub fn open_queue(dir: &Path, contender: Contender) -> Result<Queue> {
    let builder = Queue::builder(dir)
        .stripes(1)
        .wait_strategy(contender.wait_strategy().unwrap_or_default());
    let durability = match contender {
        Contender::Interval => Durability::Interval(FLUSH_INTERVAL),
        _ => Durability::Process,
    };
    let (queue, _) = builder.durability(durability).open()?;
    Ok(queue)
}

pub struct LogmillSender {
    producer: Producer,
    last: Option<JobId>,
}

pub struct LogmillReceiver(Consumer);

pub fn logmill(queue: &Queue) -> (LogmillSender, LogmillReceiver) {
    let sender = LogmillSender {
        producer: queue.producer(),
        last: None,
    };
    (sender, LogmillReceiver(queue.consumer()))
}

impl Send for LogmillSender {
    type Receipt = JobId;

    #[inline]
    fn send(&mut self, payload: &[u8]) -> Result<JobId> {
        Ok(self.producer.enqueue(payload)?)
    }

    /// Ids of one segment have no gaps, and there is one between two segments.
    #[inline]
    fn has_rolled(&mut self, receipt: JobId) -> bool {
        let last = self.last.replace(receipt);
        last.is_some_and(|last| receipt.get() != last.get() + 1)
    }
}

impl Receive for LogmillReceiver {
    fn receive(self, mut handle: impl FnMut(&[u8]) -> ControlFlow<()>) {
        // None: the queue was closed, after an error of the other side.
        while let Some(job) = self.0.next() {
            let flow = handle(job.payload());
            job.ack();
            if flow.is_break() {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_roll_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let queue = open_queue(dir.path(), Contender::Logmill).unwrap();
        let (mut sender, receiver) = logmill(&queue);
        // Five of these fill a segment of 8 MiB, four of 1.5 MiB do with their headers.
        let payload = vec![7; 3 << 19];
        let mut rolls = 0;
        for _ in 0..21 {
            let receipt = sender.send(&payload).unwrap();
            rolls += u32::from(sender.has_rolled(receipt));
        }
        assert_eq!(rolls, 4);
        let mut left = 21;
        receiver.receive(|received| {
            assert_eq!(received, payload);
            left -= 1;
            match left {
                0 => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            }
        });
        assert_eq!(queue.stats().depth(), 0);
        queue.close().unwrap();
    }
}
