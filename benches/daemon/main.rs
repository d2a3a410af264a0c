//! The figures of docs/BENCHMARKS.md, printed as a Markdown table. Run by `contrib/bench`, as root.
//!
//! Every figure stands beside one of something else measured in the same run, since two runs on a busy machine cannot be
//! compared. Where Debian's conmon (the C program that does a part of the same job) is installed, it is a further one.

mod container;
mod measure;
mod peer;
mod pod;
mod raw;
mod streams;

use std::{
    error::Error,
    fs,
    io::{self, Write as _},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use container::Payload;
use measure::{Memory, cpu_time, median, rate};
use peer::Conmon;
use pod::Pod;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const SPAWNS: usize = 30;
const ROUNDS: usize = 5;
/// Threads of the pool end after a second, see `POOL_KEEP_ALIVE` in src/daemon.rs.
const IDLE: Duration = Duration::from_millis(1500);
/// Bytes that a container writes in lines of [`LINE`].
const LOG_BYTES: usize = 256_000_000;
const LINE: usize = 100;
/// A CRI record has a time of 30 bytes, the stream and the tag before each line.
const RECORD: usize = "2000-01-01T00:00:00.000000000Z stdout F ".len() + LINE;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    // `cargo test --benches` runs this too, and is no place for it.
    if !words.iter().any(|word| word == "--bench") {
        return Ok(());
    }
    let chosen = |name: &str| words.iter().all(|word| word.starts_with("--")) || words.iter().any(|word| word == name);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build_local(Default::default())?;
    runtime.block_on(async {
        say("| what | holdfast | beside it | ratio |\n|---|---|---|---|")?;
        if chosen("spawn") {
            spawn().await?;
        }
        if chosen("memory") {
            memory().await?;
        }
        if chosen("log") {
            log().await?;
        }
        if chosen("exec") {
            streams::output().await?;
        }
        if chosen("sessions") {
            streams::memory().await?;
        }
        if chosen("echo") {
            streams::echo().await?;
        }
        Ok(())
    })
}

fn say(text: &str) -> Result<()> {
    Ok(writeln!(io::stdout(), "{text}")?)
}

/// From the spawn to the first answer of the control socket, with the daemon going to the background as an engine has it.
async fn spawn() -> Result<()> {
    let mut ours = Vec::new();
    for _ in 0..SPAWNS {
        let start = Instant::now();
        let pod = Pod::start().await?;
        pod.client.version(false).await?;
        ours.push(start.elapsed().as_secs_f64() * 1e3);
    }
    let ours = median(ours);
    let mut peers = vec![("spawn of `/bin/true`", "/bin/true", "")];
    if Conmon::is_installed() {
        peers.push(("spawn of `conmon --version`", "conmon", "--version"));
    }
    for (name, program, argument) in peers {
        let mut theirs = Vec::new();
        for _ in 0..SPAWNS {
            let start = Instant::now();
            Command::new(program).arg(argument).stdout(Stdio::null()).status()?;
            theirs.push(start.elapsed().as_secs_f64() * 1e3);
        }
        let theirs = median(theirs);
        let ratio = ours / theirs;
        say(&format!("| spawn to first `version` answer | {ours:.1} ms | {name}: {theirs:.1} ms | {ratio:.1} |"))?;
    }
    Ok(())
}

/// Memory of an idle daemon, and of idle containers.
async fn memory() -> Result<()> {
    let pod = Pod::start().await?;
    pod.client.version(false).await?;
    sleep(IDLE).await;
    let mut figures = vec![(0, Memory::of(pod.pid)?)];
    for count in 1..=10_u32 {
        pod.run(&format!("idle-{count}"), &Payload::idle()).await?;
        if count == 1 || count == 10 {
            sleep(IDLE).await;
            figures.push((count, Memory::of(pod.pid)?));
        }
    }
    let theirs = match Conmon::is_installed() {
        true => Some(Conmon::run(&pod, "peer", &Payload::idle()).await?.memory()?),
        false => None,
    };
    for (count, ours) in &figures {
        let peer = theirs.as_ref().map(|one| one.times(*count));
        let beside = match &peer {
            Some(peer) if *count > 0 => {
                format!("{count} conmon: {peer} | {:.2}", ours.anonymous_kib / peer.anonymous_kib)
            }
            _ => "– | –".to_owned(),
        };
        say(&format!("| memory with {count} idle containers | {ours} | {beside} |"))?;
    }
    let each = (figures[2].1.anonymous_kib - figures[1].1.anonymous_kib) / 9.0;
    let beside = theirs.map_or_else(
        || "– | –".to_owned(),
        |peer| format!("conmon: {:.0} KiB | {:.3}", peer.anonymous_kib, each / peer.anonymous_kib),
    );
    say(&format!("| RssAnon per further idle container | {each:.1} KiB | {beside} |"))
}

/// What a container writes in lines of 100 bytes, until all of it is in the log file and the exit file tells so.
async fn log() -> Result<()> {
    let pod = Pod::start().await?;
    let (mut ours, mut cats, mut peers) = (Vec::new(), Vec::new(), Vec::new());
    let (mut our_cpu, mut peer_cpu) = (Vec::new(), Vec::new());
    let payload = Payload::lines(LINE, LOG_BYTES);
    let gigabytes = LOG_BYTES as f64 / 1e9;
    for round in 0..ROUNDS {
        let id = format!("log-{round}");
        let before = cpu_time(pod.pid)?;
        let container = pod.run(&id, &payload).await?;
        ours.push(rate(LOG_BYTES, container.time_to_end().await?));
        our_cpu.push((cpu_time(pod.pid)? - before).as_secs_f64() / gigabytes);
        check_log(&container.log)?;
        pod.remove(&id)?;
        cats.push(rate(LOG_BYTES, cat(&pod, &payload).await?));
        if Conmon::is_installed() {
            let conmon = Conmon::run(&pod, &format!("peer-{round}"), &payload).await?;
            let (time, cpu) = conmon.time_to_end().await?;
            peers.push(rate(LOG_BYTES, time));
            peer_cpu.push(cpu.as_secs_f64() / gigabytes);
        }
    }
    let spread = format!("{:.0} to {:.0}", measure::least(&ours), measure::most(&ours));
    let (ours, cats, cpu) = (median(ours), median(cats), median(our_cpu));
    let what = "container stdout to CRI log, lines of 100 bytes";
    say(&format!("| {what} | {ours:.0} MB/s ({spread}) | `cat` to a file: {cats:.0} MB/s | {:.2} |", ours / cats))?;
    if !peers.is_empty() {
        let (peer, theirs) = (median(peers), median(peer_cpu));
        say(&format!("| {what} | {ours:.0} MB/s | conmon, k8s-file: {peer:.0} MB/s | {:.2} |", ours / peer))?;
        say(&format!(
            "| CPU of the monitor for that | {cpu:.2} s/GB | conmon: {theirs:.2} s/GB | {:.2} |",
            cpu / theirs
        ))?;
    } else {
        say(&format!("| CPU of the monitor for that | {cpu:.2} s/GB | – | – |"))?;
    }
    Ok(())
}

/// Every line must be there, whole.
fn check_log(path: &Path) -> Result<()> {
    let (length, expected) = (fs::metadata(path)?.len(), (LOG_BYTES / LINE * RECORD) as u64);
    if length == expected { Ok(()) } else { Err(format!("the log has {length} bytes instead of {expected}").into()) }
}

/// The same generator on the host, with `cat` in the monitor's place.
async fn cat(pod: &Pod, payload: &Payload) -> Result<Duration> {
    let out = pod.path("cat.out");
    let gate = pod.gate("cat")?;
    let script = format!("{{ {}; }} | cat >'{}'", payload.script(&gate.display().to_string()), out.display());
    let mut child = Command::new("busybox").args(["sh", "-c", &script]).stdin(Stdio::null()).spawn()?;
    let start = container::open_gate(&gate).await?;
    child.wait()?;
    let time = start.elapsed();
    fs::remove_file(out)?;
    fs::remove_file(gate)?;
    Ok(time)
}

/// A directory on the file system that all figures of a run share.
fn directory() -> Result<TempDir> {
    Ok(tempfile::Builder::new().prefix("hf-bench-").tempdir()?)
}
