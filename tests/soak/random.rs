//! Chance that can be had again.

/// Numbers that look random and depend on the seed alone (splitmix64).
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// The numbers of one of many workers.
    pub(crate) fn new(seed: u64, worker: u64) -> Self {
        Self(seed ^ worker.wrapping_mul(0xd134_2543_de82_ef95))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number of a range.
    pub(crate) fn of(&mut self, range: std::ops::Range<u32>) -> u32 {
        let width = u64::from(range.end - range.start);
        range.start + u32::try_from(self.next() % width).expect("less than the width")
    }

    /// True so many times of a hundred.
    pub(crate) fn percent(&mut self, percent: u32) -> bool {
        self.of(0..100) < percent
    }

    pub(crate) fn bytes(&mut self, count: u32) -> Vec<u8> {
        (0..count.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).take(count as usize).collect()
    }

    /// As many bytes as a range allows.
    pub(crate) fn bytes_of(&mut self, range: std::ops::Range<u32>) -> Vec<u8> {
        let count = self.of(range);
        self.bytes(count)
    }

    /// A time to wait, in milliseconds.
    pub(crate) fn pause(&mut self, range: std::ops::Range<u32>) -> std::time::Duration {
        std::time::Duration::from_millis(self.of(range).into())
    }
}
