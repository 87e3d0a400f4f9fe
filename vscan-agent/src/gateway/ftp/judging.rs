//! Which objects have to be clean before a file may go on, and what is said of it.

use super::{
    Place, ascii,
    memory::{Key, Memory, Version},
    transfer::{BEHIND_THE_END, Held, Joined},
};
use crate::{
    blocking,
    gateway::inspect::{About, Inspection, Outcome as Ruling},
    spool::Object,
};
use std::{sync::Arc, time::Instant};
use vscan_proto::ftp::{Begin, Judgement, Leg, Verb};
use vscan_scan::{
    report::{Reason, Report, Verdict},
    wire::ObjectKind,
};

/// Said of a piece whose client has pieces of another version.
const OTHER_VERSION: &str = "the file changed on the server; transfer it from its beginning";

/// Said of a file whose later pieces its client has of another version.
const OTHER_BEGINNING: &str =
    "the file changed on the server while pieces of it were transferred; try again later";

/// What was found, and what is to be sent in the place of what was received if that was treated.
pub(super) struct Judged {
    pub(super) judgement: Judgement,
    pub(super) verdict: Verdict,
    pub(super) treated: Option<Object>,
    /// What the client hears of it, if it hears of deliveries at all.
    pub(super) words: String,
}

impl Judged {
    fn refused(reason: impl Into<String>, verdict: Verdict) -> Self {
        let reason = reason.into();
        Self {
            judgement: Judgement::Refuse { reason },
            verdict,
            treated: None,
            words: String::new(),
        }
    }
}

impl Judged {
    /// Takes what another form of the object came to; the worse one counts.
    fn found(mut self, inspection: &Inspection) -> Self {
        if inspection.verdict > self.verdict {
            self.verdict = inspection.verdict;
            self.words.clone_from(&inspection.words);
        }
        self
    }
}

/// A file that is to be judged.
pub(super) struct Case<'a> {
    pub(super) place: Place<'a>,
    pub(super) memory: &'a Arc<Memory>,
    pub(super) key: Key,
    pub(super) begin: Begin,
    pub(super) begun: Instant,
    /// Bytes of it have gone on already.
    pub(super) streamed: bool,
    /// What sessions learn from it is kept: pieces may be asked for later.
    pub(super) remembers: bool,
}

impl Case<'_> {
    /// Inspects what was received.
    pub(super) async fn judge(&self, held: &Held) -> Judged {
        let place = self.place;
        match held {
            Held::Object(object) => self.whole(object).await,
            Held::Joined(joined) => self.joined(joined).await,
            Held::Refused { reason, verdict } => Judged::refused(reason.clone(), *verdict),
            Held::Unheld(error, received) => {
                let inspection = place.gateway.inspect_unheld(
                    place.config,
                    place.flow,
                    error,
                    *received,
                    self.about(),
                );
                // Whatever the policy says: what is not here cannot be delivered.
                Judged::refused(reason(&inspection), inspection.verdict)
            }
        }
    }

    fn about(&self) -> About<'_> {
        About {
            kind: ObjectKind::File,
            from_client: self.begin.source == Leg::Client,
            name: &self.begin.name,
            recipients: &[],
            stored: None,
        }
    }

    async fn whole(&self, object: &Object) -> Judged {
        if self.begin.source == Leg::Upstream && self.begin.restart > object.len() {
            return Judged::refused(BEHIND_THE_END, Verdict::Error);
        }
        let rules = if self.remembers { self.rules() } else { String::new() };
        let judged = self.forms(object, !self.streamed).await;
        if judged.judgement == Judgement::Release && self.begin.source == Leg::Upstream {
            return self.give(object, judged, rules);
        }
        judged
    }

    /// Which rules an object is scanned with from now on.
    fn rules(&self) -> String {
        self.place.gateway.scanner.rules()
    }

    /// The client gets what it asked for, unless it has pieces of another version.
    fn give(&self, object: &Object, judged: Judged, rules: String) -> Judged {
        if !self.remembers {
            return judged;
        }
        let clean = judged.verdict == Verdict::Clean && judged.treated.is_none();
        // What was treated reaches the client in the other's place.
        let delivered = judged.treated.as_ref().unwrap_or(object);
        let version = Arc::new(Version::of(delivered, rules));
        let (client, restart) = (self.place.client.ip(), self.begin.restart);
        let give =
            || self.memory.give(client, &self.key, restart, self.begun, delivered, &version, clean);
        // To wait in place costs another thread: small objects are on the heap, and wait for nothing.
        let small = delivered.inline().is_some();
        let given = if small { give() } else { blocking::in_place(give) };
        match given {
            Ok(true) => judged,
            Ok(false) => {
                self.place.flow.anomaly("ftp_version_changed", "a piece of another version");
                let why = if restart > 0 { OTHER_VERSION } else { OTHER_BEGINNING };
                Judged::refused(why, judged.verdict)
            }
            Err(error) => {
                tracing::error!(flow = %self.place.flow.id(), "spool: {error}");
                Judged::refused("could not be scanned, try again later", Verdict::Error)
            }
        }
    }

    /// Inspects an object and, where line ends are recoded, what receivers make of it.
    async fn forms(&self, object: &Object, may_treat: bool) -> Judged {
        let inspection = self.inspect(object).await;
        let mut judged = Judged {
            judgement: judgement(&inspection, may_treat),
            verdict: inspection.verdict,
            treated: match inspection.outcome {
                Ruling::Deliver(treated) if may_treat => Some(treated),
                Ruling::Deliver(_) | Ruling::Pass | Ruling::Block { .. } => None,
            },
            words: inspection.words,
        };
        if !self.begin.ascii || judged.judgement != Judgement::Release {
            return judged;
        }
        let spool = &self.place.gateway.spool;
        // What is delivered is what is received.
        let delivered = judged.treated.as_ref().unwrap_or(object);
        let forms = match blocking::in_place(|| ascii::forms(spool, delivered)) {
            Ok(forms) => forms,
            Err(error) => {
                let (flow, config) = (self.place.flow, self.place.config);
                let size = object.len();
                let inspection =
                    self.place.gateway.inspect_unheld(config, flow, &error, size, self.about());
                return Judged::refused(reason(&inspection), inspection.verdict);
            }
        };
        for form in forms {
            let inspection = self.inspect(&form).await;
            let judgement = judgement(&inspection, false);
            if judgement != Judgement::Release {
                return Judged { judgement, treated: None, ..judged.found(&inspection) };
            }
            judged = judged.found(&inspection);
        }
        judged
    }

    /// An upload that adds to a file: what the server has afterwards must be clean.
    async fn joined(&self, joined: &Joined) -> Judged {
        if !joined.readable {
            let mut report = Report { verdict: Verdict::Clean, error: None, ..Report::error("") };
            let detail = "what the server has of it cannot be read";
            report.add_unread(Reason::Unsupported, detail, &[], 0);
            let (config, flow) = (self.place.config, self.place.flow);
            let inspection = self.place.gateway.inspect_unread(
                config,
                flow,
                report,
                &joined.object,
                self.about(),
            );
            if judgement(&inspection, false) != Judgement::Release {
                return Judged::refused(reason(&inspection), inspection.verdict);
            }
        }
        let judged = self.forms(&joined.object, false).await;
        match &joined.with_rest {
            Some(longer) if judged.judgement == Judgement::Release => {
                self.forms(longer, false).await
            }
            Some(_) | None => judged,
        }
    }

    fn joins(&self) -> bool {
        self.begin.source == Leg::Client
            && (self.begin.verb == Verb::Appe || self.begin.restart > 0)
    }

    async fn inspect(&self, object: &Object) -> Inspection {
        let place = self.place;
        let (config, flow) = (place.config, place.flow);
        let inspection = place.gateway.inspect(config, flow, object, self.about()).await;
        // What a joined file begins with is at the server already, and clean.
        if inspection.verdict == Verdict::Infected
            && !self.joins()
            && matches!(inspection.outcome, Ruling::Block { .. })
        {
            self.memory.catch(self.key.clone(), object.prefix(), reason(&inspection));
        }
        inspection
    }
}

fn judgement(inspection: &Inspection, may_treat: bool) -> Judgement {
    match inspection.outcome {
        Ruling::Pass => Judgement::Release,
        Ruling::Deliver(_) if may_treat => Judgement::Release,
        // FTP clients repeat an upload after a 4yz for ever: the reply is a 550 all the same.
        Ruling::Deliver(_) | Ruling::Block { .. } => {
            Judgement::Refuse { reason: reason(inspection) }
        }
    }
}

fn reason(inspection: &Inspection) -> String {
    match inspection.verdict {
        Verdict::Infected => format!("blocked by vscan: {}", inspection.name),
        Verdict::Unscannable => {
            format!("blocked by vscan: cannot be scanned: {}", inspection.name)
        }
        Verdict::Error => "could not be scanned, try again later".to_owned(),
        Verdict::Clean => "blocked by vscan: by policy".to_owned(),
    }
}
