use std::{io, net::SocketAddr, path::PathBuf, rc::Rc, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    time::sleep,
};

use super::{
    CliError, ForwardAddress, ForwardPort, RuntimeDir, RuntimeOptions, output, runtime::Runtime, session::Signals,
};
use crate::{
    client::{Client, ForwardClient, ForwardEnd, ServePortForward, Transport},
    io::task::Scope,
    model::{ContainerId, StdStream},
    process::Foreign,
};

/// The pause after accept failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Options of `holdfastctl port-forward`.
#[derive(Debug, Clone)]
pub struct PortForwardOptions {
    /// Where the ports are.
    pub target: ForwardTarget,
    /// Where connections are taken, for ports that do not say it themselves.
    pub addresses: Vec<ForwardAddress>,
    /// At least one.
    pub ports: Vec<ForwardPort>,
    /// What carries the session.
    pub transport: Transport,
    /// The runtime, for a container that `holdfastctl run` did not make.
    pub runtime: RuntimeOptions,
}

/// Whose ports are forwarded to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ForwardTarget {
    /// A container of this host.
    Container(ContainerId),
    /// A network namespace, such as one of a pod that was pinned.
    Namespace(PathBuf),
}

impl ForwardTarget {
    /// Reads the id of a container, or the path of a network namespace, which has a slash.
    ///
    /// # Errors
    /// When it can be neither.
    pub fn parse(text: &str) -> Result<Self, CliError> {
        if !text.contains('/') {
            return super::container_id(text).map(Self::Container);
        }
        let path = std::path::absolute(text)
            .map_err(|error| CliError::new(format!("cannot make {text} absolute: {error}")))?;
        Ok(Self::Namespace(path))
    }
}

/// The network namespace of a target.
struct Place {
    net_ns: PathBuf,
    name: String,
    /// The container's.
    process: Option<Foreign>,
}

impl Place {
    fn of(dir: &RuntimeDir, options: &PortForwardOptions) -> Result<Self, CliError> {
        let id = match &options.target {
            ForwardTarget::Namespace(path) => {
                let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
                return Ok(Self { net_ns: path.clone(), name, process: None });
            }
            ForwardTarget::Container(id) => id,
        };
        let runtime = match Runtime::load(&dir.container(id).settings())? {
            Some(runtime) => runtime,
            None => Runtime::resolve(&options.runtime)?,
        };
        let pid = runtime.pid(id)?;
        let gone = || CliError::new(format!("the container {id} has ended"));
        let process =
            Foreign::open(pid).map_err(|error| CliError::new(format!("cannot watch the container: {error}")))?;
        let process = process.ok_or_else(gone)?;
        // Only now does the number not become another process's unnoticed.
        if runtime.pid(id)? != pid {
            return Err(gone());
        }
        Ok(Self { net_ns: format!("/proc/{pid}/ns/net").into(), name: id.to_string(), process: Some(process) })
    }

    /// Resolves when nothing can be reached there any more.
    async fn ended(&self) {
        match &self.process {
            Some(process) => process.ended().await,
            None => std::future::pending().await,
        }
    }
}

/// Forwards connections to ports of ours into a pod until SIGINT or SIGTERM, which is no error.
///
/// # Errors
/// When a port cannot be listened on, or the session or the container has ended.
pub async fn port_forward(dir: &RuntimeDir, options: &PortForwardOptions) -> Result<u8, CliError> {
    let mut signals = Signals::watch()?;
    let client = Client::connect(dir.path()).await?;
    let place = Place::of(dir, options)?;
    let mut listeners = Vec::new();
    for port in &options.ports {
        listen(port, &options.addresses, &mut listeners).await?;
    }
    let serve = ServePortForward { net_ns: place.net_ns.clone(), pod_id: place.name.clone(), ports: Vec::new() };
    let url = client.serve_pod_ports(&serve).await?;
    // The session needs neither the call's connection nor the daemon's record of it.
    drop(client);
    let forward = Rc::new(ForwardClient::connect(&url, options.transport).await?);
    let scope = Rc::new(Scope::new());
    for listener in listeners {
        say(&format!("Forwarding from {} -> {}", listener.address, listener.remote));
        scope.spawn(accept(listener, forward.clone(), scope.child().into()));
    }
    tokio::select! {
        _ = signals.next() => {
            forward.close().await;
            Ok(0)
        }
        () = place.ended() => Err(CliError::new(format!("lost connection: the container {} has ended", place.name))),
        fault = forward.lost() => match fault {
            Some(fault) => Err(fault.into()),
            None => Err(CliError::hint("lost connection: the daemon has ended the session", "see its log")),
        },
    }
}

/// A port of ours that leads to one of the pod.
struct Listening {
    listener: TcpListener,
    address: SocketAddr,
    remote: u16,
}

async fn listen(port: &ForwardPort, usual: &[ForwardAddress], all: &mut Vec<Listening>) -> Result<(), CliError> {
    let given = port.address.as_ref().map(std::slice::from_ref);
    let mut local = port.local;
    for address in given.unwrap_or(usual) {
        for (index, ip) in address.addresses().into_iter().enumerate() {
            let bound =
                TcpListener::bind((ip, local)).await.and_then(|listener| Ok((listener.local_addr()?, listener)));
            match bound {
                Ok((address, listener)) => {
                    // What the kernel has chosen for the first address is the port of all.
                    local = address.port();
                    all.push(Listening { listener, address, remote: port.remote });
                }
                // A host may have no IPv6.
                Err(_) if index > 0 => {}
                Err(error) => {
                    let what = format!("cannot listen on {}: {error}", SocketAddr::new(ip, local));
                    return Err(CliError::hint(what, "choose another local port or address, or leave the port out"));
                }
            }
        }
    }
    Ok(())
}

async fn accept(listening: Listening, forward: Rc<ForwardClient>, connections: Rc<Scope>) {
    let (local, remote) = (listening.address.port(), listening.remote);
    loop {
        match listening.listener.accept().await {
            Ok((stream, _)) => {
                say(&format!("Handling connection for {local}"));
                let forward = forward.clone();
                connections.spawn(async move {
                    if let Some(why) = serve(&forward, stream, remote).await {
                        output::note(format!("an error occurred forwarding {local} -> {remote}: {why}"));
                    }
                });
            }
            Err(error) => {
                output::note(format!("cannot take a connection: {error}"));
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Forwards one connection; returns why it failed, if there is something to say.
async fn serve(forward: &ForwardClient, stream: TcpStream, remote: u16) -> Option<String> {
    let forwarded = match forward.open(remote).await {
        Ok(forwarded) => forwarded,
        Err(error) => {
            reset(&stream);
            return Some(error.to_string());
        }
    };
    // What a program has written is the pod's at once: it may wait for the answer.
    let _ = stream.set_nodelay(true);
    match forwarded.copy(stream).await {
        ForwardEnd::Failed(why) => Some(why),
        // Who broke it off knows; that the session is lost is told once.
        ForwardEnd::Done | ForwardEnd::Reset | ForwardEnd::Lost => None,
    }
}

/// The program shall not take this for an empty answer.
fn reset(stream: &TcpStream) {
    let _: io::Result<()> = stream.set_zero_linger();
}

/// Tells the user something on stdout. That nobody reads it is no reason to stop.
fn say(line: &str) {
    let _ = output::write(StdStream::Stdout, format!("{line}\n").as_bytes());
}
