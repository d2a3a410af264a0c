use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

use super::*;
use crate::session::{
    SessionTable, Subject,
    client::{Gone, PairEnd},
};

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
    const TEXT_ENDS_ALL: bool = true;

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
        let ending = CancellationToken::new();
        let surroundings = Surroundings {
            scope: &scope,
            blocking: &blocking,
            read_ahead: &read_ahead,
            config: &config,
            ending: &ending,
            session: &listed(),
        };
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

#[test]
fn what_a_client_sent_before_its_good_bye_still_reaches_the_pod() {
    forwarding(Place::Host, ForwardRefusal::Text, async |hand| {
        let (listener, port) = listener().await;
        hand.send(ForwardEvent::Opened { pair: PairId(1), port }).await;
        hand.data(1, vec![b'x'; 200_000]).await;
        hand.send(ForwardEvent::Gone).await;
        let mut bytes = Vec::new();
        listener.accept().await.unwrap().0.read_to_end(&mut bytes).await.unwrap();
        assert_eq!(bytes.len(), 200_000);
    });
}

#[tokio::test(start_paused = true)]
async fn a_pair_is_stuck_when_nothing_was_taken_for_a_while_however_long_it_was_empty() {
    let inbound = Inbound::new(ConnectionMemory::new(Rc::default()));
    sleep(2 * STUCK_LIMIT).await;
    assert!(!inbound.is_stuck(STUCK_LIMIT));
    for _ in 0..2 {
        inbound.push(Bytes::from(vec![b'x'; 2000])).await;
    }
    assert!(!inbound.is_stuck(STUCK_LIMIT));
    sleep(STUCK_LIMIT - STUCK_LOOK).await;
    assert!(!inbound.is_stuck(STUCK_LIMIT));
    inbound.next().await.unwrap();
    sleep(STUCK_LIMIT - STUCK_LOOK).await;
    assert!(!inbound.is_stuck(STUCK_LIMIT));
    sleep(STUCK_LOOK).await;
    assert!(inbound.is_stuck(STUCK_LIMIT));
    inbound.next().await.unwrap();
    sleep(STUCK_LIMIT).await;
    assert!(!inbound.is_stuck(STUCK_LIMIT), "nothing waits");
}

/// What no test here looks at.
fn listed() -> Rc<Listed> {
    let table = SessionTable::new(1, Rc::default());
    table.begin(table.opening(Subject::PortForward(String::new())))
}

/// A session whose pairs have no tasks: what is queued is taken by nobody but the test.
fn session_with(pairs: &[u64]) -> Session<Client> {
    let memory = ConnectionMemory::new(Rc::default());
    let pair = |id: &u64| {
        let pair = Pair { inbound: Inbound::new(memory.clone()), reset: CancellationToken::new() };
        (PairId(*id), Rc::new(pair))
    };
    Session {
        blocking: Blocking::new(),
        refusal: ForwardRefusal::Text,
        destination: Destination { place: Place::Host, pod: String::new() },
        writer: Client { seen: Rc::default(), changed: Rc::default() },
        activity: Activity::new(Duration::ZERO, &listed()),
        pairs: RefCell::new(pairs.iter().map(pair).collect()),
        memory: memory.clone(),
        pod_gone: Notify::new(),
    }
}

#[tokio::test(start_paused = true)]
async fn what_holds_up_a_connection_is_reset_and_not_the_pair_that_waits_for_it() {
    let ids: Vec<_> = (0..20).collect();
    let session = session_with(&ids);
    // All but the last use up what the connection may hold: of some the processes read nothing.
    for id in &ids[..19] {
        let pair = session.find(PairId(*id)).unwrap();
        for _ in 0..15 {
            let _ = timeout(Duration::ZERO, pair.inbound.push(Bytes::from(vec![b'x'; 16 * 1024]))).await;
        }
    }
    let find = |id: u64| session.find(PairId(id)).unwrap();
    let holders: Vec<_> = ids.iter().copied().filter(|id| !find(*id).inbound.is_taken()).collect();
    assert!((16..19).contains(&holders.len()) && ids.iter().all(|id| !find(*id).reset.is_cancelled()));
    sleep(STUCK_LIMIT - 2 * STUCK_LOOK).await;
    // This one's process still reads, slowly.
    let taken = find(3).inbound.next().await.unwrap();
    find(3).inbound.push(taken).await;
    session.pass_data(PairId(19), Bytes::from(vec![b'y'; 16 * 1024])).await;
    let reset: Vec<_> = ids.iter().copied().filter(|id| find(*id).reset.is_cancelled()).collect();
    assert_eq!(reset, holders.into_iter().filter(|id| *id != 3).collect::<Vec<_>>());
    assert!(!session.find(PairId(19)).unwrap().inbound.is_taken());
}
