//! The configuration file, parsed into types that cannot be wrong.
