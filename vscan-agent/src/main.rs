//! The program `vscan`.
fn main() {}
