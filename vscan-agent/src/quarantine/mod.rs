//! Where blocked objects are kept.
