//! The scanner process: a zygote that loads the rules, and the workers that it forks.
//!
//! [`zygote`] is the parent and never reads an object; [`worker`] reads objects and nothing else;
//! [`sandbox`] is what takes their rights away. All unsafe code of this crate is in [`sys`].

pub mod sandbox;
#[expect(
    unsafe_code,
    reason = "the one module of the crate that calls the kernel past safe wrappers"
)]
pub mod sys;
pub mod worker;
pub mod zygote;
