//! Writes the seeds of the targets whose inputs have a layout made by hand.

use std::fs;
use std::path::Path;

const MEND: u8 = 1;
const ACK: u8 = 2;
/// A check that the targets do not recompute.
const LEFT_WRONG: u32 = u32::MAX;
const SALT: u64 = 0x1122_3344_5566_7788;
const PAST: u64 = 1_700_000_000_000_000_000;

fn write(target: &str, name: &str, bytes: &[u8]) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target);
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join(name), bytes).unwrap();
}

/// Seeds that hit the header, the records and the end of the files, of a queue that died and of one
/// that was closed.
#[test]
#[ignore = "run only when the layout of the inputs changes"]
fn of_segment_and_ack() {
    let changes: [(&str, &[u8]); 5] = [
        ("byte", &[0x55]),
        ("zeros", &[0; 64]),
        ("ones", &[0xff; 16]),
        ("length", &[0x20, 0, 0, 0]),
        ("many-zeros", &[0; 3000]),
    ];
    for (target, offsets) in [
        // The name of job 11 starts at 1,464, its metadata at 1,467, and the last record at 6,320.
        (
            "segment",
            &[0, 8, 48, 64, 68, 76, 96, 109, 1000, 1464, 1467, 4000, 6320][..],
        ),
        ("ack", &[0, 8, 40, 64, 68, 72, 100, 192, 212, 300]),
    ] {
        for sealed in [0, 2] {
            for &offset in offsets {
                for (name, bytes) in changes {
                    if bytes.len() > 1000 && offset > 100 {
                        continue;
                    }
                    let mut input = vec![sealed];
                    input.extend_from_slice(&u16::to_le_bytes(offset));
                    input.extend_from_slice(bytes);
                    let name = format!("{name}-at-{offset}-of-{sealed}");
                    write(target, &name, &input);
                }
            }
            for (name, bytes) in [
                ("empty", &[][..]),
                ("short", &[1; 40]),
                ("zeros", &[0; 2000]),
            ] {
                let input = [&[1 | sealed, 0, 0], bytes].concat();
                write(target, &format!("replaced-{name}-{sealed}"), &input);
            }
        }
    }
    // Bytes that pass their checks, with content that the library never writes.
    const MEND: u8 = 4;
    for (name, file) in segments() {
        for sealed in [0, 2] {
            let input = [&[1 | MEND | sealed, 0, 0], file.as_slice()].concat();
            write("segment", &format!("forged-{name}-{sealed}"), &input);
        }
    }
    // Job 11 of the good queue, not done, with another kind, another name or other headers.
    for (name, offset, bytes) in [
        ("kind", 1432 + 12, [3].as_slice()),
        ("name-length", 1432 + 13, &[30]),
        ("name-not-utf8", 1464, &[0xff]),
        ("header-tag", 1467, &[127]),
        ("header-length", 1467 + 1, &[0, 0]),
        ("key-length", 1467 + 3, &[200]),
        ("key-not-utf8", 1467 + 4, &[0xff]),
    ] {
        for sealed in [0, 2] {
            let offset = u16::to_le_bytes(offset);
            let input = [&[MEND | sealed], offset.as_slice(), bytes].concat();
            write("segment", &format!("forged-{name}-{sealed}"), &input);
        }
    }
    // The last delivery of a job whose letter would not fit a segment. Its salt differs from that
    // of the ack file, so that the job is not done.
    let meta = [field(1, &[1]), field(4, &1u32.to_le_bytes())].concat();
    let mut long = record(0, &meta, b"");
    long[..4].copy_from_slice(&(16 * 1024 - 64u32).to_le_bytes());
    let header = &[7; 8].iter().chain(&[0; 16]).copied().collect::<Vec<u8>>();
    let input = [&[MEND], 40u16.to_le_bytes().as_slice(), header, &long].concat();
    write("segment", "forged-long-record", &input);
    for (name, offset, bytes) in [
        ("words", 64, [0xff; 16].as_slice()),
        (
            "counts",
            192 + 4 * 10,
            &[4, 0, 0, 0, 5, 0, 0, 0, 255, 0, 0, 0],
        ),
        // Deliveries in a handler, after no crash, two and the most crashes, and after a failed
        // attempt; then a job with three crashes.
        (
            "crashes",
            192 + 4 * 10,
            &[
                0, 0x10, 0, 0, 0, 0x12, 0, 0, 0, 0x1f, 0, 0, 1, 0x10, 0, 0, 0, 3, 0, 0,
            ],
        ),
    ] {
        let input = [&[MEND], u16::to_le_bytes(offset).as_slice(), bytes].concat();
        write("ack", &format!("forged-{name}"), &input);
    }
}

#[test]
#[ignore = "run only when the layout of the inputs changes"]
fn of_record() {
    for (name, file) in segments() {
        write("record", name, &[&[MEND], file.as_slice()].concat());
    }
    let words = [0xff, 0xffff_ffff, 1u64].map(u64::to_le_bytes).concat();
    let acks = [
        header(b"logmillA", 70, 0),
        words,
        [1, 0, 0, 0].repeat(10),
        vec![0; 240],
    ]
    .concat();
    write("record", "acks", &[&[MEND | ACK], acks.as_slice()].concat());
    let garbage: Vec<u8> = (0..200).collect();
    write("record", "garbage", &[&[0], garbage.as_slice()].concat());
}

/// Segments whose checks are not computed yet.
fn segments() -> Vec<(&'static str, Vec<u8>)> {
    let word = |word: u64| word.to_le_bytes().to_vec();
    let meta = [
        field(1, &[5]),
        field(2, &word(0xff << 56)),
        field(3, &word(7)),
        field(5, &word(9)),
        field(6, &word(10)),
        field(4, &2u32.to_le_bytes()),
        field(
            7,
            &[
                &1u32.to_le_bytes(),
                word(3).as_slice(),
                "n\u{f6}".as_bytes(),
            ]
            .concat(),
        ),
    ]
    .concat();
    let jobs = [
        record(0, b"", b""),
        record(1, b"", b"one"),
        record(2, &meta, b"two"),
        pad(3, 32),
        record(3, b"", &[0; 16]),
        record(4, b"", b"last"),
    ]
    .concat();
    let units = (64 + jobs.len() as u32) / 8;
    let mut wrong = record(1, b"", b"wrong");
    wrong[4..8].copy_from_slice(&LEFT_WRONG.to_le_bytes());
    let open = header(b"logmillS", 0, 0);
    let sealed = header(b"logmillS", 5, units);
    let sealed_more = header(b"logmillS", 9, units + 5);
    // Jobs 0 to 9 of the good queue are done.
    let named = named_jobs();
    let count = 14;
    let mut later = record(count, b"", b"what it means is not known");
    later[12] = 6;
    let behind = record(count, b"", b"last");
    let all = [named.clone(), later.clone(), behind.clone()].concat();
    let all_sealed = header(b"logmillS", count + 1, (64 + all.len() as u32) / 8);
    let one = record(0, b"", b"");
    let far = [record(2, b"", b"x"), record(5, b"", b"far")].concat();
    // Bytes that a scan which has lost its place takes for records of the greatest possible length.
    let mut list = record(0, b"", b"");
    list[..8].copy_from_slice(&[0, 0x80, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    let mut cancellation = record(1, &field(2, &word(0)), b"");
    cancellation[12] = 3;
    let cancelled = [
        record(0, b"", b"cancelled"),
        cancellation,
        record(2, b"", b"kept"),
    ]
    .concat();
    let cancelled_sealed = header(b"logmillS", 3, (64 + cancelled.len() as u32) / 8);
    // Records of a state log: jobs for a queue, values and removals of keys, and completions.
    let elsewhere = field(12, &[word(17), word(5)].concat());
    let state = [
        field(13, &word(17)),
        [
            field(13, &word(17)),
            field(10, &word(PAST)),
            field(128, b"\x01kv"),
        ]
        .concat(),
        field(14, b"key"),
        [
            field(14, b"key"),
            field(10, &word(PAST)),
            field(2, &word(2)),
        ]
        .concat(),
        [field(14, b"key"), field(15, b""), field(2, &word(3))].concat(),
        elsewhere.clone(),
        [field(2, &word(0)), elsewhere.clone()].concat(),
        // Cut short, of the wrong length, empty, and more than one.
        elsewhere[..elsewhere.len() - 1].to_vec(),
        field(12, &[1; 15]),
        [elsewhere, field(12, b"")].concat(),
        field(13, &[1; 7]),
        [field(13, b""), field(14, b"")].concat(),
        [field(14, b"one"), field(14, b"two")].concat(),
        field(15, b""),
    ];
    let state = [
        &state[..],
        // What follows a header is no field of the engine's.
        &[[field(128, b"\x01kv"), field(14, b"key")].concat()],
    ]
    .concat();
    let count = state.len() as u32;
    let state = (0..)
        .zip(state)
        .map(|(index, meta)| record(index, &meta, b"value"));
    let state = state.collect::<Vec<_>>().concat();
    let state_sealed = header(b"logmillS", count, (64 + state.len() as u32) / 8);
    vec![
        ("state", [open.clone(), state.clone()].concat()),
        ("state-sealed", [state_sealed, state, vec![0; 8]].concat()),
        ("cancelled", [open.clone(), cancelled.clone()].concat()),
        (
            "cancelled-sealed",
            [cancelled_sealed, cancelled, vec![0; 8]].concat(),
        ),
        ("jobs", [open.clone(), jobs.clone()].concat()),
        ("sealed", [sealed, jobs.clone(), vec![0; 8]].concat()),
        ("sealed-more", [sealed_more, jobs, vec![0; 40]].concat()),
        (
            "hole",
            [open.clone(), one.clone(), vec![0; 64], far.clone()].concat(),
        ),
        (
            "wrong",
            [open.clone(), one.clone(), wrong.clone(), far.clone()].concat(),
        ),
        (
            "uncommitted",
            [
                open.clone(),
                one.clone(),
                vec![0; 8],
                wrong[8..].to_vec(),
                far,
            ]
            .concat(),
        ),
        (
            "near",
            [open.clone(), one, vec![9; 8], record(1, b"", b"near")].concat(),
        ),
        ("list", [open.clone(), list.clone(), list].concat()),
        ("expiring", [open.clone(), expiring_jobs()].concat()),
        ("named", [open.clone(), named.clone()].concat()),
        ("later", [open.clone(), all.clone()].concat()),
        ("later-sealed", [all_sealed, all, vec![0; 8]].concat()),
        (
            "later-behind-damage",
            [open.clone(), named, vec![9; 64], later, behind].concat(),
        ),
        ("batch", [open.clone(), jobs_of_kinds(&ALL_KINDS)].concat()),
        (
            "batch-sealed",
            [
                header(b"logmillS", 10, (64 + 10 * 48) / 8),
                jobs_of_kinds(&[1, 5, 0, 9, 13, 9, 5, 13, 1, 5]),
                vec![0; 8],
            ]
            .concat(),
        ),
        (
            "batch-without-first",
            [open.clone(), jobs_of_kinds(&[1, 0, 13, 9, 5, 9, 1])].concat(),
        ),
        (
            "batch-without-one",
            [open.clone(), jobs_of_kinds(&[1, 5, 13, 0, 13, 9, 5, 9])].concat(),
        ),
        (
            "batch-without-last",
            [open.clone(), jobs_of_kinds(&[5, 13, 1, 5, 5, 9, 5, 13])].concat(),
        ),
        (
            "batch-cut-off",
            [open, jobs_of_kinds(&[1, 5, 13, 13])].concat(),
        ),
    ]
}

/// The kinds of a job alone, of the first, the next and the last of a batch, and of two batches.
const ALL_KINDS: [u8; 9] = [1, 5, 13, 9, 5, 9, 5, 13, 9];

/// Jobs of these kinds, of 48 bytes each; zeros for a kind of 0.
fn jobs_of_kinds(kinds: &[u8]) -> Vec<u8> {
    let jobs = (0..).zip(kinds).map(|(index, &kind)| match kind {
        0 => vec![0; 48],
        kind => {
            let mut job = record(index, b"", b"job in a batch..");
            job[12] = kind;
            job
        }
    });
    jobs.collect::<Vec<_>>().concat()
}

/// Jobs 0 to 9 of the good queue, which are done, and jobs with the option to expire.
fn expiring_jobs() -> Vec<u8> {
    let done = (0..10).map(|index| record(index, b"", b"done"));
    let past = field(10, &PAST.to_le_bytes());
    let far = field(10, &(PAST * 2).to_le_bytes());
    let spent = [field(1, &[1]), field(4, &1u32.to_le_bytes())].concat();
    let metas = [
        past.clone(),
        far.clone(),
        [past.clone(), far.clone()].concat(),
        [far, past.clone()].concat(),
        // Its attempts are used up, too.
        [past.clone(), spent].concat(),
        past[..past.len() - 1].to_vec(),
        field(10, &[0; 7]),
        [field(128, b"\x01kv"), past.clone()].concat(),
    ];
    let expiring = (10..)
        .zip(metas)
        .map(|(index, meta)| record(index, &meta, b"expires"));
    let mut delayed = record(18, &past, b"not due yet");
    delayed[24..32].copy_from_slice(&(PAST * 2).to_le_bytes());
    done.chain(expiring)
        .chain([delayed])
        .collect::<Vec<_>>()
        .concat()
}

/// 14 jobs with names of many lengths and with headers, some of which are not valid.
fn named_jobs() -> Vec<u8> {
    let header = |key: &[u8], value: &[u8]| {
        let field = [
            &[128, (1 + key.len() + value.len()) as u8, 0, key.len() as u8],
            key,
            value,
        ];
        field.concat()
    };
    let valid = [
        header(b"tenant", b"acme"),
        header("gr\u{f6}\u{df}e".as_bytes(), b""),
    ]
    .concat();
    let mut too_long = header(b"key", b"value");
    too_long[3] = 200;
    let jobs: [(&[u8], Vec<u8>); 14] = [
        (b"n", vec![]),
        (b"na", valid.clone()),
        (b"nam", vec![]),
        (b"name", valid.clone()),
        (b"named", vec![]),
        (b"named_7", vec![]),
        (b"named_08", vec![]),
        (b"named_to_15____", vec![]),
        (&[b'n'; 255], valid.clone()),
        (b"", valid.clone()),
        // Job 10 is the first that is not done.
        (
            "gr\u{f6}\u{df}e_\u{e4}ndern".as_bytes(),
            [field(1, &[5]), valid.clone()].concat(),
        ),
        (b"\xff\xfe", [header(b"\xff", b"1"), valid.clone()].concat()),
        (b"name", [field(128, b""), too_long, valid.clone()].concat()),
        // The first header ends the other fields, and so does a tag above that of a header.
        (
            b"",
            [field(129, b"?"), field(1, &[5]), valid, vec![128, 9]].concat(),
        ),
    ];
    let jobs = (0..).zip(jobs).map(|(index, (name, meta))| {
        let mut job = record(index, &[name, &meta].concat(), b"payload");
        job[13] = name.len() as u8;
        job[14] = meta.len() as u8;
        job
    });
    jobs.collect::<Vec<_>>().concat()
}

fn header(magic: &[u8; 8], records: u32, units: u32) -> Vec<u8> {
    let mut bytes = magic.to_vec();
    bytes.extend_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0]);
    for word in [0, 16 * 1024, PAST, SALT] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.extend_from_slice(&records.to_le_bytes());
    bytes.extend_from_slice(&units.to_le_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes
}

fn record(index: u32, meta: &[u8], payload: &[u8]) -> Vec<u8> {
    let len = 32 + meta.len() + payload.len();
    let mut bytes = (len as u32).to_le_bytes().to_vec();
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&index.to_le_bytes());
    bytes.extend_from_slice(&[1, 0, meta.len() as u8, 0]);
    bytes.extend_from_slice(&PAST.to_le_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(meta);
    bytes.extend_from_slice(payload);
    bytes.resize(len.next_multiple_of(8), 0);
    bytes
}

fn pad(index: u32, len: usize) -> Vec<u8> {
    let mut bytes = record(index, b"", &vec![0; len - 32]);
    bytes[12] = 2;
    bytes
}

fn field(tag: u8, value: &[u8]) -> Vec<u8> {
    [&[tag, value.len() as u8, 0], value].concat()
}
