//! Namespaces of pods, pinned to files, and the pause process of each pod that is the first in them.
//!
//! A pause process outlives a daemon that dies: its containers go on, and with a PID namespace they need it. The next
//! daemon that is asked for the same namespaces finds it by its claim and goes on with it.

mod holder;
mod init;
mod pins;
mod request;

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    time::Duration,
};

use futures_util::future::join_all;
use tokio::sync::watch;
use tracing::Instrument as _;

pub use self::init::{HoldError, hold};
pub(crate) use self::request::{Kind, Mapping, Request};
use self::{
    holder::Holder,
    pins::{Claim, PinError, Pins},
};
use crate::{
    container::Pod,
    io::blocking::BlockingError,
    process::AdoptError,
    sys::{SysError, fd::NoRoom},
};

/// Pods with namespaces at once; each costs a process. Full: refused. Usual is one, a daemon is one pod's.
const POD_LIMIT: usize = 64;
/// How long one look at or change of the files may take.
const FILES_LIMIT: Duration = Duration::from_secs(10);
/// The same at the end of the daemon.
const REMOVAL_LIMIT: Duration = Duration::from_secs(1);

/// Why a pod has no namespaces.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("pod {0:?} has namespaces already, asked for with other kinds, mappings or another base path")]
    Different(String),
    #[error("process {0} of an earlier daemon holds other namespaces for this pod: end it first (SIGTERM)")]
    HeldOtherwise(u32),
    #[error("the pause process of pod {0:?} has ended, and its PID namespace with it")]
    Ended(String),
    #[error("namespaces of more than {POD_LIMIT} pods are not held by one daemon")]
    TooMany,
    #[error("the mappings were refused")]
    Mapping(#[source] SysError),
    /// Its own words.
    #[error("the pause process failed: {0}")]
    Refused(String),
    #[error("the pause process ended early or did not answer in time")]
    Silent,
    #[error("the daemon is shutting down")]
    Closing,
    #[error("the namespaces cannot be pinned")]
    Pin(#[from] PinError),
    #[error("the pause process got lost")]
    Adopt(#[from] AdoptError),
    #[error(transparent)]
    Blocking(#[from] BlockingError),
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    #[error(transparent)]
    Sys(#[from] SysError),
}

/// The namespaces of the pods of this daemon.
#[derive(Debug)]
pub(crate) struct Namespaces {
    pod: Rc<Pod>,
    entries: RefCell<HashMap<String, Rc<Entry>>>,
    closing: Cell<bool>,
}

/// ```text
/// Making ──▶ Held ──pause process ended──▶ Ended
///    └─────▶ Failed (and forgotten)
/// ```
#[derive(Debug)]
enum State {
    Making,
    Held,
    /// The pins are still there, and good but for the PID namespace.
    Ended,
    Failed(Rc<Error>),
}

#[derive(Debug)]
struct Entry {
    request: Request,
    state: watch::Sender<State>,
    held: RefCell<Option<(Rc<Holder>, Pins)>>,
}

impl Namespaces {
    pub(crate) fn new(pod: Rc<Pod>) -> Rc<Self> {
        Rc::new(Self { pod, entries: RefCell::default(), closing: Cell::new(false) })
    }

    /// Makes a pod's namespaces and pins them; or does nothing when they are there already.
    ///
    /// The work goes on and is registered even when the caller goes away meanwhile.
    pub(crate) async fn create(self: &Rc<Self>, request: Request) -> Result<(), Rc<Error>> {
        let entry = self.entry(request)?;
        let mut state = entry.state.subscribe();
        loop {
            match &*state.borrow_and_update() {
                State::Making => {}
                State::Held => return Ok(()),
                State::Ended if entry.request.has(Kind::Pid) => {
                    return Err(Rc::new(Error::Ended(entry.request.pod_id.clone())));
                }
                State::Ended => return Ok(()),
                State::Failed(error) => return Err(error.clone()),
            }
            if state.changed().await.is_err() {
                return Err(Rc::new(Error::Closing));
            }
        }
    }

    fn entry(self: &Rc<Self>, request: Request) -> Result<Rc<Entry>, Error> {
        let mut entries = self.entries.borrow_mut();
        if self.closing.get() {
            return Err(Error::Closing);
        }
        if let Some(entry) = entries.get(&request.pod_id) {
            let same = entry.request == request;
            return if same { Ok(entry.clone()) } else { Err(Error::Different(request.pod_id)) };
        }
        if entries.len() >= POD_LIMIT {
            return Err(Error::TooMany);
        }
        let state = watch::Sender::new(State::Making);
        let entry = Rc::new(Entry { request, state, held: RefCell::default() });
        entries.insert(entry.request.pod_id.clone(), entry.clone());
        let span = tracing::info_span!("namespaces", pod = entry.request.pod_id);
        let (all, made) = (self.clone(), entry.clone());
        span.in_scope(|| self.pod.scope.spawn(async move { all.make_and_watch(made).await }.in_current_span()));
        Ok(entry)
    }

    async fn make_and_watch(self: Rc<Self>, entry: Rc<Entry>) {
        let holder = match self.make(&entry.request).await {
            Ok((holder, pins)) => {
                let holder = Rc::new(holder);
                *entry.held.borrow_mut() = Some((holder.clone(), pins));
                holder
            }
            Err(error) => {
                self.entries.borrow_mut().remove(&entry.request.pod_id);
                entry.state.send_replace(State::Failed(Rc::new(error)));
                return;
            }
        };
        entry.state.send_replace(State::Held);
        let status = holder.ended().await;
        if !self.closing.get() {
            entry.state.send_replace(State::Ended);
            let status = status.map_or_else(|| "unknown".to_owned(), |status| status.to_string());
            tracing::error!(status, "the pause process ended unexpectedly; the pinned namespaces stay");
        }
    }

    async fn make(&self, request: &Request) -> Result<(Holder, Pins), Error> {
        let blocking = &self.pod.blocking;
        let (path, claimed) = (request.claim(), request.clone());
        let undo = |claim: Result<Claim, _>| drop(claim.map(Claim::release));
        let claim = blocking.run("take", &path, FILES_LIMIT, move || Claim::take(&claimed), undo).await??;
        let former = match claim.former.map(|pid| (pid, Holder::inherited(pid, request))) {
            Some((pid, Ok(Some(holder)))) => Some((pid, holder)),
            Some((_, Err(error))) => return self.give_up(claim, request, error).await,
            Some((_, Ok(None))) | None => None,
        };
        if let Some((pid, holder)) = former {
            let pins = self.pin(claim, request, pid, false).await?;
            tracing::info!(pid, "going on with the namespaces of an earlier daemon");
            return Ok((holder, pins));
        }
        let starting = match holder::start(request, &self.pod).await {
            Ok(starting) => starting,
            Err(error) => return self.give_up(claim, request, error).await,
        };
        let pid = starting.pid();
        let pins = self.pin(claim, request, pid, true).await?;
        match starting.keep().await {
            Ok(holder) => {
                tracing::info!(pid, kinds = ?request.kinds, "namespaces made");
                Ok((holder, pins))
            }
            Err(error) => {
                self.unpin(pins, request, FILES_LIMIT).await;
                Err(error)
            }
        }
    }

    async fn give_up<T>(&self, claim: Claim, request: &Request, error: Error) -> Result<T, Error> {
        let release = move || claim.release();
        let _ = self.pod.blocking.run("release", &request.claim(), FILES_LIMIT, release, drop).await;
        Err(error)
    }

    async fn pin(&self, claim: Claim, request: &Request, pid: u32, fresh: bool) -> Result<Pins, Error> {
        let wanted = request.clone();
        let job = move || Pins::make(claim, &wanted, pid, fresh);
        let undo = move |late: Result<Pins, _>| {
            if let (Ok(pins), true) = (late, fresh) {
                pins.remove();
            }
        };
        Ok(self.pod.blocking.run("pin", &request.claim(), FILES_LIMIT, job, undo).await??)
    }

    async fn unpin(&self, pins: Pins, request: &Request, limit: Duration) {
        match self.pod.blocking.run("unpin", &request.claim(), limit, move || pins.remove(), drop).await {
            Ok(errors) => errors.iter().for_each(|error| tracing::warn!(%error, "a pinned namespace stays")),
            Err(error) => tracing::warn!(%error, "pinned namespaces may stay"),
        }
    }

    /// Ends all pause processes and removes all pins. To be called when the containers have ended.
    pub(crate) async fn close(&self, grace: bool) {
        self.closing.set(true);
        let entries: Vec<_> = self.entries.borrow_mut().drain().map(|(_, entry)| entry).collect();
        join_all(entries.iter().map(|entry| self.remove(entry, grace))).await;
    }

    async fn remove(&self, entry: &Entry, grace: bool) {
        // One that is just being made is the work of milliseconds, and undoes itself when it fails.
        let mut state = entry.state.subscribe();
        let made = state.wait_for(|state| !matches!(state, State::Making));
        let _ = tokio::time::timeout(REMOVAL_LIMIT, made).await;
        let held = entry.held.borrow_mut().take();
        if let Some((holder, pins)) = held {
            tokio::join!(holder.stop(grace), self.unpin(pins, &entry.request, REMOVAL_LIMIT));
        }
    }
}
