//! System calls that may wait for a disk, made from a session's task.

use tokio::runtime::{Handle, RuntimeFlavor};

/// Runs `work`, which may block, without holding up the other sessions of this thread.
pub fn in_place<T>(work: impl FnOnce() -> T) -> T {
    let many = Handle::try_current()
        .is_ok_and(|handle| handle.runtime_flavor() == RuntimeFlavor::MultiThread);
    if many { tokio::task::block_in_place(work) } else { work() }
}
