//! Who takes part in the scenario `jobs`, with how many jobs, and what each guarantees.

use anyhow::Result;

use super::ours::{self, BULK, Setup};
use super::programs::Peer;
use crate::contender::{Comparison, Contender, Figures};
use crate::context::Context;
use crate::format::Unit;
use crate::peers::servers::Persistence;
use crate::statistics::quantile;

const OURS: &str = "a job and its completion survive kill -9; a power cut may undo the last";
const OURS_SYNC: &str = "a job and its completion survive a power cut";
const SNAPSHOTS: &str = "what the last snapshot of Redis has (its default)";
const LOG: &str = "a job survives kill -9; a power cut loses a second (AOF, everysec)";
const LOG_SYNC: &str = "a job survives a power cut (AOF, always)";
const CELERY: &str = "what the last snapshot of Redis has, without jobs that have begun";
const APALIS: &str = "a job survives kill -9 (WAL, synchronous=OFF)";
/// What the column says in short.
const DURABILITY: &str = "*What survives* is what each guarantees as set up here, above all by \
    default. Redis takes a snapshot after an hour with a change, after 5 minutes with 100 or after a \
    minute with 10,000, and `kill -9` of the server loses what came later. With its append-only file \
    (AOF) each step survives that. Celery acks a job as it begins, so `kill -9` of its worker loses the \
    jobs that run. apalis-sqlite's setup turns SQLite's syncs off, on one connection of its pool: a \
    power cut may lose jobs, or damage the database. \"kill -9\" of logmill-jobs and apalis-sqlite is \
    that of the program itself.";

/// Jobs a second of the latencies.
const RATE: u64 = 100;

const BULLMQ: Peer = Peer {
    folder: "bullmq",
    redis: Some(Persistence::Default),
    produce: &["node", "produce.js"],
    bulk: false,
    work: Some(&["node", "work.js", "1"]),
};
/// As many jobs at a time as BullMQ's documentation suggests for handlers that wait.
const BULLMQ_50: Peer = Peer {
    bulk: true,
    work: Some(&["node", "work.js", "50"]),
    ..BULLMQ
};
const RQ_URL: &str = "redis://127.0.0.1:{port}";
const RQ: Peer = Peer {
    folder: "rq",
    redis: Some(Persistence::Default),
    produce: &[".venv/bin/python", "produce.py"],
    bulk: false,
    work: Some(&[".venv/bin/rq", "worker", "-q", "-u", RQ_URL, "jobs"]),
};
const RQ_SIMPLE: Peer = Peer {
    bulk: true,
    work: Some(&[
        ".venv/bin/rq",
        "worker",
        "-q",
        "-u",
        RQ_URL,
        "-w",
        "rq.SimpleWorker",
        "jobs",
    ]),
    ..RQ
};
const RQ_POOL: Peer = Peer {
    bulk: true,
    work: Some(&[
        ".venv/bin/rq",
        "worker-pool",
        "-q",
        "-u",
        RQ_URL,
        "-n",
        "2",
        "-w",
        "rq.SimpleWorker",
        "jobs",
    ]),
    ..RQ
};
const CELERY_PREFORK: Peer = Peer {
    folder: "celery",
    redis: Some(Persistence::Default),
    produce: &[".venv/bin/python", "produce.py"],
    bulk: false,
    work: Some(&[".venv/bin/celery", "-A", "tasks", "worker"]),
};
const CELERY_ONE: Peer = Peer {
    work: Some(&[".venv/bin/celery", "-A", "tasks", "worker", "-c", "1"]),
    ..CELERY_PREFORK
};
const CELERY_SOLO: Peer = Peer {
    work: Some(&[".venv/bin/celery", "-A", "tasks", "worker", "-P", "solo"]),
    ..CELERY_PREFORK
};
const APALIS_BINARY: &str = "apalis/target/release/logmill-peers-apalis";
const APALIS_FILE: &str = "{dir}/jobs.db";
/// Its default: ten jobs at a time.
const APALIS_10: Peer = Peer {
    folder: "apalis",
    redis: None,
    produce: &[APALIS_BINARY, APALIS_FILE, "10"],
    bulk: false,
    work: None,
};
const APALIS_1000: Peer = Peer {
    produce: &[APALIS_BINARY, APALIS_FILE, "1000"],
    bulk: true,
    ..APALIS_10
};
/// Without a worker.
const APALIS_ALONE: Peer = Peer {
    produce: &[APALIS_BINARY, APALIS_FILE, "-"],
    ..APALIS_10
};

/// The same with calls for several jobs.
const fn in_bulk(peer: Peer) -> Peer {
    Peer { bulk: true, ..peer }
}

const fn on(peer: Peer, persistence: Persistence) -> Peer {
    Peer {
        redis: Some(persistence),
        ..peer
    }
}

/// What a row of logmill-jobs, or of a peer, measures.
type Ours = fn(&Context, Setup, u64) -> Result<Vec<f64>>;
type Theirs = fn(&Peer, &Context, u64) -> Result<Vec<f64>>;

/// The rows of a comparison.
struct Rows<'a> {
    context: &'a Context,
    ours: Ours,
    theirs: Theirs,
    rows: Vec<Contender>,
}

impl Rows<'_> {
    fn ours(&mut self, name: &'static str, guarantee: &'static str, jobs: u64, setup: Setup) {
        let (run, jobs) = (self.ours, self.scaled(jobs));
        let turn = self.turn(move |context| run(context, setup, jobs));
        self.add(name, guarantee, Ok(turn));
    }

    fn peer(&mut self, name: &'static str, guarantee: &'static str, jobs: u64, peer: Peer) {
        let (run, jobs) = (self.theirs, self.scaled(jobs));
        let turn = self.turn(move |context| run(&peer, context, jobs));
        self.add(name, guarantee, peer.check().map(|()| turn));
    }

    fn scaled(&self, jobs: u64) -> u64 {
        self.context.pace.pick(jobs, (jobs / 20).max(20))
    }

    fn turn(&self, run: impl Fn(&Context) -> Result<Vec<f64>> + 'static) -> Figures {
        let context = self.context.clone();
        Box::new(move || run(&context))
    }

    fn add(&mut self, name: &'static str, guarantee: &'static str, turn: Result<Figures>) {
        let row = Contender::figures(name, guarantee, turn);
        self.rows.push(row.without_warm_up());
    }
}

pub fn enqueue(context: &Context) -> Comparison {
    let mut rows = Rows {
        context,
        ours: ours::enqueue,
        theirs: Peer::enqueue,
        rows: Vec::new(),
    };
    let (bulk, sync) = (true, true);
    let plain = Setup::default();
    rows.ours("logmill-jobs", OURS, 300_000, plain);
    rows.ours(
        "logmill-jobs, enqueue_all",
        OURS,
        300_000,
        Setup { bulk, ..plain },
    );
    rows.ours(
        "logmill-jobs, sync",
        OURS_SYNC,
        3_000,
        Setup { sync, ..plain },
    );
    rows.peer("BullMQ, add", SNAPSHOTS, 5_000, BULLMQ);
    rows.peer("BullMQ, addBulk", SNAPSHOTS, 10_000, in_bulk(BULLMQ));
    let every_second = on(BULLMQ, Persistence::EverySecond);
    rows.peer("BullMQ, add, AOF everysec", LOG, 5_000, every_second);
    let always = on(BULLMQ, Persistence::Always);
    rows.peer("BullMQ, add, AOF always", LOG_SYNC, 2_000, always);
    rows.peer("RQ, enqueue", SNAPSHOTS, 3_000, RQ);
    rows.peer("RQ, enqueue_many", SNAPSHOTS, 10_000, in_bulk(RQ));
    rows.peer("Celery, delay", CELERY, 3_000, CELERY_PREFORK);
    rows.peer("apalis-sqlite, push", APALIS, 3_000, APALIS_ALONE);
    rows.peer(
        "apalis-sqlite, push_bulk",
        APALIS,
        10_000,
        in_bulk(APALIS_ALONE),
    );
    Comparison {
        name: "jobs/enqueue".to_owned(),
        title: "Enqueue of a typed job".to_owned(),
        note: format!(
            "One producer and no worker. One call after the other, or batches of {BULK} where there is \
             a call for several: `enqueue_all`, `addBulk`, `enqueue_many`, `push_bulk`. Celery has \
             none. *sync* waits for the disk in each call. {DURABILITY}"
        ),
        unit: Unit::Nanoseconds,
        figures: &["per job"],
        rounds: None,
        contenders: rows.rows,
    }
}

pub fn end_to_end(context: &Context) -> Comparison {
    let mut rows = Rows {
        context,
        ours: ours::end_to_end,
        theirs: Peer::end_to_end,
        rows: Vec::new(),
    };
    let (bulk, sync) = (true, true);
    let plain = Setup::default();
    let threads = Some(16);
    rows.ours("logmill-jobs", OURS, 500_000, plain);
    let many = Setup {
        bulk,
        threads,
        sync: false,
    };
    rows.ours("logmill-jobs, enqueue_all, 16 threads", OURS, 500_000, many);
    rows.ours(
        "logmill-jobs, sync",
        OURS_SYNC,
        3_000,
        Setup { sync, ..plain },
    );
    rows.peer("BullMQ", SNAPSHOTS, 5_000, BULLMQ);
    rows.peer(
        "BullMQ, addBulk, 50 at a time",
        SNAPSHOTS,
        10_000,
        BULLMQ_50,
    );
    let every_second = on(BULLMQ_50, Persistence::EverySecond);
    rows.peer(
        "BullMQ, addBulk, 50 at a time, AOF everysec",
        LOG,
        10_000,
        every_second,
    );
    let always = on(BULLMQ_50, Persistence::Always);
    rows.peer(
        "BullMQ, addBulk, 50 at a time, AOF always",
        LOG_SYNC,
        5_000,
        always,
    );
    rows.peer("RQ", SNAPSHOTS, 100, RQ);
    rows.peer(
        "RQ, enqueue_many, SimpleWorker",
        SNAPSHOTS,
        1_000,
        RQ_SIMPLE,
    );
    rows.peer(
        "RQ, enqueue_many, 2 of SimpleWorker",
        SNAPSHOTS,
        2_000,
        RQ_POOL,
    );
    rows.peer("Celery, prefork", CELERY, 3_000, CELERY_PREFORK);
    rows.peer("Celery, prefork, 1 process", CELERY, 3_000, CELERY_ONE);
    rows.peer("Celery, solo", CELERY, 3_000, CELERY_SOLO);
    rows.peer("apalis-sqlite", APALIS, 3_000, APALIS_10);
    rows.peer(
        "apalis-sqlite, push_bulk, 1000 at a time",
        APALIS,
        10_000,
        APALIS_1000,
    );
    Comparison {
        name: "jobs/end-to-end".to_owned(),
        title: "Typed jobs end to end".to_owned(),
        note: format!(
            "From the first enqueue until the last job has been run, with one producer and one worker, \
             both at once. The first row of each has the defaults: logmill-jobs runs a thread for each \
             core; BullMQ one job at a time; RQ forks a process for each job, which `SimpleWorker` does \
             not; Celery runs a process for each core (*prefork*), or, with *solo*, all jobs in its own; \
             apalis-sqlite takes ten jobs at a time, and its worker is told of new rows by SQLite's \
             hook. {DURABILITY}"
        ),
        unit: Unit::Nanoseconds,
        figures: &["per job"],
        rounds: None,
        contenders: rows.rows,
    }
}

pub fn latency(context: &Context) -> Comparison {
    fn figures(times: Vec<f64>) -> Vec<f64> {
        let at = |share| quantile(&times, share).unwrap_or_default();
        vec![at(0.5), at(0.99)]
    }
    let mut rows = Rows {
        context,
        ours: |context, _, jobs| Ok(figures(ours::latencies(context, jobs, RATE)?)),
        theirs: |peer, context, jobs| Ok(figures(peer.latencies(context, jobs, RATE)?)),
        rows: Vec::new(),
    };
    let jobs = 200;
    rows.ours("logmill-jobs", "", jobs, Setup::default());
    rows.peer("BullMQ", "", jobs, BULLMQ);
    rows.peer("RQ", "", jobs, RQ);
    rows.peer("RQ, SimpleWorker", "", jobs, RQ_SIMPLE);
    rows.peer("Celery, prefork", "", jobs, CELERY_PREFORK);
    rows.peer("Celery, solo", "", jobs, CELERY_SOLO);
    rows.peer("apalis-sqlite", "", jobs, APALIS_10);
    Comparison {
        name: "jobs/latency".to_owned(),
        title: "From enqueue to handler".to_owned(),
        note: format!(
            "{RATE} jobs a second, {jobs} in each round, to an idle worker: from just before the call \
             that enqueues a job until its handler begins. The 99th percentile of so few is the \
             third slowest. Who cannot keep up at this rate has a backlog in its figures."
        ),
        unit: Unit::Nanoseconds,
        figures: &["median", "p99"],
        rounds: None,
        contenders: rows.rows,
    }
}
