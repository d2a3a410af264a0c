use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::{CliError, RuntimeDir, output};
use crate::{
    client::{Client, ContainerInfo, ContainerState, Listing, SessionInfo, SessionState},
    model::StdStream,
};

/// How a list is printed, and what becomes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListOptions {
    /// As one line of JSON.
    pub json: bool,
    /// Have the daemon forget the ends that were printed.
    pub forget: bool,
}

/// Prints the containers of a daemon, and those that have exited and are not forgotten yet.
///
/// # Errors
/// When there is no daemon, or it does not answer.
pub async fn containers(dir: &RuntimeDir, options: ListOptions) -> Result<u8, CliError> {
    let client = Client::connect(dir.path()).await?;
    let listing = client.list_containers(None).await?;
    let head = ["NUMBER", "ID", "STATE", "PID", "EXIT", "OOM", "AGE", "LOST"];
    print(&listing, &head, container_row, options)?;
    if options.forget {
        let exited = listing.entries.iter().filter(|container| container.state == ContainerState::Exited);
        client.forget(&exited.map(|container| container.number).collect::<Vec<_>>(), &[]).await?;
    }
    Ok(0)
}

/// Prints the sessions of a daemon, and the ends of commands that nobody was told.
///
/// # Errors
/// When there is no daemon, or it does not answer.
pub async fn sessions(dir: &RuntimeDir, options: ListOptions) -> Result<u8, CliError> {
    let client = Client::connect(dir.path()).await?;
    let listing = client.list_sessions(None).await?;
    let head = ["NUMBER", "KIND", "STATE", "TARGET", "TRANSPORT", "PEER", "PID", "EXIT", "AGE", "IN", "OUT"];
    print(&listing, &head, session_row, options)?;
    if options.forget {
        let ended = listing.entries.iter().filter(|session| session.state == SessionState::Ended);
        client.forget(&[], &ended.map(|session| session.number).collect::<Vec<_>>()).await?;
    }
    Ok(0)
}

fn print<T: Serialize, const N: usize>(
    listing: &Listing<T>,
    head: &[&str; N],
    row: impl Fn(&T, u64) -> [String; N],
    options: ListOptions,
) -> Result<(), CliError> {
    let text = if options.json {
        let json = serde_json::to_string(listing).map_err(CliError::new)?;
        format!("{json}\n")
    } else {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        table(head, &listing.entries.iter().map(|entry| row(entry, now)).collect::<Vec<_>>())
    };
    output::write(StdStream::Stdout, text.as_bytes())?;
    if listing.dropped > 0 && !options.json {
        output::note(format!("{} earlier ends went for newer ones before anybody collected them", listing.dropped));
    }
    Ok(())
}

fn container_row(container: &ContainerInfo, now: u64) -> [String; 8] {
    [
        container.number.to_string(),
        container.id.clone(),
        word(container.state),
        number(container.pid),
        container.exit_code.map_or(none(), |code| code.to_string()),
        if container.oom_killed { "yes".to_owned() } else { none() },
        age(now, container.created_at),
        container.lost_bytes.to_string(),
    ]
}

fn session_row(session: &SessionInfo, now: u64) -> [String; 11] {
    let or_none = |text: &String| if text.is_empty() { none() } else { text.clone() };
    [
        session.number.to_string(),
        word(session.kind),
        word(session.state),
        or_none(if session.id.is_empty() { &session.pod_id } else { &session.id }),
        match word(session.transport) {
            transport if transport == "none" => none(),
            transport => transport,
        },
        or_none(&session.peer),
        number(session.pid),
        session.exit_code.map_or(none(), |code| code.to_string()),
        age(now, session.created_at),
        session.received_bytes.to_string(),
        session.sent_bytes.to_string(),
    ]
}

/// The word that stands for it in JSON.
fn word(value: impl Serialize) -> String {
    let value = serde_json::to_value(value).unwrap_or_default();
    value.as_str().unwrap_or_default().to_owned()
}

fn none() -> String {
    "-".to_owned()
}

fn number(number: u32) -> String {
    if number == 0 { none() } else { number.to_string() }
}

/// How long ago, in the largest unit of which there is more than one.
fn age(now: u64, then: u64) -> String {
    let seconds = now.saturating_sub(then) / 1_000_000_000;
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Columns as wide as their widest cell.
fn table<const N: usize>(head: &[&str; N], rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([head[column].len()]).max().unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |cells: [&str; N]| {
        let mut line = String::new();
        for (cell, width) in cells.into_iter().zip(widths) {
            line += &format!("{cell:width$}  ");
        }
        format!("{}\n", line.trim_end())
    };
    let rows = rows.iter().map(|row| line(std::array::from_fn(|column| row[column].as_str())));
    std::iter::once(line(*head)).chain(rows).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_each_other_without_blanks_at_the_end() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned);
        let rows = [row(["1", "a-long-one", "x"]), row(["22", "b", "-"])];
        assert_eq!(table(&["N", "ID", "EXIT"], &rows), "N   ID          EXIT\n1   a-long-one  x\n22  b           -\n");
        assert_eq!(table(&["N"], &[]), "N\n");
    }

    #[test]
    fn an_age_has_one_unit() {
        let ages = [0, 119, 120, 7_199, 7_200, 172_799, 172_800].map(|seconds| age(seconds * 1_000_000_000, 0));
        assert_eq!(ages, ["0s", "119s", "2m", "119m", "2h", "47h", "2d"]);
        assert_eq!(age(5, 10), "0s", "of a clock that was set back");
    }

    #[test]
    fn states_have_the_words_of_the_schema() {
        assert_eq!([word(ContainerState::Live), word(SessionState::Detached)], ["live", "detached"]);
    }
}
