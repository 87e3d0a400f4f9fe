//! The driver on real sockets, in one process.
