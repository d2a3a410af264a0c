//! RFC 3339 times in UTC with nine digits of fraction: `2024-02-29T23:59:59.000000001Z`.

use std::time::Duration;

/// The length of every time we write.
pub const LEN: usize = 30;

/// The last second that has four digits of year: 9999-12-31T23:59:59Z.
const LAST_SECOND: u64 = 253_402_300_799;

const SECONDS_PER_DAY: u64 = 86_400;

/// Formats times. What is the same as in the last one is not formatted again: the lines of one read share their time.
#[derive(Debug, Clone)]
pub struct Timestamp {
    second: u64,
    nanos: u32,
    text: [u8; LEN],
}

impl Default for Timestamp {
    fn default() -> Self {
        Self { second: 0, nanos: 0, text: *b"1970-01-01T00:00:00.000000000Z" }
    }
}

impl Timestamp {
    /// The text of a time given since the Unix epoch. Times after the year 9999 become its last second.
    pub fn format(&mut self, unix: Duration) -> &[u8; LEN] {
        let second = unix.as_secs().min(LAST_SECOND);
        if second != self.second {
            self.second = second;
            self.set_second(second);
        }
        let nanos = unix.subsec_nanos();
        if nanos != self.nanos {
            self.nanos = nanos;
            self.digits(20, 9, u64::from(nanos));
        }
        &self.text
    }

    fn set_second(&mut self, second: u64) {
        let (year, month, day) = date(second / SECONDS_PER_DAY);
        let of_day = second % SECONDS_PER_DAY;
        self.digits(0, 4, year);
        self.digits(5, 2, month);
        self.digits(8, 2, day);
        self.digits(11, 2, of_day / 3600);
        self.digits(14, 2, of_day / 60 % 60);
        self.digits(17, 2, of_day % 60);
    }

    fn digits(&mut self, at: usize, count: usize, mut value: u64) {
        for place in self.text[at..at + count].iter_mut().rev() {
            *place = b"0123456789"[(value % 10) as usize];
            value /= 10;
        }
    }
}

/// Year, month and day of a day since 1970-01-01, in the Gregorian calendar.
///
/// Years are counted from 1 March, so that the leap day is the last day of its year, and in cycles of 400 years, which
/// all have the same number of days (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`).
fn date(days: u64) -> (u64, u64, u64) {
    const DAYS_PER_CYCLE: u64 = 146_097;
    const FROM_YEAR_ZERO: u64 = 719_468; // 0000-03-01 to 1970-01-01
    let days = days + FROM_YEAR_ZERO;
    let (cycle, of_cycle) = (days / DAYS_PER_CYCLE, days % DAYS_PER_CYCLE);
    let of_era = (of_cycle - of_cycle / 1460 + of_cycle / 36_524 - of_cycle / 146_096) / 365;
    let of_year = of_cycle - (365 * of_era + of_era / 4 - of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (cycle * 400 + of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(seconds: u64, nanos: u32) -> String {
        String::from_utf8(Timestamp::default().format(Duration::new(seconds, nanos)).to_vec()).unwrap()
    }

    #[test]
    fn known_times_have_nine_digits_and_the_letter_z() {
        assert_eq!(text(0, 0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(text(951_782_400, 1), "2000-02-29T00:00:00.000000001Z");
        assert_eq!(text(1_709_251_199, 999_999_999), "2024-02-29T23:59:59.999999999Z");
        assert_eq!(text(4_107_542_400, 120_000_000), "2100-03-01T00:00:00.120000000Z");
        assert_eq!(text(LAST_SECOND, 0), "9999-12-31T23:59:59.000000000Z");
        assert_eq!(text(u64::MAX, 5), "9999-12-31T23:59:59.000000005Z");
    }

    #[test]
    fn every_day_until_9999_follows_the_day_before() {
        let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        let (mut year, mut month, mut day) = (1970, 1, 1);
        for days in 0..=LAST_SECOND / SECONDS_PER_DAY {
            assert_eq!(date(days), (year, month, day), "day {days}");
            let length = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
            day += 1;
            if day > length[usize::try_from(month).unwrap() - 1] {
                (month, day) = (month + 1, 1);
            }
            if month > 12 {
                (year, month) = (year + 1, 1);
            }
        }
        assert_eq!((year, month, day), (10_000, 1, 1));
    }

    #[test]
    fn a_cached_second_gives_the_text_of_a_fresh_one() {
        let mut cached = Timestamp::default();
        for (seconds, nanos) in [(59, 1), (59, 999_999_999), (60, 0), (86_399, 7), (86_400, 7), (59, 2)] {
            assert_eq!(cached.format(Duration::new(seconds, nanos))[..], *text(seconds, nanos).as_bytes());
        }
    }
}
