//! Ends that nobody has collected yet.

use std::collections::VecDeque;

/// The most that are kept of one kind, each well below 1 KiB. Full: the oldest goes and is counted.
const RECORDS_LIMIT: usize = 256;

/// What has a number of its own.
pub(crate) trait Numbered {
    fn number(&self) -> u64;
}

/// The last ends, in the order in which they came.
#[derive(Debug)]
pub(crate) struct Records<T> {
    kept: VecDeque<T>,
    dropped: u64,
}

impl<T> Default for Records<T> {
    fn default() -> Self {
        Self { kept: VecDeque::new(), dropped: 0 }
    }
}

impl<T: Numbered> Records<T> {
    pub(crate) fn push(&mut self, record: T) {
        if self.kept.len() >= RECORDS_LIMIT {
            self.kept.pop_front();
            self.dropped += 1;
        }
        self.kept.push_back(record);
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.kept.iter()
    }

    /// How many went for newer ones.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Forgets those with these numbers, of which there may be a million; returns how many there were.
    pub(crate) fn forget(&mut self, numbers: impl Iterator<Item = u64>) -> u32 {
        let before = self.kept.len();
        let mut known: Vec<(u64, bool)> = self.kept.iter().map(|record| (record.number(), false)).collect();
        known.sort_unstable();
        for number in numbers {
            if let Ok(index) = known.binary_search_by_key(&number, |(number, _)| *number) {
                known[index].1 = true;
            }
        }
        let forgotten = |number| known.binary_search(&(number, true)).is_ok();
        self.kept.retain(|record| !forgotten(record.number()));
        self.kept.shrink_to_fit();
        u32::try_from(before - self.kept.len()).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Numbered for u64 {
        fn number(&self) -> u64 {
            *self
        }
    }

    #[test]
    fn beyond_the_limit_the_oldest_goes_and_is_counted() {
        let mut records = Records::default();
        (1..=300_u64).rev().for_each(|number| records.push(number));
        assert_eq!((records.iter().count(), records.dropped()), (256, 44));
        assert_eq!(records.iter().max(), Some(&256));
    }

    #[test]
    fn only_the_numbers_named_are_forgotten_and_once() {
        let mut records = Records::default();
        [5, 3, 9_u64].into_iter().for_each(|number| records.push(number));
        assert_eq!(records.forget([3, 3, 4, 9, 0, u64::MAX].into_iter()), 2);
        assert_eq!(records.forget([3, 9].into_iter()), 0);
        assert_eq!(records.iter().collect::<Vec<_>>(), [&5]);
    }
}
