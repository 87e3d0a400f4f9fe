//! The client of clamd against a real one: all ways to it, its limits, and its end in every moment.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use anyhow::{Result, ensure};
use rustix::process::Signal;
use std::cell::Cell;
use std::fs::{self, File};
use std::num::NonZeroUsize;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use vscan_agent::clamd::{Clamd, Counters, Outcome};
use vscan_agent::config::{self, ClamdAddress, ClamdLarger, ClamdMode};
use vscan_agent::spool::Object;
use vscan_scan::report::Reason;
use vscan_tests::host::{Host, LabDir};
use vscan_tests::peers::{self, CLAMD_NAME, CLAMD_ONLY, CLAMD_STREAM_MAX};

fn config(address: ClamdAddress, mode: ClamdMode) -> config::Clamd {
    config::Clamd {
        address,
        mode,
        deadline: Duration::from_secs(20),
        connections: NonZeroUsize::new(4).unwrap(),
        size_max: 64 << 20,
        larger: ClamdLarger::Unscannable,
        ignore: Vec::new(),
    }
}

fn object(dir: &Path, bytes: &[u8]) -> Object {
    let path = dir.join("object");
    fs::write(&path, bytes).unwrap();
    Object::of_file(File::open(path).unwrap()).unwrap()
}

/// Bytes that take clamd a while: many small members.
fn slow() -> Vec<u8> {
    let mut tar = Vec::new();
    let mut builder = tar::Builder::new(&mut tar);
    for n in 0..8000 {
        let text = format!("{n} ").repeat(300);
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_cksum();
        builder.append_data(&mut header, format!("{n}.html"), text.as_bytes()).unwrap();
    }
    builder.finish().unwrap();
    drop(builder);
    tar
}

/// Ends of connections at a Unix socket of this namespace, its listener and those that nobody has accepted included.
fn connections(socket: &Path) -> Result<usize> {
    let table = fs::read_to_string("/proc/thread-self/net/unix")?;
    let path = socket.to_string_lossy();
    Ok(table.lines().filter(|line| line.ends_with(&*path)).count())
}

fn beside_clamd(
    work: impl AsyncFnOnce(&mut peers::Clamd, &Host, &Path) -> Result<()> + Send,
) -> Result<()> {
    let lab = LabDir::new()?;
    let host = Host::new("av", &lab, "")?;
    host.sh("ip link set lo up")?;
    let mut clamd = peers::Clamd::start(&host)?;
    host.within(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(work(&mut clamd, &host, lab.path()))
    })
}

#[test]
fn every_way_leads_to_the_same_verdict() -> Result<()> {
    beside_clamd(async |server, _, dir| {
        let unix = || ClamdAddress::Unix(server.socket());
        let tcp = || ClamdAddress::Tcp(format!("127.0.0.1:{}", peers::Clamd::PORT));
        let counters = Counters::new()?;
        let mut asked = 0;
        for (address, mode) in [
            (unix(), ClamdMode::Auto),
            (unix(), ClamdMode::Fildes),
            (unix(), ClamdMode::Instream),
            (tcp(), ClamdMode::Auto),
            (tcp(), ClamdMode::Instream),
        ] {
            let clamd = Clamd::new(config(address, mode), Some(counters.clone()));
            for size in [0, 1, 65_535, 65_536, 65_537, 1 << 20] {
                let clean = object(dir, &vec![b'y'; size]);
                let outcome = clamd.scan(&clean).await;
                ensure!(matches!(outcome, Outcome::Clean), "{mode} {size}: {outcome:?}");
                let infected = object(dir, &[&vec![b'y'; size][..], CLAMD_ONLY].concat());
                let outcome = clamd.scan(&infected).await;
                ensure!(
                    matches!(&outcome, Outcome::Infected(name) if name == CLAMD_NAME),
                    "{mode} {size}: {outcome:?}"
                );
                asked += 1;
            }
            let identity = clamd.identity().unwrap_or_default();
            ensure!(identity.starts_with("ClamAV 1."), "{identity}");
        }
        let counted = |result| counters.requests.with_label_values(&[result]).get();
        ensure!((counted("clean"), counted("infected")) == (asked, asked));
        ensure!(counters.seconds.get_sample_count() == 2 * asked && counters.up.get() == 1);
        Ok(())
    })
}

#[test]
fn limits_and_encryption_are_unscannable() -> Result<()> {
    beside_clamd(async |server, _, dir| {
        let stream =
            Clamd::new(config(ClamdAddress::Unix(server.socket()), ClamdMode::Instream), None);
        for more in [1, 3 << 20] {
            let large = object(dir, &vec![b'z'; usize::try_from(CLAMD_STREAM_MAX + more)?]);
            let outcome = stream.scan(&large).await;
            ensure!(matches!(outcome, Outcome::Unscannable(Reason::Size, _)), "{outcome:?}");
        }
        let whole = object(dir, &vec![b'z'; usize::try_from(CLAMD_STREAM_MAX)?]);
        ensure!(matches!(stream.scan(&whole).await, Outcome::Clean));

        fs::write(dir.join("secret.txt"), "secret")?;
        let made = Command::new("python3").arg("-c").arg(ENCRYPTED).current_dir(dir).status()?;
        ensure!(made.success());
        let zip = Object::of_file(File::open(dir.join("secret.zip"))?)?;
        for mode in [ClamdMode::Fildes, ClamdMode::Instream] {
            let clamd = Clamd::new(config(ClamdAddress::Unix(server.socket()), mode), None);
            let outcome = clamd.scan(&zip).await;
            ensure!(matches!(outcome, Outcome::Unscannable(Reason::Encrypted, _)), "{outcome:?}");
        }
        Ok(())
    })
}

/// A zip whose only member says that it is encrypted: bit 0 of both flag fields (APPNOTE 4.4.4).
const ENCRYPTED: &str = "
import zipfile
with zipfile.ZipFile('secret.zip', 'w') as z: z.write('secret.txt')
b = bytearray(open('secret.zip', 'rb').read())
b[6] |= 1
b[b.index(b'PK\\x01\\x02') + 8] |= 1
open('secret.zip', 'wb').write(b)
";

#[test]
fn a_clamd_that_is_killed_or_hangs_is_an_error_and_serves_again() -> Result<()> {
    beside_clamd(async |server, host, dir| {
        let slow = object(dir, &slow());
        let mut config = config(ClamdAddress::Unix(server.socket()), ClamdMode::Fildes);
        config.deadline = Duration::from_secs(3);
        let clamd = Clamd::new(config, None);
        clamd.version().await?;

        // hung: stopped before the question
        server.process().signal(Signal::STOP);
        let started = Instant::now();
        let outcome = clamd.scan(&slow).await;
        ensure!(matches!(outcome, Outcome::Failed(_)), "{outcome:?}");
        ensure!(started.elapsed() < Duration::from_secs(5));

        // killed in mid-scan: the question lies in its socket, and it can only end
        let before = connections(&server.socket())?;
        let killed = Cell::new(false);
        let asking = async {
            loop {
                let outcome = clamd.scan(&slow).await;
                if killed.get() {
                    break outcome;
                }
                // What came of the first question is still believed.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let (outcome, seen) = tokio::join!(asking, async {
            let until = Instant::now() + Duration::from_secs(10);
            loop {
                let seen = connections(&server.socket()).is_ok_and(|now| now > before);
                if seen || Instant::now() > until {
                    server.process().signal(Signal::KILL);
                    killed.set(true);
                    break seen;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        ensure!(seen, "it was never asked");
        ensure!(matches!(outcome, Outcome::Failed(_)), "{outcome:?}");
        server.process().wait(Duration::from_secs(10))?;
        // What came of the last question is believed for half a second.
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            let outcome = clamd.scan(&slow).await;
            ensure!(matches!(outcome, Outcome::Failed(_)), "{outcome:?}");
            let error = clamd.status().error.unwrap_or_default();
            if error.starts_with("cannot be reached") {
                break;
            }
            ensure!(Instant::now() < until, "{error}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        ensure!(clamd.identity().is_none(), "nobody knows what will answer next");

        server.restart(host)?;
        let found = object(dir, CLAMD_ONLY);
        // What failed is believed for half a second.
        let until = Instant::now() + Duration::from_secs(10);
        while !matches!(clamd.scan(&found).await, Outcome::Infected(_)) {
            ensure!(Instant::now() < until, "{:?}", clamd.status());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        ensure!(clamd.status().error.is_none() && clamd.status().failures >= 3);
        Ok(())
    })
}
