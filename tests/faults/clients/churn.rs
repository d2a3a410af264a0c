//! Viewers that come and go by the thousand.

use super::{NOISE, anonymous, attach_spdy, attach_ws};
use crate::support::{self, BundleSpec, RawAttach, Sandbox, eventually, figure, long, procfs};

/// Comes and goes once on each of the three ways, some with a good-bye and some without.
async fn cycle(sandbox: &Sandbox, path: &std::path::Path, number: usize) {
    let web = attach_ws(sandbox, "c", false).await;
    let (spdy, _) = attach_spdy(sandbox, "c").await;
    let packets = RawAttach::connect(path).expect("it listens");
    match number % 3 {
        0 => {
            drop(web);
            spdy.bye().await;
            packets.half_close();
        }
        1 => {
            web.reset();
            spdy.reset();
        }
        _ => {
            packets.next().await.expect("output");
        }
    }
}

#[test]
fn viewers_that_come_and_go_leave_no_descriptor_no_memory_and_an_undisturbed_container() {
    let cycles = if long() { 1700 } else { 100 };
    support::e2e(async |sandbox| {
        let script = "i=0; while [ ! -e /go ]; do echo $i; i=$((i+1)); usleep 1000; done; echo end";
        sandbox.run("c", &BundleSpec::shell(script)).await;
        let path = sandbox.listen("c", false).await;
        let daemon = sandbox.daemon_pid();
        cycle(sandbox, &path, 0).await;
        // What one half leaves behind that a leak would add to.
        let mut memory = Vec::new();
        let mut before = None;
        for _ in 0..2 {
            for number in 0..cycles / 2 {
                cycle(sandbox, &path, number).await;
            }
            let sessions = || {
                let open = procfs::descriptor_targets(daemon);
                // The container's own pipes, log and pidfd are open all the time; no viewer is there any more.
                let wanted = before.get_or_insert_with(|| open.clone()).len();
                (open.len() <= wanted).then_some(())
            };
            eventually("the descriptors of viewers to be closed", sessions).await;
            memory.push(anonymous(daemon));
        }
        figure("memory after each half of the cycles of viewers, KiB", format!("{memory:?}"));
        assert!(memory[1] <= memory[0] + NOISE / 2, "{memory:?} KiB");
        std::fs::write(sandbox.in_rootfs("go"), "").expect("our directory");
        assert_eq!(sandbox.wait_exit("c").await, 0);
        let log = sandbox.log("c");
        let numbers = log.len() - 1;
        for (number, record) in log.iter().take(numbers).enumerate() {
            assert_eq!(record.text, number.to_string().as_bytes(), "line {number}");
        }
    });
}
