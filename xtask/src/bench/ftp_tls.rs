//! FTPS that is opened: a file of 1 GiB over PROT P, of a type that is not scanned, so that its bytes are decrypted,
//! encrypted again, and nothing else.
//!
//! Client and server are real ones, curl and vsftpd, in both labs. They share the machine's cores with the gateway, which
//! does as much cryptography as both of them together.

use super::{LARGE, LARGE_BYTES, MEGABYTES, median, report, settings};
use crate::Output;
use anyhow::{Context, Result, ensure};
use vscan_tests::{
    agent::Vscan,
    ftps::Ftps,
    lab::{Lab, Topology},
    peers::Vsftpd,
};

/// Its name.
pub(super) const NAMES: [&str; 1] = ["ftp-tls-1g"];

/// The ratio to reach.
const GOAL: f64 = 0.5;

/// Rounds of each side; each takes some seconds.
const ROUNDS: usize = 5;

pub(super) fn run(wanted: impl Fn(&str) -> bool, output: Output) -> Result<()> {
    let [name] = NAMES;
    if !wanted(name) {
        return Ok(());
    }
    let labs = [Lab::new(Topology::Plain)?, Lab::new(Topology::Plain)?];
    let (first, second) = (Ftps::new(&labs[0])?, Ftps::new(&labs[1])?);
    let _servers = [serve(&labs[0], &first)?, serve(&labs[1], &second)?];
    let settings = settings().with("ftp", "tls = \"terminate\"").with("", &first.settings());
    let vscan = Vscan::start(&labs[0], &settings)?;
    let mut rates = [Vec::new(), Vec::new()];
    for lab in &labs {
        download(lab)?;
    }
    for round in 0..ROUNDS {
        for turn in [round % 2, 1 - round % 2] {
            rates[turn].push(download(&labs[turn])?);
        }
    }
    // What is measured is what was opened.
    let opened =
        vscan.metrics()?.sum("vscan_objects_uninspected_total", &[("reason", "excluded_type")]);
    ensure!(opened >= ROUNDS as f64, "{opened} transfers were relayed");
    let [value, baseline] = rates.map(median);
    report(output, name, MEGABYTES, value, Some(baseline), Some(GOAL));
    Ok(())
}

/// Files in memory, as for the other benches.
fn serve(lab: &Lab, pki: &Ftps) -> Result<Vsftpd> {
    let quiet = "xferlog_enable=NO\nlog_ftp_protocol=NO\nsyslog_enable=NO\n";
    let server = pki.vsftpd(lab.server(), 21, quiet)?;
    let files = server.files().display();
    lab.server().sh(&format!(
        "mount -t tmpfs -o mode=777 tmpfs {files}; truncate -s {LARGE_BYTES} {files}/{LARGE}; \
         chmod 644 {files}/*"
    ))?;
    Ok(server)
}

/// Megabytes per second.
fn download(lab: &Lab) -> Result<f64> {
    let url = format!("ftp://server.example/{LARGE}");
    let speed = "%{size_download} %{speed_download}";
    let said = lab.client().run([
        "curl",
        "-sSk",
        "-4",
        "-u",
        "alice:secret",
        "--ssl-reqd",
        "-o",
        "/dev/null",
        "-w",
        speed,
        &url,
    ])?;
    ensure!(said.success(), "{said:?}");
    let (size, speed) = said.out.trim().split_once(' ').context("no speed")?;
    ensure!(size.parse::<u64>()? == LARGE_BYTES, "{size} bytes");
    Ok(speed.parse::<f64>()? * 1e-6)
}
