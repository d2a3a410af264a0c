//! The state of one stream (spec 5.4, 5.10).

/// Which directions of a stream are open. A stream that is closed is in no table, so it has no state.
///
/// ```text
///                 FIN came                      we ended it
///         ┌──────────────────▶ InputEnded ──────────────────┐
///  Open ──┤                                                 ├──▶ closed
///         └──────────────────▶ OutputEnded ─────────────────┘
///               we ended it                       FIN came
///
///  RST_STREAM, either way: closed at once.
/// ```
///
/// The end of our direction is when the last byte was *queued*: nothing can be added then, though it may take a while to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Directions {
    Open,
    /// The peer sends no more; it still receives.
    InputEnded,
    /// We send no more; we still receive.
    OutputEnded,
}

impl Directions {
    /// FIN came; `None`: closed. A second one changes nothing.
    fn end_input(self) -> Option<Self> {
        match self {
            Self::Open | Self::InputEnded => Some(Self::InputEnded),
            Self::OutputEnded => None,
        }
    }

    /// We have queued the last byte; `None`: closed.
    fn end_output(self) -> Option<Self> {
        match self {
            Self::Open | Self::OutputEnded => Some(Self::OutputEnded),
            Self::InputEnded => None,
        }
    }
}

/// Whether the stream was agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Agreement {
    /// The peer asked for it, and waits for our SYN_REPLY or RST_STREAM.
    Offered,
    /// We asked for it, and wait for the peer's.
    Requested,
    Agreed,
}

/// One stream that is not closed.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) agreement: Agreement,
    directions: Directions,
    /// Bytes consumed that the peer has not been told of by a WINDOW_UPDATE.
    pub(super) credit: u32,
}

impl Stream {
    pub(super) fn new(agreement: Agreement) -> Self {
        Self { agreement, directions: Directions::Open, credit: 0 }
    }

    pub(super) fn receives(&self) -> bool {
        self.directions != Directions::InputEnded
    }

    pub(super) fn sends(&self) -> bool {
        self.directions != Directions::OutputEnded
    }

    /// FIN came; true: the stream is closed.
    pub(super) fn end_input(&mut self) -> bool {
        self.enter(self.directions.end_input())
    }

    /// We have queued the last byte; true: the stream is closed.
    pub(super) fn end_output(&mut self) -> bool {
        self.enter(self.directions.end_output())
    }

    fn enter(&mut self, next: Option<Directions>) -> bool {
        self.directions = next.unwrap_or(self.directions);
        next.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_closes_when_both_directions_have_ended() {
        let mut stream = Stream::new(Agreement::Agreed);
        assert!(stream.receives() && stream.sends());
        assert!(!stream.end_input() && !stream.receives() && stream.sends());
        assert!(!stream.end_input(), "a second end changes nothing");
        assert!(stream.end_output());

        let mut stream = Stream::new(Agreement::Offered);
        assert!(!stream.end_output() && stream.receives() && !stream.sends());
        assert!(!stream.end_output());
        assert!(stream.end_input());
    }
}
