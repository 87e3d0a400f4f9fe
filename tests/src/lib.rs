//! The lab of the end-to-end tests: namespaces, links, real servers and clients.
