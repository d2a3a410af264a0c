//! Containers by id. Execs are never in here: a lookup by id finds the container, whatever runs in it.

use std::{cell::RefCell, collections::HashMap, rc::Rc};

use super::{Container, Error};
use crate::model::ContainerId;

#[derive(Debug)]
enum Entry {
    /// A create is under way: the id is taken.
    Creating,
    Live(Rc<Container>),
}

/// The containers of the pod that have not been forgotten yet.
#[derive(Debug, Default)]
pub(crate) struct ContainerTable {
    entries: RefCell<HashMap<ContainerId, Entry>>,
}

impl ContainerTable {
    /// Finds a container that has been created and has not fully exited.
    pub(crate) fn find(&self, id: &ContainerId) -> Result<Rc<Container>, Error> {
        match self.entries.borrow().get(id) {
            Some(Entry::Live(container)) => Ok(container.clone()),
            Some(Entry::Creating) => Err(Error::StillCreating(id.clone())),
            None => Err(Error::NotFound(id.clone())),
        }
    }

    /// Takes an id for a create; it is free again when the reservation is dropped without [`Reservation::fulfil`].
    pub(super) fn reserve(self: &Rc<Self>, id: &ContainerId) -> Result<Reservation, Error> {
        let mut entries = self.entries.borrow_mut();
        if entries.contains_key(id) {
            return Err(Error::Exists(id.clone()));
        }
        entries.insert(id.clone(), Entry::Creating);
        Ok(Reservation { table: self.clone(), id: id.clone(), fulfilled: false })
    }

    pub(super) fn remove(&self, id: &ContainerId) {
        self.entries.borrow_mut().remove(id);
    }

    /// All live containers.
    pub(crate) fn all(&self) -> Vec<Rc<Container>> {
        let live = |entry: &Entry| match entry {
            Entry::Live(container) => Some(container.clone()),
            Entry::Creating => None,
        };
        self.entries.borrow().values().filter_map(live).collect()
    }

    /// Whether nothing is live or being created.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.borrow().is_empty()
    }
}

/// An id taken by a create under way.
#[derive(Debug)]
pub(super) struct Reservation {
    table: Rc<ContainerTable>,
    id: ContainerId,
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
