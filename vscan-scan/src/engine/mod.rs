//! Engines: what tells infected bytes from others. One so far, [`yara`]; each implements [`crate::object::Engine`].

pub mod yara;
