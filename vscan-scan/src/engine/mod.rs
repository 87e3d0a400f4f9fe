//! Engines: what tells infected bytes from others. One so far, [`yara`]; each implements [`crate::object::Engine`].
//!
//! In front of the rules stand a [literal filter](filter) and a [plan] of when which of them run.

pub mod filter;
pub mod needle;
pub mod plan;
pub mod yara;
