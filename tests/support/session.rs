use holdfast::client::{StreamClient, StreamMessage};

use super::{BundleSpec, Sandbox, e2e, within};

/// Runs a test in a sandbox with a container `c` that does nothing.
pub(crate) fn with_container(test: impl AsyncFnOnce(&Sandbox)) {
    e2e(async |sandbox| {
        sandbox.run("c", &BundleSpec::idle()).await;
        test(sandbox).await;
    });
}

/// Reads until the output holds the text.
pub(crate) async fn wait_output(session: &mut StreamClient, text: &str) {
    let mut seen = Vec::new();
    let reading = async {
        while !String::from_utf8_lossy(&seen).contains(text) {
            match session.next().await.expect("the server keeps to the protocol") {
                StreamMessage::Stdout(bytes) | StreamMessage::Stderr(bytes) => seen.extend_from_slice(&bytes),
                end => panic!("{end:?} after {:?}", String::from_utf8_lossy(&seen)),
            }
        }
    };
    within(reading).await;
}
