//! Calls that make no sense, or come too late.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use holdfast::{client::AttachContainer, client::ClientError};

use crate::support::{self, BundleSpec, Sandbox, procfs};

async fn refused(sandbox: &Sandbox, id: &str, path: &Path) -> String {
    let attach = AttachContainer { id: id.to_owned(), socket_path: path.to_owned(), stop_after_stdin_eof: true };
    match sandbox.client().attach_container(&attach).await {
        Err(ClientError::Refused { reason, .. }) => reason,
        other => panic!("{}: {other:?}", path.display()),
    }
}

#[test]
fn a_path_that_cannot_be_one_of_a_socket_is_refused_and_says_why() {
    support::e2e(async |sandbox| {
        sandbox.run("c", &BundleSpec::idle()).await;
        let before = procfs::descriptors(sandbox.daemon_pid());
        let long_name = sandbox.path().join("n".repeat(108));
        fs::write(sandbox.path().join("file"), "").unwrap();
        for (path, reason) in [
            (PathBuf::new(), "socketPath: the path is empty"),
            ("attach".into(), "socketPath: the path is not absolute"),
            ("/".into(), "socketPath: the path has no file name"),
            ("/tmp/..".into(), "socketPath: the path has no file name"),
            ("/a\0b".into(), "socketPath: it contains a NUL byte"),
            (format!("/{}", "d/".repeat(2500)).into(), "socketPath: the path is longer than 4095 bytes"),
            (long_name, "socketPath: the file name is longer than 107 bytes"),
            (sandbox.path().join("d".repeat(300)).join("attach"), "name too long"),
            (sandbox.path().join("file/attach"), "Not a directory"),
            ("/proc/nothing/attach".into(), "No such file or directory"),
        ] {
            let said = refused(sandbox, "c", &path).await;
            assert!(said.contains(reason), "{}: {said}", path.display());
        }
        assert_eq!(procfs::descriptors(sandbox.daemon_pid()), before);
    });
}

#[test]
fn text_that_is_not_utf8_is_refused_in_every_field() {
    support::e2e(async |sandbox| {
        let bad = capnp::text::Reader(b"/bad\xff");
        for field in ["id", "socketPath", "execSessionId"] {
            let client = sandbox.client();
            let mut call = client.conmon().attach_container_request();
            let mut request = call.get().init_request();
            request.set_id("c");
            request.set_socket_path("/good");
            match field {
                "id" => request.set_id(bad),
                "socketPath" => request.set_socket_path(bad),
                _ => request.set_exec_session_id(bad),
            }
            let said = call.send().promise.await.err().unwrap().to_string();
            assert!(said.contains(&format!("invalid-request: {field}: it is not valid UTF-8")), "{said}");
        }
    });
}

#[test]
fn a_file_system_that_takes_no_files_is_a_failed_call() {
    support::e2e(async |sandbox| {
        sandbox.run("c", &BundleSpec::idle()).await;
        let directory = sandbox.path().join("read-only");
        fs::create_dir(&directory).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "ro", "none"]).arg(&directory).status();
        assert!(mounted.unwrap().success());
        let said = [
            refused(sandbox, "c", &directory.join("attach")).await,
            refused(sandbox, "c", &directory.join("x/attach")).await,
        ];
        assert!(Command::new("umount").arg(&directory).status().unwrap().success());
        assert!(said.iter().all(|said| said.contains("Read-only file system")), "{said:?}");
    });
}

#[test]
fn a_container_that_is_unknown_has_exited_or_is_just_exiting_is_refused() {
    support::e2e(async |sandbox| {
        let said = refused(sandbox, "nobody", &sandbox.path().join("attach")).await;
        assert!(said.starts_with("not-found: "), "{said}");
        let pid = sandbox.run("c", &BundleSpec::idle()).await;
        // Somebody who holds the container's output keeps its end waiting, for 1 s at least.
        let held = fs::File::options().write(true).open(format!("/proc/{pid}/fd/1")).unwrap();
        sandbox.runtime(&["kill", "c", "KILL"]);
        support::eventually("the end of the container", || (!procfs::runs(pid)).then_some(())).await;
        let path = sandbox.attach_path("c");
        let exiting = loop {
            let attach = AttachContainer { id: "c".to_owned(), socket_path: path.clone(), stop_after_stdin_eof: false };
            // The daemon may not have heard of it yet.
            if let Err(error) = sandbox.client().attach_container(&attach).await {
                break error.to_string();
            }
        };
        assert!(exiting.contains("the container has exited"), "{exiting}");
        drop(held);
        sandbox.wait_exit("c").await;
        support::eventually("the container to be forgotten", || (!path.exists()).then_some(())).await;
        let said = refused(sandbox, "c", &path).await;
        assert!(said.contains("has exited"), "{said}");
        assert!(!path.exists());
    });
}
