//! Sockets as a transparent proxy needs them: foreign addresses, marks, resets, splice, descriptors.
//!
//! No protocol and no policy lives here. Kernel interfaces: ip(7) `IP_TRANSPARENT`, socket(7) `SO_MARK`
//! and `SO_LINGER`, splice(2), unix(7) `SCM_RIGHTS`.

pub mod close;
pub mod relay;
pub mod seqpacket;
pub mod transparent;

pub use close::{abort, close_gracefully, keep_alive};
pub use seqpacket::Seqpacket;
pub use transparent::{
    DataListener, Dialling, connect_from, dial_upstream, original_destination, tproxy_listener,
};
