//! The BPF programs; on the host this is an empty program.
//!
//! One run a packet, on tcx or clsact ingress of the guarded interfaces: clears our mark bits, leaves at once for ports
//! that are not ours, counts, and decides about SYNs. It steers nothing: it marks, and nftables goes by the mark.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
mod programs;
