//! What is done with a message by the configuration: the same scanner, rules, quarantine, notices and events as for what
//! crosses the gateway.

use super::{
    folder::Uid,
    name::FolderName,
    orders::{Copies, Looked, Orders, Progress},
    pass::{Fetched, Judge, Sentence, Tally},
    replace::TOKEN_FIELD,
    status::AccountStatus,
};
use crate::{
    blocking,
    config::{Direction, Protocol, Treatment, verdict_str},
    gateway::{About, Gateway, Inspection, Outcome, Stored},
    observe::{FlowHandle, FlowOpen, wire},
};
use std::{
    hash::{BuildHasher, RandomState},
    io::Read,
    net::SocketAddr,
    num::NonZeroU32,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};
use tokio::sync::mpsc;
use vscan_scan::{report::Verdict, wire::ObjectKind};

/// Judges the messages of one account.
#[derive(Debug)]
pub struct Guard {
    /// Scanner, policy, quarantine, notices.
    pub gateway: Arc<Gateway>,
    /// The account's name.
    pub account: String,
    /// Its user's mail address, or his name where that is not known.
    pub owner: Vec<Vec<u8>>,
    /// Where the server keeps what is quarantined.
    pub quarantine_folder: Option<FolderName>,
    /// Where it is announced what others may have copies of.
    pub copies: Option<Arc<Copies>>,
    /// Whether it is to end.
    pub orders: Arc<Orders>,
    /// How many messages may be scanned again.
    pub rate: Option<Arc<Rate>>,
    /// Whether it is only told what would be done.
    pub dry_run: bool,
    /// What is told of it.
    pub status: Arc<AccountStatus>,
    /// The connection, as the flow table has it.
    pub flow: Option<FlowHandle>,
    /// Who wants to hear of each message.
    pub listener: Option<(bool, mpsc::Sender<Progress>)>,
}

impl Judge for Guard {
    fn rules(&self) -> u64 {
        let rules = self.gateway.scanner.status().rules;
        let hash = blake3::hash(rules.as_bytes());
        u64::from_le_bytes(hash.as_bytes()[..8].try_into().unwrap_or_default())
    }

    async fn judge(&mut self, fetched: Fetched<'_>) -> (bool, Sentence) {
        let Some(flow) = &self.flow else { return (true, Sentence::Again) };
        let config = self.gateway.config();
        let (summary, envelope) = (fetched.summary, &fetched.summary.envelope);
        let message_id = String::from_utf8_lossy(&envelope.message_id);
        let folder = fetched.folder.to_string();
        let token = token(flow, summary.uid);
        let about = About {
            kind: ObjectKind::Message,
            from_client: false,
            name: &envelope.from,
            recipients: &self.owner,
            stored: Some(Stored {
                account: &self.account,
                folder: &folder,
                uid: summary.uid.get(),
                message_id: &message_id,
                dry_run: self.is_dry(),
                addressees: &envelope.to,
                mark: (TOKEN_FIELD, &token),
                moves: self.quarantine_folder.is_some(),
            }),
        };
        flow.set_state("scanning");
        let inspection = match fetched.object {
            Ok(object) => self.gateway.inspect(&config, flow, object, about).await,
            Err(error) => {
                let size = summary.size;
                self.gateway.inspect_unheld(&config, flow, error, size, about)
            }
        };
        flow.set_state("looking");
        self.status.judged(inspection.verdict);
        self.tell(&fetched, &inspection).await;
        if inspection.verdict == Verdict::Infected
            && !self.is_dry()
            && let Some(copies) = &self.copies
        {
            copies.announce(&self.account, &message_id, &envelope.to);
        }
        (inspection.verdict == Verdict::Clean, self.sentence(inspection, token))
    }

    fn failed(&mut self, folder: &FolderName, uid: Uid, why: &str) {
        self.status.untreated(&format!("{folder} {uid}: {why}"));
        self.gateway.observer.metrics.mailbox("untreated", 1);
        if let Some(flow) = &self.flow {
            flow.anomaly("mailbox_untreated", format_args!("{folder} {uid}: {why}"));
        }
        tracing::warn!(account = %self.account, %folder, uid, "a message was not treated: {why}");
    }

    fn rescans(&mut self, wanted: usize) -> usize {
        self.rate.as_ref().map_or(0, |rate| rate.take(wanted))
    }

    fn stopping(&self) -> bool {
        self.orders.stopping()
    }

    fn connected(&mut self, (ours, theirs): (SocketAddr, SocketAddr)) {
        let flow = self.gateway.observer.flows.open(FlowOpen {
            protocol: Protocol::Mailbox,
            client: ours,
            server: theirs,
            real_server: theirs,
            direction: Direction::Inbound,
        });
        flow.set_user(self.account.as_bytes());
        flow.set_state("looking");
        self.flow = Some(flow);
    }

    fn moved(&mut self, (sent, received): (u64, u64)) {
        if let Some(flow) = &self.flow {
            flow.add_bytes(sent, received);
        }
    }

    fn closed(&mut self) {
        self.flow = None;
    }

    fn looked(&mut self, tally: Tally) {
        let metrics = &self.gateway.observer.metrics;
        metrics.mailbox("scanned", tally.scanned);
        metrics.mailbox("settled", tally.settled);
        metrics.mailbox("treated", tally.treated);
    }

    fn reports_to(&mut self, listener: Option<(bool, mpsc::Sender<Progress>)>) {
        self.listener = listener;
    }
}

impl Guard {
    fn is_dry(&self) -> bool {
        self.dry_run || self.listener.as_ref().is_some_and(|(dry_run, _)| *dry_run)
    }

    fn sentence(&self, inspection: Inspection, token: String) -> Sentence {
        match inspection.outcome {
            _ if inspection.verdict == Verdict::Error => Sentence::Again,
            Outcome::Pass => Sentence::Leave,
            Outcome::Block { .. } => match (&self.quarantine_folder, inspection.action) {
                (Some(folder), Treatment::Quarantine) => Sentence::Move(folder.clone()),
                _ => Sentence::Remove,
            },
            Outcome::Deliver(object) => {
                let mut with = Vec::new();
                match blocking::in_place(|| object.reader().read_to_end(&mut with)) {
                    Ok(_) => Sentence::Replace { with, token },
                    Err(error) => {
                        tracing::error!(account = %self.account, "a treated message: {error}");
                        Sentence::Again
                    }
                }
            }
        }
    }

    async fn tell(&self, fetched: &Fetched<'_>, inspection: &Inspection) {
        let Some((_, listener)) = &self.listener else { return };
        let looked = Looked {
            account: self.account.clone(),
            folder: fetched.folder.to_string(),
            uid: fetched.summary.uid.get(),
            from: wire::text(&fetched.summary.envelope.from).into_owned(),
            verdict: verdict_str(inspection.verdict).to_owned(),
            action: inspection.action.as_str().to_owned(),
            detection: inspection.name.clone(),
        };
        // Who asked may have gone.
        let _ = listener.send(Progress::Message(looked)).await;
    }
}

/// What a replacement is found again by: no other message has it, and no sender can foresee it.
fn token(flow: &FlowHandle, uid: Uid) -> String {
    format!("{}-{uid}-{:016x}", flow.id(), RandomState::new().hash_one(uid))
}

/// How many messages a minute are scanned again, of all accounts of a section together.
#[derive(Debug)]
pub struct Rate {
    per_minute: f64,
    /// What may be taken now, and since when more has come.
    left: Mutex<(f64, Instant)>,
}

impl Rate {
    /// A minute's worth may be taken at once.
    #[must_use]
    pub fn new(per_minute: NonZeroU32) -> Self {
        let per_minute = f64::from(per_minute.get());
        Self { per_minute, left: Mutex::new((per_minute, Instant::now())) }
    }

    fn take(&self, wanted: usize) -> usize {
        self.take_at(wanted, Instant::now())
    }

    fn take_at(&self, wanted: usize, now: Instant) -> usize {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let come = now.saturating_duration_since(left.1).as_secs_f64() * self.per_minute / 60.0;
        *left = ((left.0 + come).min(self.per_minute), now);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between 0 and a configured u32"
        )]
        let taken = (left.0 as usize).min(wanted);
        left.0 -= taken as f64;
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_rate_holds_for_all_who_take() {
        let rate = Rate::new(NonZeroU32::new(60).unwrap());
        let begin = Instant::now();
        assert_eq!(rate.take_at(40, begin), 40);
        assert_eq!(rate.take_at(40, begin), 20);
        assert_eq!(rate.take_at(40, begin), 0);
        assert_eq!(rate.take_at(40, begin + Duration::from_secs(5)), 5);
        assert_eq!(rate.take_at(1000, begin + Duration::from_secs(500)), 60);
    }
}
