//! What peers do oddly: names for counters, words for people.

use std::fmt;

/// Oddities of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anomaly {
    /// The client spoke before the server's greeting.
    EarlyTalker,
    /// A command line with a bare CR or LF. Not relayed: servers disagree on what it means.
    BareNewlineInCommand,
    /// What only lenient servers take for a command that vscan has to follow. Not relayed.
    InexactCommand,
    /// A command line that is too long.
    CommandTooLong,
    /// Too many lines that had to be refused.
    TooManyErrors,
    /// TURN, ATRN, BURL, XEXCH50, LHLO.
    ForbiddenCommand,
    /// BDAT, though it was not announced.
    ChunkedTransfer,
    /// A reply or reply line that is too long.
    ReplyTooLong,
    /// A line from the server that is no reply line.
    MalformedReply,
    /// A reply to no command.
    UnsolicitedReply,
    /// A 354 to something else than DATA: what follows could be a message that was not seen.
    UnexpectedGoAhead,
    /// A 2xx or 3xx but 354 to DATA.
    BogusDataReply,
    /// A message was accepted before it was sent.
    EarlyAcceptance,
    /// A look-alike of the end of data in a message.
    EndOfDataLookAlike,
    /// A bare CR or LF in a message, where these are refused.
    BareNewline,
    /// A message that is larger than `hold_max`.
    MessageTooLarge,
    /// The client was gone in mid-message.
    ClientGoneInMessage,
    /// Plaintext of the server behind its 220 to STARTTLS.
    PlaintextBehindStartTls,
    /// Plaintext of the client behind STARTTLS, before the 220.
    CommandsBehindStartTls,
    /// What followed the 220 to STARTTLS is no TLS record.
    NotTls,
    /// The server was lost after the message was sent and before its final reply: it may have
    /// accepted it, and the client will send it again (RFC 1047).
    FinalReplyLost,
    /// The server accepted a message and the client was not there to hear it (RFC 1047).
    DoubledMail,
}

impl Anomaly {
    /// Its name in events and counters, snake_case.
    pub fn name(self) -> &'static str {
        match self {
            Self::EarlyTalker => "smtp_early_talker",
            Self::BareNewlineInCommand => "smtp_bare_newline_in_command",
            Self::InexactCommand => "smtp_inexact_command",
            Self::CommandTooLong => "smtp_command_too_long",
            Self::TooManyErrors => "smtp_too_many_errors",
            Self::ForbiddenCommand => "smtp_forbidden_command",
            Self::ChunkedTransfer => "smtp_chunked_transfer",
            Self::ReplyTooLong => "smtp_reply_too_long",
            Self::MalformedReply => "smtp_malformed_reply",
            Self::UnsolicitedReply => "smtp_unsolicited_reply",
            Self::UnexpectedGoAhead => "smtp_unexpected_go_ahead",
            Self::BogusDataReply => "smtp_bogus_data_reply",
            Self::EarlyAcceptance => "smtp_early_acceptance",
            Self::EndOfDataLookAlike => "smtp_end_of_data_look_alike",
            Self::BareNewline => "smtp_bare_newline",
            Self::MessageTooLarge => "smtp_message_too_large",
            Self::ClientGoneInMessage => "smtp_client_gone_in_message",
            Self::PlaintextBehindStartTls => "smtp_plaintext_behind_starttls",
            Self::CommandsBehindStartTls => "smtp_commands_behind_starttls",
            Self::NotTls => "smtp_not_tls",
            Self::FinalReplyLost => "smtp_final_reply_lost",
            Self::DoubledMail => "smtp_doubled_mail",
        }
    }
}

impl fmt::Display for Anomaly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EarlyTalker => "the client spoke before the greeting",
            Self::BareNewlineInCommand => "bare CR or LF in a command line, refused",
            Self::InexactCommand => "what only lenient servers take for a command, refused",
            Self::CommandTooLong => "command line too long, refused",
            Self::TooManyErrors => "too many refused lines, closed",
            Self::ForbiddenCommand => "a command that leads past the gateway, refused",
            Self::ChunkedTransfer => "BDAT though it was not announced, refused",
            Self::ReplyTooLong => "reply too long, reset",
            Self::MalformedReply => "the server sent a line that is no reply",
            Self::UnsolicitedReply => "the server sent a reply to no command",
            Self::UnexpectedGoAhead => "354 to something else than DATA, reset",
            Self::BogusDataReply => "unexpected answer to DATA",
            Self::EarlyAcceptance => "the server accepted a message before it was sent, reset",
            Self::EndOfDataLookAlike => "look-alike of the end of data in a message, refused",
            Self::BareNewline => "bare CR or LF in a message, refused",
            Self::MessageTooLarge => "message larger than the spool holds, refused",
            Self::ClientGoneInMessage => "the client was gone in mid-message",
            Self::PlaintextBehindStartTls => "plaintext of the server behind STARTTLS, reset",
            Self::CommandsBehindStartTls => "plaintext of the client behind STARTTLS, reset",
            Self::NotTls => "what followed STARTTLS is no TLS, reset",
            Self::FinalReplyLost => "the server was lost before its final reply",
            Self::DoubledMail => "accepted, but the client was gone: it may send it again",
        })
    }
}
