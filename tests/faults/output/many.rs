//! Many commands with much output beside processes that take all the time they get.

use std::time::Instant;

use futures_util::future::{join, join_all};
use holdfast::{
    client::{Collected, ExecSync},
    model::Outcome,
};

use super::{Transport, numbers};
use crate::support::{self, BundleSpec, collect, figure, procfs, within};

#[test]
fn every_byte_and_status_of_many_commands_arrives_on_a_busy_machine() {
    support::e2e(async |sandbox| {
        sandbox.run("c", &BundleSpec::idle()).await;
        let wanted = numbers(200_000);
        let client = sandbox.client();
        let (_busy, begin) = (procfs::BusyLoops::start(), Instant::now());
        let rounds: u8 = if support::long() { 100 } else { 10 };
        // In each two of the one and two of the other kind, with a code of its own.
        for round in 0..rounds {
            let command = ["sh".to_owned(), "-c".to_owned(), format!("seq 1 200000; exit {round}")];
            let exec = ExecSync { id: "c".to_owned(), command: command.to_vec(), ..ExecSync::default() };
            let replies = join_all((0..2).map(|_| client.exec_sync(&exec)));
            let words = [&command[0][..], &command[1], &command[2]];
            let sessions = [Transport::WebSocket, Transport::Spdy]
                .map(async |transport| collect(transport.exec(sandbox, false, &words).await).await);
            let (replies, sessions) = within(join(replies, join_all(sessions))).await;
            for reply in replies {
                let reply = reply.expect("a reply");
                assert_complete(&reply.stdout, &wanted, round);
                assert_eq!((reply.exit_code, &reply.stderr[..], reply.timed_out), (round.into(), &b""[..], false));
            }
            for (all, close_code) in sessions.into_iter().zip([Some(1000), None]) {
                assert_complete(&all.stdout, &wanted, round);
                let rest = Collected { stdout: Vec::new(), ..all };
                let statuses = vec![Outcome::Exited(round)];
                assert_eq!(rest, Collected { statuses, close_code, ..Collected::default() }, "round {round}");
            }
        }
        let rate = f64::from(rounds) * 4.0 / begin.elapsed().as_secs_f64();
        figure("output: commands of 1.3 MB beside four busy loops, per second", format!("{rate:.1}"));
    });
}

fn assert_complete(stdout: &[u8], wanted: &[u8], round: u8) {
    // Not assert_eq: nobody wants to read them.
    assert!(stdout == wanted, "round {round}: {} of {} bytes, or others", stdout.len(), wanted.len());
}
