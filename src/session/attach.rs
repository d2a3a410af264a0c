//! A client that watches a container, and may type into it.

use std::{cell::Cell, rc::Weak};

use tokio::time::{sleep, timeout};

use super::{
    Activity, AtStdinEnd, GOODBYE_LIMIT, InputEnd,
    client::{ClientReader, ClientWriter, Gone},
    pass_input,
};
use crate::{
    container::{Container, Pod},
    model::Outcome,
    stdio::{Lag, Next, Subscriber, Wants},
};

/// Serves one client until the container has exited, the client is gone or detaches. Never touches the container.
pub(crate) async fn run(
    pod: &Pod,
    container: &Weak<Container>,
    stdin: bool,
    wants: Wants,
    reader: &mut impl ClientReader,
    writer: &mut impl ClientWriter,
) {
    let Some(container) = container.upgrade() else {
        let gone = Outcome::Failed("error attaching to container: the container has exited".to_owned());
        let _ = writer.finish(&gone).await;
        return;
    };
    let activity = Activity::new(pod.config.idle_timeout);
    let stdio = container.stdio.clone();
    let mut output = stdio.subscribe(wants, Lag::Disconnect);
    let at_end = match (container.stdin_once, stdio.is_terminal()) {
        (true, false) => AtStdinEnd::HalfClose,
        (false, false) => AtStdinEnd::Detach,
        // A terminal has no end of input, only a client that has stopped typing.
        (_, true) => AtStdinEnd::Ignore,
    };
    let (subscription, detached) = (output.subscription(), Cell::new(false));
    let input = async {
        if pass_input(reader, &stdio, stdin, at_end, &activity).await == InputEnd::Detached {
            // What is queued is delivered first; the output half then ends the session.
            detached.set(true);
            subscription.stop();
            std::future::pending::<()>().await;
        }
    };
    let cut_and_deaf = async {
        subscription.cut().await;
        sleep(GOODBYE_LIMIT).await;
    };
    let ended = tokio::select! {
        biased;
        sent = send_output(&mut output, writer, &activity) => Some(sent),
        () = cut_and_deaf => None,
        () = input => None,
        () = activity.idle() => Some(Ok(Outcome::Failed("session idle for too long".to_owned()))),
    };
    if subscription.missed() > 0 {
        pod.counters.attach_cut_bytes.add(subscription.missed());
        tracing::warn!(missed = subscription.missed(), "attach client too slow: cut");
    }
    if let Some(Ok(outcome)) = ended {
        if outcome == Outcome::Exited(0) && !detached.get() {
            // Whoever sees the end of the session may rely on the log and the exit file.
            container.exited().await;
        }
        let _ = timeout(GOODBYE_LIMIT, writer.finish(&outcome)).await;
    }
}

/// The output half: returns how the session ends.
async fn send_output(
    output: &mut Subscriber,
    writer: &mut impl ClientWriter,
    activity: &Activity,
) -> Result<Outcome, Gone> {
    loop {
        match output.next().await {
            Next::Chunk(chunk) => {
                writer.write(chunk).await?;
                activity.touch();
            }
            // Attach carries no exit code: the container's is its exit file's.
            Next::End => return Ok(Outcome::Exited(0)),
            Next::Cut { missed } => {
                return Ok(Outcome::Failed(format!("attach client too slow: {missed} bytes not delivered")));
            }
        }
    }
}
