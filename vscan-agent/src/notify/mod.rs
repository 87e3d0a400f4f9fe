//! Notices by mail: who is told, in which words, and that it is not lost.
//!
//! [`Notifier::tell`] puts notices into a durable queue (`queue`) before anybody hears what became of the object;
//! `send` gives them to the relay. What the scanner found and what the policy decided comes from elsewhere.
//!
//! | sent | never |
//! |---|---|
//! | from `<>` (RFC 3834 3.3), marked Auto-Submitted | to `<>`, to senders of automatic mail or lists |
//! | to the sender, if it is inside | to senders outside, unless configured |
//! | once in `interval` for the same detection and parties | more than `per_hour` to one address |
//! | until the relay takes it, at least once | about a notice of our own |

mod compose;
mod queue;
mod send;
mod template;

pub use compose::{OWN, TREATED};
pub use queue::{Counts, Notice, Queue, QueueError, State};
pub use send::run;
pub use template::{Facts, Found, TemplateError, Templates, Text};

use crate::config::{Address, Config, Direction, Party};
use crate::observe::Observer;
use crate::quarantine::EntryId;
use jiff::Timestamp;
use queue::{Attempt, Draft, Leave};
use serde::Serialize;
use std::borrow::Cow;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::Notify;

/// The queue's file in the state directory.
pub const QUEUE_FILE: &str = "notices.redb";

/// The sender looks at the clock at least this often: the time of day may be set.
const WAKE: Duration = Duration::from_secs(60);

/// Local parts that never get an answer: mailers and lists (RFC 3834 section 2).
const AUTOMATIC: &[&str] = &["mailer-daemon", "noreply", "no-reply", "donotreply"];

/// Makes, keeps and sends notices.
#[derive(Debug)]
pub struct Notifier {
    queue: Queue,
    templates: RwLock<Arc<Templates>>,
    wake: Notify,
    observer: Observer,
}

/// What there is to be told.
#[derive(Debug)]
pub struct Occasion<'a> {
    /// What templates can say.
    pub facts: Facts,
    /// Which parties are told.
    pub parties: Vec<Party>,
    /// Where the original goes.
    pub redirects: Vec<Address>,
    /// The sender of a message, empty for the null sender; none for files.
    pub sender: Option<&'a [u8]>,
    /// The recipients of a message.
    pub recipients: &'a [Vec<u8>],
    /// Others that the header of a message in a mailbox names as recipients.
    pub addressees: &'a [Vec<u8>],
    /// From the object's sender to its receiver.
    pub direction: Direction,
    /// Whether the message says that a program sent it, or a list.
    pub automatic: bool,
    /// What it says to be a notice of a gateway by; empty if it does not.
    pub token: &'a str,
    /// The copy in the quarantine.
    pub kept: Option<EntryId>,
}

/// Fields of a `notice` event.
#[derive(Serialize)]
struct NoticeFields<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<u64>,
    to: &'a str,
    role: &'a str,
    result: &'a str,
    about_flow: &'a str,
    detection: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<&'a str>,
}

impl Notifier {
    /// Opens the queue.
    ///
    /// # Errors
    /// [`QueueError`].
    pub fn open(
        state: &Path,
        templates: Templates,
        observer: Observer,
    ) -> Result<Self, QueueError> {
        let queue = Queue::open(&state.join(QUEUE_FILE))?;
        let notifier = Self::over(queue, templates, observer);
        notifier.observer.metrics.set_notices(notifier.queue.counts());
        Ok(notifier)
    }

    /// A queue that ends with the process, for tests of other parts.
    ///
    /// # Panics
    /// There is no memory, or no /dev/urandom.
    #[must_use]
    pub fn in_memory(observer: Observer) -> Self {
        let queue = Queue::in_memory().expect("a queue in memory");
        Self::over(queue, Templates::built_in(), observer)
    }

    fn over(queue: Queue, templates: Templates, observer: Observer) -> Self {
        Self { queue, templates: RwLock::new(Arc::new(templates)), wake: Notify::new(), observer }
    }

    /// New notices are written with these.
    pub fn set_templates(&self, templates: Templates) {
        *self.templates.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(templates);
        // The relay may be another one too.
        self.wake.notify_one();
    }

    /// The notices that wait.
    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// Has what is due sent at once, after an operator's request.
    pub fn wake(&self) {
        self.observer.metrics.set_notices(self.queue.counts());
        self.wake.notify_one();
    }

    /// A text for a message.
    pub fn render(&self, text: Text, facts: &Facts) -> String {
        self.templates().render(text, facts).1
    }

    /// Puts notices to all parties into the queue: when this returns true, those that are due are on disk.
    ///
    /// False when a redirected original could not be queued: then it has not reached anybody.
    pub fn tell(&self, config: &Config, occasion: &Occasion<'_>) -> bool {
        if occasion.parties.is_empty() && occasion.redirects.is_empty() {
            return true;
        }
        if occasion.sender.is_some_and(<[u8]>::is_empty)
            && compose::is_own(self.queue.secret(), occasion.token, occasion.recipients)
        {
            // A notice about a notice would be followed by another one.
            self.lost("", "", "suppressed", "own notice", occasion);
            return true;
        }
        let now = Timestamp::now();
        let templates = self.templates();
        let mut drafts: Vec<Draft> = Vec::new();
        let mut redirected = true;
        for (to, role, text) in addresses(config, occasion) {
            // An address that is told in several roles gets the first of them.
            if drafts.iter().any(|draft| draft.to == to) {
                continue;
            }
            let key = key(occasion, &to, role);
            let held_back = match self.queue.leave(&to, &key, &config.notify, now) {
                Leave::Granted(held_back) => held_back,
                leave => {
                    let original = role == "redirect";
                    // Of originals each is another one: only a full queue keeps them back.
                    if !original || leave == Leave::Full {
                        redirected &= !original;
                        self.suppressed(&to, role, leave, occasion);
                        continue;
                    }
                    0
                }
            };
            let attach = occasion.kept.clone().filter(|_| role == "redirect");
            let facts = Facts {
                to: to.as_str().to_owned(),
                suppressed: held_back,
                attached: attach.is_some() && occasion.facts.size <= config.notify.attach_max,
                ..occasion.facts.clone()
            };
            drafts.push(Draft {
                text: templates.render(text, &facts),
                to,
                role,
                attach: attach.filter(|_| facts.attached),
                flow_id: facts.flow_id.clone(),
                detection: facts.detection.clone(),
                key,
            });
        }
        if drafts.is_empty() {
            return redirected;
        }
        let lost: Vec<(String, &'static str)> =
            drafts.iter().map(|draft| (draft.to.to_string(), draft.role)).collect();
        let put = crate::blocking::in_place(|| self.queue.put(drafts, &config.notify, now));
        self.observer.metrics.set_notices(self.queue.counts());
        match put {
            Ok(notices) => {
                for notice in &notices {
                    self.event(notice, "queued", None);
                }
                self.wake.notify_one();
            }
            Err(error) => {
                tracing::error!("{error}; nobody is told of {}", occasion.facts.detection);
                for (to, role) in lost {
                    redirected &= role != "redirect";
                    let why = error.to_string();
                    self.lost(&to, role, "lost", &why, occasion);
                }
            }
        }
        redirected
    }

    /// What became of attempts.
    fn attempted(&self, notices: &[Notice], attempts: &[(u64, Attempt)]) {
        self.observer.metrics.set_notices(self.queue.counts());
        for notice in notices {
            let attempt = attempts.iter().find(|(id, _)| *id == notice.id).map(|(_, a)| a);
            let result = match (attempt, notice.state) {
                (Some(Attempt::Taken), _) => "sent",
                (_, State::Waiting) => "delayed",
                (_, State::Dead) => "dead",
            };
            if result == "dead" {
                let why = notice.error.as_deref().unwrap_or_default();
                tracing::error!(notice = notice.id, "a notice is given up: {why}");
            }
            self.event(notice, result, notice.error.as_deref().filter(|_| result != "sent"));
        }
    }

    /// Waits for work: until the next notice is due, something was put into the queue, or a minute.
    async fn woken(&self, due: Option<Timestamp>) {
        let until = due.map_or(WAKE, |due| {
            let left = due.duration_since(Timestamp::now());
            Duration::try_from(left).unwrap_or_default().min(WAKE)
        });
        // Either is a reason to look.
        let _ = tokio::time::timeout(until, self.wake.notified()).await;
    }

    fn templates(&self) -> Arc<Templates> {
        Arc::clone(&self.templates.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn suppressed(&self, to: &Address, role: &'static str, leave: Leave, occasion: &Occasion<'_>) {
        let why = match leave {
            Leave::Granted(_) => return,
            Leave::Duplicate => "duplicate",
            Leave::Rate => "rate",
            Leave::Full => "full",
        };
        if leave == Leave::Full {
            tracing::error!(%to, "the queue of notices is full: nobody is told");
        }
        self.lost(to.as_str(), role, "suppressed", why, occasion);
    }

    fn lost(&self, to: &str, role: &str, result: &'static str, why: &str, occasion: &Occasion<'_>) {
        self.observer.metrics.notice(result);
        self.observer.events.notice(&NoticeFields {
            id: None,
            to,
            role,
            result,
            about_flow: &occasion.facts.flow_id,
            detection: &occasion.facts.detection,
            why: Some(why),
        });
    }

    fn event(&self, notice: &Notice, result: &'static str, why: Option<&str>) {
        self.observer.metrics.notice(result);
        self.observer.events.notice(&NoticeFields {
            id: Some(notice.id),
            to: &notice.to,
            role: &notice.role,
            result,
            about_flow: &notice.flow_id,
            detection: &notice.detection,
            why,
        });
    }
}

/// This gateway's name: the configured one, or the system's host name.
#[must_use]
pub fn name(config: &Config) -> String {
    config.notify.name.clone().unwrap_or_else(|| {
        let system = rustix::system::uname();
        let name = system.nodename().to_string_lossy();
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-');
        if name.is_empty() || !name.chars().all(plain) {
            "localhost".to_owned()
        } else {
            name.into_owned()
        }
    })
}

/// Who gets what, the most concerned first.
fn addresses(config: &Config, occasion: &Occasion<'_>) -> Vec<(Address, &'static str, Text)> {
    let notify = &config.notify;
    let mut all: Vec<(Address, &'static str, Text)> = Vec::new();
    let mut add = |to: Address, role, text| all.push((to, role, text));
    for to in &occasion.redirects {
        add(to.clone(), "redirect", Text::Redirect);
    }
    let tells = |party| occasion.parties.contains(&party);
    if tells(Party::Admin) {
        for to in &notify.admin {
            add(to.clone(), Party::Admin.as_str(), Text::Admin);
        }
    }
    if tells(Party::Sender)
        && let Some(sender) = occasion.sender.and_then(parsed)
        && !occasion.automatic
        && !is_automatic(&sender)
        && (notify.outside_senders
            || is_inside(config, &sender, occasion.direction, Direction::Outbound))
    {
        add(sender, Party::Sender.as_str(), Text::Sender);
    }
    for party in [Party::Addressees, Party::Recipient] {
        if !tells(party) {
            continue;
        }
        let named: &[Vec<u8>] = if party == Party::Addressees { occasion.addressees } else { &[] };
        for to in occasion.recipients.iter().chain(named).filter_map(|r| parsed(r)) {
            if party == Party::Addressees
                || is_inside(config, &to, occasion.direction, Direction::Inbound)
            {
                add(to, party.as_str(), Text::of(party));
            }
        }
    }
    all
}

/// The direction of a message that lies in a mailbox, by its author: he is inside if his domain is one of ours.
pub fn written_by(config: &Config, sender: &[u8]) -> Direction {
    let domain = parsed(sender)
        .map(|sender| sender.as_str().rsplit('@').next().unwrap_or_default().to_ascii_lowercase());
    let ours = |d: &String| domain.as_ref().is_some_and(|domain| d.eq_ignore_ascii_case(domain));
    if config.notify.domains.iter().any(ours) { Direction::Internal } else { Direction::Inbound }
}

fn parsed(address: &[u8]) -> Option<Address> {
    std::str::from_utf8(address).ok().and_then(Address::new)
}

/// An address is inside when its side of the connection is and, where domains are configured, its domain too.
fn is_inside(config: &Config, address: &Address, is: Direction, wanted: Direction) -> bool {
    let domain = address.as_str().rsplit('@').next().unwrap_or_default();
    let domains = &config.notify.domains;
    (is == wanted || is == Direction::Internal)
        && (domains.is_empty() || domains.iter().any(|d| d.eq_ignore_ascii_case(domain)))
}

/// Whether the address is one of a program that must not be answered.
fn is_automatic(address: &Address) -> bool {
    let local = address.as_str().rsplit_once('@').map_or("", |(local, _)| local).to_lowercase();
    AUTOMATIC.contains(&local.as_str())
        || local.starts_with("owner-")
        || local.starts_with("bounce")
        || ["-request", "-owner", "-bounces", "-admin"].iter().any(|end| local.ends_with(end))
}

/// What makes two notices the same: detection and parties.
fn key(occasion: &Occasion<'_>, to: &Address, role: &str) -> [u8; 32] {
    let mut hash = blake3::Hasher::new();
    let sender = occasion.sender.map_or(Cow::Borrowed(""), String::from_utf8_lossy);
    for part in [
        to.as_str(),
        role,
        &occasion.facts.detection,
        occasion.facts.done,
        &sender,
        &occasion.facts.client,
        &occasion.facts.server,
    ] {
        hash.update(&(part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    *hash.finalize().as_bytes()
}
