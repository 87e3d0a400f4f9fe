//! Embeds the BPF object that `cargo xtask build` made into `target/bpf`, if there is one.

use std::{
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let object = object(&out);
    // an absent file would make cargo build the agent anew each time: an empty one says the same
    if !object.exists() {
        if let Some(dir) = object.parent() {
            fs::create_dir_all(dir)?;
        }
        fs::File::create(&object)?.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1))?;
    }
    println!("cargo::rerun-if-changed={}", object.display());
    let bytes = fs::read(&object)?;
    let source = if bytes.is_empty() {
        println!(
            "cargo::warning=built without its BPF programs, steering by nftables alone: \
             `cargo xtask build` builds both"
        );
        "pub(super) const OBJECT: Option<&[u8]> = None;\n".to_owned()
    } else {
        // a copy: the object may be rebuilt while the agent is compiled
        let copy = out.join("vscan-ebpf");
        fs::write(&copy, bytes)?;
        format!(
            "static BYTES: &[u8] = ::aya::include_bytes_aligned!({copy:?});\n\
             pub(super) const OBJECT: Option<&[u8]> = Some(BYTES);\n"
        )
    };
    fs::write(out.join("object.rs"), source)?;
    Ok(())
}

/// `target/bpf/vscan-ebpf`: beside the first directory above `OUT_DIR` that has one, else in the target directory.
fn object(out: &Path) -> PathBuf {
    let name = Path::new("bpf/vscan-ebpf");
    // target[/TRIPLE]/PROFILE/build/PACKAGE/out
    let candidates: Vec<PathBuf> =
        out.ancestors().skip(4).take(2).map(|dir| dir.join(name)).collect();
    candidates.iter().find(|path| path.exists()).unwrap_or(&candidates[0]).clone()
}
