//! Log drivers of a container.
//!
//! The pump appends what the container writes to its [`Log`]; each driver encodes it, batches it and writes it ([`writer`]):
//! to a file in the blocking pool ([`mod@file`]), to the journal by datagrams ([`journal`]). What waits, and what happens when
//! a write fails or does not return, is decided in [`queue`], for all of them.

mod file;
mod journal;
mod queue;
mod writer;

use std::{
    num::NonZeroU64,
    ops::Add,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use futures_util::future::join_all;

use crate::{
    format::{Encoder, Tally},
    io::{
        blocking::{Blocking, BlockingError},
        task::Scope,
    },
    model::Chunk,
    sys::SysError,
};

pub(crate) use self::writer::LogWriter;

/// What a log is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LogConfig {
    /// Where it goes.
    pub(crate) target: Target,
    /// How long a write may take before the container is no longer held up and its output is dropped instead.
    pub(crate) stall: Duration,
}

/// Where a log goes, and in what form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    File {
        form: FileForm,
        /// A file to make or to append to, a FIFO or a device.
        path: PathBuf,
        /// The size in bytes that no record may pass: before it would, a new file takes the old one's place.
        max_size: Option<NonZeroU64>,
    },
    Journal {
        /// Where journald listens, if it is there.
        socket: PathBuf,
        /// What every entry has: [`crate::format::journal::shared_fields`].
        shared_fields: Vec<u8>,
    },
}

/// The form of a log file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileForm {
    /// Kubernetes' container log format.
    Cri,
    /// One JSON object per line.
    Json,
}

impl Target {
    fn path(&self) -> &Path {
        match self {
            Self::File { path, .. } => path,
            Self::Journal { socket, .. } => socket,
        }
    }

    fn encoder(&self) -> Encoder {
        match self {
            Self::File { form: FileForm::Cri, .. } => Encoder::cri(),
            Self::File { form: FileForm::Json, .. } => Encoder::json(),
            Self::Journal { .. } => Encoder::journal(),
        }
    }
}

/// What became of all that a container wrote. With several drivers, the sum over them.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LogTotals {
    /// What is in the log.
    pub(crate) written: Tally,
    /// What is not, or is not known to be.
    pub(crate) lost: Tally,
    /// Records written beyond the size limit because no new file could be made.
    pub(crate) failed_rotations: u64,
}

impl Add for LogTotals {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self {
            written: self.written + other.written,
            lost: self.lost + other.lost,
            failed_rotations: self.failed_rotations + other.failed_rotations,
        }
    }
}

/// A log could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogError {
    /// The system call failed.
    #[error(transparent)]
    Open(#[from] SysError),
    /// The file system does not answer.
    #[error(transparent)]
    Blocking(#[from] BlockingError),
    /// A write does not return, and while it lasts the file cannot be left.
    #[error("log {} is not writable, so it was not reopened: {cause}", path.display())]
    Failing {
        /// The log.
        path: PathBuf,
        /// Why its records cannot be written.
        cause: &'static str,
    },
    /// The container's output has ended.
    #[error("log {} is closed", path.display())]
    Closed {
        /// The log.
        path: PathBuf,
    },
}

/// The log drivers of one container; none is allowed. A driver that fails does not disturb the others.
#[derive(Debug, Default)]
pub(crate) struct Log {
    drivers: Vec<LogWriter>,
}

impl Log {
    /// Opens all logs. A journal that is not there is no error: it may come.
    ///
    /// # Errors
    /// The first that could not be opened. The others are closed again, and removed if this made them.
    pub(crate) async fn open(scope: &Scope, blocking: &Blocking, configs: Vec<LogConfig>) -> Result<Self, LogError> {
        let mut log = Self { drivers: Vec::with_capacity(configs.len()) };
        for config in configs {
            match LogWriter::open(scope, blocking, config).await {
                Ok(driver) => log.drivers.push(driver),
                Err(error) => {
                    log.discard().await;
                    return Err(error);
                }
            }
        }
        Ok(log)
    }

    /// Closes logs that nothing was written to, and removes the files that opening them made.
    pub(crate) async fn discard(&self) {
        join_all(self.drivers.iter().map(LogWriter::discard)).await;
    }

    /// Takes what was read from the container at `now`. Never fails and never waits: ask [`Log::has_room`] first.
    pub(crate) fn append(&self, now: SystemTime, chunk: &Chunk) {
        for driver in &self.drivers {
            driver.append(now, chunk);
        }
    }

    /// False while the pump should not read: a driver is behind. Never for long, see [`LogConfig::stall`].
    pub(crate) fn has_room(&self) -> bool {
        self.drivers.iter().all(LogWriter::has_room)
    }

    /// Resolves when [`Log::has_room`].
    pub(crate) async fn room(&self) {
        while let Some(full) = self.drivers.iter().find(|driver| !driver.has_room()) {
            full.room().await;
        }
    }

    /// Opens all paths anew. See [`LogWriter::reopen`].
    ///
    /// # Errors
    /// The first error, after all drivers had their turn.
    pub(crate) async fn reopen(&self) -> Result<(), LogError> {
        join_all(self.drivers.iter().map(LogWriter::reopen)).await.into_iter().collect()
    }

    /// What became of the output so far.
    pub(crate) fn totals(&self) -> LogTotals {
        self.drivers.iter().map(LogWriter::totals).fold(LogTotals::default(), LogTotals::add)
    }

    /// Writes what is left and closes the logs. See [`LogWriter::finish`].
    pub(crate) async fn finish(&self, deadline: Duration) -> LogTotals {
        let totals = join_all(self.drivers.iter().map(|driver| driver.finish(deadline))).await;
        totals.into_iter().fold(LogTotals::default(), LogTotals::add)
    }
}
