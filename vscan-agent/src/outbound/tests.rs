use super::*;

fn host(n: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, n])
}

fn limits() -> Outbound {
    Outbound {
        messages: NonZeroU32::new(10),
        recipients: NonZeroU32::new(50),
        infected: NonZeroU32::new(2),
        exempt: vec!["10.0.0.25/32".parse().unwrap()],
        ..Outbound::default()
    }
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[test]
fn a_host_is_blocked_by_the_message_that_exceeds_and_for_its_time_only() {
    let start = Instant::now();
    let mut table = Table::new(start);
    let limits = limits();
    for _ in 0..10 {
        assert_eq!(table.message(&limits, host(1), 1, start), Ruling::Fine);
    }
    let Ruling::Exceeds(block) = table.message(&limits, host(1), 1, start + seconds(5)) else {
        panic!("not blocked");
    };
    assert_eq!((block.what, block.count, block.limit), (What::Messages, 11, 10));
    let later = start + seconds(300);
    assert!(matches!(table.connection(&limits, host(1), later), Ruling::Blocked(_)));
    assert_eq!(table.message(&limits, host(2), 1, later), Ruling::Fine, "another host");
    assert_eq!((table.blocked(later), table.blocked(start + seconds(606))), (1, 0));
    assert_eq!(table.message(&limits, host(1), 1, start + seconds(606)), Ruling::Fine);
}

#[test]
fn a_slow_sender_is_never_blocked_and_a_burst_across_a_full_minute_is() {
    let start = Instant::now();
    let mut table = Table::new(start);
    for n in 0..200 {
        // ten within any 60 seconds
        let now = start + seconds(n * 6);
        assert_eq!(table.message(&limits(), host(1), 1, now), Ruling::Fine, "message {n}");
    }
    let mut table = Table::new(start);
    let late = |n: u64| start + seconds(57) + Duration::from_millis(n * 500);
    let blocked = (0..12)
        .any(|n| matches!(table.message(&limits(), host(1), 1, late(n)), Ruling::Exceeds(_)));
    assert!(blocked, "a fixed minute would have let twenty through");
}

#[test]
fn recipients_and_infected_messages_count_by_themselves() {
    let now = Instant::now();
    let mut table = Table::new(now);
    let limits = limits();
    assert_eq!(table.message(&limits, host(1), 50, now), Ruling::Fine);
    assert!(
        matches!(table.message(&limits, host(1), 1, now), Ruling::Exceeds(b) if b.what == What::Recipients)
    );
    for n in 0..2 {
        assert_eq!(table.infected(&limits, host(2), now), Ruling::Fine, "{n}");
    }
    assert!(
        matches!(table.infected(&limits, host(2), now), Ruling::Exceeds(b) if b.what == What::Infected)
    );
    for _ in 0..1000 {
        assert_eq!(table.message(&limits, host(25), 100, now), Ruling::Fine, "exempt");
        assert_eq!(table.message(&Outbound::default(), host(3), 100, now), Ruling::Fine);
    }
}

#[test]
fn mapped_addresses_are_the_same_host() {
    let now = Instant::now();
    let mut table = Table::new(now);
    table.message(&limits(), "::ffff:10.0.0.1".parse().unwrap(), 3, now);
    let senders = table.senders(&limits(), now);
    assert_eq!((senders.len(), senders[0].host, senders[0].minute.recipients), (1, host(1), 3));
}

#[test]
fn unblocked_it_begins_anew() {
    let now = Instant::now();
    let mut table = Table::new(now);
    for _ in 0..11 {
        table.message(&limits(), host(1), 1, now);
    }
    assert!(table.unblock(host(1), now));
    assert!(!table.unblock(host(1), now) && !table.unblock(host(9), now));
    assert_eq!(table.message(&limits(), host(1), 1, now), Ruling::Fine);
    let sender = &table.senders(&limits(), now)[0];
    assert_eq!((sender.minute.messages, sender.total.messages), (1, 12));
}

#[test]
fn the_table_is_bounded_and_keeps_whom_it_blocks() {
    let start = Instant::now();
    let mut table = Table::with_room(start, 3);
    for _ in 0..11 {
        table.message(&limits(), host(1), 1, start);
    }
    for n in 2..100 {
        table.message(&limits(), host(n), 1, start + Duration::from_millis(n.into()));
    }
    assert_eq!(table.hosts.len(), 3);
    let later = start + seconds(1);
    let senders = table.senders(&limits(), later);
    let hosts: Vec<IpAddr> = senders.iter().map(|s| s.host).collect();
    assert_eq!(hosts, [host(1), host(99), host(98)]);
    assert_eq!((senders[0].state.as_str(), senders[0].over), ("blocked", Some(What::Messages)));
    assert_eq!(senders[1].state, "sending");
    assert_eq!(table.senders(&limits(), start + seconds(70))[1].state, "quiet");
    let mut full = Table::with_room(start, 1);
    for _ in 0..11 {
        full.message(&limits(), host(1), 1, start);
    }
    assert_eq!(full.message(&limits(), host(2), 1, start), Ruling::Fine, "no room: not counted");
    assert_eq!(full.hosts.len(), 1);
}

#[test]
fn limits_that_a_reload_changes_hold_for_what_was_counted_before() {
    let now = Instant::now();
    let mut table = Table::new(now);
    for _ in 0..9 {
        table.message(&Outbound::default(), host(1), 1, now);
    }
    let strict = Outbound { messages: NonZeroU32::new(5), ..Outbound::default() };
    assert!(matches!(table.message(&strict, host(1), 1, now), Ruling::Exceeds(_)));
}
