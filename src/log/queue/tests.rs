use bytes::Bytes;

use super::*;
use crate::model::StdStream;

mod reopen;

const FULL: &str = "No space left on device";
const STUCK: &str = "the file system does not answer";
const STAMP: Duration = Duration::from_secs(1_700_000_000);

/// A queue with a file that takes as many bytes as it is told.
struct Rig {
    queue: Queue,
    file: Vec<u8>,
    appended: u64,
    now: Instant,
}

impl Rig {
    fn new() -> Self {
        let queue = Queue::new("/log".into(), Encoder::cri());
        Self { queue, file: Vec::new(), appended: 0, now: Instant::now() }
    }

    fn append(&mut self, stream: StdStream, bytes: impl Into<Bytes>) {
        let bytes = bytes.into();
        self.appended += bytes.len() as u64;
        self.queue.append(STAMP, &Chunk { stream, bytes });
    }

    fn out(&mut self, bytes: impl Into<Bytes>) {
        self.append(StdStream::Stdout, bytes);
    }

    fn next(&mut self) -> Step {
        self.queue.next(self.now, STAMP)
    }

    fn batch(&mut self) -> Batch {
        match self.next() {
            Step::Write { batch, .. } => batch,
            other => panic!("{other:?}"),
        }
    }

    /// The file takes the first `count` bytes; then the device is full, unless that was all.
    fn take(&mut self, batch: Batch, count: usize) {
        let count = count.min(batch.bytes.len());
        self.file.extend(&batch.bytes[..count]);
        let error = (count < batch.bytes.len()).then_some(FULL);
        self.queue.wrote(self.now, batch, &Written { bytes: count, error, ..Written::default() });
    }

    /// Waits for the next attempt; returns how long that was.
    fn pause(&mut self) -> Duration {
        let Step::Wait(Some(time)) = self.next() else { panic!("no attempt is planned") };
        let pause = time - self.now;
        self.now = time;
        pause
    }

    fn write(&mut self, count: usize) {
        let batch = self.batch();
        self.take(batch, count);
    }

    fn settle(&mut self) {
        loop {
            match self.next() {
                Step::Write { batch, .. } => self.take(batch, usize::MAX),
                Step::Wait(Some(time)) => self.now = time,
                Step::Reopen(reply) => {
                    reply.send(Ok(())).ok();
                    self.queue.reopened(true);
                }
                Step::Wait(None) | Step::Finish => return,
            }
        }
    }

    /// The records without their times.
    fn lines(&self) -> Vec<String> {
        let text = String::from_utf8(self.file.clone()).unwrap();
        assert!(text.is_empty() || text.ends_with('\n'));
        text.lines().map(|line| line[31..].to_owned()).collect()
    }
}

#[test]
fn what_comes_during_a_write_is_the_next_batch() {
    let mut rig = Rig::new();
    rig.out("one\n");
    let first = rig.batch();
    rig.out("two\nthr");
    rig.append(StdStream::Stderr, "oops\n");
    rig.take(first, usize::MAX);
    rig.out("ee\n");
    rig.write(usize::MAX);
    assert!(matches!(rig.next(), Step::Wait(None)));
    assert_eq!(rig.lines(), ["stdout F one", "stdout F two", "stderr F oops", "stdout F three"]);
}

#[test]
fn a_full_queue_holds_up_the_container_and_stays_within_its_bound() {
    let mut rig = Rig::new();
    rig.out("in flight\n");
    let first = rig.batch();
    while rig.queue.has_room() {
        // The worst case: each byte becomes a record.
        rig.out(vec![b'\n'; 16 * 1024]);
    }
    assert!((FILLING_BOUND..FILLING_BOUND + 41).contains(&rig.queue.filling.bytes.len()));
    assert_eq!(rig.queue.filling.bytes.capacity(), FILLING_MAX);
    rig.take(first, usize::MAX);
    rig.settle();
    assert_eq!(rig.queue.totals.written.bytes, rig.appended);
    assert_eq!(rig.queue.totals.lost, Tally::default());
}

#[test]
fn no_buffer_is_kept_at_rest() {
    let mut rig = Rig::new();
    for _ in 0..100 {
        rig.out(vec![b'\n'; 1000]);
    }
    rig.settle();
    let queue = &rig.queue;
    let buffers = [&queue.filling, &queue.spare].map(|batch| batch.bytes.capacity() + batch.records.capacity());
    assert_eq!((buffers, queue.backlog.capacity()), ([0, 0], 0));
}

#[test]
fn a_torn_record_is_completed_first_and_one_record_tells_the_gap() {
    let mut rig = Rig::new();
    rig.out("torn\nlost\n");
    rig.write(38);
    assert!(rig.queue.has_room());
    rig.out("lost too\nkept");
    rig.pause();
    rig.settle();
    rig.out(" whole\n");
    rig.settle();
    let gap = "stderr F [holdfast: lost 14 bytes in 2 lines: No space left on device]";
    assert_eq!(rig.lines(), ["stdout F torn", gap, "stdout F kept whole"]);
    assert_eq!(rig.queue.totals.lost, Tally { bytes: 14, lines: 2 });
}

#[test]
fn the_record_that_tells_a_gap_never_stands_between_the_parts_of_a_line() {
    let mut rig = Rig::new();
    rig.out(vec![b'x'; MAX_LINE + 1]);
    rig.settle();
    rig.out("lost\nlost\n");
    rig.write(0);
    rig.pause();
    rig.settle();
    rig.out("next\n");
    rig.settle();
    let lines = rig.lines();
    assert!(lines[0].starts_with("stdout P xxx"));
    assert_eq!(lines[1], "stdout F ");
    assert!(lines[2].starts_with("stderr F [holdfast: lost 11 bytes in 2 lines"), "{}", lines[2]);
    assert_eq!(lines[3..], ["stdout F next"]);
}

#[test]
fn failed_writes_are_tried_again_after_pauses_that_double_up_to_a_second() {
    let mut rig = Rig::new();
    rig.out("lost\n");
    rig.write(0);
    for expected in [100, 200, 400, 800, 1000, 1000] {
        assert_eq!(rig.pause().as_millis(), expected);
        rig.write(0);
    }
    rig.settle();
    rig.out("lost again\n");
    rig.write(0);
    assert_eq!(rig.pause().as_millis(), 100);
    rig.settle();
    assert_eq!(rig.lines().len(), 2, "each gap is told once: {:?}", rig.lines());
}

#[test]
fn a_stalled_write_holds_up_nobody_and_the_gap_is_told_where_it_is() {
    let mut rig = Rig::new();
    rig.out("in flight\n");
    let stuck = rig.batch();
    while rig.queue.has_room() {
        rig.out(b"waits\n".repeat(1000));
    }
    rig.queue.stall(STUCK);
    assert!(rig.queue.has_room());
    rig.out("lost\n");
    assert!(rig.queue.totals.lost.bytes >= 5);
    rig.take(stuck, usize::MAX);
    assert!(!rig.queue.has_room(), "what waits goes first");
    rig.settle();
    rig.out("after\n");
    rig.settle();
    let lines = rig.lines();
    let (last, told) = (lines.len() - 1, &lines[lines.len() - 2]);
    assert_eq!((&lines[0][..], &lines[last][..]), ("stdout F in flight", "stdout F after"));
    assert!(lines[1..last - 1].iter().all(|line| line == "stdout F waits"));
    let lost = rig.queue.totals.lost;
    assert_eq!(*told, format!("stderr F [holdfast: lost {} bytes in {} lines: {STUCK}]", lost.bytes, lost.lines));
    assert_eq!(rig.queue.totals.written.bytes + lost.bytes, rig.appended);
}

#[test]
fn the_end_writes_the_rests_of_lines_and_ignores_what_comes_later() {
    let mut rig = Rig::new();
    rig.append(StdStream::Stderr, "err");
    rig.out("out");
    rig.queue.end();
    rig.queue.append(STAMP, &Chunk { stream: StdStream::Stdout, bytes: "late\n".into() });
    rig.settle();
    assert!(matches!(rig.next(), Step::Finish));
    assert_eq!(rig.lines(), ["stdout P out", "stderr P err"]);
    let totals = rig.queue.close();
    assert_eq!((totals.written, totals.lost), (Tally { bytes: 6, lines: 2 }, Tally::default()));
}

#[test]
fn what_is_not_written_at_the_end_counts_as_lost() {
    let mut rig = Rig::new();
    rig.out("in flight\n");
    rig.batch();
    for _ in 0..20 {
        rig.out(b"waits\n".repeat(1000));
    }
    rig.out("rest");
    rig.queue.end();
    assert_eq!(rig.queue.close().lost.bytes, rig.appended);
    assert_eq!(rig.queue.close().lost.bytes, rig.appended, "nothing is counted twice");
}

#[test]
fn at_the_end_a_failing_log_is_tried_once_more_and_then_left_unless_a_record_is_torn() {
    for torn in [0, 20] {
        let mut rig = Rig::new();
        rig.out("lost\n");
        rig.write(0);
        rig.queue.end();
        rig.write(torn);
        match rig.next() {
            Step::Finish => assert_eq!(torn, 0),
            Step::Wait(Some(_)) => assert_eq!(torn, 20),
            other => panic!("{other:?}"),
        }
        assert_eq!(rig.queue.close().lost.bytes, 5);
    }
}

#[test]
fn the_rest_of_a_torn_record_held_up_an_exit_for_five_seconds() {
    let mut rig = Rig::new();
    rig.out("torn\n");
    rig.write(38);
    rig.queue.end();
    let since = rig.now;
    loop {
        match rig.next() {
            Step::Write { batch, .. } => rig.take(batch, 0),
            Step::Wait(Some(time)) => rig.now = time,
            Step::Finish => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(rig.now - since < Duration::from_secs(1), "{:?}", rig.now - since);
    assert_eq!(rig.queue.close().lost, Tally { bytes: 5, lines: 1 });
}

#[test]
fn whatever_fails_no_byte_is_unaccounted_and_no_record_broken() {
    let mut seed = 7_u64;
    let mut random = |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(seed >> 33).unwrap() % below
    };
    let mut rig = Rig::new();
    for _ in 0..4000 {
        let stream = [StdStream::Stdout, StdStream::Stderr][random(2)];
        let most = [10, 3000, 20_000][random(3)];
        let mut text = vec![b'x'; random(most)];
        text.push(if random(4) == 0 { b'y' } else { b'\n' });
        rig.append(stream, text);
        if random(3) > 0 {
            continue;
        }
        match rig.next() {
            Step::Wait(Some(time)) if random(2) == 0 => rig.now = time,
            Step::Write { batch, .. } => {
                if random(5) == 0 {
                    rig.queue.stall(STUCK);
                }
                rig.append(stream, vec![b'z'; random(40_000)]);
                let count = if random(2) == 0 { usize::MAX } else { random(batch.bytes.len()) };
                rig.take(batch, count);
            }
            _ => {}
        }
    }
    rig.queue.end();
    rig.settle();
    let totals = rig.queue.close();
    assert_eq!(totals.written.bytes + totals.lost.bytes, rig.appended);
    let (mut in_records, mut told, mut unfinished) = (0, 0, [false; 2]);
    for line in rig.lines() {
        let (head, text) = line.split_at(9);
        let stream = usize::from(head.starts_with("stderr"));
        assert!(["stdout F ", "stdout P ", "stderr F ", "stderr P "].contains(&head), "{head}");
        if let Some(gap) = text.strip_prefix("[holdfast: lost ") {
            assert_eq!(unfinished, [false; 2], "told between the parts of a line");
            told += gap.split(' ').next().unwrap().parse::<u64>().unwrap();
        } else if !text.is_empty() {
            in_records += text.len() as u64;
        }
        unfinished[stream] = head.ends_with("P ");
    }
    assert_eq!(told, totals.lost.bytes);
    assert!(told > 0 && totals.written.bytes > 0);
    assert!(in_records <= totals.written.bytes);
}
