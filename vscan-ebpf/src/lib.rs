//! The arithmetic of the BPF programs, which builds and is tested on the host too.
#![cfg_attr(target_arch = "bpf", no_std)]
