//! Transparent sockets and splice.
