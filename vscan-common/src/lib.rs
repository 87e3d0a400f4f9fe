//! What the BPF programs and the agent share: map keys and values, ring-buffer events.
//!
//! Nothing here allocates, and every type is `repr(C)` without padding, so that both sides read the same bytes.
#![no_std]
