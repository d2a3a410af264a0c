//! `[ADDRESS:]LOCAL:REMOTE`: which ports of ours lead to which of a pod.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::CliError;

/// One port of ours, on one or two addresses, and the port of the pod it leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardPort {
    /// `None`: the usual ones.
    pub address: Option<ForwardAddress>,
    /// 0: the kernel chooses.
    pub local: u16,
    /// The pod's; never 0.
    pub remote: u16,
}

/// Where connections are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForwardAddress {
    /// Both loopback addresses, as far as the host has them.
    Localhost,
    /// This one.
    Ip(IpAddr),
}

impl ForwardAddress {
    /// The addresses to listen on, the first of which must work.
    pub(super) fn addresses(self) -> Vec<IpAddr> {
        match self {
            Self::Localhost => vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
            Self::Ip(address) => vec![address],
        }
    }

    /// Reads an address: IPv4, IPv6 with or without brackets, or `localhost`.
    ///
    /// # Errors
    /// For anything else; no names are looked up.
    pub fn parse(text: &str) -> Result<Self, CliError> {
        if text == "localhost" {
            return Ok(Self::Localhost);
        }
        let inner = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        inner.parse().map(Self::Ip).map_err(|_| {
            CliError::hint(format!("{text:?} is no address"), "write one such as 127.0.0.1, [::1], or localhost")
        })
    }
}

impl ForwardPort {
    /// Reads `[[ADDRESS:]LOCAL:]REMOTE`. A LOCAL that is empty or 0 is the kernel's choice, a missing one is REMOTE.
    ///
    /// # Errors
    /// When it is not of this form.
    pub fn parse(text: &str) -> Result<Self, CliError> {
        let bad = |what: &str| {
            CliError::hint(
                format!("{text:?}: {what}"),
                "write [ADDRESS:]LOCAL:REMOTE, such as 8080:80 or [::1]:8080:80",
            )
        };
        let (local, remote) = text.rsplit_once(':').map_or((None, text), |(local, remote)| (Some(local), remote));
        let remote =
            port(remote).filter(|port| *port > 0).ok_or_else(|| bad("the port of the pod is not 1 to 65535"))?;
        let Some(local) = local else { return Ok(Self { address: None, local: remote, remote }) };
        let (address, local) = match local.rsplit_once(':') {
            Some((address, local)) => (Some(ForwardAddress::parse(address)?), local),
            None => (None, local),
        };
        let local = if local.is_empty() { Some(0) } else { port(local) };
        Ok(Self { address, local: local.ok_or_else(|| bad("the local port is not 0 to 65535"))?, remote })
    }
}

fn port(text: &str) -> Option<u16> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(address: Option<&str>, local: u16, remote: u16) -> ForwardPort {
        ForwardPort { address: address.map(|text| ForwardAddress::parse(text).unwrap()), local, remote }
    }

    #[test]
    fn a_port_is_written_with_or_without_its_address_and_our_side() {
        for (text, expected) in [
            ("80", of(None, 80, 80)),
            ("8080:80", of(None, 8080, 80)),
            (":80", of(None, 0, 80)),
            ("0:80", of(None, 0, 80)),
            ("127.0.0.1:8080:80", of(Some("127.0.0.1"), 8080, 80)),
            ("0.0.0.0::80", of(Some("0.0.0.0"), 0, 80)),
            ("[::1]:8080:80", of(Some("::1"), 8080, 80)),
            ("localhost:1:65535", of(Some("localhost"), 1, 65535)),
        ] {
            assert_eq!(ForwardPort::parse(text), Ok(expected), "{text}");
        }
        assert_eq!(ForwardAddress::parse("[::1]").unwrap().addresses(), [IpAddr::from(Ipv6Addr::LOCALHOST)]);
        assert_eq!(ForwardAddress::Localhost.addresses().len(), 2);
    }

    #[test]
    fn what_is_no_port_or_address_is_refused_with_a_hint() {
        for (text, says) in [
            ("", "the port of the pod"),
            ("80:", "the port of the pod"),
            ("8080:0", "the port of the pod"),
            ("8080:65536", "the port of the pod"),
            ("+1:80", "the local port"),
            ("70000:80", "the local port"),
            ("example.org:1:80", "\"example.org\" is no address"),
            ("[::1:1:80", "\"[::1\" is no address"),
        ] {
            let error = ForwardPort::parse(text).unwrap_err().to_string();
            assert!(error.contains(says) && error.contains("write "), "{text}: {error}");
        }
    }
}
