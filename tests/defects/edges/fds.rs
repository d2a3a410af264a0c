//! Descriptors for containers (D35 to D37).

use std::{fs::File, os::fd::AsFd as _, time::Duration};

use nix::sys::signal::Signal;

use crate::support::{
    BundleSpec, e2e,
    fds::{Held, borrowed, connect, end, file, refused, with_fds},
    raise_file_limit, within,
};

/// A request's bytes.
fn head(count: u32, id: u32) -> Vec<u8> {
    [count.to_le_bytes(), id.to_le_bytes()].concat()
}

#[test]
fn d35_a_descriptor_is_closed_once_and_not_what_has_its_number_by_then() {
    e2e(async |sandbox| {
        let mut fds = connect(sandbox).await;
        let slots = fds.send(&borrowed(&[file("a"), file("b"), file("c")])).await.unwrap();
        let mut request = with_fds(sandbox, "c", &BundleSpec::idle(), &slots[..2]);
        request.leak_fds = slots[2..].to_vec();
        sandbox.client().create_container(&request).await.unwrap();
        // These get the numbers that have become free.
        let after: Vec<_> = (0..20).map(|_| Held::new()).collect();
        let borrowed: Vec<_> = after.iter().map(Held::fd).collect();
        fds.send(&borrowed).await.unwrap();
        let after: Vec<_> = after.into_iter().map(Held::handed_over).collect();
        sandbox.start("c");
        end(sandbox, "c").await;
        // A second close came within 200 ms.
        let watch = async {
            loop {
                assert!(after.iter().all(|held| held.is_open()));
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        assert!(tokio::time::timeout(Duration::from_millis(600), watch).await.is_err());
        drop(fds);
        for held in after {
            held.closed().await;
        }
    });
}

#[test]
fn d36_the_mark_of_a_refusal_is_all_ones() {
    e2e(async |sandbox| {
        let fds = connect(sandbox).await;
        let null = File::open("/dev/null").unwrap();
        for (count, sent) in [(1, 0), (0, 1), (2, 1), (255, 1), (257, 1), (1 << 31 | 1, 1), (u32::MAX, 1)] {
            let held = Held::new();
            let all = [held.fd(), null.as_fd()];
            fds.send_packet(&head(count, 9), &all[..sent]).await.unwrap();
            let reply = within(fds.receive_packet()).await.unwrap();
            let text = format!("the request announces {count} descriptors, but {sent} arrived");
            assert_eq!(reply, [&[0xff, 0xff, 0xff, 0xff, 9, 0, 0, 0], text.as_bytes()].concat());
            held.handed_over().closed().await;
        }
    });
}

#[test]
fn d36_a_packet_of_the_wrong_length_is_answered() {
    e2e(async |sandbox| {
        let mut fds = connect(sandbox).await;
        for (packet, id) in [(&[1, 0, 0, 0][..], 0), (&[1; 7], 0), (&[1, 0, 0, 0, 5, 0, 0, 0, 0], 5), (&[2; 3000], 2)] {
            let held = Held::new();
            fds.send_packet(packet, &[held.fd()]).await.unwrap();
            let reply = within(fds.receive_packet()).await.unwrap();
            assert_eq!((&reply[..4], reply[4]), (&[0xff; 4][..], id), "{} bytes", packet.len());
            assert!(String::from_utf8_lossy(&reply[8..]).contains("a request has 8 bytes"));
            held.handed_over().closed().await;
        }
        fds.send(&borrowed(&[file("x")])).await.unwrap();
    });
}

#[test]
fn d36_one_packet_takes_253_descriptors() {
    e2e(async |sandbox| {
        raise_file_limit();
        let mut fds = connect(sandbox).await;
        let null = File::open("/dev/null").unwrap();
        assert_eq!(fds.send(&vec![null.as_fd(); 253]).await.unwrap(), (1..=253).collect::<Vec<_>>());
    });
}

#[test]
fn d36_a_claim_of_several_slots_takes_all_or_none() {
    e2e(async |sandbox| {
        let mut fds = connect(sandbox).await;
        let slots = fds.send(&borrowed(&[file("x"), file("y"), file("z")])).await.unwrap();
        let mut request = with_fds(sandbox, "c", &BundleSpec::idle(), &slots[..2]);
        request.leak_fds = vec![slots[2], 1000];
        assert!(refused(sandbox, &request).await.contains("leakFds: slot 1000 is unknown"));
        request.leak_fds.pop();
        sandbox.client().create_container(&request).await.unwrap();
    });
}

#[test]
fn d37_a_shutdown_never_leaves_the_socket() {
    e2e(async |sandbox| {
        for round in 0..6 {
            let mut fds = connect(sandbox).await;
            fds.send(&borrowed(&[file("x")])).await.unwrap();
            let signal = if round % 2 == 0 { Signal::SIGTERM } else { Signal::SIGINT };
            assert!(sandbox.end_daemon(signal).await.success());
            assert!(!sandbox.runtime_dir().join("conmon-fd.sock").exists(), "round {round}");
            sandbox.restart_daemon(|_| {}).await;
        }
    });
}
