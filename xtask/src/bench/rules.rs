//! The rules against plain yara-x, and the scanner's workers against one of them.
//!
//! The measurements are an example program of `vscan-scan`, which is built here; this file gets what it looks at: a large
//! public rule set, beside the project or named by `VSCAN_MEASURED_RULES`, or made-up rules of the same kinds; and
//! Windows programs out of Debian's packages.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use crate::{
    Output,
    run::{Cmd, root, target_dir},
};

/// What a figure is compared with.
enum Goal {
    /// At least this value.
    Value(f64),
    /// At least this ratio to what stands beside it.
    Ratio(f64),
    /// At most this ratio to what stands beside it.
    Less(f64),
    /// At most this value.
    Most(f64),
}

const BENCHES: [(&str, &str, Goal); 9] = [
    ("literal-filter-10k", "MB/s", Goal::Value(700.0)),
    ("rules-6k-binaries", "MB/s", Goal::Ratio(3.0)),
    ("rules-6k-text", "MB/s", Goal::Ratio(3.0)),
    ("rules-6k-archive", "MB/s", Goal::Ratio(2.0)),
    ("threads-4", "MB/s", Goal::Ratio(2.7)),
    ("large-object-4", "MB/s", Goal::Ratio(2.0)),
    ("last-byte-100m", "s", Goal::Less(0.8)),
    ("rss-6k", "MiB", Goal::Most(250.0)),
    ("hashes-10m", "MiB", Goal::Most(500.0)),
];

/// The names of all of them.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    BENCHES.iter().map(|bench| bench.0)
}

/// The environment variable that names a directory with rules.
const RULES: &str = "VSCAN_MEASURED_RULES";

/// The archive with rules beside the project.
const ARCHIVE: &str = "../shared/data/signature-base-yara.tar.xz";

/// Packages that hold Windows programs.
const PACKAGES: [&str; 3] =
    ["libwine", "gcc-mingw-w64-x86-64-win32-runtime", "binutils-mingw-w64-x86-64"];

/// Runs those that are wanted.
pub(super) fn run(wanted: impl Fn(&str) -> bool, output: Output) -> Result<()> {
    if !names().any(&wanted) {
        return Ok(());
    }
    let work = target_dir().join("bench");
    fs::create_dir_all(&work)?;
    let rules = rules(&work)?;
    let programs = programs(&work)?;
    // Together with the agent, so that nothing is built with other features than the programs were.
    Cmd::new("cargo")
        .args(["build", "--release", "--locked", "--quiet"])
        .args(["--package", "vscan-agent", "--package", "vscan-scan", "--example", "rate"])
        .run()?;
    let release = target_dir().join("release");
    for (name, unit, goal) in BENCHES.iter().filter(|bench| wanted(bench.0)) {
        let said = Cmd::new(release.join("examples/rate"))
            .arg(name)
            .arg(release.join("vscan-scanner"))
            .arg(&rules)
            .arg(&programs)
            .output()
            .context(*name)?;
        let figures: serde_json::Value = serde_json::from_str(said.trim()).context(*name)?;
        let value = figures["value"].as_f64().context("no value")?;
        let baseline = figures["baseline"].as_f64();
        match *goal {
            Goal::Ratio(goal) => super::report(output, name, unit, value, baseline, Some(goal)),
            Goal::Less(goal) => super::report_less(output, name, unit, value, baseline, goal),
            Goal::Most(goal) => super::report_less(output, name, unit, value, baseline, goal),
            Goal::Value(goal) => {
                let figures = [Some(value), baseline, None, Some(goal)];
                super::print(output, name, unit, figures, value < goal);
            }
        }
    }
    Ok(())
}

/// A directory with about 6,000 rules.
fn rules(work: &Path) -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os(RULES) {
        return Ok(dir.into());
    }
    let archive = root().join(ARCHIVE);
    if archive.is_file() {
        let dir = work.join("rules");
        let done = dir.join("yara");
        if !done.is_dir() {
            fs::create_dir_all(&dir)?;
            Cmd::new("tar").arg("-C").arg(&dir).arg("-xJf").arg(&archive).run()?;
        }
        return Ok(done);
    }
    eprintln!("bench: no rule set in {RULES} or {ARCHIVE}: made-up rules instead");
    let dir = work.join("made-up-rules");
    fs::create_dir_all(&dir)?;
    fs::write(dir.join("made-up.yar"), made_up())?;
    Ok(dir)
}

/// Rules in the kinds and shares that public sets have: most with texts behind a magic number and a size, some with
/// bytes, some that ask a module.
fn made_up() -> String {
    let mut state = 1u32;
    let mut next = |most: u32| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) % most
    };
    let mut word = |letters: u32| -> String {
        (0..letters).map(|_| char::from(b'a' + next(26) as u8)).collect()
    };
    let mut text = String::from("import \"pe\"\n");
    for i in 0..6000 {
        let strings: String = (0..5)
            .map(|s| {
                let long = word(if (i + s) % 11 == 0 { 6 } else { 12 });
                match (i + s) % 4 {
                    0 => format!("$s{s} = \"{long}.exe {}\" ascii wide\n", word(4)),
                    1 => format!("$s{s} = \"{long}\" nocase\n"),
                    2 => {
                        let hex: String =
                            long.bytes().map(|b| format!("{:02x} ", b.wrapping_mul(37))).collect();
                        format!("$s{s} = {{ {hex} [2-8] 48 89 }}\n")
                    }
                    _ => format!("$s{s} = /{long}[0-9]{{1,4}}/\n"),
                }
            })
            .collect();
        let condition = match i % 10 {
            0 => format!("uint16(0) == 0x5a4d and pe.imphash() == \"{}\"", word(32)),
            1 => "any of them".to_owned(),
            2 => "uint32(0) == 0x464c457f and 2 of them".to_owned(),
            3 | 4 => "filesize < 300KB and 3 of them".to_owned(),
            _ => "uint16(0) == 0x5a4d and filesize < 2MB and all of them".to_owned(),
        };
        let strings = if i % 10 == 0 { String::new() } else { format!("strings:\n{strings}") };
        text += &format!("rule r{i} {{\n{strings}condition: {condition}\n}}\n");
    }
    text
}

/// A directory below which Windows programs lie.
fn programs(work: &Path) -> Result<PathBuf> {
    let dir = work.join("programs");
    let done = dir.join("usr");
    if done.is_dir() {
        return Ok(dir);
    }
    let packages = work.join("packages");
    fs::create_dir_all(&packages)?;
    // A name of its own for what is not whole yet.
    let unpacked = work.join("programs.new");
    for package in PACKAGES {
        Cmd::new("sh")
            .args(["-c", "cd \"$0\" && apt-get -q download \"$1\" >&2"])
            .arg(&packages)
            .arg(package)
            .output()?;
        let found =
            fs::read_dir(&packages)?.filter_map(|entry| Some(entry.ok()?.path())).find(|path| {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                name.starts_with(&format!("{package}_")) && name.ends_with(".deb")
            });
        let deb = found.with_context(|| format!("apt-get has no {package}"))?;
        Cmd::new("dpkg").arg("-x").arg(&deb).arg(&unpacked).run()?;
    }
    fs::rename(&unpacked, &dir)?;
    ensure!(done.is_dir(), "the packages hold nothing");
    Ok(dir)
}
