//! One daemon under everything at once, for a while: nothing it owes is wrong or missing, its memory stays within the
//! published formula (docs/RELIABILITY.md), and afterwards it is as before.
//!
//! The quick form takes seconds and is part of every run of the tests; `contrib/soak` runs it for as many minutes as
//! `HOLDFAST_SOAK_MINUTES` says. What each of the workers does depends on a seed, which is printed; `HOLDFAST_SOAK_SEED`
//! gives it.
//!
//! | module | what it does |
//! |---|---|
//! | `containers` | containers that come and go: logs, exit codes, watchers |
//! | `execs` | execSyncs and streamed execs: output, stdin, terminals, limits |
//! | `forwards` | connections to ports of the pod |
//! | `hostile` | clients that mean harm, at every door |
//! | `load` | what these share |
//! | `memory` | the formula, and whether the daemon is within it |

mod containers;
mod execs;
mod forwards;
mod hostile;
mod load;
mod memory;
#[allow(dead_code, reason = "this test uses a part of it")]
#[path = "../port_forward/pod.rs"]
mod pod;
mod random;
#[path = "../support/mod.rs"]
mod support;

use std::{env, process::Command, time::Duration};

use futures_util::future::join_all;
use tokio::time::{Instant, sleep};

use load::{Load, Small};
use memory::{Watch, anonymous_kib};
use pod::Pod;
use random::Random;
use support::{Sandbox, eventually, figure, procfs};

/// What the allocator may have kept after one load and not after another, in KiB.
const NOISE: u64 = 512;
/// The same where the daemon did not rest long enough to gather the small pieces that the allocator keeps at hand.
const QUICK_NOISE: u64 = 2048;

/// What a long run takes about to come to rest.
const REST: Duration = Duration::from_secs(100);

/// How long, how many, how often.
struct Plan {
    seed: u64,
    warm_up: Duration,
    /// Each ends with a daemon at rest.
    rounds: u32,
    round: Duration,
    workers: u64,
    hostile: u64,
    sample: Duration,
}

impl Plan {
    fn new() -> Self {
        let number = |name: &str| env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
        let seed = number("HOLDFAST_SOAK_SEED").unwrap_or_else(|| {
            let mut seed = [0; 4];
            getrandom::fill(&mut seed).expect("the kernel has some");
            u32::from_ne_bytes(seed).into()
        });
        match number("HOLDFAST_SOAK_MINUTES") {
            Some(minutes) => {
                let rounds = u32::try_from(minutes / 10).expect("few").max(1);
                // The rests are part of the time, as far as it lasts.
                let rests = if support::long() { REST * (rounds + 1) } else { Duration::ZERO };
                let work = Duration::from_secs(minutes * 60).saturating_sub(rests).max(Duration::from_secs(60));
                Self {
                    seed,
                    warm_up: work / 5,
                    rounds,
                    round: work * 4 / 5 / rounds,
                    workers: 8,
                    hostile: 4,
                    sample: Duration::from_secs(1),
                }
            }
            None => Self {
                seed,
                warm_up: Duration::from_secs(3),
                rounds: 1,
                round: Duration::from_secs(6),
                workers: 4,
                hostile: 2,
                sample: Duration::from_millis(250),
            },
        }
    }
}

/// What works for its result.
async fn honest(load: &Load<'_>, mut random: Random) {
    while load.has_time() {
        let random = &mut random;
        match random.of(0..100) {
            0..8 => containers::watched(load, random).await,
            8..14 => containers::loud(load, random).await,
            14..18 => containers::rotated(load, random).await,
            18..20 => containers::too_large(load, random).await,
            20..23 => containers::failing(load, random).await,
            23..26 => containers::unlogged(load, random).await,
            26..28 => containers::abandoned(load, random).await,
            28..36 => containers::chatter(load, random).await,
            36..48 => execs::short(load, random).await,
            48..50 => execs::expiring(load, random).await,
            50..52 => execs::beyond(load, random).await,
            52..60 => execs::output(load, random).await,
            60..68 => execs::input(load, random).await,
            68..72 => execs::terminal(load, random).await,
            72..76 => execs::broken_off(load, random).await,
            76..79 => execs::abandoned(load, random).await,
            79..82 => execs::reused(load, random).await,
            82..88 => forwards::short(load, random).await,
            88..93 => forwards::long(load, random).await,
            93..96 => forwards::refused(load, random).await,
            _ => forwards::stalled(load, random).await,
        }
    }
}

/// What means harm.
async fn harmful(load: &Load<'_>, mut random: Random) {
    while load.has_time() {
        let random = &mut random;
        match random.of(0..7) {
            0 => hostile::http(load, random).await,
            1 | 2 => hostile::websocket(load, random).await,
            3 => hostile::spdy(load, random).await,
            4 => hostile::control_socket(load, random).await,
            5 => hostile::fd_socket(load, random).await,
            _ => hostile::attach_socket(load, random).await,
        }
    }
}

/// Everything at once for a time, then its end.
async fn under_load(load: &Load<'_>, plan: &Plan, time: Duration, round: u64, mut watch: Option<&mut Watch>) {
    let residents = load.residents().await;
    load.until.set(Instant::now() + time);
    let numbers = |from: u64, count: u64| (from..from + count).map(move |n| Random::new(plan.seed, 1000 * round + n));
    let workers = join_all(numbers(0, plan.workers).map(|random| honest(load, random)));
    let others = join_all(numbers(500, plan.hostile).map(|random| harmful(load, random)));
    let work = async { tokio::join!(workers, others) };
    let watching = async {
        loop {
            sleep(plan.sample).await;
            if let Some(watch) = &mut watch {
                watch.sample(&load.population);
            }
        }
    };
    tokio::select! {
        _ = work => {}
        () = watching => {}
    }
    load.end_residents().await;
    drop(residents);
}

/// Collects the ends that the daemon keeps for that: they are state, not a leak.
async fn collect_ends(sandbox: &Sandbox) {
    let client = sandbox.client();
    let containers = support::within(client.list_containers(None)).await.expect("a list").entries;
    let sessions = support::within(client.list_sessions(None)).await.expect("a list").entries;
    let containers: Vec<_> = containers.iter().map(|container| container.number).collect();
    let sessions: Vec<_> = sessions.iter().map(|session| session.number).collect();
    support::within(client.forget(&containers, &sessions)).await.expect("forgotten");
    assert_eq!(client.list_containers(None).await.expect("a list").entries, []);
}

/// What the daemon has when nothing is under way: its memory in KiB, and its descriptors.
async fn at_rest(sandbox: &Sandbox) -> (u64, Vec<String>) {
    let daemon = sandbox.daemon_pid();
    let alone = || {
        let threads = procfs::status_line(daemon, "Threads");
        (procfs::children(daemon).is_empty() && threads == "1").then_some(())
    };
    // Clients that broke off while their process stalls are looked at for some seconds.
    eventually("no process and no thread of the daemon's to be left", alone).await;
    if support::long() {
        // So long URLs are good that nobody has used.
        sleep(Duration::from_secs(61)).await;
    }
    collect_ends(sandbox).await;
    let mut before = (u64::MAX, Vec::new());
    loop {
        // Longer than the daemon waits before it gives memory back, in the quick form for the first time.
        sleep(Duration::from_millis(if support::long() { 12_000 } else { 1500 })).await;
        let now = (anonymous_kib(daemon), procfs::descriptor_targets(daemon));
        if now == before {
            return now;
        }
        before = now;
    }
}

async fn soak(sandbox: &Sandbox) {
    let plan = Plan::new();
    figure("soak: seed", plan.seed);
    let fresh = anonymous_kib(sandbox.daemon_pid());
    let pod = Pod::new(sandbox.path().join("netns"));
    let small = sandbox.path().join("small");
    let _small = Small::mount(&small);
    let load = Load::new(sandbox, &pod);
    under_load(&load, &plan, plan.warm_up, 0, None).await;
    load.take_done();
    let (base, descriptors) = at_rest(sandbox).await;
    figure("soak: memory of a new daemon", format!("{fresh} KiB"));
    figure("soak: base, after a warm-up and without containers", format!("{base} KiB"));
    let mut watch = Watch::new(sandbox.daemon_pid(), base, plan.sample);
    let (mut after, mut left) = (0, Vec::new());
    for round in 1..=plan.rounds {
        under_load(&load, &plan, plan.round, round.into(), Some(&mut watch)).await;
        (after, left) = at_rest(sandbox).await;
        figure("soak: memory at rest after each round", format!("{after} KiB"));
    }
    for (what, times) in load.take_done() {
        figure(&format!("soak: {what}"), times);
    }
    load.population.report();
    watch.report();
    figure("soak: memory afterwards", format!("{after} KiB, {:.1} % of the base", 100.0 * after as f64 / base as f64));
    assert_eq!(left, descriptors, "descriptors");
    let noise = if support::long() { NOISE } else { QUICK_NOISE };
    assert!(after <= base + noise, "{after} KiB of memory after the load, {base} KiB before it");
    assert!(!sandbox.daemon_log().contains("panicked"), "the daemon panicked");
}

/// Changes the level of the daemon's own log: hours at `debug` would fill the disk.
fn quieter(daemon: &mut Command) {
    let words: Vec<_> = daemon
        .get_args()
        .map(|word| if word == "debug" && support::long() { "warn".into() } else { word.to_owned() })
        .collect();
    let mut changed = Command::new(daemon.get_program());
    changed.args(words);
    *daemon = changed;
}

#[test]
fn memory_is_within_the_formula_under_mixed_hostile_load_and_back_afterwards() {
    if !support::require_e2e() {
        return;
    }
    support::raise_file_limit();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build_local(Default::default());
    runtime.expect("a runtime needs only an epoll and a socket pair").block_on(async {
        let sandbox = Sandbox::with(quieter).await;
        soak(&sandbox).await;
    });
}
