//! What a transfer under way knows of the file besides its bytes: a version to check a piece against,
//! what an upload is joined with, how much has gone on, and what keeps others from doing the same.

use super::{
    Place,
    memory::{Caught, Claim, Fetch, Key, Memory, Version},
    transfer::{Base, Held, Intake},
};
use crate::config::{FtpDelivery, Resume};
use std::{sync::Arc, time::Duration};
use vscan_proto::{
    ftp,
    ftp::{Begin, Leg, Recalled, Verb},
};

/// How long a piece waits for another session's fetch of the same file: the client is to hear
/// something after 45 s.
const FETCH_PATIENCE: Duration = Duration::from_secs(30);

#[derive(Default)]
pub(super) struct Partial {
    version: Option<Arc<Version>>,
    suspect: Option<Arc<Caught>>,
    base: Option<Base>,
    /// Bytes that have gone on.
    pub(super) sent: u64,
    _fetch: Option<Fetch>,
    _claim: Option<Claim>,
}

/// What was found in the memory.
pub(super) struct Found {
    recalled: Recalled,
    version: Option<Arc<Version>>,
    fetch: Option<Fetch>,
}

/// The file of a transfer, as sessions remember it.
pub(super) fn key(place: Place<'_>, begin: &Begin) -> Key {
    Key { server: place.server, path: begin.path.clone() }
}

/// Whether pieces of files can be asked for, so that what files are is worth remembering.
pub(super) fn remembers(place: Place<'_>, begin: &Begin) -> bool {
    place.config.ftp.resume == Resume::Whole
        && begin.inspected
        && begin.source == Leg::Upstream
        && begin.verb == Verb::Retr
        && !begin.ascii
}

impl Partial {
    /// A transfer begins.
    pub(super) fn begin(place: Place<'_>, begin: &Begin) -> Self {
        let mut partial = Self::default();
        if remembers(place, begin) && begin.restart == 0 {
            partial._fetch = Some(place.gateway.memory.fetch(key(place, begin)));
        }
        partial
    }

    /// Looks up what can be said at once: what was caught, and whether an upload has to wait.
    pub(super) fn recall_now(&mut self, place: Place<'_>, begin: &Begin) -> Option<Recalled> {
        let memory: &Arc<Memory> = &place.gateway.memory;
        let key = key(place, begin);
        // Where everything is held a second look costs nobody anything, and the file may be another by now.
        if place.config.ftp.delivery == FtpDelivery::Stream {
            self.suspect = memory.caught(&key);
        }
        if begin.source == Leg::Client {
            let joined = begin.verb == Verb::Appe || begin.restart > 0;
            self._claim = memory.claim(&key, joined);
            if self._claim.is_none() {
                return Some(Recalled::Busy);
            }
        }
        if self.suspect.is_some() {
            return Some(Recalled::Suspect);
        }
        if remembers(place, begin)
            && begin.restart == 0
            && memory.has_pieces(place.client.ip(), &key)
        {
            // It may be what is missing before them: nothing of it goes on before that is known.
            return Some(Recalled::Suspect);
        }
        let asks = remembers(place, begin) && begin.restart > 0;
        (!asks).then_some(Recalled::Nothing)
    }

    /// Takes what [`look_up`] has found.
    pub(super) fn found(&mut self, found: Found) -> Recalled {
        self.version = found.version;
        self._fetch = found.fetch;
        found.recalled
    }

    /// What the machine says of the file that an upload adds to.
    pub(super) fn join(&mut self, base: ftp::Base, held: Option<Held>) {
        self.base = Some(match (base, held) {
            (ftp::Base::Received, Some(Held::Object(object))) => Base::Object(object),
            (ftp::Base::Absent, _) => Base::Absent,
            // Too large to be held, for one.
            (ftp::Base::Received | ftp::Base::Unreadable, _) => Base::Unreadable,
        });
    }

    /// How a leg's data are taken in.
    pub(super) fn intake(&self, leg: Leg, begin: Option<&Begin>) -> Intake {
        let from = begin.filter(|begin| begin.verb != Verb::Appe).map(|begin| begin.restart);
        let base = self.base.clone().filter(|_| leg == Leg::Client);
        let fetches_base = begin.is_some_and(|begin| begin.source != leg);
        Intake {
            base: base.map(|base| (base, from)),
            suspect: self.suspect.clone().filter(|_| !fetches_base && self.base.is_none()),
        }
    }

    /// The version that a piece is checked against.
    pub(super) fn version(&self) -> Option<Arc<Version>> {
        self.version.clone()
    }

    /// The first byte to be sent, and whether some have gone on.
    pub(super) fn send_from(&self, held: &Held, begin: Option<&Begin>) -> u64 {
        match held {
            Held::Joined(joined) => joined.start,
            Held::Object(_) | Held::Refused { .. } | Held::Unheld(..) => {
                let restart = begin
                    .filter(|begin| begin.source == Leg::Upstream)
                    .map_or(0, |begin| begin.restart);
                restart.max(self.sent)
            }
        }
    }
}

/// Looks for a version that the piece may be of, which may take as long as another session fetches it.
pub(super) async fn look_up(place: Place<'_>, begin: Begin) -> Found {
    let rules = place.gateway.scanner.rules();
    let key = key(place, &begin);
    let client = place.client.ip();
    match place.gateway.memory.recall(&key, client, begin.restart, &rules, FETCH_PATIENCE).await {
        Ok(version) if version.len() >= begin.restart => {
            Found { recalled: Recalled::Scanned, version: Some(version), fetch: None }
        }
        Ok(_) => Found { recalled: Recalled::Nothing, version: None, fetch: None },
        Err(fetch) => Found { recalled: Recalled::Nothing, version: None, fetch: Some(fetch) },
    }
}

/// How files are delivered, for the machine.
pub(super) fn delivery(delivery: FtpDelivery) -> ftp::Delivery {
    match delivery {
        FtpDelivery::Hold => ftp::Delivery::Hold,
        FtpDelivery::Stream => ftp::Delivery::Stream,
    }
}

/// What is done about pieces, for the machine.
pub(super) fn resume(resume: Resume) -> ftp::Resume {
    match resume {
        Resume::Whole => ftp::Resume::Whole,
        Resume::Refuse => ftp::Resume::Refuse,
    }
}
