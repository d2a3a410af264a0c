use std::os::fd::OwnedFd;

use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    io::task::Scope,
    stdio::{Lag, Next, Subscriber, Wants},
    sys::fd::pipe_cloexec,
};

const LIMITS: DrainLimits = DrainLimits { quiet: Duration::from_secs(1), max: Duration::from_secs(10) };

/// A pump on two pipes, with the ends that a process would hold.
struct Rig {
    stdio: Rc<Stdio>,
    pump: Pump,
    stdout: OwnedFd,
    stderr: OwnedFd,
    output: Subscriber,
    scope: Scope,
}

fn rig() -> Rig {
    rig_with(LIMITS)
}

fn rig_with(limits: DrainLimits) -> Rig {
    let (scope, stdio) = (Scope::new(), Stdio::new(false, false, Rc::default()));
    let output = stdio.subscribe(Wants { stdout: true, stderr: true }, Lag::Wait);
    let ((out, stdout), (err, stderr)) = (pipe_cloexec().unwrap(), pipe_cloexec().unwrap());
    let ends =
        Output::Pipes { stdout: AsyncFile::pipe_reader(out).unwrap(), stderr: AsyncFile::pipe_reader(err).unwrap() };
    let pump = stdio.connect(ends, None, None, limits, &scope).unwrap();
    Rig { stdio, pump, stdout, stderr, output, scope }
}

fn local(test: impl Future<Output = ()>) {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().start_paused(true).build_local(Default::default()).unwrap().block_on(test);
}

async fn total(output: &mut Subscriber) -> usize {
    let mut total = 0;
    while let Next::Chunk(chunk) = output.next().await {
        total += chunk.bytes.len();
    }
    total
}

#[test]
fn what_a_dead_process_wrote_is_read_however_slow_the_reader() {
    local(async {
        let Rig { pump, stdout, stderr, mut output, scope: _scope, .. } = rig();
        // A full pipe, then the exit, while somebody else keeps both ends open.
        let full = vec![b'x'; 64 * 1024];
        assert_eq!(nix::unistd::write(&stdout, &full).unwrap(), full.len());
        let (drained, read) = tokio::join!(pump.run(Vec::new(), async {}), total(&mut output));
        assert_eq!((drained, read), (Drained { still_held: true }, full.len()));
        drop(stderr);
    });
}

#[test]
fn a_background_child_that_goes_on_writing_is_read_up_to_the_limit() {
    local(async {
        let Rig { pump, stdout, stderr: _stderr, mut output, scope, .. } = rig();
        let start = Instant::now();
        scope.spawn(async move {
            // Never quiet for a second, so only the total limit ends it.
            while nix::unistd::write(&stdout, b"x").is_ok() {
                sleep(Duration::from_millis(500)).await;
            }
        });
        let (drained, read) = tokio::join!(pump.run(Vec::new(), async {}), total(&mut output));
        assert!(drained.still_held && (19..=22).contains(&read), "{read}");
        assert!(start.elapsed() >= LIMITS.max && start.elapsed() < LIMITS.max + LIMITS.quiet);
    });
}

#[test]
fn a_background_child_that_never_stops_writing_is_left_when_the_limit_is_over() {
    // In real time: the clock of a test stands still while there is something to do, as here there always is.
    crate::io::local(async {
        let limits = DrainLimits { quiet: Duration::from_secs(60), max: Duration::from_millis(100) };
        let Rig { pump, stdout, stderr: _stderr, mut output, scope, .. } = rig_with(limits);
        let pipe = AsyncFile::pipe_writer(stdout).unwrap();
        scope.spawn(async move { while pipe.write(&[b'x'; 4096]).await.is_ok() {} });
        let both = async { tokio::join!(pump.run(Vec::new(), async {}), total(&mut output)).0 };
        let drained = tokio::time::timeout(Duration::from_secs(20), both).await.expect("an end");
        assert_eq!(drained, Drained { still_held: true });
    });
}

#[test]
fn bytes_that_somebody_else_took_out_of_the_pipe_are_not_waited_for() {
    local(async {
        let Rig { mut pump, stdout: _stdout, stderr: _stderr, output: _output, scope: _scope, .. } = rig();
        // Counted at the exit, then read by a process that opened the pipe through /proc.
        pump.sources[0].owed = 4;
        let start = Instant::now();
        assert!(pump.drain_owed().await);
        assert_eq!(start.elapsed().as_secs(), LIMITS.quiet.as_secs());
    });
}

#[test]
fn the_drain_clock_stands_while_a_slow_client_holds_output_back() {
    local(async {
        let Rig { pump, stdout, stderr, mut output, scope: _scope, .. } = rig();
        drop(stderr);
        let writer = async {
            let pipe = AsyncFile::pipe_writer(stdout).unwrap();
            let mut left = 1024 * 1024;
            while left > 0 {
                left -= pipe.write(&vec![b'x'; left.min(32 * 1024)]).await.unwrap();
            }
        };
        let reader = async {
            // Longer than every drain limit.
            sleep(Duration::from_secs(60)).await;
            total(&mut output).await
        };
        let (drained, (), read) = tokio::join!(pump.run(Vec::new(), async {}), writer, reader);
        assert_eq!((drained.still_held, read), (false, 1024 * 1024));
    });
}

#[test]
fn an_exit_alone_is_not_the_end_of_output() {
    local(async {
        let Rig { pump, stdout, stderr, mut output, scope: _scope, .. } = rig();
        let gone = CancellationToken::new();
        let story = async {
            nix::unistd::write(&stdout, b"before").unwrap();
            gone.cancel();
            sleep(Duration::from_millis(900)).await;
            nix::unistd::write(&stderr, b"after").unwrap();
            drop((stdout, stderr));
        };
        let (drained, (), read) = tokio::join!(pump.run(Vec::new(), gone.cancelled()), story, total(&mut output));
        assert_eq!((drained.still_held, read), (false, 11));
    });
}

#[test]
fn an_abandoned_process_gets_sigpipe_on_its_next_write() {
    local(async {
        let Rig { stdio, pump, stdout, stderr: _stderr, scope: _scope, .. } = rig();
        stdio.abandon();
        pump.run(Vec::new(), std::future::pending()).await;
        assert_eq!(nix::unistd::write(&stdout, b"x").unwrap_err(), nix::errno::Errno::EPIPE);
    });
}

#[test]
fn output_read_before_the_pump_began_comes_first() {
    local(async {
        let Rig { pump, stdout, stderr, mut output, scope: _scope, .. } = rig();
        nix::unistd::write(&stdout, b"late").unwrap();
        drop((stdout, stderr));
        let early = vec![Chunk { stream: StdStream::Stderr, bytes: bytes::Bytes::from_static(b"early") }];
        let read = async {
            let mut seen = Vec::new();
            while let Next::Chunk(chunk) = output.next().await {
                seen.push(chunk.bytes);
            }
            seen
        };
        let (_, seen) = tokio::join!(pump.run(early, async {}), read);
        assert_eq!(seen, ["early", "late"]);
    });
}
