//! What an account is told from outside while it goes on: to look now, to scan a folder, to end. And the messages in which
//! something was found in one account, for the others.

use super::{name::FolderName, pass::Tally};
use serde::{Deserialize, Serialize};
use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::sync::{Notify, mpsc};

/// Scans of one account that may wait.
const WAITING_MAX: usize = 4;

/// Messages that others are searched for; the oldest are forgotten first.
const RECENT_MAX: usize = 256;

/// Messages that an account is searched for in one look.
const AT_ONCE_MAX: usize = 32;

/// Bytes of a Message-ID that is worth a search: RFC 5322 2.1.1 has lines of 998.
const MESSAGE_ID_MAX: usize = 900;

/// A scan that somebody asked for.
#[derive(Debug)]
pub struct Order {
    /// The folder; none: all that are scanned.
    pub folder: Option<FolderName>,
    /// It is only told what would be done.
    pub dry_run: bool,
    /// Who wants to hear of it.
    pub reply: mpsc::Sender<Progress>,
}

/// What is told of a scan that was asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Progress {
    /// A message was judged.
    Message(Looked),
    /// A folder was looked through.
    Folder {
        /// Its name.
        folder: String,
        /// What there was.
        tally: Tally,
    },
    /// Something could not be done.
    Failed {
        /// In words.
        error: String,
    },
}

/// A message that was judged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Looked {
    /// The account.
    pub account: String,
    /// The folder.
    pub folder: String,
    /// Its identifier.
    pub uid: u32,
    /// The author.
    pub from: String,
    /// `clean`, `infected`, `unscannable` or `error`.
    pub verdict: String,
    /// What is, or would be, done.
    pub action: String,
    /// What names it.
    pub detection: String,
}

/// One account's letter box.
#[derive(Debug, Default)]
pub struct Orders {
    woken: Notify,
    waiting: Mutex<VecDeque<Order>>,
    stopping: AtomicBool,
}

impl Orders {
    /// Asks for a scan; `false`: too many wait already.
    pub fn ask(&self, order: Order) -> bool {
        let mut waiting = lock(&self.waiting);
        if waiting.len() >= WAITING_MAX {
            return false;
        }
        waiting.push_back(order);
        self.woken.notify_one();
        true
    }

    /// Has the account look now.
    pub fn wake(&self) {
        self.woken.notify_one();
    }

    /// Has the account end after the message in hand.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.woken.notify_one();
    }

    /// Whether it is to end.
    #[must_use]
    pub fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    pub(super) async fn woken(&self) {
        self.woken.notified().await;
    }

    pub(super) fn take(&self) -> Option<Order> {
        lock(&self.waiting).pop_front()
    }
}

/// Messages in which something was found, for the other accounts of a server.
#[derive(Debug, Default)]
pub struct Copies {
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    next: u64,
    /// Number, the account that has it, Message-ID.
    recent: VecDeque<(u64, String, String)>,
    /// By mail address in lower case.
    accounts: HashMap<String, Arc<Orders>>,
}

impl Copies {
    /// An account that is woken when a message went to its address.
    pub fn register(&self, address: &str, orders: Arc<Orders>) {
        lock(&self.held).accounts.insert(address.to_ascii_lowercase(), orders);
    }

    /// Something was found in a message of this account: all others look for copies, the addressees at once.
    pub fn announce(&self, account: &str, message_id: &str, addressees: &[Vec<u8>]) {
        // HEADER finds parts of fields: of what is no identifier it would find too much (RFC 5322 3.6.4).
        let plain = message_id.is_ascii()
            && !message_id.contains(|c: char| c.is_ascii_control())
            && message_id.starts_with('<')
            && message_id.ends_with('>')
            && message_id.contains('@')
            && message_id.len() <= MESSAGE_ID_MAX;
        if !plain {
            return;
        }
        let mut held = lock(&self.held);
        // A copy that was found by this announcement is none of its own.
        if held.recent.iter().any(|(_, _, known)| known == message_id) {
            return;
        }
        let number = held.next;
        held.next += 1;
        held.recent.push_back((number, account.to_owned(), message_id.to_owned()));
        if held.recent.len() > RECENT_MAX {
            held.recent.pop_front();
        }
        for address in addressees {
            let address = String::from_utf8_lossy(address).to_ascii_lowercase();
            if let Some(orders) = held.accounts.get(&address) {
                orders.wake();
            }
        }
    }

    /// What other accounts announced from this number on, and the number that is next.
    pub(super) fn since(&self, number: u64, account: &str) -> (u64, Vec<String>) {
        let held = lock(&self.held);
        let mut next = held.next;
        let mut found = Vec::new();
        for (at, from, message_id) in held.recent.iter().filter(|(at, ..)| *at >= number) {
            if found.len() == AT_ONCE_MAX {
                next = *at;
                break;
            }
            if from != account {
                found.push(message_id.clone());
            }
        }
        (next, found)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn copies_are_announced_once_to_all_others_and_the_addressees_are_woken() {
        let copies = Copies::default();
        let (bob, carol) = (Arc::new(Orders::default()), Arc::new(Orders::default()));
        copies.register("Bob@Example.org", Arc::clone(&bob));
        copies.register("carol@example.org", Arc::clone(&carol));
        let to = [b"bob@EXAMPLE.org".to_vec(), b"dave@example.org".to_vec()];
        copies.announce("ann", "<1@x>", &to);
        bob.woken().await;
        let wait = tokio::time::timeout(std::time::Duration::from_millis(20), carol.woken());
        assert!(wait.await.is_err(), "only addressees are woken");
        assert_eq!(copies.since(0, "ann"), (1, vec![]));
        assert_eq!(copies.since(0, "bob"), (1, vec!["<1@x>".to_owned()]));
        // The copy's own detection goes no further.
        copies.announce("bob", "<1@x>", &to);
        assert_eq!(copies.since(1, "ann"), (1, vec![]));
        for odd in ["", "<", "<>", "1@x", "<1>", "<a@b>\r\n", "<\u{e4}@b>"] {
            copies.announce("ann", odd, &to);
        }
        copies.announce("ann", &format!("<{}@x>", "y".repeat(1000)), &to);
        assert_eq!(copies.since(1, "bob"), (1, vec![]));
    }

    #[test]
    fn many_are_looked_for_in_turns_and_none_is_lost() {
        let copies = Copies::default();
        for n in 0..100 {
            copies.announce("ann", &format!("<{n}@x>"), &[]);
        }
        let (mut number, mut all) = (0, Vec::new());
        for _ in 0..4 {
            let (next, found) = copies.since(number, "bob");
            assert!(found.len() <= AT_ONCE_MAX);
            all.extend(found);
            number = next;
        }
        assert_eq!((number, all.len()), (100, 100));
        for n in 100..1000 {
            copies.announce("ann", &format!("<{n}@x>"), &[]);
        }
        assert_eq!(lock(&copies.held).recent.len(), RECENT_MAX);
    }

    #[test]
    fn only_some_scans_wait() {
        let orders = Orders::default();
        let (reply, _replies) = mpsc::channel(1);
        let order = || Order { folder: None, dry_run: true, reply: reply.clone() };
        assert_eq!((0..6).filter(|_| orders.ask(order())).count(), WAITING_MAX);
        assert!(orders.take().is_some() && orders.ask(order()));
    }
}
