//! Containers by id. Execs are never in here: a lookup by id finds the container, whatever runs in it.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    time::SystemTime,
};

use super::{
    Container, Error, State,
    records::{Numbered, Records},
};
use crate::{
    log::LogTotals,
    model::{ContainerId, ExitStatus},
};

#[derive(Debug)]
enum Entry {
    /// A create is under way: the id is taken.
    Creating(Birth),
    Live(Rc<Container>),
}

/// What is fixed when a create begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Birth {
    /// In the order of creation; never used twice, as ids may be.
    pub(crate) number: u64,
    pub(crate) time: SystemTime,
}

/// A container as a caller is told of it.
#[derive(Debug, Clone)]
pub(crate) struct Listed {
    pub(crate) id: ContainerId,
    pub(crate) birth: Birth,
    /// `None` while it is created.
    pub(crate) state: Option<State>,
    /// 0 while it is created.
    pub(crate) pid: u32,
    pub(crate) terminal: bool,
    pub(crate) log: LogTotals,
    /// Of one that has exited.
    pub(crate) end: Option<End>,
}

/// How a container ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct End {
    pub(crate) status: ExitStatus,
    pub(crate) oom_killed: bool,
    pub(crate) time: SystemTime,
}

impl Numbered for Listed {
    fn number(&self) -> u64 {
        self.birth.number
    }
}

impl Listed {
    fn creating(id: &ContainerId, birth: Birth) -> Self {
        let log = LogTotals::default();
        Self { id: id.clone(), birth, state: None, pid: 0, terminal: false, log, end: None }
    }

    pub(super) fn of(container: &Container) -> Self {
        Self {
            id: container.id.clone(),
            birth: container.birth,
            state: Some(*container.state.borrow()),
            pid: container.process.pid(),
            terminal: container.stdio.is_terminal(),
            log: container.log.totals(),
            end: None,
        }
    }
}

/// The containers of the pod that have not been forgotten yet.
#[derive(Debug, Default)]
pub(crate) struct ContainerTable {
    entries: RefCell<HashMap<ContainerId, Entry>>,
    last_number: Cell<u64>,
    /// An exit code outlives its container's entry, for callers that were not there. See [`Records`] for its bound.
    exits: RefCell<Records<Listed>>,
}

impl ContainerTable {
    /// Finds a container that has been created and has not fully exited.
    pub(crate) fn find(&self, id: &ContainerId) -> Result<Rc<Container>, Error> {
        match self.entries.borrow().get(id) {
            Some(Entry::Live(container)) => Ok(container.clone()),
            Some(Entry::Creating(_)) => Err(Error::StillCreating(id.clone())),
            None => Err(Error::NotFound(id.clone())),
        }
    }

    /// Takes an id for a create; it is free again when the reservation is dropped without [`Reservation::fulfil`].
    pub(super) fn reserve(self: &Rc<Self>, id: &ContainerId) -> Result<Reservation, Error> {
        let mut entries = self.entries.borrow_mut();
        if entries.contains_key(id) {
            return Err(Error::Exists(id.clone()));
        }
        let birth = Birth { number: self.last_number.get() + 1, time: SystemTime::now() };
        self.last_number.set(birth.number);
        entries.insert(id.clone(), Entry::Creating(birth));
        Ok(Reservation { table: self.clone(), id: id.clone(), birth, fulfilled: false })
    }

    pub(super) fn remove(&self, id: &ContainerId) {
        self.entries.borrow_mut().remove(id);
    }

    /// Remembers the end of a container that is complete.
    pub(super) fn record(&self, exit: Listed) {
        self.exits.borrow_mut().push(exit);
    }

    /// All live containers.
    pub(crate) fn all(&self) -> Vec<Rc<Container>> {
        let live = |entry: &Entry| match entry {
            Entry::Live(container) => Some(container.clone()),
            Entry::Creating(_) => None,
        };
        self.entries.borrow().values().filter_map(live).collect()
    }

    /// Whether nothing is live or being created.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.borrow().is_empty()
    }

    /// The containers with larger numbers than `after`, by number, and the ends that nobody has collected.
    pub(crate) fn list(&self, id: Option<&ContainerId>, after: u64) -> Vec<Listed> {
        let wanted = |listed: &Listed| listed.birth.number > after && id.is_none_or(|id| *id == listed.id);
        let listed = |(id, entry): (&ContainerId, &Entry)| match entry {
            Entry::Creating(birth) => Some(Listed::creating(id, *birth)),
            // Its end is complete and recorded; what its table entry still waits for is nobody's concern.
            Entry::Live(container) if matches!(*container.state.borrow(), State::Exited(_)) => None,
            Entry::Live(container) => Some(Listed::of(container)),
        };
        let mut all: Vec<_> = self.entries.borrow().iter().filter_map(listed).filter(wanted).collect();
        all.extend(self.exits.borrow().iter().filter(|exit| wanted(exit)).cloned());
        all.sort_unstable_by_key(Numbered::number);
        all
    }

    /// Ends that went for newer ones before anybody collected them.
    pub(crate) fn dropped_exits(&self) -> u64 {
        self.exits.borrow().dropped()
    }

    /// The ends of containers with these numbers have been collected. Returns how many there were.
    pub(crate) fn forget(&self, numbers: impl Iterator<Item = u64>) -> u32 {
        self.exits.borrow_mut().forget(numbers)
    }
}

/// An id taken by a create under way.
#[derive(Debug)]
pub(super) struct Reservation {
    table: Rc<ContainerTable>,
    id: ContainerId,
    pub(super) birth: Birth,
    fulfilled: bool,
}

impl Reservation {
    pub(super) fn fulfil(mut self, container: Rc<Container>) {
        self.fulfilled = true;
        self.table.entries.borrow_mut().insert(self.id.clone(), Entry::Live(container));
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.fulfilled {
            self.table.remove(&self.id);
        }
    }
}
