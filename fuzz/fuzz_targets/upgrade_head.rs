//! Any request head: an upgrade or one of the refusals, and no header that could break out of its line.
#![no_main]

use holdfast::proto::remotecommand::StreamKind;
use holdfast::proto::upgrade_head::{RequestHead, negotiate, route};
use libfuzzer_sys::fuzz_target;

// Lines: the method, the path, then headers as `name:value`.
fuzz_target!(|data: &[u8]| {
    let mut lines = data.split(|byte| *byte == b'\n');
    let mut text = || lines.next().and_then(|line| str::from_utf8(line).ok()).unwrap_or_default();
    let (method, path) = (text(), text());
    let headers: Vec<(&str, &[u8])> = lines.filter_map(header).collect();
    let head = RequestHead { method, path, headers: &headers };

    match route(&head) {
        Ok(route) => assert!(!route.token.is_empty() && !route.token.contains('/')),
        Err(refusal) => assert!(matches!(refusal.status, 404 | 405)),
    }
    for kind in [StreamKind::Exec, StreamKind::Attach, StreamKind::PortForward] {
        let headers = match negotiate(kind, &head) {
            Ok(upgrade) => upgrade.response_headers(),
            Err(refusal) => {
                assert!(matches!(refusal.status, 400 | 403 | 405) && !refusal.body.is_empty());
                assert!(refusal.body.len() < 2048);
                refusal.headers
            }
        };
        assert!(headers.iter().all(|(_, value)| value.bytes().all(|byte| matches!(byte, b' '..=b'~'))));
    }
});

fn header(line: &[u8]) -> Option<(&str, &[u8])> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    Some((str::from_utf8(&line[..colon]).ok()?, &line[colon + 1..]))
}
