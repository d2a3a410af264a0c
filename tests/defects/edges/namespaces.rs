//! Namespaces of pods (D46).

use std::{
    fs,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use holdfast::client::{ClientError, NamespaceKind};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::support::{
    eventually,
    namespaces::{
        KINDS, NAMES, WITHOUT_USER, enter, inside, mapped, of_process, refused, signal, with_base, with_base_and,
    },
    procfs, within,
};

#[test]
fn d46_every_pod_has_namespaces_of_its_own() {
    with_base(async |sandbox, base| {
        let host = of_process(sandbox.daemon_pid());
        let mut all = vec![host];
        for pod in ["a", "b", "c"] {
            let made = base.make(sandbox, &base.request(pod, &KINDS)).await;
            assert!(all.iter().all(|other| made.iter().zip(other).all(|(one, other)| one != other)), "{pod}");
            all.push(made);
        }
    });
}

#[test]
fn d46_a_user_namespace_has_any_mapping_and_is_pinned_where_the_host_sees_it() {
    with_base(async |sandbox, base| {
        let host = of_process(sandbox.daemon_pid());
        let request = mapped(base.request("p", &KINDS), &["0 100000 65536", "70000 200000 10"]);
        let made = base.make(sandbox, &request).await;
        assert!(made.iter().zip(&host).all(|(made, host)| made != host));
        let pause = base.pause("p");
        // Not the host's root: it would be the owner of the host's files.
        let ids = |name: &str| procfs::status_line(pause, name);
        assert_eq!((ids("Uid"), ids("Gid")), ("100000\t".repeat(4).trim().into(), "100000\t".repeat(4).trim().into()));
        assert_eq!(ids("Groups"), "");
        let map = fs::read_to_string(format!("/proc/{pause}/uid_map")).unwrap();
        let map: Vec<_> = map.split_whitespace().collect();
        assert_eq!(map, ["0", "100000", "65536", "70000", "200000", "10"]);
        let all: Vec<_> = NAMES.iter().map(|name| enter(base, name, "p")).collect();
        // Root in there, and master of what belongs to the user namespace.
        let told = inside(&all, &["sh", "-c", "id -u; echo $$; hostname pinned; hostname; ls -n /proc/self/stat >&2"]);
        let lines: Vec<_> = told.lines().collect();
        assert!(lines[0] == "0" && lines[1].parse::<u32>().unwrap() < 100 && lines[2] == "pinned", "{told}");
    });
}

#[test]
fn d46_a_mapping_that_the_kernel_refuses_leaves_no_stuck_process() {
    with_base(async |sandbox, base| {
        let start = Instant::now();
        let overlapping = mapped(base.request("p", &KINDS), &["0 0 10", "5 100 10"]);
        let reason = refused(sandbox, &overlapping).await;
        assert!(reason.contains("the mappings were refused") && reason.contains("Invalid argument"), "{reason}");
        assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
        eventually("nothing left", || base.left().is_empty().then_some(())).await;
        eventually("no zombie", || (procfs::zombies(sandbox.daemon_pid()) == 0).then_some(())).await;
        base.make(sandbox, &base.request("p", &KINDS)).await;
    });
}

#[test]
fn d46_the_daemon_starts_itself_and_not_what_has_its_path_by_now() {
    let copied = |command: &mut Command| {
        let dir = command.get_args().find(|word| word.to_string_lossy().ends_with("/run")).unwrap();
        let copy = PathBuf::from(dir).with_file_name("holdfast");
        fs::copy(command.get_program(), &copy).unwrap();
        let mut other = Command::new(copy);
        other.args(command.get_args());
        *command = other;
    };
    with_base_and(copied, async |sandbox, base| {
        let program = sandbox.path().join("holdfast");
        fs::remove_file(&program).unwrap();
        fs::write(&program, "something else").unwrap();
        base.make(sandbox, &base.request("p", &WITHOUT_USER)).await;
        let line = fs::read(format!("/proc/{}/cmdline", base.pause("p"))).unwrap();
        assert!(line.starts_with(program.to_str().unwrap().as_bytes()), "found by its path, as the daemon is");
    });
}

#[test]
fn d46_a_dot_in_the_pod_id_is_a_dot_and_the_longest_file_name_is_one() {
    with_base(async |sandbox, base| {
        let long = "x".repeat(255);
        for pod in ["a.b.c", "-rf", " ", "ä\n", &long] {
            base.make(sandbox, &base.request(pod, &[NamespaceKind::Uts])).await;
        }
        sandbox.end_daemon(Signal::SIGTERM).await;
        assert_eq!(base.left(), [""; 0]);
    });
}

#[test]
fn d46_the_pause_process_is_the_first_of_its_pid_namespace_and_collects_orphans() {
    with_base(async |sandbox, base| {
        base.make(sandbox, &base.request("p", &WITHOUT_USER)).await;
        let pause = base.pause("p");
        assert!(procfs::status_line(pause, "NSpid").ends_with("\t1"), "{}", procfs::status_line(pause, "NSpid"));
        let orphan = inside(&[enter(base, "pid", "p")], &["sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $!"]);
        assert!(orphan.parse::<u32>().expect("a number") < 100, "{orphan}");
        let child = eventually("an orphan of the namespace", || procfs::children(pause).pop()).await.0;
        signal(child, Signal::SIGKILL);
        eventually("its collection", || procfs::children(pause).is_empty().then_some(())).await;
        // Nobody inside ends it for all.
        inside(&[enter(base, "pid", "p")], &["sh", "-c", "kill -TERM 1; kill -INT 1; kill -KILL 1; true"]);
        inside(&[enter(base, "pid", "p")], &["true"]);
        assert!(procfs::runs(pause));
    });
}

#[test]
fn d46_a_pause_process_that_hangs_is_killed_and_the_call_fails() {
    with_base(async |sandbox, base| {
        sandbox.client().version(false).await.expect("it serves");
        let descriptors = procfs::settled_descriptors(sandbox.daemon_pid()).await;
        // The next helper is stopped when it has been started and before it has done anything, if we are quick enough.
        let mut attempt = 0;
        let reason = loop {
            attempt += 1;
            assert!(attempt < 50, "never quick enough");
            let start = Instant::now();
            let request = base.request(&format!("p{attempt}"), &KINDS);
            let (client, option) = (sandbox.client(), format!("--pod-id=p{attempt}"));
            let call = client.create_namespaces(&request);
            let stopper = std::thread::spawn({
                let daemon = sandbox.daemon_pid();
                move || stop_helper(daemon, &option)
            });
            // Nobody else waits for it.
            let others = async { sandbox.connect().await.version(false).await.unwrap() };
            let (answer, _) = tokio::join!(within(call), within(others));
            let stopped = stopper.join().expect("it does not panic");
            match answer {
                Err(ClientError::Refused { reason, .. }) => {
                    assert!(stopped && start.elapsed() > Duration::from_secs(9), "{reason}");
                    break reason;
                }
                other => drop(other.expect("too late to stop it")),
            }
        };
        assert!(reason.contains("did not answer in time"), "{reason}");
        let option = format!("/p{attempt}");
        eventually("nothing left of it", || (!base.left().iter().any(|left| left.ends_with(&option))).then_some(()))
            .await;
        eventually("no process left of it", || (base.processes().len() == attempt - 1).then_some(())).await;
        // A claim for each of those that were made.
        eventually("no descriptor", || {
            let now = procfs::descriptors(sandbox.daemon_pid());
            (now == descriptors + 2 * (attempt - 1)).then_some(())
        })
        .await;
    });
}

/// Stops the child of the daemon with this option as soon as it is there; false when it never was seen.
fn stop_helper(daemon: u32, option: &str) -> bool {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(5) {
        let children = fs::read_to_string(format!("/proc/{daemon}/task/{daemon}/children")).unwrap_or_default();
        let threads = fs::read_dir(format!("/proc/{daemon}/task")).into_iter().flatten().flatten();
        let of_threads = threads.map(|thread| fs::read_to_string(thread.path().join("children")).unwrap_or_default());
        for pid in of_threads.chain([children]).flat_map(|list| list.split(' ').map(str::to_owned).collect::<Vec<_>>())
        {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            if line.split(|byte| *byte == 0).any(|word| word == option.as_bytes()) {
                return kill(Pid::from_raw(pid.parse().expect("a number")), Signal::SIGSTOP).is_ok();
            }
        }
    }
    false
}
