use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

use super::*;
use crate::session::client::{Gone, PairEnd};

/// What a client was sent.
#[derive(Debug, Default)]
struct Seen {
    bytes: HashMap<PairId, Vec<u8>>,
    half_closed: Vec<PairId>,
    ends: HashMap<PairId, PairEnd>,
    finished: bool,
}

/// A client in memory.
#[derive(Debug, Clone)]
struct Client {
    seen: Rc<RefCell<Seen>>,
    changed: Rc<Notify>,
}

impl ForwardWriter for Client {
    const HALF_CLOSE: bool = true;

    async fn write(&self, pair: PairId, bytes: Bytes) -> Result<(), Gone> {
        self.seen.borrow_mut().bytes.entry(pair).or_default().extend_from_slice(&bytes);
        self.changed.notify_one();
        Ok(())
    }

    fn half_close(&self, pair: PairId) {
        self.seen.borrow_mut().half_closed.push(pair);
        self.changed.notify_one();
    }

    fn end(&self, pair: PairId, end: PairEnd) {
        self.seen.borrow_mut().ends.insert(pair, end);
        self.changed.notify_one();
    }

    async fn finish(&self) {
        self.seen.borrow_mut().finished = true;
        self.changed.notify_one();
    }
}

struct Events(mpsc::Receiver<ForwardEvent>);

impl ForwardReader for Events {
    async fn next(&mut self) -> ForwardEvent {
        self.0.recv().await.unwrap_or(ForwardEvent::Gone)
    }
}

/// The test's end of the client.
struct Hand {
    events: mpsc::Sender<ForwardEvent>,
    client: Client,
}

impl Hand {
    async fn send(&self, event: ForwardEvent) {
        self.events.send(event).await.unwrap();
    }

    async fn data(&self, pair: u64, bytes: impl Into<Bytes>) {
        self.send(ForwardEvent::Data { pair: PairId(pair), bytes: bytes.into() }).await;
    }

    /// Waits until the client has been sent what is looked for.
    async fn until<T>(&self, mut look: impl FnMut(&Seen) -> Option<T>) -> T {
        loop {
            if let Some(found) = look(&self.client.seen.borrow()) {
                return found;
            }
            self.client.changed.notified().await;
        }
    }

    async fn end(&self, pair: u64) -> PairEnd {
        self.until(|seen| seen.ends.get(&PairId(pair)).cloned()).await
    }
}

/// Runs a session with a client in memory on the host's own loopback.
fn forwarding(place: Place, refusal: ForwardRefusal, test: impl AsyncFnOnce(&Hand)) {
    crate::io::local(async {
        let (events, received) = mpsc::channel(1);
        let hand = Hand { events, client: Client { seen: Rc::default(), changed: Rc::default() } };
        let config = StreamConfig { forward_refusal: refusal, ..StreamConfig::default() };
        let (scope, blocking, read_ahead) = (Scope::new(), Blocking::new(), Rc::default());
        let surroundings =
            Surroundings { scope: &scope, blocking: &blocking, read_ahead: &read_ahead, config: &config };
        let destination = Destination { place, pod: "web".to_owned() };
        let mut reader = Events(received);
        let session = run(surroundings, destination, &mut reader, hand.client.clone());
        let test = async {
            test(&hand).await;
            drop(hand);
        };
        tokio::join!(session, test);
    });
}

async fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// Opens a pair and accepts its connection.
async fn connected(hand: &Hand, pair: u64) -> TcpStream {
    let (listener, port) = listener().await;
    hand.send(ForwardEvent::Opened { pair: PairId(pair), port }).await;
    listener.accept().await.unwrap().0
}

#[test]
fn an_answer_after_the_clients_half_close_arrives_whole() {
    forwarding(Place::Host, ForwardRefusal::Text, async |hand| {
        let mut pod = connected(hand, 1).await;
        hand.data(1, "question").await;
        hand.send(ForwardEvent::HalfClosed(PairId(1))).await;
        let mut question = String::new();
        pod.read_to_string(&mut question).await.unwrap();
        assert_eq!(question, "question");
        pod.write_all(&vec![b'x'; 300_000]).await.unwrap();
        drop(pod);
        assert_eq!(hand.end(1).await, PairEnd::Done);
        assert_eq!(hand.client.seen.borrow().bytes[&PairId(1)].len(), 300_000);
    });
}

#[test]
fn a_client_may_go_on_sending_after_the_pods_end() {
    forwarding(Place::Host, ForwardRefusal::Text, async |hand| {
        let mut pod = connected(hand, 1).await;
        pod.shutdown().await.unwrap();
        hand.until(|seen| (seen.half_closed == [PairId(1)]).then_some(())).await;
        hand.data(1, "more").await;
        hand.send(ForwardEvent::HalfClosed(PairId(1))).await;
        let mut more = String::new();
        pod.read_to_string(&mut more).await.unwrap();
        assert_eq!((more.as_str(), hand.end(1).await), ("more", PairEnd::Done));
    });
}

#[test]
fn a_reset_by_the_pod_is_a_reset_for_the_client_and_the_next_connection_works() {
    forwarding(Place::Host, ForwardRefusal::Text, async |hand| {
        let pod = connected(hand, 1).await;
        pod.set_zero_linger().unwrap();
        drop(pod);
        assert_eq!(hand.end(1).await, PairEnd::Reset);
        let mut next = connected(hand, 2).await;
        next.write_all(b"here").await.unwrap();
        hand.until(|seen| seen.bytes.get(&PairId(2)).filter(|bytes| *bytes == b"here").map(|_| ())).await;
    });
}

#[test]
fn a_reset_by_the_client_is_a_reset_for_the_pod() {
    forwarding(Place::Host, ForwardRefusal::Text, async |hand| {
        let mut pod = connected(hand, 1).await;
        hand.send(ForwardEvent::Reset(PairId(1))).await;
        let error = pod.read(&mut [0]).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        assert_eq!(hand.end(1).await, PairEnd::Reset);
    });
}

#[test]
fn a_refused_connection_is_told_as_the_setting_says_and_ends_no_other() {
    for refusal in [ForwardRefusal::Text, ForwardRefusal::Reset] {
        forwarding(Place::Host, refusal, async |hand| {
            let mut other = connected(hand, 1).await;
            let (closed, port) = listener().await;
            drop(closed);
            hand.send(ForwardEvent::Opened { pair: PairId(2), port }).await;
            match hand.end(2).await {
                PairEnd::Failed(text) if refusal == ForwardRefusal::Text => {
                    assert!(text.starts_with(&format!("error forwarding port {port} to pod web, uid : ")), "{text}");
                }
                end => assert_eq!((end, refusal), (PairEnd::Reset, ForwardRefusal::Reset)),
            }
            hand.data(2, "late").await;
            hand.data(1, "still").await;
            let mut bytes = [0; 5];
            other.read_exact(&mut bytes).await.unwrap();
            assert_eq!(&bytes, b"still");
        });
    }
}

#[test]
fn a_pod_that_is_gone_ends_the_session_with_a_text() {
    let place = Place::Namespace("/nonexistent/netns".into());
    forwarding(place, ForwardRefusal::Reset, async |hand| {
        hand.send(ForwardEvent::Opened { pair: PairId(1), port: 80 }).await;
        assert!(matches!(hand.end(1).await, PairEnd::Failed(text) if text.contains("/nonexistent/netns")));
        hand.until(|seen| seen.finished.then_some(())).await;
    });
}

#[test]
fn a_process_that_reads_slowly_gets_everything_and_memory_stays_bounded() {
    forwarding(Place::Host, ForwardRefusal::Text, async |hand| {
        let mut pod = connected(hand, 1).await;
        let send = async {
            for _ in 0..1000 {
                hand.data(1, vec![b'x'; 16 * 1024]).await;
            }
            hand.send(ForwardEvent::HalfClosed(PairId(1))).await;
        };
        let receive = async {
            let mut total = 0;
            let mut buffer = vec![0; 64 * 1024];
            loop {
                match pod.read(&mut buffer).await.unwrap() {
                    0 => return total,
                    count => total += count,
                }
            }
        };
        let ((), total) = tokio::join!(send, receive);
        assert_eq!(total, 1000 * 16 * 1024);
    });
}

#[tokio::test]
async fn a_full_pair_makes_its_client_wait_and_discarding_lets_it_go_on() {
    let memory = ConnectionMemory::new(Rc::default());
    let inbound = Inbound::new(memory.clone());
    let mut pushed = 0;
    while timeout(Duration::ZERO, inbound.push(Bytes::from(vec![0; 16 * 1024]))).await.is_ok() {
        pushed += 1;
    }
    assert!((16..=17).contains(&pushed), "{pushed}");
    inbound.discard();
    inbound.push(Bytes::from_static(b"nobody wants it")).await;
    assert_eq!(inbound.next().await, None);
}
