//! What the server says, and which of the waiting states it concerns.

use std::time::Instant;

use bytes::BytesMut;

use super::api::{Broken, Leg, Outcome, Output, Resume, Tls};
use super::core::{Expect, KEPT_REPLY_LIMIT, Protection};
use super::{Session, State, Transfer, text};
use crate::ftp::reply::{Reply, ReplyLine, Security, feature};

impl Session {
    /// One line of a reply.
    pub(super) fn on_reply_line(&mut self, now: Instant, line: ReplyLine) {
        if line.code.is_none() {
            self.core.anomaly("ftp_malformed_reply", &line.raw);
        }
        let code = line.code.unwrap_or_default();
        self.core.sync_before(code);
        let is_final = line.last && code >= 200;
        if (227..=229).contains(&code)
            && self.core.expect.front().is_some_and(|expect| expect.is_heard())
        {
            // The client did not ask the server for an address: it would go there past us.
            self.core.anomaly("ftp_unasked_address", &line.raw);
            self.abandon(Outcome::ServerRefused);
            self.finish(now, text::UNASKED_ADDRESS);
            self.close();
            return;
        }
        match self.core.expect.front().copied() {
            None => self.on_unsolicited(now, line),
            Some(
                expect @ (Expect::Greeting
                | Expect::Relay
                | Expect::Login(_)
                | Expect::Feat
                | Expect::Auth
                | Expect::Ccc),
            ) => {
                let hide_restart = self.core.settings.resume == Resume::Refuse;
                // Only transfers have a 1yz before their final reply (RFC 959 section 5.4). A
                // client that takes it for the final one would be one reply behind from here on;
                // so would one that takes what is no reply for one.
                let shown = match expect {
                    Expect::Feat => {
                        let security = match self.core.settings.tls {
                            Tls::Pass => Security::Shown,
                            Tls::Refuse => Security::Hidden,
                            Tls::Terminate => Security::TlsAlone,
                            Tls::Implicit => Security::WithoutAuth,
                        };
                        feature(line.raw, security, hide_restart)
                    }
                    _ => Some(line.raw),
                };
                if let Some(shown) = shown.filter(|_| code >= 200) {
                    self.core.tell_client(shown);
                }
                if is_final {
                    self.core.expect.pop_front();
                    self.relayed(now, expect, code);
                }
            }
            Some(
                expect @ (Expect::Arrange
                | Expect::Position
                | Expect::Probe
                | Expect::Delete
                | Expect::Transfer
                | Expect::Abort
                | Expect::Swallow
                | Expect::Sync),
            ) => {
                if line.code.is_some() {
                    self.kept.extend_from_slice(&line.raw);
                }
                if self.kept.len() > KEPT_REPLY_LIMIT {
                    self.kept = BytesMut::new();
                    self.core.anomaly("ftp_reply_too_long", b"");
                    self.abandon(Outcome::ServerRefused);
                    self.finish(now, text::SERVER_GARBLED);
                    self.close();
                } else if line.last {
                    let raw = std::mem::take(&mut self.kept).freeze();
                    let reply = Reply { code, raw };
                    let stays = match expect {
                        // They know by themselves when they have all.
                        Expect::Sync | Expect::Abort => true,
                        Expect::Arrange
                        | Expect::Position
                        | Expect::Probe
                        | Expect::Delete
                        | Expect::Transfer
                        | Expect::Swallow
                        | Expect::Greeting
                        | Expect::Relay
                        | Expect::Login(_)
                        | Expect::Feat
                        | Expect::Auth
                        | Expect::Ccc => false,
                    };
                    if is_final && !stays {
                        self.core.expect.pop_front();
                    }
                    self.on_kept_reply(now, expect, reply);
                }
            }
        }
    }

    /// A relayed command has its final reply.
    fn relayed(&mut self, now: Instant, expect: Expect, code: u16) {
        self.core.took_effect((200..400).contains(&code));
        let quit = matches!(self.state, State::Relay { quit: true });
        if let Expect::Login(command) = expect {
            self.core.identity.replied(command, code);
        }
        let until = now + self.core.settings.timing.close;
        self.state = if expect == Expect::Auth && code == 234 {
            match self.core.settings.tls {
                Tls::Terminate => self.change_wire(Output::Secure),
                Tls::Pass | Tls::Refuse | Tls::Implicit => self.change_wire(Output::Blind),
            }
        } else if expect == Expect::Ccc && (200..300).contains(&code) {
            self.change_wire(Output::Clear)
        } else if code == 421 || quit && (200..300).contains(&code) {
            State::Ending { until }
        } else {
            State::Idle
        };
    }

    /// TLS begins, or ends: nothing that was sent before may be taken for what comes after.
    fn change_wire(&mut self, change: Output) -> State {
        if self.queue.is_empty() && self.lines.is_empty() && self.replies.is_settled() {
            self.core.drop_client(false);
            self.core.drop_upstream(false);
            let blind = change == Output::Blind;
            self.core.output(change);
            return if blind { State::Blind } else { State::Changing };
        }
        let name = if change == Output::Clear {
            "ftp_pipelined_behind_ccc"
        } else {
            // Commands sent in the clear behind AUTH would be taken for protected ones.
            "ftp_plaintext_behind_auth"
        };
        self.core.anomaly(name, b"");
        self.core.output(Output::Reset);
        State::Over
    }

    /// Both legs changed to TLS or back, or one could not.
    pub(super) fn changed_wire(&mut self, to: Protection, result: Result<(), Broken>) {
        if !matches!(self.state, State::Changing) {
            return;
        }
        match result {
            Ok(()) => {
                self.core.protection = to;
                if to == Protection::Tls {
                    // RFC 4217 section 9.
                    self.core.protect(false);
                }
                self.state = State::Idle;
            }
            Err(Broken { leg }) => {
                let side: &[u8] = if leg == Leg::Client { b"client" } else { b"server" };
                self.core.anomaly("ftp_tls_failed", side);
                self.close();
            }
        }
    }

    fn on_unsolicited(&mut self, now: Instant, line: ReplyLine) {
        let goodbye = line.code == Some(421);
        if !goodbye {
            // The client would take it for the answer to its next command.
            self.core.anomaly("ftp_unexpected_reply", &line.raw);
            return;
        }
        if goodbye {
            self.abandon(Outcome::ServerRefused);
        }
        self.core.tell_client(line.raw);
        if goodbye && line.last {
            self.state = State::Ending { until: now + self.core.settings.timing.close };
        }
    }

    fn on_kept_reply(&mut self, now: Instant, expect: Expect, reply: Reply) {
        if reply.code == 421 && !matches!(self.state, State::Ending { .. }) {
            // The server is leaving, whatever was asked.
            self.abandon(Outcome::ServerRefused);
            self.finish(now, &reply.raw);
            return;
        }
        let core = &mut self.core;
        match expect {
            Expect::Arrange if reply.code >= 200 => core.arranged(now, reply),
            Expect::Position if reply.code >= 200 => core.positioned(reply),
            Expect::Probe | Expect::Delete if reply.code >= 200 => {
                if let State::Upload(upload) = &mut self.state {
                    if expect == Expect::Probe {
                        upload.probed(core, now, &reply);
                    } else {
                        upload.deleted(!reply.is_refusal());
                    }
                }
            }
            Expect::Transfer => match self.state.transfer() {
                Some(Transfer::Download(download)) => download.job.replied(core, now, reply),
                Some(Transfer::Upload(upload)) => upload.job.replied(core, now, reply),
                Some(Transfer::Unscanned(unscanned)) => {
                    unscanned.job.replied(core, now, reply);
                }
                None => {}
            },
            Expect::Abort if reply.code >= 200 => {
                self.state = match std::mem::replace(&mut self.state, State::Over) {
                    State::Abort(abort) => abort.replied(core, now, reply),
                    other => other,
                };
            }
            Expect::Sync if reply.code >= 200 => core.synchronised(now, reply.code),
            // Relayed replies are not kept.
            Expect::Arrange
            | Expect::Position
            | Expect::Probe
            | Expect::Delete
            | Expect::Abort
            | Expect::Swallow
            | Expect::Sync
            | Expect::Greeting
            | Expect::Relay
            | Expect::Login(_)
            | Expect::Feat
            | Expect::Auth
            | Expect::Ccc => {}
        }
        // Several replies may have come in one segment: each finds the state it belongs to.
        self.advance(now);
    }
}
