//! `build`: the BPF object with its own toolchain, then `vscan` and `vscan-scanner`.

use std::{
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::{Context, Result, bail};

use crate::{
    run::{Cmd, root, target_dir},
    setup::{BpfCompiler, bpf_compiler, bpf_linker},
};

/// What the BPF object is made from; a change in any of them makes it anew.
const SOURCES: &[&str] = &["vscan-ebpf", "vscan-common", "Cargo.toml", "Cargo.lock"];

/// The target whose byte order is the host's; the agent and the programs share memory.
const TARGET: &str =
    if cfg!(target_endian = "big") { "bpfeb-unknown-none" } else { "bpfel-unknown-none" };

/// Builds everything; `no_bpf` leaves the BPF programs out.
pub(crate) fn run(no_bpf: bool) -> Result<()> {
    let object = object();
    if no_bpf {
        if object.exists() {
            fs::remove_file(&object).with_context(|| object.display().to_string())?;
        }
    } else {
        bpf()?;
    }
    Cmd::new("cargo")
        .args(["build", "--release", "--locked"])
        .args(["--package", "vscan-agent", "--package", "vscan-scan", "--bins"])
        .run()?;
    println!("build: {}", target_dir().join("release/vscan").display());
    Ok(())
}

/// Where the agent's build script looks for the BPF object.
fn object() -> PathBuf {
    target_dir().join("bpf/vscan-ebpf")
}

/// Builds the BPF object, unless it is newer than its sources.
pub(crate) fn bpf() -> Result<()> {
    let object = object();
    if up_to_date(&object)? {
        return Ok(());
    }
    let linker = bpf_linker().context("no bpf-linker: run `cargo xtask setup`")?;
    let Some(compiler) = bpf_compiler() else {
        bail!("no compiler for the BPF programs: run `cargo xtask setup`");
    };
    println!("build: BPF programs, by {compiler:?}");
    let arch = std::env::consts::ARCH;
    let cargo = Cmd::new("cargo")
        .args(["build", "--release", "--locked", "--package", "vscan-ebpf", "--bin", "vscan-ebpf"])
        .args(["-Z", "build-std=core", "--target", TARGET])
        .arg("--target-dir")
        .arg(target_dir().join("bpf"))
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &linker)
        .env("CARGO_TARGET_BPFEB_UNKNOWN_NONE_LINKER", &linker)
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            format!("-Cdebuginfo=2\x1f-Clink-arg=--btf\x1f--cfg=bpf_target_arch=\"{arch}\""),
        )
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_TARGET_DIR")
        .env_remove("RUSTC_WRAPPER");
    match compiler {
        BpfCompiler::Nightly => {
            cargo.env_remove("CARGO").env_remove("RUSTC").env("RUSTUP_TOOLCHAIN", "nightly").run()
        }
        // build-std is unstable; the compiler and its library are of one version, so it is safe here
        BpfCompiler::Stable(rustc) => cargo.env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "1").run(),
    }
    .context("the BPF programs could not be built")?;
    let built = target_dir().join("bpf").join(TARGET).join("release/vscan-ebpf");
    // a changed object gets a new time, an unchanged one keeps its readers up to date as well
    fs::copy(&built, &object).with_context(|| built.display().to_string())?;
    Ok(())
}

fn up_to_date(object: &Path) -> Result<bool> {
    let Ok(made) = object.metadata().and_then(|m| m.modified()) else {
        return Ok(false);
    };
    for source in SOURCES {
        if newest(&root().join(source))? > made {
            return Ok(false);
        }
    }
    Ok(true)
}

fn newest(path: &Path) -> Result<SystemTime> {
    let meta = path.metadata().with_context(|| path.display().to_string())?;
    if !meta.is_dir() {
        return Ok(meta.modified()?);
    }
    let mut time = SystemTime::UNIX_EPOCH;
    for entry in fs::read_dir(path).with_context(|| path.display().to_string())? {
        time = time.max(newest(&entry?.path())?);
    }
    Ok(time)
}
