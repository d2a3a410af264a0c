use std::{
    future::Future,
    io,
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    task::Poll,
};

use tokio::{task::yield_now, time::advance};

use super::*;

const DEADLINE: Duration = Duration::from_secs(5);

/// A job that says when it begins, and ends when the sender is used or dropped.
fn held() -> (mpsc::Receiver<()>, mpsc::Sender<()>, impl FnOnce() + Send + 'static) {
    let ((begin, begun), (release, gate)) = (mpsc::channel(), mpsc::channel());
    let job = move || {
        begin.send(()).unwrap();
        gate.recv().ok();
    };
    (begun, release, job)
}

async fn poll_once<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    std::future::poll_fn(|cx| {
        Poll::Ready(match std::pin::Pin::new(&mut *future).poll(cx) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        })
    })
    .await
}

async fn make_known(blocking: &Blocking, path: &Path) {
    blocking.run("test", path, DEADLINE, || (), drop).await.unwrap();
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_job_past_its_deadline_is_left_behind_and_its_late_result_undone() {
    let (blocking, dir) = (Blocking::new(), tempfile::tempdir().unwrap());
    let (path, (begun, release, job)) = (dir.path().join("file"), held());
    let (undone, undo_seen) = mpsc::channel();
    let mut run = Box::pin(blocking.run("open", &path, DEADLINE, job, move |()| undone.send(()).unwrap()));
    assert!(poll_once(&mut run).await.is_none());
    begun.recv().unwrap();
    advance(DEADLINE).await;
    let error = run.await.unwrap_err();
    assert_eq!(error.to_string(), format!("open {}: file system did not answer within 5 s", path.display()));
    release.send(()).unwrap();
    undo_seen.recv().unwrap();
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn the_result_of_a_caller_that_went_away_is_undone() {
    let (blocking, dir) = (Blocking::new(), tempfile::tempdir().unwrap());
    let path = dir.path().join("file");
    for job_ends_first in [true, false] {
        let ((begun, release, job), (undone, undo_seen)) = (held(), mpsc::channel());
        let mut run = Box::pin(blocking.run("open", &path, DEADLINE, job, move |()| undone.send(()).unwrap()));
        assert!(poll_once(&mut run).await.is_none());
        begun.recv().unwrap();
        if job_ends_first {
            release.send(()).unwrap();
            while blocking.0.unknown.available_permits() < JOBS_UNKNOWN {
                std::thread::yield_now();
            }
        }
        drop(run);
        drop(release);
        undo_seen.recv().unwrap();
    }
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_device_has_eight_jobs_in_flight_and_a_place_is_free_when_a_job_really_ends() {
    let (blocking, dir) = (Blocking::new(), tempfile::tempdir().unwrap());
    let path = dir.path().join("file");
    make_known(&blocking, &path).await;
    let mut stuck = Vec::new();
    for _ in 0..JOBS_PER_DEVICE {
        let (begun, release, job) = held();
        let mut run = Box::pin(blocking.run("read", &path, DEADLINE, job, drop));
        assert!(poll_once(&mut run).await.is_none());
        begun.recv().unwrap();
        stuck.push((release, run));
    }
    let mut ninth = Box::pin(blocking.run("read", &path, DEADLINE, || (), drop));
    assert!(poll_once(&mut ninth).await.is_none());
    advance(DEADLINE).await;
    assert!(ninth.await.is_err(), "the ninth job had no place");

    let mut tenth = Box::pin(blocking.run("read", &path, DEADLINE, || (), drop));
    assert!(poll_once(&mut tenth).await.is_none());
    let (release, abandoned) = stuck.swap_remove(0);
    assert!(abandoned.await.is_err(), "its deadline has passed");
    release.send(()).unwrap();
    tenth.await.unwrap();
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn directories_of_one_device_share_its_places() {
    let (blocking, dir) = (Blocking::new(), tempfile::tempdir().unwrap());
    let paths: Vec<_> = (0..2 * JOBS_PER_DEVICE).map(|n| dir.path().join(format!("{n}/file"))).collect();
    for path in &paths {
        fs::create_dir(directory_of(path)).unwrap();
        make_known(&blocking, path).await;
    }
    assert_eq!(blocking.0.devices.borrow().len(), paths.len());
    let lanes: Vec<_> = paths.iter().map(|path| blocking.0.lane_of(directory_of(path))).collect();
    assert!(lanes.iter().all(|lane| matches!(lane, Lane::Device(_)) && *lane == lanes[0]));
    assert!(blocking.0.lanes.borrow().len() <= 2, "lanes that nobody uses are forgotten");
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_job_gets_a_thread_when_one_can_be_made_again_although_another_hangs() {
    static LEFT: AtomicUsize = AtomicUsize::new(1);
    let make = |work: Box<dyn FnOnce() + Send>| {
        let taken = LEFT.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        taken.map_err(|_| io::Error::from(io::ErrorKind::WouldBlock))?;
        std::thread::Builder::new().spawn(work).map(drop)
    };
    let (blocking, dir) = (Blocking::with(Pool::with(2, make)), tempfile::tempdir().unwrap());
    let (path, (begun, release, job)) = (dir.path().join("file"), held());
    let mut hanging = Box::pin(blocking.run_to_end("write", &path, job));
    assert!(poll_once(&mut hanging).await.is_none());
    begun.recv().unwrap();
    let limited = blocking.run("open", Path::new("/other/file"), DEADLINE, || (), drop);
    let mut waits = Box::pin(blocking.run_to_end("write", Path::new("/third/file"), || 7));
    assert!(poll_once(&mut waits).await.is_none());
    let mut limited = Box::pin(limited);
    assert!(poll_once(&mut limited).await.is_none());
    advance(DEADLINE).await;
    assert!(limited.await.unwrap_err().to_string().contains("no thread could be made for 5 s"));
    LEFT.store(1, Ordering::SeqCst);
    assert_eq!(waits.await.unwrap(), 7);
    release.send(()).unwrap();
    hanging.await.unwrap();
}

#[test]
fn a_job_that_waited_for_a_thread_beyond_its_deadline_never_runs() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build_local(tokio::runtime::LocalOptions::default())
        .unwrap();
    runtime.block_on(async {
        let (blocking, dir) = (Blocking::with(Pool::of(1)), tempfile::tempdir().unwrap());
        let (path, (_begun, release, job)) = (dir.path().join("file"), held());
        let (ran, job_ran) = mpsc::channel();
        let mut first = Box::pin(blocking.run_to_end("write", &path, job));
        let mut second = Box::pin(blocking.run("write", &path, DEADLINE, move || ran.send(()).unwrap(), drop));
        assert!(poll_once(&mut first).await.is_none());
        assert!(poll_once(&mut second).await.is_none());
        advance(DEADLINE).await;
        assert!(second.await.is_err());
        release.send(()).unwrap();
        first.await.unwrap();
        yield_now().await;
        assert!(job_ran.recv().is_err(), "it was dropped without running");
    });
}
