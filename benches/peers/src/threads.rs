//! Runs producers and consumers that start together, and times them until the last one ends.

use std::hint::spin_loop;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};

/// Tells the other threads that one has failed, so that none waits for its jobs.
pub struct Others<'a>(&'a AtomicBool);

impl Others<'_> {
    /// Returns an error once another thread has failed. For loops that wait.
    pub fn check(&self) -> Result<()> {
        // Relaxed: no other data depends on it.
        if self.0.load(Ordering::Relaxed) {
            bail!("another thread failed");
        }
        Ok(())
    }
}

/// Runs `produce` and `consume` in this many threads each; both get the thread's number.
pub fn timed(
    threads: usize,
    produce: impl Fn(usize) -> Result<()> + Sync,
    consume: impl Fn(usize, &Others<'_>) -> Result<()> + Sync,
) -> Result<Duration> {
    let failed = AtomicBool::new(false);
    let start_line = Barrier::new(2 * threads + 1);
    let note = |result: Result<()>| {
        if result.is_err() {
            failed.store(true, Ordering::Relaxed);
        }
        result
    };
    thread::scope(|scope| {
        let mut handles = Vec::new();
        for thread in 0..threads {
            let (start_line, produce, consume, note) = (&start_line, &produce, &consume, &note);
            let others = Others(&failed);
            handles.push(scope.spawn(move || {
                start_line.wait();
                note(produce(thread))
            }));
            handles.push(scope.spawn(move || {
                start_line.wait();
                note(consume(thread, &others))
            }));
        }
        start_line.wait();
        let start = Instant::now();
        let results: Vec<Result<()>> = handles
            .into_iter()
            .map(|handle| {
                handle
                    .join()
                    .unwrap_or_else(|_| Err(anyhow!("a thread panicked")))
            })
            .collect();
        let took = start.elapsed();
        results.into_iter().collect::<Result<()>>()?;
        Ok(took)
    })
}

/// Runs `run` on both items, each in a thread, which spin at the start line, since waking a sleeper takes
/// as long as thousands of jobs. Times them from the first start to the last end.
pub fn timed_two<T: Send>(
    items: &mut [T; 2],
    run: impl Fn(&mut T, usize) -> Result<()> + Sync,
) -> Result<Duration> {
    let ready = AtomicUsize::new(0);
    let timed = |item: &mut T, thread| -> Result<(Instant, Instant)> {
        ready.fetch_add(1, Ordering::AcqRel);
        while ready.load(Ordering::Acquire) < 2 {
            spin_loop();
        }
        let start = Instant::now();
        run(item, thread)?;
        Ok((start, Instant::now()))
    };
    let [first, second] = items;
    let (first, second) = thread::scope(|scope| {
        let second = scope.spawn(|| timed(second, 1));
        let first = timed(first, 0);
        let second = second.join();
        (
            first,
            second.unwrap_or_else(|_| Err(anyhow!("a thread panicked"))),
        )
    });
    let (first, second) = (first?, second?);
    Ok(first.1.max(second.1) - first.0.min(second.0))
}

/// Runs `run` once for each item, each in its own thread.
pub fn timed_each<T: Send>(
    items: impl ExactSizeIterator<Item = T>,
    run: impl Fn(usize, T) -> Result<()> + Sync,
) -> Result<Duration> {
    let start_line = Barrier::new(items.len() + 1);
    thread::scope(|scope| {
        let (run, start_line) = (&run, &start_line);
        let threads: Vec<_> = items
            .enumerate()
            .map(|(thread, item)| {
                scope.spawn(move || {
                    start_line.wait();
                    run(thread, item)
                })
            })
            .collect();
        start_line.wait();
        let start = Instant::now();
        for thread in threads {
            match thread.join() {
                Ok(result) => result?,
                Err(_) => bail!("a thread panicked"),
            }
        }
        Ok(start.elapsed())
    })
}

/// The share of a thread: the first one also gets the remainder.
pub fn share(jobs: u64, threads: usize, thread: usize) -> u64 {
    let each = jobs / threads as u64;
    if thread == 0 {
        jobs - each * (threads as u64 - 1)
    } else {
        each
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up() {
        for jobs in [0, 1, 7, 64] {
            for threads in 1..5 {
                let all: u64 = (0..threads)
                    .map(|thread| share(jobs, threads, thread))
                    .sum();
                assert_eq!(all, jobs);
            }
        }
    }

    #[test]
    fn a_failure_of_one_thread_ends_the_others() {
        let result = timed(
            2,
            |thread| {
                if thread == 0 {
                    Err(anyhow!("broken"))
                } else {
                    Ok(())
                }
            },
            |_, others| {
                loop {
                    others.check()?;
                    thread::yield_now();
                }
            },
        );
        assert!(result.is_err());
    }
}
