use super::*;

#[test]
fn a_reopen_comes_after_all_that_was_appended_before_and_before_the_rest() {
    let mut rig = Rig::new();
    rig.out("one\n");
    let first = rig.batch();
    rig.out("two\n");
    let (reply, mut outcome) = oneshot::channel();
    rig.queue.reopen(reply);
    rig.out("three\n");
    rig.take(first, usize::MAX);
    rig.write(usize::MAX);
    assert_eq!(rig.lines(), ["stdout F one", "stdout F two"]);
    let Step::Reopen(reply) = rig.next() else { panic!("the reopen is next") };
    reply.send(Ok(())).unwrap();
    rig.queue.reopened(true);
    assert!(outcome.try_recv().unwrap().is_ok());
    rig.settle();
    assert_eq!(rig.lines()[2..], ["stdout F three"]);
}

#[test]
fn a_reopen_nobody_waits_for_is_left_out() {
    let mut rig = Rig::new();
    let (reply, outcome) = oneshot::channel();
    rig.queue.reopen(reply);
    drop(outcome);
    rig.out("one\n");
    rig.write(usize::MAX);
    assert!(matches!(rig.next(), Step::Wait(None)));
}

#[test]
fn a_reopen_of_a_failing_log_tries_the_old_file_first_and_then_leaves_it() {
    for (works, old) in
        [(true, vec!["stderr F [holdfast: lost 5 bytes in 1 lines: No space left on device]"]), (false, vec![])]
    {
        let mut rig = Rig::new();
        rig.out("lost\n");
        rig.write(0);
        let (reply, mut outcome) = oneshot::channel();
        rig.queue.reopen(reply);
        rig.write(if works { usize::MAX } else { 0 });
        let Step::Reopen(reply) = rig.next() else { panic!("the reopen is next") };
        assert_eq!(rig.lines(), old);
        reply.send(Ok(())).unwrap();
        rig.queue.reopened(true);
        assert!(outcome.try_recv().unwrap().is_ok());
        if !works {
            rig.write(usize::MAX);
        }
        rig.out("kept\n");
        rig.settle();
        let gap = "stderr F [holdfast: lost 5 bytes in 1 lines: No space left on device]";
        assert_eq!(rig.lines(), [gap, "stdout F kept"]);
    }
}

#[test]
fn a_torn_record_of_a_file_that_is_left_counts_as_lost_in_the_new_one() {
    let mut rig = Rig::new();
    rig.out("torn\n");
    rig.write(38);
    let (reply, _outcome) = oneshot::channel();
    rig.queue.reopen(reply);
    rig.write(0);
    let Step::Reopen(reply) = rig.next() else { panic!("the reopen is next") };
    reply.send(Ok(())).unwrap();
    rig.queue.reopened(true);
    rig.file.clear();
    rig.settle();
    assert_eq!(rig.lines(), ["stderr F [holdfast: lost 5 bytes in 1 lines: No space left on device]"]);
    assert_eq!(rig.queue.totals.lost, Tally { bytes: 5, lines: 1 });
}

#[test]
fn a_failing_log_that_could_not_be_reopened_keeps_its_file_and_its_pauses() {
    let mut rig = Rig::new();
    rig.out("torn\n");
    rig.write(38);
    let (reply, _outcome) = oneshot::channel();
    rig.queue.reopen(reply);
    rig.write(0);
    let Step::Reopen(reply) = rig.next() else { panic!("the reopen is next") };
    drop(reply);
    rig.queue.reopened(false);
    assert_eq!(rig.pause().as_millis(), 200);
    rig.settle();
    assert_eq!(rig.lines(), ["stdout F torn"]);
}
