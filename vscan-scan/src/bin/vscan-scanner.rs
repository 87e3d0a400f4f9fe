//! The scanner process: zygote and workers.
fn main() {}
