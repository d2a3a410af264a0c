//! A client that watches a container, and may type into it.

use std::{
    cell::Cell,
    pin::pin,
    rc::{Rc, Weak},
    time::Duration,
};

use tokio::time::{sleep, timeout};

use super::{
    Activity, AtStdinEnd, GOODBYE_LIMIT, InputEnd, Session,
    client::{ClientReader, ClientWriter, Gone},
    pass_input,
};
use crate::{
    config::AttachLag,
    container::{Container, Pod},
    model::{Chunk, Outcome, StdStream},
    stdio::{Lag, Next, Stdio, Subscriber, Wants},
    telemetry::counters::Counters,
};

/// What differs between the ways to attach.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Policy {
    /// Whether what the client types is passed on.
    pub(crate) stdin: bool,
    pub(crate) at_stdin_end: AtStdinEnd,
    pub(crate) patience: Patience,
}

/// Where a session is noted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Books<'a> {
    pub(crate) counters: &'a Counters,
    pub(crate) session: &'a Rc<Session>,
}

/// How long nothing may move before the session is given up.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Patience {
    /// So long, whatever the container does; zero is for ever.
    Limit(Duration),
    /// For ever while the container lives, and [`GOODBYE_LIMIT`] afterwards.
    UntilExit,
}

/// Why a session ends.
enum End {
    /// The output half has done what it could.
    Output(Result<Outcome, Gone>),
    Idle,
    /// The client does not take what it is owed.
    Deaf,
    Left,
}

/// Serves a streaming client until the container has exited, the client is gone or detaches. Never touches the container.
pub(crate) async fn run(
    pod: &Pod,
    session: &Rc<Session>,
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
    let output = container.stdio.subscribe(wants, lag(pod.config.streams.attach_lag));
    let at_stdin_end = match (container.stdin_once, container.stdio.is_terminal()) {
        (true, false) => AtStdinEnd::HalfClose,
        (false, false) => AtStdinEnd::Detach,
        // A terminal has no end of input, only a client that has stopped typing.
        (_, true) => AtStdinEnd::Ignore,
    };
    let policy = Policy { stdin, at_stdin_end, patience: Patience::Limit(pod.config.streams.idle_timeout) };
    let books = Books { counters: &pod.counters, session };
    serve(books, &container, output, policy, reader, writer).await;
}

/// The same for a client whose subscription exists already, and with a policy of its transport's.
pub(crate) async fn serve(
    books: Books<'_>,
    container: &Container,
    output: Subscriber,
    policy: Policy,
    reader: &mut impl ClientReader,
    writer: &mut impl ClientWriter,
) {
    let exited = async || {
        container.exited().await;
    };
    attend(books, &container.stdio, exited, output, policy, reader, writer).await;
}

async fn attend(
    Books { counters, session }: Books<'_>,
    stdio: &Stdio,
    exited: impl AsyncFn(),
    mut output: Subscriber,
    policy: Policy,
    reader: &mut impl ClientReader,
    writer: &mut impl ClientWriter,
) {
    let limit = match policy.patience {
        Patience::Limit(limit) => limit,
        Patience::UntilExit => GOODBYE_LIMIT,
    };
    let activity = Activity::new(limit, session);
    let notices = Notices { counters, stderr: output.wants().stderr, terminal: stdio.is_terminal() };
    let (subscription, detached) = (output.subscription(), Cell::new(false));
    let mut input = pin!(async {
        if pass_input(reader, stdio, policy.stdin, policy.at_stdin_end, &activity).await == InputEnd::Detached {
            // What is queued is delivered first; the output half then ends the session.
            detached.set(true);
            subscription.stop();
            std::future::pending::<()>().await;
        }
    });
    let cut_and_deaf = async {
        subscription.cut().await;
        sleep(GOODBYE_LIMIT).await;
    };
    let mut idle = pin!(async {
        if matches!(policy.patience, Patience::UntilExit) {
            exited().await;
            activity.touch();
        }
        activity.idle().await;
    });
    let end = tokio::select! {
        biased;
        sent = send_output(&mut output, writer, notices, &activity) => End::Output(sent),
        () = cut_and_deaf => End::Deaf,
        () = &mut input => End::Left,
        () = &mut idle => match policy.patience {
            Patience::Limit(_) => End::Idle,
            Patience::UntilExit => End::Deaf,
        },
    };
    let queued = if matches!(end, End::Deaf) { subscription.queued() } else { 0 };
    let missed = subscription.missed() + queued;
    if missed > 0 {
        counters.attach_cut_bytes.add(missed);
        tracing::warn!(missed, "attach client too slow: cut");
    }
    match end {
        End::Output(Ok(outcome)) => {
            if outcome == Outcome::Exited(0) && !detached.get() {
                // Whoever sees the end of the session may rely on the log and the exit file.
                exited().await;
            }
            let _ = timeout(GOODBYE_LIMIT, writer.finish(&outcome)).await;
        }
        End::Idle => {
            let outcome = Outcome::Failed("session idle for too long".to_owned());
            let _ = timeout(GOODBYE_LIMIT, writer.finish(&outcome)).await;
        }
        // It takes no more output, or is gone altogether; what it typed before is still the container's.
        End::Output(Err(Gone)) => {
            drop(output);
            tokio::select! {
                () = input => {}
                () = idle => {}
                () = exited() => {}
            }
        }
        End::Deaf | End::Left => {}
    }
}

/// What an attach client's subscription does when it is full.
pub(crate) fn lag(policy: AttachLag) -> Lag {
    match policy {
        AttachLag::Cut => Lag::Disconnect,
        AttachLag::Skip => Lag::Skip,
        AttachLag::Wait(limit) => Lag::WaitAtMost(limit),
    }
}

/// How a client is told in band that output is missing.
struct Notices<'a> {
    counters: &'a Counters,
    stderr: bool,
    terminal: bool,
}

impl Notices<'_> {
    /// On stderr where the client has one, so that stdout stays the container's.
    fn skipped(&self, bytes: u64) -> Chunk {
        self.counters.attach_cut_bytes.add(bytes);
        let stream = if self.stderr && !self.terminal { StdStream::Stderr } else { StdStream::Stdout };
        let end = if self.terminal { "\r\n" } else { "\n" };
        let text = format!("{end}[holdfast: attach client too slow: {bytes} bytes left out]{end}");
        Chunk { stream, bytes: text.into() }
    }
}

/// The output half: returns how the session ends.
async fn send_output(
    output: &mut Subscriber,
    writer: &mut impl ClientWriter,
    notices: Notices<'_>,
    activity: &Activity,
) -> Result<Outcome, Gone> {
    loop {
        match output.next().await {
            Next::Chunk(chunk) => {
                let bytes = chunk.bytes.len();
                writer.write(chunk).await?;
                activity.sent(bytes);
            }
            Next::Skipped { bytes } => {
                writer.write(notices.skipped(bytes)).await?;
            }
            // Attach carries no exit code: the container's is its exit file's.
            Next::End => return Ok(Outcome::Exited(0)),
            Next::Cut { missed } => {
                return Ok(Outcome::Failed(format!("attach client too slow: {missed} bytes not delivered")));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, rc::Rc};

    use bytes::Bytes;
    use tokio::time::Instant;

    use super::*;
    use crate::{
        session::{SessionTable, Subject, client::ClientEvent},
        stdio::Fanout,
    };

    /// Sends what it has and then nothing.
    struct Typist(VecDeque<ClientEvent>);

    impl ClientReader for Typist {
        async fn next(&mut self) -> ClientEvent {
            match self.0.pop_front() {
                Some(event) => event,
                None => std::future::pending().await,
            }
        }
    }

    /// Takes nothing, or has no ears at all.
    struct Deaf {
        gone: bool,
    }

    impl ClientWriter for Deaf {
        async fn write(&mut self, _: Chunk) -> Result<(), Gone> {
            if self.gone { Err(Gone) } else { std::future::pending().await }
        }

        async fn finish(&mut self, _: &Outcome) -> Result<(), Gone> {
            panic!("it has not taken what goes before")
        }
    }

    const POLICY: Policy = Policy { stdin: true, at_stdin_end: AtStdinEnd::HalfClose, patience: Patience::UntilExit };

    /// A client that is owed `chunks` of 1000 bytes; returns how long it is served, what is counted as missed, and how much
    /// of what it typed was left.
    async fn serve_deaf(
        chunks: usize,
        exit_after: Duration,
        gone: bool,
        events: &[ClientEvent],
    ) -> (Duration, u64, usize) {
        let (fanout, counters, stdio) = (Rc::new(Fanout::default()), Counters::default(), stdio());
        let output = fanout.subscribe(Wants { stdout: true, stderr: true }, Lag::Disconnect);
        for _ in 0..chunks {
            fanout.publish(&Chunk { stream: StdStream::Stdout, bytes: Bytes::from(vec![b'x'; 1000]) });
        }
        let start = Instant::now();
        let exit = start + exit_after;
        let exited = async || tokio::time::sleep_until(exit).await;
        let mut typist = Typist(events.iter().cloned().collect());
        let table = SessionTable::new(1, Rc::default());
        let session = table.begin(table.opening(Subject::PortForward(String::new())));
        let books = Books { counters: &counters, session: &session };
        attend(books, &stdio, exited, output, POLICY, &mut typist, &mut Deaf { gone }).await;
        (start.elapsed(), counters.attach_cut_bytes.value(), typist.0.len())
    }

    fn stdio() -> Rc<Stdio> {
        Stdio::new(false, true, Rc::default())
    }

    #[tokio::test(flavor = "local", start_paused = true)]
    async fn a_client_that_takes_nothing_is_kept_while_the_container_lives_and_a_minute_longer() {
        let (served, missed, _) = serve_deaf(20, Duration::from_secs(100_000), false, &[]).await;
        assert_eq!(served, Duration::from_secs(100_060));
        // One piece was on its way to it; small chunks are joined to pieces of up to 16 KiB.
        assert_eq!(missed, 20_000 - 16_000);
    }

    #[tokio::test(flavor = "local", start_paused = true)]
    async fn a_client_that_was_cut_has_a_minute_to_take_what_is_queued_and_why() {
        let (served, missed, _) = serve_deaf(1000, Duration::from_secs(100_000), false, &[]).await;
        assert_eq!(served, Duration::from_secs(60));
        assert_eq!(missed, 1_000_000 - 16_000);
    }

    #[tokio::test(flavor = "local", start_paused = true)]
    async fn what_a_client_typed_before_it_went_is_passed_on_although_it_takes_no_output() {
        let typed = vec![ClientEvent::Stdin(Bytes::from_static(b"typed")); 3];
        let events = [&typed[..], &[ClientEvent::StdinClosed, ClientEvent::Gone]].concat();
        let (served, _, left) = serve_deaf(1, Duration::from_secs(100_000), true, &events).await;
        assert_eq!((served, left), (Duration::ZERO, 0));
        let (served, _, _) = serve_deaf(1, Duration::from_secs(5), true, &[]).await;
        assert_eq!(served, Duration::from_secs(5), "it might still type until the container exits");
    }
}
