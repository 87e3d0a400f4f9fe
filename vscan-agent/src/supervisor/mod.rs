//! Starts and watches gateway and scanner.

pub mod privileges;
