//! The versions of the Kubernetes remote-command protocol, and which one a session speaks.
//!
//! A client lists the sub-protocols it can speak, best first; the server takes the first one it knows (streaming spec 1.7,
//! 2.1). On a WebSocket the versions differ in two abilities only: the form of the status (text before v4, JSON from v4
//! on) and whether the client can close stdin without closing the connection (v5). Over SPDY, v1 to v4 are spoken.

use std::fmt;

/// SPDY in the messages of a WebSocket (spec 6.6).
pub const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

/// What a streaming session does. Each kind has its own route, and a token is good for one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StreamKind {
    /// Run a further process in the container.
    Exec,
    /// Join the stdio of the container's own process.
    Attach,
    /// Connect to ports of the pod.
    PortForward,
}

impl StreamKind {
    /// The first word of the path in a session's URL.
    #[must_use]
    pub fn path_word(self) -> &'static str {
        match self {
            Self::Exec => "exec",
            Self::Attach => "attach",
            Self::PortForward => "port-forward",
        }
    }

    /// The kind whose route starts with this word.
    #[must_use]
    pub fn from_path_word(word: &str) -> Option<Self> {
        [Self::Exec, Self::Attach, Self::PortForward].into_iter().find(|kind| kind.path_word() == word)
    }

    /// The WebSocket sub-protocols served for this kind, the ablest first.
    #[must_use]
    pub fn websocket_names(self) -> &'static [&'static str] {
        match self {
            Self::Exec | Self::Attach => &[
                "v5.channel.k8s.io",
                "v4.channel.k8s.io",
                "v3.channel.k8s.io",
                "v2.channel.k8s.io",
                "channel.k8s.io",
                "v4.base64.channel.k8s.io",
                "base64.channel.k8s.io",
            ],
            Self::PortForward => &[TUNNEL, "v4.channel.k8s.io", "v4.base64.channel.k8s.io"],
        }
    }

    /// The sub-protocols served over SPDY for this kind, the ablest first. Over SPDY, v5 would be v4 under another name, and
    /// no server has it (spec 1.6).
    #[must_use]
    pub fn spdy_names(self) -> &'static [&'static str] {
        match self {
            Self::Exec | Self::Attach => {
                &["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"]
            }
            Self::PortForward => &["portforward.k8s.io"],
        }
    }
}

/// A version of the remote-command protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// `channel.k8s.io`, and what is spoken when no protocol was named.
    V1,
    /// On a WebSocket the same as v1; v1 over SPDY is served like this.
    V2,
    /// On a WebSocket the same as v1; over SPDY a terminal has a resize stream.
    V3,
    /// The status is a JSON object and carries the exit code.
    V4,
    /// The client can close stdin alone.
    V5,
}

impl Version {
    /// Whether the status is a JSON object that is always sent; before that it is text, sent on failure only (spec 3.1).
    #[must_use]
    pub fn json_status(self) -> bool {
        self >= Self::V4
    }

    /// Whether a terminal's sizes have a stream of their own over SPDY. Before v3 there was no way to tell them (spec 5.8).
    #[must_use]
    pub fn has_resize_stream(self) -> bool {
        self >= Self::V3
    }

    /// Whether the client can end stdin while output goes on (spec 2.4, `FF 00`).
    #[must_use]
    pub fn can_close_stdin(self) -> bool {
        self >= Self::V5
    }
}

/// What the two ends of a WebSocket agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Protocol {
    /// The abilities.
    pub version: Version,
    /// Whether messages are base64 text instead of binary.
    pub base64: bool,
    /// The name as the client offered it and the answer must repeat it; `None` if it offered none, so none is answered.
    pub name: Option<&'static str>,
}

impl Protocol {
    /// Whether messages carry SPDY instead of channels.
    #[must_use]
    pub fn is_tunnel(&self) -> bool {
        self.name == Some(TUNNEL)
    }
}

/// Chooses the sub-protocol of a WebSocket: the first offer that is served for `kind` (spec 1.7). The client's order
/// decides. Names are compared by case, since the answer has to repeat one exactly.
///
/// Without any offer the oldest version is spoken and no name is answered.
///
/// # Errors
/// Nothing served was offered, or nothing is served for this kind.
pub fn choose_websocket<'a>(
    kind: StreamKind,
    offers: impl Iterator<Item = &'a str>,
) -> Result<Protocol, NoCommonProtocol> {
    let served = kind.websocket_names();
    let mut offered = Vec::new();
    for offer in offers {
        if let Some(name) = served.iter().find(|name| **name == offer) {
            let base64 = name.split('.').any(|word| word == "base64");
            return Ok(Protocol { version: version_of(name), base64, name: Some(name) });
        }
        offered.push(offer);
    }
    if offered.is_empty() && !served.is_empty() {
        return Ok(Protocol { version: Version::V1, base64: false, name: None });
    }
    Err(NoCommonProtocol { offered: OfferList::new(&offered), served })
}

/// What the two ends of a SPDY connection agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpdyProtocol {
    /// The abilities; of no meaning for a port forward.
    pub version: Version,
    /// The name, which the answer repeats: without it clients fall back to v1.
    pub name: &'static str,
}

/// Chooses the sub-protocol of a SPDY connection: the first offer that is served for `kind`; the client's order decides
/// (spec 1.6). Without any offer there is nothing to choose.
///
/// # Errors
/// Nothing served was offered.
pub fn choose_spdy(kind: StreamKind, offers: &[&str]) -> Result<SpdyProtocol, NoCommonProtocol> {
    let served = kind.spdy_names();
    let name = offers.iter().find_map(|offer| served.iter().find(|name| *name == offer));
    match name {
        Some(name) => Ok(SpdyProtocol { version: version_of(name), name }),
        None => Err(NoCommonProtocol { offered: OfferList::new(offers), served }),
    }
}

fn version_of(name: &str) -> Version {
    match name.split('.').next() {
        Some("v5") => Version::V5,
        Some("v4") => Version::V4,
        Some("v3") => Version::V3,
        Some("v2") => Version::V2,
        _ => Version::V1,
    }
}

/// The client offered nothing that is served; the text is for its user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unable to negotiate protocol: client supports {offered}, server accepts [{}]", served.join(" "))]
pub struct NoCommonProtocol {
    offered: OfferList,
    served: &'static [&'static str],
}

/// What a client offered, shortened for an error text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OfferList(String);

impl OfferList {
    pub(super) fn new(offers: &[&str]) -> Self {
        Self(quoted(offers, " "))
    }
}

/// Words of a client in an error text. A request head may hold 64 KiB of them; the first ones are quoted.
pub(super) fn quoted(words: &[&str], separator: &str) -> String {
    const MAX_QUOTED: usize = 256;
    let mut quoted = words.join(separator);
    if quoted.len() > MAX_QUOTED {
        quoted.truncate(quoted.floor_char_boundary(MAX_QUOTED));
        quoted.push_str("...");
    }
    quoted
}

impl fmt::Display for OfferList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}]", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(kind: StreamKind, offers: &[&str]) -> Result<Protocol, NoCommonProtocol> {
        choose_websocket(kind, offers.iter().copied())
    }

    #[test]
    fn the_first_offer_that_is_served_wins() {
        for (offers, name, version) in [
            (&["v5.channel.k8s.io", "v4.channel.k8s.io"][..], "v5.channel.k8s.io", Version::V5),
            (&["v4.channel.k8s.io", "v5.channel.k8s.io"], "v4.channel.k8s.io", Version::V4),
            (&["v9.foo", "channel.k8s.io", "v5.channel.k8s.io"], "channel.k8s.io", Version::V1),
            (&["v5.base64.channel.k8s.io", "v3.channel.k8s.io"], "v3.channel.k8s.io", Version::V3),
            (&["v2.channel.k8s.io"], "v2.channel.k8s.io", Version::V2),
        ] {
            for kind in [StreamKind::Exec, StreamKind::Attach] {
                assert_eq!(
                    choose(kind, offers),
                    Ok(Protocol { version, base64: false, name: Some(name) }),
                    "{offers:?}"
                );
            }
        }
    }

    #[test]
    fn base64_names_have_the_version_of_their_binary_ones() {
        for (name, version) in [("base64.channel.k8s.io", Version::V1), ("v4.base64.channel.k8s.io", Version::V4)] {
            let protocol = Protocol { version, base64: true, name: Some(name) };
            assert_eq!(choose(StreamKind::Exec, &[name, "v5.channel.k8s.io"]), Ok(protocol));
        }
    }

    // Spec item 11.
    #[test]
    fn over_spdy_the_order_of_the_client_decides_among_v4_to_v1() {
        let chosen =
            |kind, offers: &[&str]| choose_spdy(kind, offers).map(|protocol| (protocol.name, protocol.version));
        let client_go: Vec<_> = (1..=5).rev().map(|n| format!("v{n}.channel.k8s.io")).collect();
        let client_go: Vec<_> = client_go.iter().map(String::as_str).collect();
        assert_eq!(chosen(StreamKind::Exec, &client_go), Ok(("v4.channel.k8s.io", Version::V4)));
        let old_first = ["v2.channel.k8s.io", "v4.channel.k8s.io"];
        assert_eq!(chosen(StreamKind::Attach, &old_first), Ok(("v2.channel.k8s.io", Version::V2)));
        assert_eq!(chosen(StreamKind::Exec, &["channel.k8s.io"]), Ok(("channel.k8s.io", Version::V1)));
        assert!(chosen(StreamKind::PortForward, &["portforward.k8s.io"]).is_ok());
        assert!(chosen(StreamKind::PortForward, &["v4.channel.k8s.io"]).is_err());
        assert!(chosen(StreamKind::Exec, &["v5.channel.k8s.io", "portforward.k8s.io"]).is_err());
    }

    // Spec item 19.
    #[test]
    fn no_offer_means_the_oldest_version_without_a_name() {
        let protocol = choose(StreamKind::Exec, &[]).unwrap();
        assert_eq!(protocol, Protocol { version: Version::V1, base64: false, name: None });
    }

    #[test]
    fn a_refusal_names_both_sides_and_stays_short() {
        let error = choose(StreamKind::Attach, &["v9.foo", "V5.channel.k8s.io"]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "unable to negotiate protocol: client supports [v9.foo V5.channel.k8s.io], server accepts \
             [v5.channel.k8s.io v4.channel.k8s.io v3.channel.k8s.io v2.channel.k8s.io channel.k8s.io \
             v4.base64.channel.k8s.io base64.channel.k8s.io]"
        );
        let error = choose(StreamKind::Exec, &[&"ä".repeat(30_000)]).unwrap_err();
        assert!(error.to_string().len() < 512);
    }

    // Spec 1.7 and items 17 and 121.
    #[test]
    fn a_port_forward_is_the_tunnel_or_channels_of_v4() {
        let chosen = |offers: &[&str]| choose(StreamKind::PortForward, offers).map(|protocol| protocol.name);
        assert_eq!(chosen(&[TUNNEL]), Ok(Some(TUNNEL)));
        for v4 in ["v4.channel.k8s.io", "v4.base64.channel.k8s.io"] {
            assert_eq!(chosen(&["v5.channel.k8s.io", v4]), Ok(Some(v4)));
        }
        assert_eq!(chosen(&[]), Ok(None), "v4 is what is spoken then, too");
        for refused in ["v5.channel.k8s.io", "channel.k8s.io", "portforward.k8s.io"] {
            assert!(chosen(&[refused]).is_err(), "{refused}");
        }
    }

    #[test]
    fn abilities_come_with_the_version() {
        let abilities = |version: Version| (version.json_status(), version.can_close_stdin());
        assert!(!Version::V2.has_resize_stream() && Version::V3.has_resize_stream());
        for old in [Version::V1, Version::V2, Version::V3] {
            assert_eq!(abilities(old), (false, false));
        }
        assert_eq!(abilities(Version::V4), (true, false));
        assert_eq!(abilities(Version::V5), (true, true));
    }
}
