use super::*;
use std::num::NonZeroUsize;

fn config() -> Notify {
    Notify { retry: Duration::from_secs(60), ..Notify::default() }
}

fn draft(to: &str, key: u8) -> Draft {
    Draft {
        to: Address::new(to).unwrap(),
        role: "admin",
        text: ("subject".to_owned(), "body\n".to_owned()),
        attach: None,
        flow_id: "7".to_owned(),
        detection: "EICAR".to_owned(),
        key: [key; 32],
    }
}

fn queue() -> (tempfile::TempDir, PathBuf, Queue) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state/notices.redb");
    let queue = Queue::open(&path).unwrap();
    (directory, path, queue)
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_795_312_800 + seconds).unwrap()
}

fn ids(notices: &[Notice]) -> Vec<u64> {
    notices.iter().map(|notice| notice.id).collect()
}

#[test]
fn what_was_put_is_there_after_a_restart_with_its_secret() {
    let (_directory, path, queue) = queue();
    let put = queue.put(vec![draft("a@b.c", 1), draft("d@e.f", 2)], &config(), at(0)).unwrap();
    assert_eq!(ids(&put), [1, 2]);
    let secret = *queue.secret();
    assert!(matches!(Queue::open(&path), Err(QueueError::InUse(_))), "one process at a time");
    drop(queue);
    use std::os::unix::fs::PermissionsExt as _;
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let queue = Queue::open(&path).unwrap();
    assert_eq!(queue.list().unwrap(), put);
    assert_eq!(ids(&queue.due(at(0), 10).unwrap()), [1, 2]);
    assert_eq!(*queue.secret(), secret);
    // Told is told, also before the restart.
    let to = Address::new("a@b.c").unwrap();
    assert_eq!(queue.leave(&to, &[1; 32], &config(), at(1)), Leave::Duplicate);
    queue.delete(&[1, 2]).unwrap();
    drop(queue);
    let queue = Queue::open(&path).unwrap();
    let put = queue.put(vec![draft("a@b.c", 3)], &config(), at(2)).unwrap();
    assert_eq!(ids(&put), [3], "no number twice");
}

#[test]
fn attempts_come_less_and_less_often_and_end() {
    let (_directory, _, queue) = queue();
    let config = config();
    queue.put(vec![draft("a@b.c", 1)], &config, at(0)).unwrap();
    let mut now = 0;
    let mut pauses = Vec::new();
    for _ in 0..9 {
        assert_eq!(ids(&queue.due(at(now), 10).unwrap()), [1]);
        let later = [(1, Attempt::Later("no route".to_owned()))];
        let notice = queue.attempted(&later, &config, at(now)).unwrap().remove(0);
        assert_eq!(notice.error.as_deref(), Some("no route"));
        let pause = notice.next.as_second() - at(now).as_second();
        assert!(queue.due(at(now + pause - 1), 10).unwrap().is_empty());
        assert_eq!(queue.next_due(), Some(at(now + pause)));
        pauses.push(pause);
        now += pause;
    }
    assert_eq!(pauses, [60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]);
    let end = 3 * 86_400;
    let later = [(1, Attempt::Later("no route".to_owned()))];
    let notice = queue.attempted(&later, &config, at(end)).unwrap().remove(0);
    assert_eq!(notice.state, State::Dead);
    assert_eq!(queue.counts(), Counts { waiting: 0, dead: 1 });
    assert!(queue.due(at(end * 2), 10).unwrap().is_empty() && queue.next_due().is_none());
    // An operator gives it its whole time again.
    assert_eq!(queue.retry(&[], at(end + 5)).unwrap(), [1]);
    assert_eq!(ids(&queue.due(at(end + 5), 10).unwrap()), [1]);
    let notice = queue.attempted(&later, &config, at(end + 6)).unwrap().remove(0);
    assert_eq!((notice.state, notice.attempts), (State::Waiting, 1));
}

#[test]
fn the_relays_word_is_final() {
    let (_directory, path, queue) = queue();
    let config = config();
    queue.put(vec![draft("a@b.c", 1), draft("d@e.f", 2)], &config, at(0)).unwrap();
    let attempts =
        [(1, Attempt::Taken), (2, Attempt::Refused("550 nobody".to_owned())), (9, Attempt::Taken)];
    let changed = queue.attempted(&attempts, &config, at(1)).unwrap();
    assert_eq!(ids(&changed), [1, 2], "one that was deleted meanwhile is no error");
    assert_eq!(queue.counts(), Counts { waiting: 0, dead: 1 });
    drop(queue);
    let queue = Queue::open(&path).unwrap();
    assert_eq!(queue.counts(), Counts { waiting: 0, dead: 1 });
    assert_eq!(queue.list().unwrap()[0].error.as_deref(), Some("550 nobody"));
    assert!(matches!(queue.delete(&[2, 5]), Err(QueueError::NoSuchNotice(5))));
    assert_eq!(queue.counts().dead, 1, "all or none");
    queue.delete(&[2]).unwrap();
    assert!(queue.list().unwrap().is_empty());
    assert!(matches!(queue.retry(&[2], at(2)), Err(QueueError::NoSuchNotice(2))));
}

#[test]
fn the_same_is_told_once_and_nobody_gets_too_many() {
    let (_directory, _, queue) = queue();
    let config = Notify { per_hour: NonZeroUsize::new(2), ..config() };
    let to = Address::new("A@b.c").unwrap();
    let tell = |key: u8, now: i64| {
        let leave = queue.leave(&to, &[key; 32], &config, at(now));
        if let Leave::Granted(_) = leave {
            queue.put(vec![draft("a@b.c", key)], &config, at(now)).unwrap();
        }
        leave
    };
    assert_eq!(tell(1, 0), Leave::Granted(0));
    assert_eq!(tell(1, 10), Leave::Duplicate);
    assert_eq!(tell(1, 20), Leave::Duplicate);
    assert_eq!(tell(2, 30), Leave::Granted(2), "and says how many were held back");
    assert_eq!(tell(3, 40), Leave::Rate);
    assert_eq!(tell(1, 3700), Leave::Granted(1), "an hour later");
}

#[test]
fn a_full_queue_says_so() {
    let (_directory, _, queue) = queue();
    let config = Notify { queue_max: NonZeroUsize::MIN, ..config() };
    queue.put(vec![draft("a@b.c", 1)], &config, at(0)).unwrap();
    let to = Address::new("d@e.f").unwrap();
    assert_eq!(queue.leave(&to, &[2; 32], &config, at(0)), Leave::Full);
}

#[test]
fn what_is_remembered_is_bounded() {
    let (_directory, path, queue) = queue();
    let config = Notify { per_hour: None, ..config() };
    for n in 0..20u32 {
        let drafts = (0..1000u32).map(|m| {
            let mut draft = draft(&format!("u{m}@b.c"), 0);
            draft.key[..8].copy_from_slice(&[n.to_le_bytes(), m.to_le_bytes()].concat());
            draft
        });
        let put = queue.put(drafts.collect(), &config, at(i64::from(n))).unwrap();
        let taken: Vec<_> = put.iter().map(|notice| (notice.id, Attempt::Taken)).collect();
        queue.attempted(&taken, &config, at(i64::from(n))).unwrap();
    }
    let told = queue.index().told.len();
    assert!(told <= TOLD_MAX + 1000, "{told}");
    drop(queue);
    let queue = Queue::open(&path).unwrap();
    assert_eq!(queue.index().told.len(), told, "the disk remembers the same");
    let drafts = (0..5).map(|n| draft(&format!("dead{n}@b.c"), n)).collect();
    let put = queue.put(drafts, &config, at(90_000)).unwrap();
    assert!(queue.index().told.len() <= 5, "and forgets what is old");
    drop(put);
}
