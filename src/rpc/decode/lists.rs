//! What is to be listed.

use super::{Invalid, id};
use crate::{
    model::ContainerId,
    schema::holdfast_capnp::holdfast::{list_containers_request, list_sessions_request},
};

/// The most entries of one answer, each of a few hundred bytes: who wants more asks again.
const PAGE_LIMIT: u32 = 256;

/// A part of a list.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::rpc) struct Page {
    /// Only what belongs to this container.
    pub(in crate::rpc) id: Option<ContainerId>,
    /// Only what has a larger number.
    pub(in crate::rpc) after: u64,
    pub(in crate::rpc) limit: usize,
}

impl Page {
    fn new(text: capnp::text::Reader<'_>, after: u64, limit: u32) -> Result<Self, Invalid> {
        let limit = if limit == 0 { PAGE_LIMIT } else { limit.min(PAGE_LIMIT) };
        let id = if text.is_empty() { None } else { Some(id(text)?) };
        Ok(Self { id, after, limit: limit as usize })
    }

    /// Cuts what does not fit; returns what to ask for next, 0 if it was all.
    pub(in crate::rpc) fn cut<T>(&self, list: &mut Vec<T>, number: impl Fn(&T) -> u64) -> u64 {
        if list.len() <= self.limit {
            return 0;
        }
        list.truncate(self.limit);
        list.last().map_or(0, number)
    }
}

pub(in crate::rpc) fn containers(request: list_containers_request::Reader<'_>) -> Result<Page, Invalid> {
    Page::new(request.get_id()?, request.get_after(), request.get_limit())
}

pub(in crate::rpc) fn sessions(request: list_sessions_request::Reader<'_>) -> Result<Page, Invalid> {
    Page::new(request.get_id()?, request.get_after(), request.get_limit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(id: &str, after: u64, limit: u32) -> Page {
        Page::new(id.into(), after, limit).unwrap()
    }

    #[test]
    fn no_page_is_larger_than_the_limit_and_the_next_begins_behind_it() {
        for (asked, given) in [(0, 256), (1, 1), (256, 256), (257, 256), (u32::MAX, 256)] {
            let page = page("", 0, asked);
            let mut numbers: Vec<u64> = (1..=300).collect();
            let next = page.cut(&mut numbers, |number| *number);
            assert_eq!((numbers.len(), next), (given, given as u64), "{asked}");
            assert_eq!(page.cut(&mut numbers, |number| *number), 0, "all of it");
        }
    }

    #[test]
    fn an_id_is_none_or_a_good_one() {
        assert_eq!(page("", 7, 1), Page { id: None, after: 7, limit: 1 });
        assert_eq!(page("c", 0, 1).id, ContainerId::parse("c").ok());
        assert!(Page::new("a/b".into(), 0, 0).is_err());
    }
}
