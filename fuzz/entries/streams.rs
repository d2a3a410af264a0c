//! Which SPDY streams belong together: those of an exec, and the pairs of a port forward.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use holdfast::proto::port_forward::{MAX_PAIRS, PairError, Pairs};
use holdfast::proto::remotecommand::Version;
use holdfast::proto::spdy::{HeaderReader, HeaderWriter, Headers, StreamId};
use holdfast::proto::stream_set::{Requested, StreamSet, StreamType};

fn headers(pairs: &[(&str, &str)]) -> Headers {
    HeaderReader::new().read(&HeaderWriter::new().write(pairs)).expect("it inflates").expect("it is within limits")
}

/// Any streams offered to a session: each expected one is taken once, whatever comes between. The first two bytes are the
/// session, each other one is a stream.
pub(crate) fn stream_set(data: &[u8]) {
    const NAMES: [&str; 8] = ["error", "stdin", "stdout", "stderr", "resize", "Error", "data", ""];
    let [version, flags, offers @ ..] = data else { return };
    let version = [Version::V1, Version::V2, Version::V3, Version::V4][usize::from(*version) % 4];
    let bit = |number: u8| flags >> number & 1 != 0;
    let requested = Requested { stdin: bit(0), stdout: bit(1), stderr: bit(2), tty: bit(3) };
    let deadline = Instant::now();
    let mut set = StreamSet::new(version, requested, deadline);
    let expected: Vec<StreamType> = requested.streams(version).collect();
    assert!((1..=5).contains(&expected.len()) && expected.contains(&StreamType::Error));
    let (mut came, mut refused): (HashMap<&str, StreamId>, usize) = (HashMap::new(), 0);

    for (number, offer) in (0..).zip(offers) {
        let id = StreamId::new(2 * number + 1).expect("inputs are short");
        let name = NAMES[usize::from(offer % 8)];
        let fields = [("streamtype", name), ("port", "1")];
        match offer >> 3 {
            0 => set.count_rejected(),
            // Without the header that decides.
            1 => assert!(set.offer(id, &headers(&fields[1..])).is_err()),
            _ => match set.offer(id, &headers(&fields)) {
                Ok(stream) => {
                    assert!(stream.name() == name && expected.contains(&stream));
                    assert_eq!(came.insert(name, id), None);
                    assert_eq!((set.id_of(stream), set.type_of(id)), (Some(id), Some(stream)));
                    continue;
                }
                Err(_) => {
                    assert!(came.contains_key(name) || expected.iter().all(|stream| stream.name() != name));
                    assert_eq!(set.type_of(id), None);
                }
            },
        }
        refused += 1;
        assert_eq!(set.is_hopeless(), refused > 4);
    }
    assert_eq!(set.is_complete(), came.len() == expected.len());
    assert_eq!(set.deadline(), (!set.is_complete()).then_some(deadline));
}

/// Any streams offered, reset and forgotten in any order: pairs are two streams of one request, and none is left behind.
/// Each operation is three bytes.
pub(crate) fn port_pairs(data: &[u8]) {
    const LIMIT: Duration = Duration::from_secs(30);
    let mut now = Instant::now();
    let (mut pairs, mut next, mut known) = (Pairs::new(LIMIT), 1, Vec::new());
    for operation in data.chunks_exact(3) {
        let [what, first, second] = [0, 1, 2].map(|at| operation[at]);
        match what % 8 {
            0..=3 => offer(&mut pairs, now, &mut next, &mut known, (what >> 3, first, second)),
            // Many that will never be pairs.
            4 => {
                for number in 0..first {
                    let request = format!("{second}.{number}");
                    let fields = [("streamtype", "error"), ("port", "1"), ("requestid", &request)];
                    take(&mut pairs, now, &mut next, &mut known, &fields);
                }
            }
            5 | 6 => {
                let at = usize::from(first) << 8 | usize::from(second);
                if let Some(id) = known.get(at % known.len().max(1)) {
                    pairs.remove(*id);
                    assert!(pairs.pair_of(*id).is_none() && !pairs.is_waiting(*id));
                }
            }
            _ => {
                now += Duration::from_millis(u64::from(first) * 256);
                for id in pairs.expire(now) {
                    assert!(known.contains(&id) && !pairs.is_waiting(id) && pairs.pair_of(id).is_none());
                }
                assert!(pairs.deadline().is_none_or(|deadline| deadline > now && deadline <= now + LIMIT));
            }
        }
    }
    check(&pairs, &known);
    for id in known {
        pairs.remove(id);
    }
    assert_eq!((pairs.open_count(), pairs.deadline()), (0, None));
}

fn offer(pairs: &mut Pairs, now: Instant, next: &mut u32, known: &mut Vec<StreamId>, what: (u8, u8, u8)) {
    let (kind, port, request) = what;
    let long = "7".repeat(200 + usize::from(request));
    let request = match request {
        0..=200 => (request % 32).to_string(),
        _ => long,
    };
    let port = u32::from(port) * 300;
    let port = port.to_string();
    let stream = ["error", "data", "error", "data", "stdin"][usize::from(kind % 8).min(4)];
    let fields = [("streamtype", stream), ("port", &port), ("requestid", &request)];
    // Clients from before there were ids have none.
    take(pairs, now, next, known, &fields[..if kind & 8 == 0 { 3 } else { 2 }]);
}

fn take(pairs: &mut Pairs, now: Instant, next: &mut u32, known: &mut Vec<StreamId>, fields: &[(&str, &str)]) {
    let id = StreamId::new(*next).expect("inputs are short");
    *next += 2;
    let before = pairs.open_count();
    match pairs.offer(now, id, &headers(fields)) {
        Ok(Some(pair)) => {
            assert!(pair.port > 0 && pair.data != pair.error && (pair.data == id || pair.error == id));
            assert_eq!((pairs.pair_of(pair.data), pairs.pair_of(pair.error)), (Some(pair), Some(pair)));
            assert_eq!(pairs.open_count(), before + 1);
            known.push(id);
        }
        Ok(None) => {
            assert!(pairs.is_waiting(id) && pairs.pair_of(id).is_none());
            known.push(id);
        }
        Err(error) => {
            assert!(!pairs.is_waiting(id) && pairs.pair_of(id).is_none() && pairs.open_count() == before);
            if error == PairError::TooMany {
                check(pairs, known);
            }
        }
    }
}

fn check(pairs: &Pairs, known: &[StreamId]) {
    let waiting = known.iter().filter(|id| pairs.is_waiting(**id)).count();
    assert!(pairs.open_count() + waiting <= MAX_PAIRS);
    assert_eq!(known.iter().filter(|id| pairs.pair_of(**id).is_some()).count(), 2 * pairs.open_count());
    assert_eq!(pairs.deadline().is_some(), waiting > 0);
}
