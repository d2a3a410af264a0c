//! Where the ports of a port forward are.

use super::{Invalid, bad, path, text};
use crate::{
    schema::{
        conmon_capnp::conmon::serve_port_forward_container_request,
        holdfast_capnp::holdfast::serve_port_forward_request,
    },
    session::{dial::Place, port_forward::Destination},
};

/// A channel number is a byte, and a port has two (streaming 6.5).
const PORTS_LIMIT: u32 = 128;
/// Of a pod's name, in bytes: that of a container is as long at most.
const POD_LIMIT: usize = 256;

/// The destination of a call that knows nothing but the namespace.
pub(in crate::rpc) fn container(
    request: serve_port_forward_container_request::Reader<'_>,
) -> Result<Destination, Invalid> {
    Ok(Destination { place: place(request.get_net_ns_path()?)?, pod: String::new() })
}

/// The destination, and the ports for clients that cannot name them.
pub(in crate::rpc) fn forward(
    request: serve_port_forward_request::Reader<'_>,
) -> Result<(Destination, Vec<u16>), Invalid> {
    let pod = text("podId", request.get_pod_id()?)?;
    if pod.len() > POD_LIMIT {
        return Err(bad("podId", format!("it is longer than {POD_LIMIT} bytes")));
    }
    if pod.chars().any(char::is_control) {
        return Err(bad("podId", "it contains a control character"));
    }
    let ports = request.get_ports()?;
    if ports.len() > PORTS_LIMIT {
        return Err(bad("ports", format!("there are more than {PORTS_LIMIT}")));
    }
    let ports: Vec<_> = ports.iter().collect();
    if ports.contains(&0) {
        return Err(bad("ports", "0 is no port"));
    }
    Ok((Destination { place: place(request.get_net_ns_path()?)?, pod }, ports))
}

/// Without a path it is the host's own network, which some pods share.
fn place(path_text: capnp::text::Reader<'_>) -> Result<Place, Invalid> {
    if path_text.is_empty() {
        return Ok(Place::Host);
    }
    path("netNsPath", path_text).map(Place::Namespace)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(pod: &str, ports: &[u16], namespace: &str) -> Result<(Destination, Vec<u16>), String> {
        let mut message = capnp::message::Builder::new_default();
        let mut request = message.init_root::<serve_port_forward_request::Builder<'_>>();
        request.set_net_ns_path(namespace);
        request.set_pod_id(pod);
        request.set_ports(ports).unwrap();
        forward(request.into_reader()).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_good_comes_through() {
        let destination = |place, pod: &str| Destination { place, pod: pod.to_owned() };
        let most = [7; 128];
        assert_eq!(decoded("", &[], ""), Ok((destination(Place::Host, ""), vec![])));
        let namespace = Place::Namespace("/run/netns/x".into());
        assert_eq!(decoded("web", &most, "/run/netns/x"), Ok((destination(namespace, "web"), most.to_vec())));
    }

    #[test]
    fn what_is_not_is_named() {
        for (pod, ports, namespace, says) in [
            (&*"x".repeat(257), &[][..], "", "podId: it is longer than 256 bytes"),
            ("a\nb", &[], "", "podId: it contains a control character"),
            ("a\0b", &[], "", "podId: it contains a NUL byte"),
            ("", &[80, 0], "", "ports: 0 is no port"),
            ("", &[80; 129], "", "ports: there are more than 128"),
            ("", &[], "x", "netNsPath: the path is not absolute"),
        ] {
            assert_eq!(decoded(pod, ports, namespace).unwrap_err(), says);
        }
    }
}
