//! One forwarded connection: dial, then copy both ways with real half-close.

use std::{io, time::Duration};

use bytes::BytesMut;
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpStream, tcp::ReadHalf},
    time::timeout,
};

use super::{Destination, Pair, Session};
use crate::{
    config::ForwardRefusal,
    io::queue::compact,
    proto::port_forward::dial_error_text,
    session::{
        client::{ForwardWriter, Gone, PairEnd, PairId},
        dial::{DialError, dial},
    },
};

/// One read of the pod's socket. Allocated when something is there, so an idle pair costs no buffer.
const READ_CHUNK: usize = 16 * 1024;
/// After the pod's end of a connection the client may still send for so long.
const POD_ENDED_LIMIT: Duration = Duration::from_secs(60);

/// Forwards one connection; returns how the client is to be told its end.
pub(super) async fn forward<W: ForwardWriter>(session: &Session<W>, id: PairId, pair: &Pair, port: u16) -> PairEnd {
    let dialled = tokio::select! {
        biased;
        () = pair.reset.cancelled() => return PairEnd::Reset,
        dialled = dial(&session.blocking, &session.destination.place, port) => dialled,
    };
    let mut stream = match dialled {
        Ok(stream) => stream,
        Err(error) => {
            // The client may go on sending until it has read the end; nothing of it may hold up the connection.
            pair.inbound.discard();
            return refused(session, port, &error);
        }
    };
    let end = tokio::select! {
        biased;
        () = pair.reset.cancelled() => None,
        end = copy(session, id, pair, &mut stream) => Some(end),
    };
    pair.inbound.discard();
    match end {
        Some(Ok(())) => PairEnd::Done,
        // A reset of one side is a reset of the other, and never a text: any text ends the client's whole session.
        Some(Err(error)) => {
            tracing::debug!(port, %error, "a forwarded connection broke");
            PairEnd::Reset
        }
        None => {
            let _ = stream.set_zero_linger();
            PairEnd::Reset
        }
    }
}

fn refused<W: ForwardWriter>(session: &Session<W>, port: u16, error: &DialError) -> PairEnd {
    let Destination { place, pod } = &session.destination;
    let cause = crate::model::one_line(error);
    match error {
        DialError::Namespace { .. } => {
            tracing::info!(port, error = cause, "the pod of a port forward is gone");
            session.pod_is_gone();
            PairEnd::Failed(format!("error forwarding port {port} to pod {pod}, uid : {cause}"))
        }
        DialError::Refused { v4, v6 } => {
            tracing::debug!(port, error = cause, "nobody listens on a forwarded port");
            match session.refusal {
                ForwardRefusal::Reset if W::TEXT_ENDS_ALL => PairEnd::Reset,
                _ => PairEnd::Failed(dial_error_text(port, pod, &place.to_string(), v4, v6)),
            }
        }
        DialError::Reset => PairEnd::Reset,
        // No fault of the pod's: other connections may still work, so the session goes on.
        DialError::Blocking(_) | DialError::NoRoom(_) | DialError::Sys(_) => {
            tracing::warn!(port, error = cause, "a forwarded connection could not be made");
            PairEnd::Reset
        }
    }
}

/// Copies until both directions have ended, or the pod's has and the client sends no end in time.
async fn copy<W: ForwardWriter>(
    session: &Session<W>,
    id: PairId,
    pair: &Pair,
    stream: &mut TcpStream,
) -> io::Result<()> {
    let (mut from_pod, mut to_pod) = stream.split();
    let up = async {
        while let Some(bytes) = pair.inbound.next().await {
            if to_pod.write_all(&bytes).await.is_err() {
                // What the process sent before is still to come; reading it tells how the connection ended.
                pair.inbound.discard();
                return;
            }
            session.activity.touch();
        }
        // The process sees the end of its input, and may still answer.
        let _ = to_pod.shutdown().await;
    };
    let down = copy_down(session, id, &mut from_pod);
    tokio::pin!(up, down);
    tokio::select! {
        ended = &mut down => {
            ended?;
            session.writer.half_close(id);
            if W::HALF_CLOSE {
                let _ = timeout(POD_ENDED_LIMIT, up).await;
            }
            Ok(())
        }
        () = &mut up => down.await,
    }
}

/// The pod's bytes to the client, until the pod's end or until the client takes no more of them.
async fn copy_down<W: ForwardWriter>(session: &Session<W>, id: PairId, from_pod: &mut ReadHalf<'_>) -> io::Result<()> {
    loop {
        from_pod.readable().await?;
        let mut bytes = BytesMut::with_capacity(READ_CHUNK);
        match from_pod.try_read_buf(&mut bytes) {
            Ok(0) => return Ok(()),
            Ok(_) => {
                session.activity.sent(bytes.len());
                if session.writer.write(id, compact(bytes).freeze()).await == Err(Gone) {
                    return Ok(());
                }
                // tokio does not meter these reads: a process that never stops sending would have the thread for itself.
                tokio::task::yield_now().await;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}
