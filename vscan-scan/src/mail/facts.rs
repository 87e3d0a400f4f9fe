//! Who may be told of a message: what its header says about how it was sent.

use super::headers::fields;
use crate::report::{MailFacts, TEXT_MAX};

/// Fields looked at; what decides stands near the top.
const FIELDS_MAX: usize = 1000;

/// Reads the header of a whole message.
pub(crate) fn of(message: &[u8]) -> MailFacts {
    let mut facts = MailFacts::default();
    let header = fields(message).take_while(|field| !field.trim_ascii().is_empty());
    for field in header.take(FIELDS_MAX) {
        let Some(colon) = memchr::memchr(b':', field) else { continue };
        let name = field[..colon].trim_ascii().to_ascii_lowercase();
        let value = field[colon + 1..].trim_ascii();
        let word = value.split(|b| b";( \t\r\n".contains(b)).next().unwrap_or_default();
        match &name[..] {
            // RFC 3834 section 5: anything but "no" is automatic.
            b"auto-submitted" => facts.automatic |= !word.eq_ignore_ascii_case(b"no"),
            b"precedence" => {
                let words: [&[u8]; 3] = [b"bulk", b"junk", b"list"];
                facts.automatic |= words.iter().any(|w| word.eq_ignore_ascii_case(w));
            }
            // RFC 2369, RFC 2919; the last two are Microsoft's.
            b"list-id"
            | b"list-help"
            | b"list-unsubscribe"
            | b"list-post"
            | b"list-owner"
            | b"list-archive"
            | b"x-auto-response-suppress"
            | b"x-autoreply" => {
                facts.automatic = true;
            }
            b"x-vscan-notice" if facts.notice.is_empty() && value.len() <= TEXT_MAX => {
                facts.notice = String::from_utf8_lossy(value).into_owned();
            }
            _ => {}
        }
    }
    facts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn automatic_mail_is_known_by_its_header() {
        for (header, automatic) in [
            ("Subject: x\r\n", false),
            ("Auto-Submitted: no\r\n", false),
            ("Auto-Submitted: auto-replied (vacation)\r\n", true),
            ("auto-submitted:\r\n auto-generated; x=y\r\n", true),
            ("Precedence: first-class\r\n", false),
            ("Precedence: Bulk\r\n", true),
            ("List-Id: <a.b>\r\n", true),
            ("X: y\r\n\r\nList-Id: <a.b>\r\n", false),
        ] {
            let message = format!("{header}\r\ntext\r\n");
            assert_eq!(of(message.as_bytes()).automatic, automatic, "{header}");
        }
    }

    #[test]
    fn a_notice_is_known_by_its_first_field_of_that_name() {
        let notice = |m: &str| of(m.as_bytes()).notice;
        assert_eq!(
            notice("Received: x\r\nX-Vscan-Notice: 7-ab\r\nX-Vscan-Notice: 8\r\n\r\n"),
            "7-ab"
        );
        assert_eq!(notice("Subject: x\r\n\r\nX-Vscan-Notice: 7-ab\r\n"), "");
        assert_eq!(notice(&format!("X-Vscan-Notice: {}\r\n\r\n", "a".repeat(200))), "");
    }
}
