//! Kernel state: BPF programs and maps, the nftables table, rules and routes.

pub mod marks;
