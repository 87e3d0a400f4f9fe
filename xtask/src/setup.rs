//! `setup`: finds or installs what building, the demo, the tests and the benchmarks need.
//!
//! On Debian and Ubuntu packages come by apt, without starting a service; elsewhere it names what
//! is missing. It can be run again at any time: what is there is left alone.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::run::{Cmd, target_dir, which};

/// A Debian package, and how its absence shows elsewhere.
#[derive(Debug)]
pub(crate) struct Need {
    /// The Debian package.
    pub(crate) package: &'static str,
    /// A program of it, looked for where there is no dpkg; empty: cannot be told.
    pub(crate) program: &'static str,
    /// What it is for.
    pub(crate) purpose: &'static str,
}

/// Building and running vscan.
const BASE: &[Need] = &[
    Need { package: "gcc", program: "cc", purpose: "linking" },
    Need { package: "libc6-dev", program: "", purpose: "linking" },
    Need { package: "libarchive-dev", program: "", purpose: "reading RAR archives" },
    Need { package: "nftables", program: "nft", purpose: "steering" },
    Need { package: "iproute2", program: "ip", purpose: "the namespaces of the tests" },
];

/// A compiler for the BPF programs, where rustup has no nightly with rust-src.
const BPF_COMPILER: &[Need] = &[
    Need { package: "rustc-web", program: "", purpose: "compiling the BPF programs" },
    Need { package: "rust-web-src", program: "", purpose: "the core library of the BPF programs" },
];

/// Building bpf-linker.
const BPF_LINKER: &[Need] = &[
    Need { package: "llvm-22-dev", program: "llvm-config-22", purpose: "bpf-linker" },
    Need { package: "libpolly-22-dev", program: "", purpose: "bpf-linker" },
    Need { package: "libclang-rt-22-dev", program: "", purpose: "bpf-linker" },
    Need { package: "g++", program: "c++", purpose: "bpf-linker" },
    Need { package: "zlib1g-dev", program: "", purpose: "bpf-linker" },
];

/// Files that the scanner's tests open.
const SAMPLES: &[Need] =
    &[Need { package: "clamav-testfiles", program: "", purpose: "containers for the tests" }];

/// What the benchmarks look with.
const TOOLS: &[Need] =
    &[Need { package: "strace", program: "strace", purpose: "counting copies in the benchmarks" }];

/// The version of bpf-linker that is built, and the LLVM it is built against.
const BPF_LINKER_VERSION: &str = "0.13.0";
/// Where Debian puts that LLVM.
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";

/// Where the tools that setup builds are.
fn tools() -> PathBuf {
    target_dir().join("tools")
}

/// The linker of the BPF programs: built by setup, or found on `PATH`.
pub(crate) fn bpf_linker() -> Option<PathBuf> {
    let own = tools().join("bin/bpf-linker");
    if own.is_file() { Some(own) } else { which("bpf-linker") }
}

/// A toolchain that can compile for BPF, which has no precompiled core library.
#[derive(Debug)]
pub(crate) enum BpfCompiler {
    /// rustup's nightly, with rust-src.
    Nightly,
    /// A stable compiler that has the source of its core library beside it.
    Stable(PathBuf),
}

/// The toolchain for the BPF programs, if there is one.
pub(crate) fn bpf_compiler() -> Option<BpfCompiler> {
    let has_source = |sysroot: &str| {
        Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/Cargo.toml").is_file()
    };
    let nightly = Cmd::new("rustc").env("RUSTUP_TOOLCHAIN", "nightly").args(["--print", "sysroot"]);
    if which("rustup").is_some() && nightly.output().is_ok_and(|s| has_source(&s)) {
        return Some(BpfCompiler::Nightly);
    }
    let rustc = PathBuf::from("/usr/bin/rustc");
    let stable = Cmd::new(&rustc).args(["--print", "sysroot"]);
    let serves = rustc.is_file()
        && stable.output().is_ok_and(|s| has_source(&s))
        && Cmd::new(&rustc).args(["--version"]).output().is_ok_and(|s| is_new_enough(&s));
    serves.then_some(BpfCompiler::Stable(rustc))
}

/// The oldest stable compiler that serves: what aya-ebpf 0.2 and the language of the programs need.
const BPF_RUSTC: [u32; 2] = [1, 95];

/// Whether `rustc 1.96.0 (...)` is no older than that.
fn is_new_enough(version: &str) -> bool {
    let number = version.split_whitespace().nth(1).unwrap_or_default();
    let parts: Vec<u32> = number.split('.').map_while(|part| part.parse().ok()).collect();
    parts.as_slice() >= BPF_RUSTC.as_slice()
}

/// Brings everything into place; says what it does.
pub(crate) fn run() -> Result<()> {
    install(BASE)?;
    install(SAMPLES)?;
    install(TOOLS)?;
    if bpf_compiler().is_none() {
        // The compiler comes with the security updates: what an old list offers is too old.
        renew(BPF_COMPILER)?;
        if bpf_compiler().is_none() {
            bail!(
                "no compiler for the BPF programs: `rustup toolchain install nightly --component \
                 rust-src`, or build with `cargo xtask build --no-bpf`"
            );
        }
    }
    if bpf_linker().is_none() {
        build_bpf_linker()?;
    }
    crate::demo::setup()?;
    println!("setup: everything is there");
    Ok(())
}

fn build_bpf_linker() -> Result<()> {
    let mut cargo = Cmd::new("cargo")
        .args(["install", "--quiet", "bpf-linker", "--version", BPF_LINKER_VERSION, "--locked"])
        .arg("--root")
        .arg(tools())
        // the workspace's pinned toolchain builds it, for the host, without the caller's flags
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    if dpkg() {
        install(BPF_LINKER)?;
        cargo = cargo
            .args(["--no-default-features", "--features", "llvm-22"])
            .env("LLVM_PREFIX", LLVM_PREFIX);
    }
    println!("setup: building bpf-linker {BPF_LINKER_VERSION} into {}", tools().display());
    cargo.run().context("bpf-linker could not be built")
}

fn dpkg() -> bool {
    which("dpkg-query").is_some() && which("apt-get").is_some()
}

/// Installs the packages that are missing; where there is no apt, names them.
///
/// Their services are not started: a `policy-rc.d` says no while apt runs, unless the machine has
/// one of its own.
pub(crate) fn install(needs: &[Need]) -> Result<()> {
    if !dpkg() {
        let missing: Vec<String> = needs
            .iter()
            .filter(|n| !n.program.is_empty() && which(n.program).is_none())
            .map(|n| format!("{} (Debian: {}), for {}", n.program, n.package, n.purpose))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        bail!("please install:\n  {}", missing.join("\n  "));
    }
    let missing: Vec<&Need> = needs.iter().filter(|n| !installed(n.package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    for need in &missing {
        println!("setup: {} is missing ({})", need.package, need.purpose);
    }
    let packages: Vec<&str> = missing.iter().map(|n| n.package).collect();
    if !is_root() {
        bail!("run as root: apt-get install {}", packages.join(" "));
    }
    let _policy = NoServices::new()?;
    let apt = |update: bool| {
        if update {
            Cmd::new("apt-get").args(["-q", "update"]).run()?;
        }
        apt_install(packages.iter().copied())
    };
    // the lists may be old or absent: refreshed only if they do not serve
    apt(false).or_else(|_| apt(true))
}

/// Installs the packages in their newest version, by lists that are as new.
fn renew(needs: &[Need]) -> Result<()> {
    if dpkg() && is_root() {
        let _policy = NoServices::new()?;
        Cmd::new("apt-get").args(["-q", "update"]).run()?;
        return apt_install(needs.iter().map(|need| need.package));
    }
    install(needs)
}

fn apt_install<'a>(packages: impl Iterator<Item = &'a str>) -> Result<()> {
    Cmd::new("apt-get")
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args(["-q", "install", "-y", "--no-install-recommends"])
        .args(packages)
        .run()
}

fn installed(package: &str) -> bool {
    Command::new("dpkg-query")
        .args(["-W", "-f", "${db:Status-Status}", package])
        .stderr(Stdio::null())
        .output()
        .is_ok_and(|o| o.status.success() && o.stdout.starts_with(b"installed"))
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|o| o.stdout.trim_ascii() == b"0")
}

/// Keeps apt from starting services, for as long as it lives.
struct NoServices {
    ours: bool,
}

/// invoke-rc.d asks this program; 101 means "not allowed".
const POLICY: &str = "/usr/sbin/policy-rc.d";

impl NoServices {
    fn new() -> Result<Self> {
        if Path::new(POLICY).exists() {
            return Ok(Self { ours: false });
        }
        fs::write(POLICY, "#!/bin/sh\nexit 101\n").context(POLICY)?;
        fs::set_permissions(POLICY, fs::Permissions::from_mode(0o755)).context(POLICY)?;
        Ok(Self { ours: true })
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours {
            let _ = fs::remove_file(POLICY);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::is_new_enough;

    #[test]
    fn versions_are_numbers() {
        for (version, serves) in [
            ("rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)", true),
            ("rustc 1.95.0", true),
            ("rustc 1.100.0-nightly", true),
            ("rustc 2.0.0", true),
            ("rustc 1.85.0 (4d91de4e4 2025-02-17)", false),
            ("rustc 1.9.5", false),
            ("", false),
        ] {
            assert_eq!(is_new_enough(version), serves, "{version}");
        }
    }
}
