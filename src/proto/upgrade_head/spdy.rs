//! The upgrade to SPDY/3.1 (streaming spec 1.5, 1.6).

use super::{Refusal, RequestHead, contains_ignoring_case};
use crate::proto::remotecommand::{SpdyProtocol, StreamKind, choose_spdy, quoted};

const PROTOCOLS: &str = "X-Stream-Protocol-Version";

/// Agrees on a protocol with a client that did not ask for a WebSocket, once its token was claimed.
///
/// The protocol is looked at before the upgrade, so a plain GET is told that it names no protocol.
///
/// # Errors
/// The answer to send instead of the 101.
pub(super) fn negotiate_spdy(kind: StreamKind, head: &RequestHead<'_>) -> Result<SpdyProtocol, Refusal> {
    const LINES: &str = "x-stream-protocol-version";
    let refusal = |status, reason: &str| Refusal::new(status, format!("unable to upgrade: {reason}\n"));
    let offers = head.list(LINES);
    if offers.is_empty() {
        let reason = match head.lines(LINES).next() {
            Some(_) => format!("header {PROTOCOLS} contains [], but no valid protocols"),
            None => format!("header {PROTOCOLS} does not exist in request with {} headers", head.headers.len()),
        };
        return Err(refusal(400, &reason));
    }
    let protocol = choose_spdy(kind, &offers).map_err(|error| {
        // One line for each, as clients expect it of a 403.
        let accepted = kind.spdy_names().iter();
        accepted.fold(refusal(403, &error.to_string()), |refusal, name| {
            refusal.with("X-Accepted-Stream-Protocol-Versions", name)
        })
    })?;
    let asks = |name, word: &[u8]| head.lines(name).any(|line| contains_ignoring_case(line, word));
    if !asks("connection", b"upgrade") || !asks("upgrade", b"spdy/3.1") {
        // The names tell what is missing; the values may be secrets.
        let names: Vec<_> = head.headers.iter().map(|(name, _)| *name).collect();
        let reason = format!("missing upgrade headers in request: {}", quoted(&names, ", "));
        return Err(refusal(400, &reason).with(PROTOCOLS, protocol.name));
    }
    Ok(protocol)
}

/// The headers of the `101 Switching Protocols` answer, complete but for an optional `Date`. Exactly one protocol is
/// named: without it clients speak the oldest.
pub(super) fn spdy_response_headers(protocol: SpdyProtocol) -> Vec<(&'static str, String)> {
    vec![
        ("Connection", "Upgrade".to_owned()),
        ("Upgrade", "SPDY/3.1".to_owned()),
        (PROTOCOLS, protocol.name.to_owned()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFERS: &str = "x-stream-protocol-version";

    fn ask(kind: StreamKind, method: &str, headers: &[(&str, &str)]) -> Result<&'static str, Refusal> {
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
        let head = RequestHead { method, path: "/exec/token", headers: &headers };
        negotiate_spdy(kind, &head).map(|protocol| protocol.name)
    }

    // Spec items 9, 10, 11 and 23.
    #[test]
    fn an_upgrade_may_be_written_in_several_ways() {
        let upgrades = [
            [("connection", "Upgrade"), ("upgrade", "SPDY/3.1")],
            [("connection", "keep-alive, upgrade"), ("upgrade", "spdy/3.1")],
        ];
        let offers: [&[(&str, &str)]; 3] = [
            &[(OFFERS, "v5.channel.k8s.io"), (OFFERS, "v4.channel.k8s.io"), (OFFERS, "channel.k8s.io")],
            &[(OFFERS, "v5.channel.k8s.io,v4.channel.k8s.io,channel.k8s.io")],
            &[(OFFERS, " v5.channel.k8s.io , "), (OFFERS, ""), (OFFERS, "v4.channel.k8s.io,v3.channel.k8s.io")],
        ];
        let stray = [("origin", "x"), ("sec-websocket-extensions", "permessage-deflate"), ("content-length", "0")];
        for upgrade in upgrades {
            for offers in offers {
                let headers = [&upgrade[..], offers, &stray].concat();
                for method in ["POST", "GET"] {
                    assert_eq!(ask(StreamKind::Exec, method, &headers), Ok("v4.channel.k8s.io"), "{headers:?}");
                }
            }
        }
        let headers = [&upgrades[0][..], &[(OFFERS, "portforward.k8s.io")]].concat();
        assert_eq!(ask(StreamKind::PortForward, "POST", &headers), Ok("portforward.k8s.io"));
    }

    // Spec item 12.
    #[test]
    fn no_common_protocol_gets_403_with_a_line_for_each_served() {
        let headers = [("connection", "Upgrade"), ("upgrade", "SPDY/3.1"), (OFFERS, "v9.foo")];
        let refusal = ask(StreamKind::Exec, "POST", &headers).unwrap_err();
        let accepted = refusal.headers.iter().filter(|(name, _)| *name == "X-Accepted-Stream-Protocol-Versions");
        let accepted: Vec<_> = accepted.map(|(_, value)| value.as_str()).collect();
        assert_eq!((refusal.status, &accepted[..]), (403, StreamKind::Exec.spdy_names()));
        assert_eq!(
            refusal.body,
            "unable to upgrade: unable to negotiate protocol: client supports [v9.foo], server accepts \
             [v4.channel.k8s.io v3.channel.k8s.io v2.channel.k8s.io channel.k8s.io]\n"
        );
    }

    // Spec item 13, and the order of 1.5.
    #[test]
    fn what_is_missing_is_said_protocol_first() {
        for (headers, says) in [
            (&[("host", "x")][..], "header X-Stream-Protocol-Version does not exist in request with 1 headers\n"),
            (&[(OFFERS, " ,")], "header X-Stream-Protocol-Version contains [], but no valid protocols\n"),
            (&[(OFFERS, "v4.channel.k8s.io")], "missing upgrade headers in request: x-stream-protocol-version\n"),
            (&[(OFFERS, "v4.channel.k8s.io"), ("connection", "upgrade"), ("upgrade", "spdy/2")], "missing upgrade "),
        ] {
            let refusal = ask(StreamKind::Exec, "POST", headers).unwrap_err();
            assert_eq!(refusal.status, 400);
            assert!(refusal.body.starts_with(&format!("unable to upgrade: {says}")), "{}", refusal.body);
        }
        let thousand = vec!["v9.foo"; 1000].join(",");
        assert!(ask(StreamKind::Exec, "POST", &[(OFFERS, &thousand)]).unwrap_err().body.len() < 600);
    }

    // The names of a head's lines may be nearly all of its 64 KiB, and all of them came back.
    #[test]
    fn a_refusal_does_not_repeat_a_whole_head() {
        let long = "x".repeat(10_000);
        let headers = [(OFFERS, "v4.channel.k8s.io"), (&long, "1"), (&long, "2")];
        let refusal = ask(StreamKind::Exec, "POST", &headers).unwrap_err();
        assert!(refusal.body.starts_with("unable to upgrade: missing upgrade headers in request: x-stream-"));
        assert!(refusal.body.len() < 400, "{}", refusal.body.len());
    }

    // Spec item 14.
    #[test]
    fn the_answer_names_one_protocol() {
        let protocol = choose_spdy(StreamKind::Exec, &["v4.channel.k8s.io"]).unwrap();
        let lines: Vec<_> =
            spdy_response_headers(protocol).iter().map(|(name, value)| format!("{name}: {value}")).collect();
        let expected = ["Connection: Upgrade", "Upgrade: SPDY/3.1", "X-Stream-Protocol-Version: v4.channel.k8s.io"];
        assert_eq!(lines, expected);
    }
}
