//! The arithmetic of the BPF programs, which builds and is tested on the host too.
//!
//! Nothing here touches a map or a helper: that is `main.rs`, which builds for BPF alone.
#![cfg_attr(target_arch = "bpf", no_std)]

pub mod account;
pub mod decide;
pub mod parse;
