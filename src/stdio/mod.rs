//! The byte path of one process: its output to the log and to subscribers, input to it, its terminal's size.
//!
//! ```text
//! stdout, stderr or terminal ──▶ Pump ──┬──▶ Log
//!                                       └──▶ Fanout ──▶ Subscriber (one per client)
//! stdin or terminal ◀── write_out ◀── Stdin (queue) ◀── clients
//! ```
//!
//! The hub, [`Stdio`], exists before the process: clients subscribe, queue input and set a size first, so that nothing of
//! what the process does can be missed. [`Stdio::connect`] then plugs the process's ends in.

mod fanout;
mod pump;
mod stdin;

use std::{
    cell::{Cell, RefCell},
    os::fd::AsFd as _,
    rc::{Rc, Weak},
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use self::stdin::{Target, write_out};
pub(crate) use self::{
    fanout::{Fanout, Lag, Next, Subscriber, Wants},
    pump::Pump,
    stdin::{ReadAhead, Stdin},
};
use crate::{
    io::{
        fd::{AsyncFile, Output},
        task::Scope,
    },
    log::Log,
    model::WindowSize,
    sys::{SysError, pty},
};

/// How long output is waited for after a process ended, while another process still holds its pipes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DrainLimits {
    /// Nothing has come for so long.
    pub(crate) quiet: Duration,
    /// In all.
    pub(crate) max: Duration,
}

/// The process has no terminal whose size could be set.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResizeError {
    #[error("the container has no terminal")]
    NoTerminal,
    #[error(transparent)]
    Sys(#[from] SysError),
}

/// The hub of one process's standard streams.
#[derive(Debug)]
pub(crate) struct Stdio {
    fanout: Rc<Fanout>,
    stdin: Rc<Stdin>,
    has_stdin: bool,
    terminal: RefCell<Weak<AsyncFile>>,
    /// The last size asked for before there was a terminal.
    early_size: Cell<Option<WindowSize>>,
    is_terminal: bool,
    abandoned: CancellationToken,
}

impl Stdio {
    pub(crate) fn new(is_terminal: bool, has_stdin: bool, pool: Rc<ReadAhead>) -> Rc<Self> {
        let stdin = Rc::new(Stdin::new(pool));
        if !has_stdin {
            stdin.close();
        }
        Rc::new(Self {
            fanout: Rc::default(),
            stdin,
            has_stdin,
            terminal: RefCell::default(),
            early_size: Cell::new(None),
            is_terminal,
            abandoned: CancellationToken::new(),
        })
    }

    pub(crate) fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    /// Whether output is not read because a subscriber that must get every byte takes none.
    pub(crate) fn is_held_up(&self) -> bool {
        self.fanout.blocked()
    }

    /// Receives all output from now on.
    pub(crate) fn subscribe(&self, wants: Wants, lag: Lag) -> Subscriber {
        self.fanout.subscribe(wants, lag)
    }

    /// The input queue. Closed from the start when the process was made without stdin.
    pub(crate) fn stdin(&self) -> &Stdin {
        &self.stdin
    }

    /// Sets the terminal's size, or remembers it until there is one.
    pub(crate) fn resize(&self, size: WindowSize) -> Result<(), ResizeError> {
        if !self.is_terminal {
            return Err(ResizeError::NoTerminal);
        }
        match self.terminal.borrow().upgrade() {
            Some(master) => pty::set_window_size(master.as_fd(), size)?,
            None => self.early_size.set(Some(size)),
        }
        Ok(())
    }

    /// The last size asked for while there is no terminal yet.
    pub(crate) fn early_size(&self) -> &Cell<Option<WindowSize>> {
        &self.early_size
    }

    /// The only client is gone for good: input ends, and our ends of the output are closed, so that a terminal hangs up
    /// (`SIGHUP`) and a writer to a pipe gets `SIGPIPE` (streaming 4.5). The process is still waited for.
    pub(crate) fn abandon(&self) {
        self.abandoned.cancel();
        self.stdin.close();
    }

    /// There is no process and there will be none: subscribers see the end, writers are refused.
    pub(crate) fn end(&self) {
        self.fanout.end();
        self.stdin.close();
    }

    /// Plugs in a process: starts writing its input and returns the pump that reads its output.
    pub(crate) fn connect(
        self: &Rc<Self>,
        output: Output,
        stdin: Option<std::os::fd::OwnedFd>,
        log: Option<Rc<Log>>,
        limits: DrainLimits,
        scope: &Scope,
    ) -> Result<Pump, SysError> {
        let target = match (&output, stdin) {
            (Output::Terminal(_), _) => None,
            (Output::Pipes { .. }, Some(fd)) => Some(Target::Pipe(AsyncFile::pipe_writer(fd)?)),
            (Output::Pipes { .. }, None) => None,
        };
        let (pump, master) = Pump::new(self.clone(), output, log, limits)?;
        let target = match &master {
            Some(master) => {
                *self.terminal.borrow_mut() = Rc::downgrade(master);
                if let Some(size) = self.early_size.take() {
                    // The terminal works without; only its first lines wrap elsewhere.
                    if let Err(error) = pty::set_window_size(master.as_fd(), size) {
                        tracing::debug!(%error, "the first window size could not be set");
                    }
                }
                self.has_stdin.then(|| Target::Terminal(Rc::downgrade(master)))
            }
            None => target,
        };
        if let Some(target) = target {
            let stdin = self.stdin.clone();
            scope.spawn(async move { write_out(&stdin, target).await });
        } else {
            self.stdin.close();
        }
        Ok(pump)
    }
}
