//! A notice as a mail: RFC 5322 and MIME by lettre, RFC 3834 for what sends itself.

use super::queue::Notice;
use crate::config::{Address, Notify};
use lettre::message::header::{ContentType, HeaderName, HeaderValue};
use lettre::message::{Attachment, Body, Mailbox, MessageBuilder, MultiPart, SinglePart};
use lettre::{Message, address::Envelope, message::header::ContentTransferEncoding};
use std::time::{Duration, SystemTime};

/// The header field that a treated message carries, and nothing else can bring along.
pub const TREATED: &str = "X-Vscan";

/// The header field that marks a notice as this gateway's own.
pub const OWN: &str = "X-Vscan-Notice";

/// Why a notice cannot be sent at all.
#[derive(Debug, thiserror::Error)]
#[error("no message can be made of it: {0}")]
pub(super) struct ComposeError(String);

/// A notice on its way.
#[derive(Debug)]
pub(super) struct Mail {
    /// From nobody (RFC 3834 section 3.3, RFC 5321 section 4.5.5), to one address.
    pub(super) envelope: Envelope,
    /// Header and text, lines ended by CRLF.
    pub(super) bytes: Vec<u8>,
}

/// Makes the mail; the same each time that it is asked for, so that a receiver can tell a notice that
/// came twice by its Message-ID.
///
/// # Errors
/// An address that cannot stand in a header.
pub(super) fn mail(
    notice: &Notice,
    attached: Option<Vec<u8>>,
    config: &Notify,
    name: &str,
    token: &str,
) -> Result<Mail, ComposeError> {
    let wrong = |error: &dyn std::fmt::Display| ComposeError(error.to_string());
    let to: lettre::Address = notice.to.parse().map_err(|error| wrong(&error))?;
    let from: lettre::Address = sender(config, name).parse().map_err(|error| wrong(&error))?;
    let date = SystemTime::UNIX_EPOCH
        + Duration::from_secs(u64::try_from(notice.created.as_second()).unwrap_or(0));
    let field = |name: &'static str, value: String| {
        HeaderValue::new(HeaderName::new_from_ascii_str(name), value)
    };
    // Who answers to a message says so; what nobody asked for is generated (RFC 3834 section 5).
    let submitted = if notice.role == "sender" { "auto-replied" } else { "auto-generated" };
    let builder: MessageBuilder = Message::builder()
        .raw_header(field(OWN, token.to_owned()))
        .raw_header(field("Auto-Submitted", submitted.to_owned()))
        .raw_header(field("Precedence", "bulk".to_owned()))
        .from(Mailbox::new(Some("vscan".to_owned()), from))
        .to(Mailbox::new(None, to.clone()))
        .subject(notice.subject.as_str())
        .date(date)
        .message_id(Some(format!("<{}.{}@{name}>", notice.created.as_microsecond(), notice.id)))
        .envelope(Envelope::new(None, vec![to]).map_err(|error| wrong(&error))?);
    let text = SinglePart::plain(notice.body.replace("\r\n", "\n").replace('\n', "\r\n"));
    let message = match (attached, &notice.attach) {
        (Some(bytes), Some(_)) => {
            // Never as message/rfc822: the original is kept exactly, and no reader opens it by itself.
            let body = Body::new_with_encoding(bytes, ContentTransferEncoding::Base64)
                .map_err(|_| ComposeError("the original cannot be encoded".to_owned()))?;
            let kind =
                ContentType::parse("application/octet-stream").map_err(|error| wrong(&error))?;
            let original = Attachment::new("original.infected".to_owned()).body(body, kind);
            builder.multipart(MultiPart::mixed().singlepart(text).singlepart(original))
        }
        _ => builder.singlepart(text),
    };
    let message = message.map_err(|error| wrong(&error))?;
    Ok(Mail { envelope: message.envelope().clone(), bytes: message.formatted() })
}

/// What stands in From.
#[must_use]
pub(super) fn sender(config: &Notify, name: &str) -> String {
    config.from.as_ref().map_or_else(|| format!("postmaster@{name}"), Address::to_string)
}

/// What proves that a notice to this address is ours: its number, and a hash of both by our secret.
#[must_use]
pub(super) fn token(secret: &[u8; 32], id: u64, to: &str) -> String {
    format!("{id}-{}", seal(secret, id, to))
}

/// Whether the token was made here for one of these addresses.
#[must_use]
pub(super) fn is_own(secret: &[u8; 32], token: &str, recipients: &[Vec<u8>]) -> bool {
    let Some((id, sealed)) = token.trim().split_once('-') else { return false };
    let Ok(id) = id.parse() else { return false };
    recipients.iter().any(|to| seal(secret, id, &String::from_utf8_lossy(to)) == sealed)
}

fn seal(secret: &[u8; 32], id: u64, to: &str) -> String {
    let mut hash = blake3::Hasher::new_keyed(secret);
    hash.update(&id.to_le_bytes());
    hash.update(to.to_lowercase().as_bytes());
    hash.finalize().to_hex()[..32].to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::queue::State;
    use super::*;
    use jiff::Timestamp;

    fn notice() -> Notice {
        let created = "2026-11-22T02:00:00Z".parse::<Timestamp>().unwrap();
        Notice {
            id: 7,
            created,
            to: "bob@example.com".to_owned(),
            role: "admin".to_owned(),
            subject: "vscan: Bäckerei".to_owned(),
            body: "line\n.dot\nüber\n".to_owned(),
            attach: None,
            flow_id: "1".to_owned(),
            detection: "EICAR".to_owned(),
            state: State::Waiting,
            attempts: 0,
            next: created,
            error: None,
        }
    }

    #[test]
    fn a_notice_is_a_mail_from_nobody_that_says_what_it_is() {
        let config = Notify::default();
        let mail = mail(&notice(), None, &config, "gw.example", "7-abc").unwrap();
        assert_eq!(mail.envelope.from(), None);
        let text = String::from_utf8(mail.bytes).unwrap();
        for line in [
            "X-Vscan-Notice: 7-abc\r\n",
            "Auto-Submitted: auto-generated\r\n",
            "From: vscan <postmaster@gw.example>\r\n",
            "To: bob@example.com\r\n",
            "Date: Sun, 22 Nov 2026 02:00:00 +0000\r\n",
            "Message-ID: <1795312800000000.7@gw.example>\r\n",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
        assert!(text.is_ascii() && !text.contains("Bcc"), "{text}");
        assert!(text.split("\r\n").all(|line| line.len() <= 78 && !line.contains('\n')), "{text}");
    }

    #[test]
    fn an_original_is_attached_as_bytes() {
        let id = "20261122-020000-1f0c59a7".parse().unwrap();
        let notice = Notice { attach: Some(id), ..notice() };
        let original = b"From x\r\n\x00\xff.\r\n".to_vec();
        let mail = mail(&notice, Some(original), &Notify::default(), "gw", "t").unwrap();
        let text = String::from_utf8(mail.bytes).unwrap();
        assert!(text.contains("filename=\"original.infected\""), "{text}");
        assert!(text.contains("RnJvbSB4DQoA/y4NCg=="), "{text}");
    }

    #[test]
    fn a_token_holds_for_its_address_and_nobody_else_can_make_one() {
        let secret = [7; 32];
        let made = token(&secret, 12, "Bob@Example.com");
        let to = |address: &str| vec![address.as_bytes().to_vec()];
        assert!(is_own(&secret, &made, &to("bob@example.com")));
        assert!(!is_own(&secret, &made, &to("eve@example.com")));
        assert!(!is_own(&[8; 32], &made, &to("bob@example.com")));
        for wrong in ["", "-", "12-", "x-y", "12"] {
            assert!(!is_own(&secret, wrong, &to("bob@example.com")), "{wrong}");
        }
    }
}
