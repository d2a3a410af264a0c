//! Streaming sessions: output, memory, round trips.

use std::{
    io::Read as _,
    net::TcpListener,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use holdfast::client::ServeExec;
use tokio::time::sleep;

use super::{
    IDLE, ROUNDS, Result,
    container::Payload,
    measure::{Memory, cpu_time, least, median, most, rate},
    pod::Pod,
    raw::{Raw, Wire},
    say,
};

const EXEC_BYTES: usize = 1 << 30;
/// What the generator writes at a time: as much as a pipe holds, so that it is not what is measured.
const BLOCK: usize = 64 * 1024;
/// As it is, and with a larger buffer than anybody has by default.
const SOCATS: [&str; 2] = ["", "-b 65536"];
/// How many sessions memory is measured with; one alone would show the steps of the allocator.
const SESSIONS: u32 = 20;
const ECHO_SESSIONS: usize = 100;
const ECHO_ROUNDS: usize = 200;
/// What each sends.
const ECHO: [u8; 64] = [b'x'; 64];

fn generator() -> [String; 5] {
    let count = EXEC_BYTES / BLOCK;
    [
        "dd".to_owned(),
        "if=/dev/zero".to_owned(),
        format!("bs={BLOCK}"),
        format!("count={count}"),
        "status=none".to_owned(),
    ]
}

/// A pod with a container that does nothing but have sessions.
async fn pod() -> Result<Pod> {
    let pod = Pod::start().await?;
    pod.run("c", &Payload::idle()).await?;
    Ok(pod)
}

async fn open(pod: &Pod, wire: Wire, stdin: bool, command: &[&str]) -> Result<Raw> {
    let command = command.iter().map(|word| (*word).to_owned()).collect();
    let exec = ServeExec { id: "c".to_owned(), command, stdin, stdout: true, ..ServeExec::default() };
    let url = pod.client.serve_exec(&exec).await?;
    let streams: &[&str] = if stdin { &["stdout", "stdin"] } else { &["stdout"] };
    Raw::connect(&url, wire, streams).await
}

/// Output of an exec, beside what `socat` moves of the same from a pipe to loopback TCP.
pub(super) async fn output() -> Result<()> {
    let pod = pod().await?;
    let command = generator();
    let words: Vec<&str> = command.iter().map(String::as_str).collect();
    let gigabytes = EXEC_BYTES as f64 / 1e9;
    let (mut rates, mut cpus): ([Vec<f64>; 2], [Vec<f64>; 2]) = Default::default();
    let (mut socat_rates, mut socat_cpus): ([Vec<f64>; 2], [Vec<f64>; 2]) = Default::default();
    for _ in 0..ROUNDS {
        for (index, wire) in Wire::BOTH.into_iter().enumerate() {
            let before = cpu_time(pod.pid)?;
            let mut client = open(&pod, wire, false, &words).await?;
            let (time, total) = client.drain().await?;
            if total < EXEC_BYTES {
                return Err(format!("the exec brought {total} bytes").into());
            }
            client.close().await?;
            rates[index].push(rate(EXEC_BYTES, time));
            cpus[index].push((cpu_time(pod.pid)? - before).as_secs_f64() / gigabytes);
        }
        for (index, options) in SOCATS.into_iter().enumerate() {
            let (time, cpu) = socat(options, &command)?;
            socat_rates[index].push(rate(EXEC_BYTES, time));
            socat_cpus[index].push(cpu.as_secs_f64() / gigabytes);
        }
    }
    for (index, wire) in Wire::BOTH.into_iter().enumerate() {
        let (name, spread) = (wire.name(), format!("{:.0} to {:.0}", least(&rates[index]), most(&rates[index])));
        let (ours, cpu) = (median(rates[index].clone()), median(cpus[index].clone()));
        for (options, (rates, cpus)) in SOCATS.into_iter().zip(socat_rates.iter().zip(&socat_cpus)) {
            let (socat, socat_cpu) = (median(rates.clone()), median(cpus.clone()));
            let peer = ["socat", options].join(" ");
            say(&format!(
                "| output of an exec over {name} | {ours:.0} MB/s ({spread}) | `{}`: {socat:.0} MB/s | {:.2} |",
                peer.trim_end(),
                ours / socat
            ))?;
            say(&format!("| CPU for that | {cpu:.2} s/GB | {socat_cpu:.2} s/GB | {:.2} |", cpu / socat_cpu))?;
        }
    }
    Ok(())
}

/// The time from the first byte to the last, and what of the processor socat itself used.
fn socat(options: &str, command: &[String]) -> Result<(Duration, Duration)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut generator = Command::new("busybox").args(command).stdout(Stdio::piped()).spawn()?;
    let pipe = generator.stdout.take().ok_or("the generator has no pipe")?;
    let target = format!("TCP4:{},nodelay", listener.local_addr()?);
    let mut socat =
        Command::new("socat").args(options.split_whitespace()).args(["-u", "-", &target]).stdin(pipe).spawn()?;
    let (mut incoming, _) = listener.accept()?;
    let (mut buffer, mut total, mut start) = (vec![0; 256 * 1024], 0, None);
    loop {
        match incoming.read(&mut buffer)? {
            0 => break,
            count => total += count,
        }
        start.get_or_insert_with(Instant::now);
    }
    let time = start.ok_or("socat brought nothing")?.elapsed();
    // A zombie still tells what it used.
    let stat = format!("/proc/{}/stat", socat.id());
    while !std::fs::read_to_string(&stat)?.contains(") Z ") {
        std::thread::yield_now();
    }
    let cpu = cpu_time(socat.id())?;
    socat.wait()?;
    generator.wait()?;
    if total == EXEC_BYTES { Ok((time, cpu)) } else { Err(format!("socat brought {total} bytes").into()) }
}

/// What a session costs that does nothing, and one whose client does not read.
pub(super) async fn memory() -> Result<()> {
    for (what, command, stdin) in [
        ("an idle session", &["sleep", "100000"][..], true),
        ("a session with a stalled client", &["cat", "/dev/zero"], false),
    ] {
        for wire in Wire::BOTH {
            let pod = pod().await?;
            // The listener, the parser and the first launch leave something behind that is no session's.
            let mut first = open(&pod, wire, false, &["true"]).await?;
            first.drain().await?;
            first.close().await?;
            sleep(IDLE).await;
            let before = Memory::of(pod.pid)?.anonymous_kib;
            let mut sessions = Vec::new();
            for _ in 0..SESSIONS {
                sessions.push(open(&pod, wire, stdin, command).await?);
            }
            sleep(IDLE * 2).await;
            let each = (Memory::of(pod.pid)?.anonymous_kib - before) / f64::from(SESSIONS);
            say(&format!("| RssAnon of {what}, {} | {each:.1} KiB | – | – |", wire.name()))?;
        }
    }
    Ok(())
}

/// Round trips through `cat` with many sessions at once.
pub(super) async fn echo() -> Result<()> {
    for wire in Wire::BOTH {
        let pod = pod().await?;
        let mut sessions = Vec::new();
        for _ in 0..ECHO_SESSIONS {
            let mut session = open(&pod, wire, true, &["cat"]).await?;
            session.echo(&ECHO).await?;
            sessions.push(session);
        }
        sleep(IDLE).await;
        let rounds = sessions.into_iter().map(|mut session| async move {
            let mut times = Vec::with_capacity(ECHO_ROUNDS);
            for _ in 0..ECHO_ROUNDS {
                let start = Instant::now();
                session.echo(&ECHO).await?;
                times.push(start.elapsed().as_secs_f64() * 1e3);
            }
            session.close().await?;
            Result::Ok(times)
        });
        let mut times = futures_util::future::try_join_all(rounds).await?.concat();
        times.sort_by(f64::total_cmp);
        let at = |percent: usize| times[times.len() * percent / 100];
        let (p50, p99) = (at(50), at(99));
        say(&format!(
            "| round trip, {ECHO_SESSIONS} sessions at once, {} | p99 {p99:.2} ms | p50 {p50:.2} ms | {:.2} |",
            wire.name(),
            p99 / p50
        ))?;
    }
    Ok(())
}
