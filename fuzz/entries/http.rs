//! The way from an HTTP request to an upgrade.

use holdfast::fuzzing;
use holdfast::proto::remotecommand::{StreamKind, choose_spdy, choose_websocket};
use holdfast::proto::upgrade_head::{RequestHead, negotiate, route};

const KINDS: [StreamKind; 3] = [StreamKind::Exec, StreamKind::Attach, StreamKind::PortForward];

/// Any request head that a parser has taken: an upgrade or one of the refusals, and no header that could break out of its
/// line. Lines: the method, the path, then headers as `name:value`.
pub(crate) fn upgrade_head(data: &[u8]) {
    let mut lines = data.split(|byte| *byte == b'\n');
    let mut text = || lines.next().and_then(|line| str::from_utf8(line).ok()).unwrap_or_default();
    let (method, path) = (text(), text());
    let headers: Vec<(&str, &[u8])> = lines.filter_map(header).collect();
    let head = RequestHead { method, path, headers: &headers };

    match route(&head) {
        Ok(route) => assert!(!route.token.is_empty() && !route.token.contains('/')),
        Err(refusal) => assert!(matches!(refusal.status, 404 | 405)),
    }
    for kind in KINDS {
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
}

fn header(line: &[u8]) -> Option<(&str, &[u8])> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    Some((str::from_utf8(&line[..colon]).ok()?, &line[colon + 1..]))
}

/// Any offers, one in each line: what is chosen is the first one that is served, and a refusal is short.
pub(crate) fn negotiation(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let offers: Vec<&str> = text.split('\n').collect();
    for kind in KINDS {
        let first = |served: &'static [&'static str]| offers.iter().find(|offer| served.contains(offer)).copied();
        match choose_websocket(kind, offers.iter().copied()) {
            Ok(protocol) => {
                assert_eq!(protocol.name, first(kind.websocket_names()));
                assert_eq!(protocol.base64, protocol.name.is_some_and(|name| name.contains("base64")));
            }
            Err(refusal) => {
                assert_eq!(first(kind.websocket_names()), None);
                assert!(refusal.to_string().len() < 1024);
            }
        }
        match choose_spdy(kind, &offers) {
            Ok(protocol) => assert_eq!(Some(protocol.name), first(kind.spdy_names())),
            Err(refusal) => {
                assert_eq!(first(kind.spdy_names()), None);
                assert!(refusal.to_string().len() < 1024);
            }
        }
    }
}

/// Any bytes as what a streaming client sends: the server ends, or upgrades and has lost nothing of what stands behind the
/// head. The first byte is the size of the cuts.
pub(crate) fn head(data: &[u8]) {
    let Some((&cut, data)) = data.split_first() else { return };
    let parts: Vec<&[u8]> = data.chunks(usize::from(cut).max(1) * 8).collect();
    let (reply, behind) = fuzzing::http_client(&parts);
    // Only whole answers, all of them ours.
    let text = String::from_utf8_lossy(&reply);
    assert!(text.is_empty() || text.starts_with("HTTP/1."), "{text}");
    if let Some(behind) = behind {
        assert!(data.ends_with(&behind), "what comes behind the head is the session's");
        let last = text.rfind("HTTP/1.").map_or("", |at| &text[at..]);
        assert!(last.starts_with("HTTP/1.1 101 ") && last.ends_with("\r\n\r\n"), "{last}");
        assert_eq!(last.matches("\r\n\r\n").count(), 1);
    }
}
