//! `vscan run`: sets up kernel state, starts and watches gateway and scanner, restarts them.

pub mod channel;
pub mod gateway;
pub mod privileges;
