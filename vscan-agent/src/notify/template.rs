//! The words of notices: templates built in, and a directory with others in their place.
//!
//! A template is a text of Jinja2 (minijinja); the first line of a notice is `Subject:`, then an empty line. What
//! comes from the wire is made harmless before it gets into a template, and is never a template itself.

use crate::config::Party;
use minijinja::value::Value;
use minijinja::{Environment, UndefinedBehavior, context};
use std::path::Path;

/// A larger file is no template, in bytes.
const TEMPLATE_MAX: u64 = 64 << 10;

/// A rendered text is cut at this many bytes: findings and recipients may be many.
const TEXT_MAX: usize = 16 << 10;

/// A subject is cut at this many characters.
const SUBJECT_MAX: usize = 200;

/// Every text that vscan writes into mail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Text {
    /// To a recipient.
    Recipient,
    /// To the sender.
    Sender,
    /// To an administrator.
    Admin,
    /// Around an original that is redirected.
    Redirect,
    /// In the place of a portion.
    Replaced,
    /// In the place of a message.
    Substitute,
}

impl Text {
    const ALL: [(Self, &str, &str); 6] = [
        (Self::Recipient, "recipient.txt", include_str!("../../../deploy/notices/recipient.txt")),
        (Self::Sender, "sender.txt", include_str!("../../../deploy/notices/sender.txt")),
        (Self::Admin, "admin.txt", include_str!("../../../deploy/notices/admin.txt")),
        (Self::Redirect, "redirect.txt", include_str!("../../../deploy/notices/redirect.txt")),
        (Self::Replaced, "replaced.txt", include_str!("../../../deploy/notices/replaced.txt")),
        (
            Self::Substitute,
            "substitute.txt",
            include_str!("../../../deploy/notices/substitute.txt"),
        ),
    ];

    /// The template for this party.
    #[must_use]
    pub const fn of(party: Party) -> Self {
        match party {
            Party::Recipient | Party::Addressees => Self::Recipient,
            Party::Sender => Self::Sender,
            Party::Admin => Self::Admin,
        }
    }

    fn file(self) -> &'static str {
        Self::ALL.iter().find(|(text, _, _)| *text == self).map_or("", |(_, file, _)| file)
    }

    /// Whether it is a mail of its own, with a subject.
    const fn is_mail(self) -> bool {
        !matches!(self, Self::Replaced | Self::Substitute)
    }
}

/// What a template can say. Everything is printable, one line each.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// This gateway's name.
    pub gateway: String,
    /// Whom to ask, if somebody is configured.
    pub contact: Option<String>,
    /// When it was judged.
    pub time: String,
    /// `ftp` or `smtp`.
    pub protocol: &'static str,
    /// `inbound`, `outbound`, `internal` or `transit`.
    pub direction: &'static str,
    /// `file` or `message`.
    pub kind: &'static str,
    /// Address of the client.
    pub client: String,
    /// Address of the server.
    pub server: String,
    /// FTP user.
    pub user: Option<String>,
    /// Sender of a message; empty for the null sender.
    pub sender: String,
    /// Recipients of a message.
    pub recipients: Vec<String>,
    /// Name of a file.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// `infected`, `unscannable` or `error`.
    pub verdict: &'static str,
    /// What names it: the first detection, reason or error.
    pub detection: String,
    /// All that was found.
    pub findings: Vec<Found>,
    /// What was done, as a participle: `blocked`, `quarantined`, `treated`.
    pub done: &'static str,
    /// What was done to each portion.
    pub treated: Vec<String>,
    /// Name in the quarantine.
    pub quarantine: Option<String>,
    /// Which rule said so.
    pub rule: String,
    /// The flow.
    pub flow_id: String,
    /// To whom this notice goes.
    pub to: String,
    /// Notices that were held back since the last one.
    pub suppressed: u64,
    /// Whether the original is attached.
    pub attached: bool,
}

/// One thing that was found.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// The detection or the reason.
    pub what: String,
    /// The portion that holds it; empty for the whole object.
    pub portion: String,
}

/// A template is wrong.
#[derive(Debug, thiserror::Error)]
#[error("notice template {name}: {why}")]
pub struct TemplateError {
    name: String,
    why: String,
}

/// The templates in use.
#[derive(Debug)]
pub struct Templates {
    environment: Environment<'static>,
}

impl Templates {
    /// The built-in ones.
    ///
    /// # Panics
    /// Never: a test renders all of them.
    #[must_use]
    pub fn built_in() -> Self {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        for (_, file, text) in Text::ALL {
            environment.add_template(file, text).expect("a built-in template");
        }
        Self { environment }
    }

    /// The built-in ones, and in their place those of the directory. Each is tried once.
    ///
    /// # Errors
    /// A file cannot be read, is no template, or says what there is not.
    pub fn load(directory: Option<&Path>) -> Result<Self, TemplateError> {
        let mut templates = Self::built_in();
        let Some(directory) = directory else { return Ok(templates) };
        for (text, file, _) in Text::ALL {
            let path = directory.join(file);
            let wrong = |why: String| TemplateError { name: path.display().to_string(), why };
            match path.metadata() {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(wrong(error.to_string())),
                Ok(meta) if meta.len() > TEMPLATE_MAX => {
                    return Err(wrong(format!("larger than {TEMPLATE_MAX} bytes")));
                }
                Ok(_) => {}
            }
            let source = std::fs::read_to_string(&path).map_err(|e| wrong(e.to_string()))?;
            templates
                .environment
                .add_template_owned(file, source)
                .map_err(|error| wrong(format!("{error:#}")))?;
            let rendered = templates.try_render(text, &Facts::sample()).map_err(wrong)?;
            if text.is_mail() && rendered.0.is_empty() {
                return Err(wrong("the first line must be \"Subject: ...\"".to_owned()));
            }
        }
        if !directory.is_dir() {
            let why = "is no directory".to_owned();
            return Err(TemplateError { name: directory.display().to_string(), why });
        }
        Ok(templates)
    }

    /// Subject and body; the subject is empty for texts that have none.
    ///
    /// A template that fails with these facts, though it did not with others, is replaced by the built-in one.
    #[must_use]
    pub fn render(&self, text: Text, facts: &Facts) -> (String, String) {
        self.try_render(text, facts).unwrap_or_else(|why| {
            tracing::error!("notice template {}: {why}; the built-in one serves", text.file());
            Self::built_in().try_render(text, facts).unwrap_or_default()
        })
    }

    fn try_render(&self, text: Text, facts: &Facts) -> Result<(String, String), String> {
        let all = self
            .environment
            .get_template(text.file())
            .and_then(|template| template.render(facts.value()))
            .map_err(|error| format!("{error:#}"))?;
        let (subject, body) = match all.strip_prefix("Subject:") {
            Some(rest) if text.is_mail() => rest.split_once('\n').unwrap_or((rest, "")),
            _ => ("", all.as_str()),
        };
        let subject: String = subject.trim().chars().filter(|c| !c.is_control()).collect();
        let mut body = body.trim_matches('\n').to_owned();
        if body.len() > TEXT_MAX {
            body.truncate(body.floor_char_boundary(TEXT_MAX));
            body.push_str("\n[...]");
        }
        body.push('\n');
        Ok((subject.chars().take(SUBJECT_MAX).collect(), body))
    }
}

impl Facts {
    /// The same for a template, under the fields' names.
    fn value(&self) -> Value {
        let found = |f: &Found| {
            context! { what => f.what.as_str(), portion => f.portion.as_str() }
        };
        let findings: Vec<Value> = self.findings.iter().map(found).collect();
        context! {
            gateway => self.gateway.as_str(),
            contact => self.contact.clone(),
            time => self.time.as_str(),
            protocol => self.protocol,
            direction => self.direction,
            kind => self.kind,
            client => self.client.as_str(),
            server => self.server.as_str(),
            user => self.user.clone(),
            sender => self.sender.as_str(),
            recipients => self.recipients.clone(),
            name => self.name.as_str(),
            size => self.size,
            verdict => self.verdict,
            detection => self.detection.as_str(),
            findings => findings,
            done => self.done,
            treated => self.treated.clone(),
            quarantine => self.quarantine.clone(),
            rule => self.rule.as_str(),
            flow_id => self.flow_id.as_str(),
            to => self.to.as_str(),
            suppressed => self.suppressed,
            attached => self.attached,
        }
    }

    /// Facts with which every template is tried.
    fn sample() -> Self {
        Self {
            gateway: "gw.example".to_owned(),
            contact: Some("postmaster@example.com".to_owned()),
            time: "2026-11-22T02:00:00Z".to_owned(),
            protocol: "smtp",
            direction: "inbound",
            kind: "message",
            client: "203.0.113.9".to_owned(),
            server: "192.168.0.25".to_owned(),
            user: Some("alice".to_owned()),
            sender: "mallory@example.net".to_owned(),
            recipients: vec!["bob@example.com".to_owned()],
            name: "invoice.exe".to_owned(),
            size: 4711,
            verdict: "infected",
            detection: "EICAR_Test_File".to_owned(),
            findings: vec![Found {
                what: "EICAR_Test_File".to_owned(),
                portion: "invoice.exe".to_owned(),
            }],
            done: "treated",
            treated: vec!["invoice.exe: removed".to_owned()],
            quarantine: Some("20261122-020000-1f0c59a7".to_owned()),
            rule: "treat[0]".to_owned(),
            flow_id: "1".to_owned(),
            to: "bob@example.com".to_owned(),
            suppressed: 2,
            attached: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_template_can_say_all_there_is_and_nothing() {
        let templates = Templates::built_in();
        for facts in [Facts::sample(), Facts::default()] {
            for (text, file, _) in Text::ALL {
                let (subject, body) = templates.try_render(text, &facts).unwrap();
                assert_eq!(subject.is_empty(), !text.is_mail(), "{file}");
                assert!(!body.trim().is_empty(), "{file}");
                assert!(facts.gateway.is_empty() || !body.contains("\n\n\n"), "{file}: {body}");
            }
        }
        let (subject, body) = templates.render(Text::Admin, &Facts::sample());
        assert_eq!(subject, "vscan: EICAR_Test_File: smtp inbound, treated");
        assert!(body.contains("    Found:      EICAR_Test_File in invoice.exe\n"), "{body}");
    }

    #[test]
    fn names_from_the_wire_are_no_templates_and_no_header_lines() {
        let hostile = "{{ gateway }}\r\nBcc: all@example.com".to_owned();
        let facts = Facts { detection: hostile, ..Facts::sample() };
        let (subject, _) = Templates::built_in().render(Text::Admin, &facts);
        assert!(subject.contains("{{ gateway }}"), "{subject}");
        assert!(!subject.contains(['\r', '\n']), "{subject}");
    }

    #[test]
    fn a_directory_overrides_what_it_has_and_typing_errors_are_found_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("admin.txt");
        std::fs::write(&path, "Subject: mine {{ detection }}\n\nhello {{ gateway }}\n").unwrap();
        let templates = Templates::load(Some(directory.path())).unwrap();
        let rendered = templates.render(Text::Admin, &Facts::sample());
        assert_eq!(rendered, ("mine EICAR_Test_File".to_owned(), "hello gw.example\n".to_owned()));
        assert!(templates.render(Text::Sender, &Facts::sample()).1.contains("Sent by:"));
        for wrong in ["Subject: {{ detectoin }}\n\nx", "Subject: {% if %}\n\nx", "no subject"] {
            std::fs::write(&path, wrong).unwrap();
            let error = Templates::load(Some(directory.path())).unwrap_err().to_string();
            assert!(error.contains("admin.txt"), "{error}");
        }
        assert!(Templates::load(Some(&directory.path().join("none"))).is_err());
    }
}
