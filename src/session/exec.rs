//! An exec with a streaming client.

use std::rc::Rc;

use super::{
    Activity, AtStdinEnd, GOODBYE_LIMIT, Session,
    client::{ClientReader, ClientWriter, Gone},
    pass_input,
};
use crate::{
    config::ClientGone,
    container::{Exec, Pod},
    model::{ExitStatus, Outcome, one_line, trimmed},
    oci::ExecSpec,
    stdio::{Lag, Next, Subscriber, Wants},
};

/// The longest reason in a status, in bytes: it stands there twice, perhaps escaped, and a status must be one message that
/// every client takes.
const REASON_LIMIT: usize = 2048;

/// Runs the process and serves its client until the status has been sent or the client is gone.
pub(crate) async fn run(
    pod: &Rc<Pod>,
    session: &Rc<Session>,
    spec: ExecSpec,
    wants: Wants,
    reader: &mut impl ClientReader,
    writer: &mut impl ClientWriter,
) {
    let stdin = spec.stdin;
    let activity = Activity::new(pod.config.streams.idle_timeout, session);
    let policy = pod.config.streams.exec_client_gone;
    let mut exec = pod.exec(spec, None, matches!(policy, ClientGone::Kill(_)));
    session.runs(&exec);
    let stdio = exec.stdio.clone();
    // Before anything is awaited: the process does not exist yet, so nothing can be missed.
    let mut output = stdio.subscribe(wants, Lag::Wait);
    let gone = tokio::select! {
        biased;
        sent = send_output(&mut exec, &mut output, writer, &activity) => sent.is_err(),
        _ = pass_input(reader, &stdio, stdin, AtStdinEnd::HalfClose, &activity) => true,
        () = activity.idle() => {
            tracing::info!(limit = ?pod.config.streams.idle_timeout, "session idle for too long");
            let outcome = Outcome::Failed("session idle for too long".to_owned());
            let _ = tokio::time::timeout(GOODBYE_LIMIT, writer.finish(&outcome)).await;
            true
        }
    };
    if gone {
        tracing::debug!(?policy, "the client of an exec is gone");
        match policy {
            ClientGone::Hangup => stdio.abandon(),
            // What it has sent still arrives. Without a subscriber the output is read and dropped.
            ClientGone::Leave => stdio.stdin().half_close(),
            ClientGone::Kill(grace) => {
                exec.kill_after(grace);
                stdio.abandon();
            }
        }
        session.detach(exec, &pod.scope);
    }
}

/// The output half: all output, then the status.
async fn send_output(
    exec: &mut Exec,
    output: &mut Subscriber,
    writer: &mut impl ClientWriter,
    activity: &Activity,
) -> Result<(), Gone> {
    while let Next::Chunk(chunk) = output.next().await {
        let bytes = chunk.bytes.len();
        writer.write(chunk).await?;
        activity.sent(bytes);
    }
    let outcome = match exec.ended().await {
        Ok(ExitStatus::Exited(code)) => Outcome::Exited(code),
        Ok(status @ ExitStatus::Signaled(_)) => Outcome::Exited(u8::try_from(status.code()).unwrap_or(u8::MAX)),
        Ok(ExitStatus::Lost) => Outcome::Failed("the exit status of the command is not known".to_owned()),
        Err(error) => {
            let reason = trimmed(one_line(&*error), REASON_LIMIT);
            Outcome::Failed(format!("error executing command in container: {reason}"))
        }
    };
    writer.finish(&outcome).await
}
