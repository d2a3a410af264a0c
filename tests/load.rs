//! Many containers at once. Many commands, and what goes on beside processes that take all the time they get, are in
//! `faults/`.

use support::{BundleSpec, eventually, procfs};

mod support;

#[test]
fn many_containers_that_write_at_once_have_complete_logs() {
    support::e2e(async |sandbox| {
        let ids: Vec<String> = (0..20).map(|number| format!("c{number}")).collect();
        for id in &ids {
            sandbox.run(id, &BundleSpec::shell("while [ ! -e /go ]; do sleep 0.1; done; seq 1 20000")).await;
        }
        std::fs::write(sandbox.in_rootfs("go"), "").expect("our directory");
        for id in &ids {
            assert_eq!((sandbox.wait_exit(id).await, sandbox.log(id).len()), (0, 20_000), "{id}");
        }
        let daemon = sandbox.daemon_pid();
        eventually("the containers to be collected", || procfs::children(daemon).is_empty().then_some(())).await;
    });
}
