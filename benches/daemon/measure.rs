//! What /proc tells of a process, and what is made of many figures.

use std::{fmt, fs, time::Duration};

use super::Result;

/// The memory of one process, in KiB; proc(5).
#[derive(Debug, Clone)]
pub(super) struct Memory {
    /// `RssAnon`: its own alone.
    pub(super) anonymous_kib: f64,
    /// `Pss`: shared pages count by share.
    proportional_kib: f64,
    /// `VmRSS`: with all shared pages.
    resident_kib: f64,
}

impl Memory {
    pub(super) fn of(pid: u32) -> Result<Self> {
        Ok(Self {
            anonymous_kib: field(&format!("/proc/{pid}/status"), "RssAnon:")?,
            proportional_kib: field(&format!("/proc/{pid}/smaps_rollup"), "Pss:")?,
            resident_kib: field(&format!("/proc/{pid}/status"), "VmRSS:")?,
        })
    }

    /// So many processes of the same kind.
    pub(super) fn times(&self, count: u32) -> Self {
        let count = f64::from(count);
        Self {
            anonymous_kib: self.anonymous_kib * count,
            proportional_kib: self.proportional_kib * count,
            resident_kib: self.resident_kib * count,
        }
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { anonymous_kib, proportional_kib, resident_kib } = self;
        write!(f, "{anonymous_kib:.0} KiB RssAnon ({proportional_kib:.0} Pss, {resident_kib:.0} VmRSS)")
    }
}

fn field(path: &str, name: &str) -> Result<f64> {
    let text = fs::read_to_string(path)?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let value = line.and_then(|line| line.trim().strip_suffix("kB")).ok_or_else(|| format!("{path} has no {name}"))?;
    Ok(value.trim().parse()?)
}

/// User and system time of a process and of its ended threads; a tick is 10 ms.
pub(super) fn cpu_time(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // Fields 14 and 15; the second one, a name in parentheses, may hold blanks.
    let fields = stat.rsplit_once(')').ok_or("no name in stat")?.1.split_whitespace();
    let ticks: Vec<u64> = fields.skip(11).take(2).map(str::parse).collect::<std::result::Result<_, _>>()?;
    Ok(Duration::from_millis(ticks.iter().sum::<u64>() * 10))
}

/// Megabytes a second.
pub(super) fn rate(bytes: usize, time: Duration) -> f64 {
    bytes as f64 / 1e6 / time.as_secs_f64()
}

pub(super) fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

pub(super) fn least(figures: &[f64]) -> f64 {
    figures.iter().copied().fold(f64::INFINITY, f64::min)
}

pub(super) fn most(figures: &[f64]) -> f64 {
    figures.iter().copied().fold(0.0, f64::max)
}
