use bytes::Bytes;

use super::*;

const BOTH: Wants = Wants { stdout: true, stderr: true };

fn chunk(size: usize) -> Chunk {
    Chunk { stream: StdStream::Stdout, bytes: Bytes::from(vec![b'x'; size]) }
}

async fn taken(subscriber: &mut Subscriber) -> (u64, Next) {
    let mut total = 0;
    loop {
        match subscriber.next().await {
            Next::Chunk(chunk) => total += chunk.bytes.len() as u64,
            end => return (total, end),
        }
    }
}

#[tokio::test]
async fn a_full_lossless_subscriber_blocks_until_it_takes_something() {
    let fanout = Rc::new(Fanout::default());
    let mut subscriber = fanout.subscribe(BOTH, Lag::Wait);
    let mut sent = 0u64;
    while !fanout.blocked() {
        fanout.publish(&chunk(16 * 1024));
        sent += 16 * 1024;
    }
    assert!(sent <= SUBSCRIBER_QUEUE as u64 + 16 * 1024);
    subscriber.next().await;
    subscriber.next().await;
    fanout.room().await;
    fanout.end();
    assert_eq!(taken(&mut subscriber).await, (sent - 32 * 1024, Next::End));
}

#[tokio::test]
async fn a_slow_viewer_is_cut_and_told_exactly_what_it_missed() {
    let fanout = Rc::new(Fanout::default());
    let mut slow = fanout.subscribe(BOTH, Lag::Disconnect);
    for _ in 0..100 {
        fanout.publish(&chunk(16 * 1024));
        assert!(!fanout.blocked());
    }
    slow.subscription().cut().await;
    let (got, end) = taken(&mut slow).await;
    assert_eq!(end, Next::Cut { missed: 100 * 16 * 1024 - got });
}

#[tokio::test]
async fn a_viewer_that_may_skip_is_told_how_much_is_missing_and_where() {
    let fanout = Rc::new(Fanout::default());
    let mut slow = fanout.subscribe(BOTH, Lag::Skip);
    fanout.publish(&chunk(10));
    assert_eq!(slow.next().await, Next::Chunk(chunk(10)));
    for _ in 0..100 {
        fanout.publish(&chunk(16 * 1024));
        assert!(!fanout.blocked() && slow.queue.bytes.borrow().cost() < SUBSCRIBER_QUEUE + 17 * 1024);
    }
    let Next::Skipped { bytes } = slow.next().await else { panic!("the gap comes before what is left") };
    fanout.end();
    assert_eq!(taken(&mut slow).await, (100 * 16 * 1024 - bytes, Next::End));
}

#[tokio::test(start_paused = true)]
async fn a_viewer_that_is_waited_for_is_cut_when_the_time_is_over() {
    let fanout = Rc::new(Fanout::default());
    let mut slow = fanout.subscribe(BOTH, Lag::WaitAtMost(Duration::from_secs(2)));
    let fill = || {
        while !fanout.blocked() {
            fanout.publish(&chunk(16 * 1024));
        }
    };
    fill();
    let start = Instant::now();
    tokio::time::advance(Duration::from_secs(1)).await;
    slow.next().await;
    slow.next().await;
    assert!(!fanout.blocked(), "it took something in time, and a new time begins");
    fill();
    fanout.room().await;
    assert_eq!(start.elapsed(), Duration::from_secs(3));
    fanout.publish(&chunk(1));
    assert!(!fanout.blocked());
    assert_eq!(taken(&mut slow).await.1, Next::Cut { missed: 1 });
}

#[test]
fn the_pump_went_slower_for_a_viewer_that_had_been_cut_long_ago() {
    let fanout = Rc::new(Fanout::default());
    let slow = fanout.subscribe(BOTH, Lag::Disconnect);
    while slow.subscription().missed() == 0 {
        assert!(fanout.has_receivers());
        fanout.publish(&chunk(16 * 1024));
    }
    assert!(!fanout.has_receivers());
    let other = fanout.subscribe(BOTH, Lag::Disconnect);
    assert!(fanout.has_receivers());
    drop(other);
    assert!(!fanout.has_receivers());
}

#[tokio::test]
async fn a_stopped_subscriber_gets_what_is_queued_and_nothing_more() {
    let fanout = Rc::new(Fanout::default());
    let mut leaving = fanout.subscribe(BOTH, Lag::Disconnect);
    fanout.publish(&chunk(1000));
    leaving.subscription().stop();
    fanout.publish(&chunk(1000));
    assert_eq!(taken(&mut leaving).await, (1000, Next::End));
}

#[tokio::test]
async fn a_subscriber_that_comes_after_the_end_does_not_wait_for_ever() {
    let fanout = Rc::new(Fanout::default());
    fanout.end();
    let mut late = fanout.subscribe(BOTH, Lag::Disconnect);
    assert_eq!(taken(&mut late).await, (0, Next::End));
}

#[tokio::test]
async fn leaving_unblocks_and_streams_not_wanted_are_not_queued() {
    let fanout = Rc::new(Fanout::default());
    let mut stderr = fanout.subscribe(Wants { stdout: false, stderr: true }, Lag::Wait);
    let greedy = fanout.subscribe(BOTH, Lag::Wait);
    for _ in 0..20 {
        fanout.publish(&chunk(16 * 1024));
    }
    assert!(fanout.blocked());
    drop(greedy);
    assert!(!fanout.blocked());
    fanout.end();
    assert_eq!(taken(&mut stderr).await, (0, Next::End));
}
