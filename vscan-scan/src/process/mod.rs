//! The scanner process: a zygote that loads the rules, and the workers that it forks.
//!
//! [`zygote`] is the parent and never reads an object; [`worker`] reads objects and nothing else, with the threads of its
//! [`crew`]; [`sandbox`] is what takes their rights away. The system calls past safe wrappers are in [`sys`].

pub mod crew;
pub mod sandbox;
#[expect(
    unsafe_code,
    reason = "the one module of the crate that calls the kernel past safe wrappers"
)]
pub mod sys;
pub mod worker;
pub mod zygote;
