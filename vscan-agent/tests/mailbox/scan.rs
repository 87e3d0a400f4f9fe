//! What a look at a folder leaves behind, what it remembers, and replacements that break off at every point: the same on
//! Dovecot and Cyrus.

use crate::stage::*;
use anyhow::{Context, Result, ensure};
use std::time::Duration;
use vscan_agent::mailbox::{
    buffer::Replacement,
    connection::Error,
    folder::{Store, Summary, Uid},
    login::{Login, Mechanism, Secret},
    name::FolderName,
    pass::Scope,
    replace::{self, Place, TOKEN_FIELD},
};
use vscan_proto::imap::Flag;

#[test]
fn a_look_leaves_no_trace_and_is_not_repeated() -> Result<()> {
    on_both(|stage| async move {
        let mut connection = connect("ann").await?;
        let keyword = Flag::new("Keyword").unwrap();
        let sets: [Vec<Flag>; 6] = [
            vec![],
            vec![flag("Answered")],
            vec![flag("Flagged"), flag("Draft")],
            vec![keyword],
            vec![Flag::seen()],
            vec![Flag::deleted()],
        ];
        for (n, flags) in sets.into_iter().enumerate() {
            let message = mail(&format!("clean-{n}"), &"x".repeat(n * 700_000));
            connection.append(&inbox(), &flags, DATE, message.into()).await?;
        }
        let before = snapshot("ann", &inbox()).await?;
        let mut judge = BySubject::default();
        let tally = look(&stage, scope(), &mut judge).await?;
        assert_eq!(judge.seen, ["clean-0", "clean-1", "clean-2", "clean-3"], "unread, not deleted");
        assert!(judge.bytes[3] > 2_100_000, "{:?}", judge.bytes);
        assert_eq!((tally.messages, tally.scanned, tally.found), (6, 4, 0));
        assert_eq!(snapshot("ann", &inbox()).await?, before);
        // Nothing is fetched twice, also not when something else has changed.
        connection.append(&inbox(), &[], None, mail("clean-new", "").into()).await?;
        let mut judge = BySubject::default();
        look(&stage, scope(), &mut judge).await?;
        assert_eq!(judge.seen, ["clean-new"]);
        // What its reader has read meanwhile leaves the buffer.
        connection.select(&inbox()).await?;
        connection.store(before[0].uid, Store::Add, &[Flag::seen()]).await?;
        look(&stage, scope(), &mut BySubject::default()).await?;
        assert_eq!(stage.buffer.len("ann")?, 4);
        Ok(())
    })
}

#[test]
fn treatments_keep_flags_and_date_and_touch_nothing_else() -> Result<()> {
    on_both(|stage| async move {
        let mut connection = connect("ann").await?;
        let flags = vec![flag("Flagged"), Flag::new("Important").unwrap()];
        for subject in ["clean-1", "replace-1", "remove-1", "move-1", "clean-2"] {
            let message = mail(subject, "body");
            connection.append(&inbox(), &flags, DATE, message.into()).await?;
        }
        connection.append(&inbox(), &[Flag::deleted()], None, mail("deleted", "").into()).await?;
        let before = snapshot("ann", &inbox()).await?;
        let mut judge = BySubject::default();
        let dry = look(&stage, Scope { dry_run: true, ..scope() }, &mut judge).await?;
        assert_eq!((dry.found, dry.treated), (3, 0));
        assert_eq!(snapshot("ann", &inbox()).await?, before);
        let mut judge = BySubject::default();
        let tally = look(&stage, Scope { anew: true, ..scope() }, &mut judge).await?;
        assert_eq!((tally.found, tally.treated), (3, 3), "{:?}", judge.failures);
        let after = snapshot("ann", &inbox()).await?;
        let subjects: Vec<String> = after.iter().map(subject).collect();
        assert_eq!(subjects, ["clean-1", "clean-2", "deleted", "treated"]);
        // Whoever opens a folder to change it takes \Recent from its messages; all else stays.
        let untouched = [&before[0], &before[4], &before[5]];
        let untouched = untouched.map(|summary| Summary { recent: false, ..summary.clone() });
        assert_eq!(after[..3], untouched);
        assert_eq!((&after[3].flags, &after[3].date), (&before[1].flags, &before[1].date));
        let moved = snapshot("ann", &FolderName::from_unicode("Quarantäne")).await?;
        assert_eq!(moved.iter().map(subject).collect::<Vec<_>>(), ["move-1"]);
        assert!(stage.buffer.pending("ann")?.is_empty());
        // The treated message is known, and not judged again.
        let mut judge = BySubject::default();
        look(&stage, scope(), &mut judge).await?;
        assert!(judge.seen.is_empty(), "{:?}", judge.seen);
        Ok(())
    })
}

#[test]
fn after_a_crash_at_any_point_exactly_one_version_is_left() -> Result<()> {
    on_both(|stage| async move {
        let folder = inbox();
        let mut connection = connect("ann").await?;
        // What the server has, and whether the journal knows the new message, at the moment of the crash.
        for (round, (appended, told, removed)) in
            [(false, false, false), (true, false, false), (true, true, false), (true, true, true)]
                .into_iter()
                .enumerate()
        {
            let validity = connection.select(&folder).await?.uid_validity.context("validity")?;
            let old = connection.append(&folder, &[], None, mail("old", "").into()).await?;
            let old = old.context("no UIDPLUS")?;
            let token = format!("token-{round}");
            let mut message = format!("{TOKEN_FIELD}: {token}\r\n").into_bytes();
            message.extend(mail("new", ""));
            let mut new = None;
            if appended {
                new = connection.append(&folder, &[], None, message.clone().into()).await?;
            }
            if removed {
                connection.remove(old).await?;
            }
            let replacement = Replacement {
                folder: "INBOX".to_owned(),
                uid_validity: validity.get(),
                old: old.get(),
                token,
                new: new.filter(|_| told).map(Uid::get),
            };
            stage.buffer.journal("ann", u64::from(old.get()), &replacement)?;
            let mut completed = 0;
            replace::resume(&mut connection, &stage.buffer, "ann", |_| completed += 1).await?;
            assert_eq!(completed, usize::from(appended), "round {round}");
            let left = snapshot("ann", &folder).await?;
            let expected = if appended { "new" } else { "old" };
            assert_eq!(left.iter().map(subject).collect::<Vec<_>>(), [expected], "round {round}");
            assert!(stage.buffer.pending("ann")?.is_empty());
            connection.select(&folder).await?;
            connection.remove(left[0].uid).await?;
        }
        // And without a crash.
        let old = connection.append(&folder, &[], None, mail("old", "").into()).await?;
        let validity = connection.select(&folder).await?.uid_validity.context("validity")?;
        let summaries = connection.summaries(&[old.context("uid")?], true, false).await?;
        let place = Place { account: "ann", folder: &folder, validity };
        let message = [format!("{TOKEN_FIELD}: t\r\n").into_bytes(), mail("new", "")].concat();
        replace::replace(&mut connection, &stage.buffer, place, &summaries[0], "t", message.into())
            .await?;
        let left = snapshot("ann", &folder).await?;
        assert_eq!(left.iter().map(subject).collect::<Vec<_>>(), ["new"]);
        Ok(())
    })
}

#[test]
fn new_rules_and_new_identifiers_and_failures() -> Result<()> {
    on_both(|stage| async move {
        let mut connection = connect("ann").await?;
        for n in 0..5 {
            let message = mail(&format!("clean-{n}"), "");
            connection.append(&inbox(), &[], None, message.into()).await?;
        }
        connection.append(&inbox(), &[], None, mail("fail-0", "").into()).await?;
        let rescan = Scope { rescan_age: Some(3600), remember_read: true, ..scope() };
        let mut judge = BySubject::default();
        for _ in 0..5 {
            look(&stage, rescan, &mut judge).await?;
        }
        assert_eq!(judge.seen.iter().filter(|s| *s == "fail-0").count(), 3, "{:?}", judge.seen);
        assert_eq!(judge.seen.len(), 5 + 3);
        // New rules: the youngest first, as many as the throttle allows.
        let mut judge = BySubject { rules: 1, rescans: 2, ..BySubject::default() };
        let tally = look(&stage, rescan, &mut judge).await?;
        assert_eq!(
            (judge.seen.as_slice(), tally.backlog),
            (&["fail-0".to_owned(), "clean-4".to_owned()][..], 4)
        );
        for _ in 0..3 {
            look(&stage, rescan, &mut judge).await?;
        }
        // On which the scanner fails is tried three times by the new rules too.
        assert_eq!(judge.seen.len(), 5 + 3, "{:?}", judge.seen);
        Ok(())
    })
}

#[test]
fn logins_of_an_administrator_and_refusals() -> Result<()> {
    on_both(|_stage| async move {
        let login = |on_behalf_of: &str, user: &str, password: &str| Login::Password {
            mechanism: Mechanism::Any,
            on_behalf_of: on_behalf_of.to_owned(),
            user: user.to_owned(),
            password: Secret::new(password.to_owned()),
        };
        let mut connection = open(login("carol", "admin", "master")).await?;
        connection.append(&inbox(), &[], None, mail("hello", "").into()).await?;
        assert_eq!(snapshot("carol", &inbox()).await?.len(), 1);
        assert!(matches!(open(login("", "ann", "wrong")).await, Err(Error::Login(_))));
        let missing = connection.examine(&FolderName::from_unicode("nowhere")).await;
        assert!(matches!(missing, Err(Error::No { .. })), "{missing:?}");
        // The connection goes on.
        assert_eq!(connection.examine(&inbox()).await?.exists, 1);
        // New mail ends an IDLE.
        let other = tokio::spawn(async {
            let mut other = connect("carol").await?;
            other.append(&inbox(), &[], None, mail("second", "").into()).await?;
            anyhow::Ok(())
        });
        ensure!(connection.idle(Duration::from_secs(30)).await?, "nothing was told");
        other.await??;
        assert!(!connection.idle(Duration::from_millis(50)).await?);
        assert_eq!(connection.examine(&inbox()).await?.exists, 2);
        connection.log_out().await;
        Ok(())
    })
}
