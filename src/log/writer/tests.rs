use std::{
    fs,
    io::Read as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::mpsc,
};

use bytes::Bytes;
use nix::{sys::stat::Mode, unistd::mkfifo};
use tempfile::TempDir;
use tokio::time::advance;

use super::*;
use crate::{
    config::LOG_STALL,
    format::line::MAX_LINE,
    log::{FileForm, Log},
    model::StdStream,
};

const DEADLINE: Duration = Duration::from_secs(10);

struct Rig {
    dir: TempDir,
    scope: Scope,
    blocking: Blocking,
}

impl Rig {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), scope: Scope::new(), blocking: Blocking::new() }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    async fn open(&self, path: &Path) -> LogWriter {
        LogWriter::open(&self.scope, &self.blocking, config(path)).await.unwrap()
    }

    /// Makes the next jobs of the directory wait until the sender is dropped.
    async fn freeze(&self) -> Vec<mpsc::Sender<()>> {
        let mut releases = Vec::new();
        for _ in 0..8 {
            let ((release, gate), blocking, path) = (mpsc::channel(), self.blocking.clone(), self.path());
            let job = move || {
                let _ = gate.recv();
            };
            self.scope.spawn(async move { blocking.run_to_end("hang", &path, job).await.unwrap() });
            releases.push(release);
        }
        tokio::task::yield_now().await;
        releases
    }
}

fn config(path: &Path) -> LogConfig {
    file_config(FileForm::Cri, path)
}

fn file_config(form: FileForm, path: &Path) -> LogConfig {
    LogConfig { target: Target::File { form, path: path.to_owned(), max_size: None }, stall: LOG_STALL }
}

fn journal_config(socket: &Path) -> LogConfig {
    let target = Target::Journal { socket: socket.to_owned(), shared_fields: b"A=b\n".to_vec() };
    LogConfig { target, stall: LOG_STALL }
}

fn out(log: &LogWriter, bytes: impl Into<Bytes>) {
    log.append(SystemTime::now(), &Chunk { stream: StdStream::Stdout, bytes: bytes.into() });
}

/// The records of some files without their times.
fn lines(paths: &[PathBuf]) -> Vec<String> {
    let text: String = paths.iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    text.lines().map(|line| line[31..].to_owned()).collect()
}

#[tokio::test(flavor = "local")]
async fn sixty_thousand_lines_and_then_the_end_are_all_in_the_log() {
    let rig = Rig::new();
    let log = rig.open(&rig.path()).await;
    let text: String = (0..60_000).map(|n| format!("line {n}\n")).collect();
    for chunk in text.as_bytes().chunks(16 * 1024) {
        log.room().await;
        out(&log, chunk.to_vec());
    }
    let totals = log.finish(DEADLINE).await;
    assert_eq!((totals.written.lines, totals.lost.bytes), (60_000, 0));
    let lines = lines(&[rig.path()]);
    assert_eq!(lines.len(), 60_000);
    assert!(lines.iter().enumerate().all(|(n, line)| *line == format!("stdout F line {n}")));
    rig.scope.join().await;
}

#[tokio::test(flavor = "local")]
async fn a_single_line_is_written_without_waiting_for_more() {
    let rig = Rig::new();
    let log = rig.open(&rig.path()).await;
    out(&log, "hello\n");
    while log.totals().written.lines == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(lines(&[rig.path()]), ["stdout F hello"]);
}

#[tokio::test(flavor = "local")]
async fn reopening_under_load_loses_and_doubles_no_line() {
    let rig = Rig::new();
    let log = rig.open(&rig.path()).await;
    let mut moved = Vec::new();
    for round in 0..20 {
        let load = async {
            for n in 0..500 {
                log.room().await;
                out(&log, format!("line {}\n", round * 500 + n));
                if n % 7 == 0 {
                    tokio::task::yield_now().await;
                }
            }
        };
        let reopen = async {
            moved.push(rig.dir.path().join(format!("log.{round}")));
            fs::rename(rig.path(), &moved[round]).unwrap();
            log.reopen().await.unwrap();
        };
        tokio::join!(load, reopen);
    }
    assert_eq!(log.finish(DEADLINE).await.written.lines, 10_000);
    moved.push(rig.path());
    let lines = lines(&moved);
    assert_eq!(lines.len(), 10_000);
    assert!(lines.iter().enumerate().all(|(n, line)| *line == format!("stdout F line {n}")));
}

#[tokio::test(flavor = "local")]
async fn a_reopen_answers_when_earlier_lines_are_in_the_old_file_and_appends_to_an_existing_one() {
    let rig = Rig::new();
    let log = rig.open(&rig.path()).await;
    let old = rig.dir.path().join("old");
    fs::rename(rig.path(), &old).unwrap();
    fs::copy(&old, rig.path()).unwrap();
    fs::write(rig.path(), format!("{} stdout F there\n", "x".repeat(30))).unwrap();
    out(&log, "before\n");
    log.reopen().await.unwrap();
    assert_eq!(lines(std::slice::from_ref(&old)), ["stdout F before"]);
    out(&log, "after\n");
    log.finish(DEADLINE).await;
    assert_eq!(lines(&[rig.path()]), ["stdout F there", "stdout F after"]);
}

#[tokio::test(flavor = "local")]
async fn a_reopen_without_the_directory_fails_and_the_old_file_goes_on() {
    let rig = Rig::new();
    let (dir, link) = (rig.dir.path().join("dir"), rig.dir.path().join("link"));
    fs::create_dir(&dir).unwrap();
    let log = rig.open(&dir.join("log")).await;
    fs::hard_link(dir.join("log"), &link).unwrap();
    fs::remove_dir_all(&dir).unwrap();
    let error = log.reopen().await.unwrap_err().to_string();
    assert_eq!(error, format!("open log {}: No such file or directory", dir.join("log").display()));
    out(&log, "still here\n");
    log.finish(DEADLINE).await;
    assert_eq!(lines(&[link]), ["stdout F still here"]);
}

#[tokio::test(flavor = "local")]
async fn a_log_that_cannot_be_opened_says_so() {
    let rig = Rig::new();
    let path = rig.dir.path().join("absent/log");
    let error = LogWriter::open(&rig.scope, &rig.blocking, config(&path)).await.unwrap_err();
    assert_eq!(error.to_string(), format!("open log {}: No such file or directory", path.display()));
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_full_disk_holds_up_nobody_and_every_byte_is_counted() {
    let rig = Rig::new();
    let log = rig.open(Path::new("/dev/full")).await;
    for _ in 0..200 {
        log.room().await;
        out(&log, b"line\n".repeat(1000));
    }
    log.reopen().await.expect("what it takes has no part in that");
    let totals = log.finish(DEADLINE).await;
    assert_eq!((totals.written.bytes, totals.lost.bytes), (0, 1_000_000));
    rig.scope.join().await;
}

#[tokio::test(flavor = "local")]
async fn a_full_disk_does_not_disturb_the_other_driver() {
    let rig = Rig::new();
    let configs = vec![config(Path::new("/dev/full")), config(&rig.path())];
    let log = Log::open(&rig.scope, &rig.blocking, configs).await.unwrap();
    for n in 0..1000 {
        log.room().await;
        let bytes = format!("line {n}\n").into();
        log.append(SystemTime::now(), &Chunk { stream: StdStream::Stderr, bytes });
    }
    log.reopen().await.expect("neither has been moved away");
    let totals = log.finish(Duration::ZERO).await;
    assert_eq!((totals.written.lines, totals.lost.lines), (1000, 1000));
    assert_eq!(lines(&[rig.path()]).len(), 1000);
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_fifo_nobody_read_goes_on_with_a_whole_record_and_tells_what_is_missing() {
    let rig = Rig::new();
    mkfifo(&rig.path(), Mode::S_IRWXU).unwrap();
    let log = rig.open(&rig.path()).await;
    let mut reader = fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(rig.path()).unwrap();
    let (mut text, mut appended) = (Vec::new(), 0);
    while log.totals().lost.bytes == 0 {
        log.room().await;
        out(&log, b"a line of a container\n".repeat(500));
        appended += 22 * 500;
    }
    reader.read_to_end(&mut text).unwrap_err();
    let totals = log.finish(DEADLINE).await;
    reader.read_to_end(&mut text).ok();
    let text = String::from_utf8(text).unwrap();
    let records: Vec<_> = text.lines().map(|line| &line[31..]).collect();
    let (told, rest) = records.split_last().unwrap();
    assert!(rest.iter().all(|record| *record == "stdout F a line of a container"));
    let (lost, cause) = (totals.lost, "the reader does not keep up");
    assert_eq!(*told, format!("stderr F [holdfast: lost {} bytes in {} lines: {cause}]", lost.bytes, lost.lines));
    assert_eq!(totals.written.bytes + lost.bytes, appended);
}

#[tokio::test(flavor = "local")]
async fn a_begin_of_a_line_that_waited_behind_a_full_queue_left_the_container_waiting_for_ever() {
    let rig = Rig::new();
    let log = rig.open(&rig.path()).await;
    let frozen = rig.freeze().await;
    out(&log, "in flight\n");
    tokio::task::yield_now().await;
    // Four parts fill the queue. What is left makes no record, so that there is nothing to write when its turn comes.
    out(&log, vec![b'x'; 4 * MAX_LINE + 100]);
    assert!(!log.has_room());
    let room = timeout(DEADLINE / 2, async { tokio::join!(log.room(), async { drop(frozen) }) });
    room.await.expect("there is room for what comes next");
    assert_eq!(log.finish(DEADLINE).await.written.bytes, 10 + 4 * MAX_LINE as u64 + 100);
    rig.scope.join().await;
}

#[tokio::test(flavor = "local")]
async fn a_log_that_was_stuck_already_held_up_the_end_as_long_as_one_that_was_well() {
    let rig = Rig::new();
    let config = LogConfig { stall: Duration::from_millis(10), ..config(&rig.path()) };
    let log = LogWriter::open(&rig.scope, &rig.blocking, config).await.unwrap();
    let frozen = rig.freeze().await;
    out(&log, "lost\n");
    while !log.shared.queue.borrow().is_stuck() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let totals = timeout(DEADLINE / 2, log.finish(DEADLINE)).await.expect("it waits for a second");
    assert_eq!(totals.lost.bytes, 5);
    drop(frozen);
    rig.scope.join().await;
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_write_that_does_not_return_holds_up_the_container_for_a_limited_time() {
    let rig = Rig::new();
    let log = rig.open(&rig.path()).await;
    let frozen = rig.freeze().await;
    while log.has_room() {
        out(&log, b"line\n".repeat(1000));
        tokio::task::yield_now().await;
    }
    advance(LOG_STALL).await;
    log.room().await;
    out(&log, "lost\n");
    assert!(log.totals().lost.bytes >= 5);
    let error = log.reopen().await.unwrap_err().to_string();
    assert!(error.ends_with("not reopened: the file system does not answer"), "{error}");
    drop(frozen);
    let totals = log.finish(DEADLINE).await;
    let lines = lines(&[rig.path()]);
    let (told, rest) = lines.split_last().unwrap();
    assert!(told.starts_with(&format!("stderr F [holdfast: lost {} bytes", totals.lost.bytes)), "{told}");
    assert_eq!(rest.len() as u64, totals.written.lines);
    rig.scope.join().await;
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_reopen_that_gets_no_answer_in_time_leaves_the_old_file_in_use() {
    let rig = Rig::new();
    let log = rig.open(&rig.path()).await;
    let frozen = rig.freeze().await;
    let mut reopen = Box::pin(log.reopen());
    tokio::select! {
        biased;
        _ = &mut reopen => panic!("it is frozen"),
        () = tokio::task::yield_now() => {}
    }
    let old = rig.dir.path().join("old");
    fs::rename(rig.path(), &old).unwrap();
    advance(LOG_STALL).await;
    assert!(reopen.await.is_err());
    drop(frozen);
    out(&log, "in the old file\n");
    log.finish(DEADLINE).await;
    assert_eq!(lines(&[old]), ["stdout F in the old file"]);
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn the_end_does_not_wait_for_a_stuck_write_beyond_its_deadline() {
    let rig = Rig::new();
    let log = rig.open(&rig.path()).await;
    let frozen = rig.freeze().await;
    out(&log, "never written\n");
    let mut finish = Box::pin(log.finish(DEADLINE));
    tokio::select! {
        biased;
        _ = &mut finish => panic!("it is frozen"),
        () = tokio::task::yield_now() => {}
    }
    advance(DEADLINE).await;
    assert_eq!(finish.await.lost.bytes, 14);
    out(&log, "ignored\n");
    assert_eq!(log.finish(DEADLINE).await.lost.bytes, 14);
    drop(frozen);
    rig.scope.join().await;
}

#[tokio::test(flavor = "local")]
async fn logs_of_a_create_that_fails_are_removed_if_it_made_them() {
    let rig = Rig::new();
    let old = rig.dir.path().join("old");
    fs::write(&old, "").unwrap();
    let new = rig.path();
    let configs = || vec![config(&old), file_config(FileForm::Json, &new), journal_config(&rig.dir.path().join("s"))];
    Log::open(&rig.scope, &rig.blocking, configs()).await.unwrap().discard().await;
    assert!(old.exists() && !new.exists());
    let bad = config(&rig.dir.path().join("absent/log"));
    Log::open(&rig.scope, &rig.blocking, [configs(), vec![bad]].concat()).await.unwrap_err();
    assert!(old.exists() && !new.exists());
    rig.scope.join().await;
}

#[tokio::test(flavor = "local")]
async fn a_missing_journal_disturbs_no_other_log_and_resumes_with_one_entry_that_tells_the_gap() {
    let rig = Rig::new();
    let socket = rig.dir.path().join("socket");
    let configs = vec![journal_config(&socket), file_config(FileForm::Json, &rig.path())];
    let log = Log::open(&rig.scope, &rig.blocking, configs).await.unwrap();
    let append = async |text: String| {
        log.room().await;
        log.append(SystemTime::now(), &Chunk { stream: StdStream::Stdout, bytes: text.into() });
    };
    for n in 0..1000 {
        append(format!("line {n}\n")).await;
    }
    while log.drivers[0].totals().lost.lines < 1000 {
        tokio::task::yield_now().await;
    }
    log.reopen().await.expect("a journal has no file, and the other log works");
    let journal = tokio::net::UnixDatagram::bind(&socket).unwrap();
    let mut buffer = vec![0; 4096];
    let length = journal.recv(&mut buffer).await.unwrap();
    let told = String::from_utf8_lossy(&buffer[..length]).into_owned();
    let text = "[holdfast: lost 8890 bytes in 1000 lines: the journal is not there]";
    assert_eq!(told, format!("A=b\nPRIORITY=3\nCONTAINER_STREAM=stderr\nMESSAGE={text}\n"));
    append("after\n".to_owned()).await;
    let length = journal.recv(&mut buffer).await.unwrap();
    assert!(buffer[..length].ends_with(b"MESSAGE=after\n"));
    let totals = log.finish(DEADLINE).await;
    assert_eq!((totals.written.lines, totals.lost.lines), (1001 + 1, 1000));
    assert_eq!(fs::read_to_string(rig.path()).unwrap().lines().count(), 1001);
    rig.scope.join().await;
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_journal_that_takes_nothing_holds_up_the_container_for_a_limited_time_and_no_exit_when_it_is_gone() {
    let rig = Rig::new();
    let socket = rig.dir.path().join("socket");
    let journal = std::os::unix::net::UnixDatagram::bind(&socket).unwrap();
    let log = LogWriter::open(&rig.scope, &rig.blocking, journal_config(&socket)).await.unwrap();
    let begin = Instant::now();
    while log.totals().lost.bytes == 0 {
        log.room().await;
        out(&log, b"line\n".repeat(1000));
    }
    assert!((LOG_STALL..2 * LOG_STALL).contains(&begin.elapsed()), "{:?}", begin.elapsed());
    drop(journal);
    fs::remove_file(&socket).unwrap();
    let begin = Instant::now();
    let totals = log.finish(DEADLINE).await;
    assert!(begin.elapsed() < DEADLINE && totals.lost.lines > 1000, "{totals:?}");
    rig.scope.join().await;
}
